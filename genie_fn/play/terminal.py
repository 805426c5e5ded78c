"""Playing in a true-colour terminal: half blocks for pixels, the keyboard for actions.

What a key means and what a command does to a session are pure functions; `play` alone touches the terminal.
"""

import contextlib
import os
import re
import select
import signal
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.color import Color
from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text
from torch import Tensor

from genie_fn import random, tree, world
from genie_fn.dynamics import SampleConfig
from genie_fn.errors import UserError
from genie_fn.world import Programs, State, World

CONTROLS = {"p": "run", "u": "rewind", "r": "reset", "q": "quit"}
ACTION_KEYS = "".join(
    key for key in string.digits[1:] + string.ascii_lowercase if key not in CONTROLS
)
REAL_KEYS = {
    "\x1b[A": "UP",
    "\x1b[B": "DOWN",
    "\x1b[C": "RIGHT",
    "\x1b[D": "LEFT",
    " ": "UP",
}  # up is the jump
REAL_KEYS |= {
    key.replace("[", "O"): name for key, name in REAL_KEYS.items()
}  # some terminals, some modes
KEY = re.compile(
    r"\x1b(?:[\[O][0-9;]*[A-Za-z~])?|.", re.DOTALL
)  # so that no end of a longer sequence counts as a key
MEMORY = 512 << 20  # bytes of states to keep for going back
FPS = 15


class Command(NamedTuple):
    """`act` (with `action`), `run`, `rewind`, `reset` or `quit`."""

    kind: str
    action: int = 0


class Moment(NamedTuple):
    """One frame of a session, and the state from which the next one is dreamed."""

    frame: int  # 0 is the start
    action: int | None  # that led to it
    pixels: np.ndarray  # (H, W, 3) uint8
    state: State


class Session(NamedTuple):
    """The start, the last moments up to the present one, and whether time runs, with which action held."""

    start: Moment
    moments: tuple[Moment, ...]
    held: int = 0
    running: bool = False
    quit: bool = False


Dream = Callable[[Moment, int], Moment]  # the moment that an action leads to


def bindings(actions: int, real: Mapping[str, int] | None = None) -> dict[str, Command]:
    """What each key does. With `real`, the world's action for the name of a real one, arrows and space act, too."""
    keys = {
        key: Command("act", action)
        for action, key in zip(range(actions), ACTION_KEYS, strict=False)
    }
    known = {
        "UP" if name.upper() == "JUMP" else name.upper(): action
        for name, action in (real or {}).items()
    }
    keys |= {key: Command("act", known[name]) for key, name in REAL_KEYS.items() if name in known}
    return keys | {key: Command(kind) for key, kind in CONTROLS.items()}


def commands(typed: str, keys: dict[str, Command]) -> list[Command]:
    """What was typed since the last look. Of an action's key held down one press counts, or frames would lag behind."""
    meant = [keys[key] for key in KEY.findall(typed) if key in keys]
    return [
        new
        for old, new in zip([None, *meant], meant, strict=False)
        if new != old or new.kind != "act"
    ]


def advance(session: Session, dream: Dream, keep: int) -> Session:
    """One frame further with the held action; of the past, `keep` moments stay."""
    moment = dream(session.moments[-1], session.held)
    return session._replace(moments=(*session.moments, moment)[-keep:])


def obey(session: Session, command: Command, dream: Dream, keep: int) -> Session:
    """The session after a command. While time runs, an action is held from the next frame on; else it is one frame."""
    match command.kind:
        case "act":
            session = session._replace(held=command.action)
            return session if session.running else advance(session, dream, keep)
        case "run":
            return session._replace(running=not session.running)
        case "rewind":
            return session._replace(moments=session.moments[:-1] or session.moments, running=False)
        case "reset":
            return Session(session.start, (session.start,))
    return session._replace(quit=True)


def fit(height: int, width: int, columns: int, lines: int, scale: int = 0) -> tuple[int, int]:
    """The size (height, width) at which to show a frame: `scale` times, or as large as the terminal has room for.

    A line holds two rows of pixels, and one line stays free. Where the frame fits, the factor is a whole number.
    """
    factor = scale or min(columns / width, 2 * (lines - 1) / height)
    factor = int(factor) if factor >= 1 else factor
    return max(2, int(height * factor) // 2 * 2), max(1, int(width * factor))


def picture(pixels_HWC: np.ndarray, height: int, width: int) -> Segments:
    """A frame in half blocks, of which the foreground is the upper pixel and the background the lower one."""
    way = Image.Resampling.BOX if height < len(pixels_HWC) else Image.Resampling.NEAREST
    rows = np.asarray(Image.fromarray(pixels_HWC).resize((width, height), way)).tolist()
    blocks = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            blocks.append(
                Segment("▀", Style.from_color(Color.from_rgb(*above), Color.from_rgb(*below)))
            )
        blocks.append(Segment.line())
    return Segments(blocks)


def status(session: Session, actions: int, fps: float) -> str:
    """The line below the picture."""
    now = session.moments[-1]
    number = "start" if now.action is None else f"action {now.action + 1}"
    running = f"running with {session.held + 1}" if session.running else "paused"
    keys = (
        f"1-{ACTION_KEYS[min(actions, len(ACTION_KEYS)) - 1]} act, p run, u back, r reset, q quit"
    )
    return f"frame {now.frame} · {number} · {fps:.1f} FPS · {running} · {keys}"


def _open_session(
    dreamt: World, prompt_11HWC: Tensor, sample: SampleConfig, seed: int, programs: Programs
) -> tuple[Session, Dream, int]:
    """The session at its start, how it goes on, and how many moments to keep. The key of frame t is fold_in(key, t)."""
    key = random.key(seed, prompt_11HWC.device)

    def dream(now: Moment, action: int) -> Moment:
        pressed, t = torch.tensor([action], device=key.device), now.frame + 1
        state, shown = world.step(
            dreamt, now.state, pressed, random.fold_in(key, t), sample, programs
        )
        return Moment(t, action, shown.pixels[0].cpu().numpy(), state)

    state, _ = world.reset(dreamt, prompt_11HWC, programs=programs)
    start = Moment(0, None, prompt_11HWC[0, -1].cpu().numpy(), state)
    size = sum(leaf.numel() * leaf.element_size() for leaf in tree.leaves(state))
    return Session(start, (start,)), dream, max(2, MEMORY // size)


@contextlib.contextmanager
def _keys_at_once(fd: int) -> Iterator[None]:
    """Keys arrive as they are pressed and are not echoed. Whatever ends this, the terminal is as before."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    terminate = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        tty.setcbreak(fd, termios.TCSANOW)
        changed = termios.tcgetattr(fd)
        changed[6][termios.VSUSP] = bytes(
            [os.fpathconf(fd, "PC_VDISABLE")]
        )  # a shell would not restore the screen
        termios.tcsetattr(fd, termios.TCSANOW, changed)
        yield
    finally:
        termios.tcflush(fd, termios.TCIFLUSH)  # keys still to come are not for the shell
        termios.tcsetattr(fd, termios.TCSANOW, before)
        signal.signal(signal.SIGTERM, terminate)


def _typed(fd: int, timeout: float | None) -> str:
    """What has been typed, as soon as there is something or after `timeout` seconds; q where nobody is left."""
    if not select.select([fd], [], [], timeout)[0]:
        return ""
    try:
        return os.read(fd, 1024).decode(errors="ignore") or "q"
    except OSError:  # the terminal's other side is gone
        return "q"


def _console() -> Console:
    if os.name != "posix":
        raise UserError(
            "playing in the terminal needs Linux or macOS: use the browser, or --cfg.output for a video"
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "playing in the terminal needs a terminal for both keys and picture: do not redirect them"
        )
    console = Console(
        color_system="truecolor", no_color=False
    )  # colour is the picture, whatever the environment asks
    if console.is_dumb_terminal:
        raise UserError(
            "this terminal (TERM=dumb) cannot show pictures: use one with true colour, or the browser"
        )
    return console


def play(
    dreamt: World,
    prompt_11HWC: Tensor,
    sample: SampleConfig,
    seed: int = 0,
    programs: Programs = world.EAGER,
    real: Mapping[str, int] | None = None,
    scale: int = 0,
) -> None:
    """Play from one uint8 frame (1, 1, H, W, 3) until q is pressed. `scale` 0 is as large as fits.

    Raises UserError where there is no terminal to play in.
    """
    console, fd, actions = _console(), sys.stdin.fileno(), dreamt.dynamics.cfg.actions
    keys, due, fps = bindings(actions, real), 0.0, 0.0
    with (
        torch.no_grad(),
        _keys_at_once(fd),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        session, dream, keep = _open_session(dreamt, prompt_11HWC, sample, seed, programs)
        while not session.quit:
            shown, began = session.moments[-1], time.monotonic()
            line = Text(status(session, actions, fps), no_wrap=True, overflow="ellipsis")
            size = fit(*shown.pixels.shape[:2], *console.size, scale)
            live.update(Group(picture(shown.pixels, *size), line), refresh=True)
            drawing = time.monotonic() - began

            typed = _typed(fd, max(0.0, due - time.monotonic()) if session.running else None)
            began = time.monotonic()
            for command in commands(typed, keys):
                session = obey(session, command, dream, keep)
            if session.running and began >= due:
                session, due = advance(session, dream, keep), began + 1 / FPS
            if (dreamed := session.moments[-1].frame - shown.frame) > 0:
                fps = 1 / ((time.monotonic() - began) / dreamed + drawing)
                fps = min(fps, FPS) if session.running else fps
