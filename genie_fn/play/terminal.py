"""Playing in a true-colour terminal: half blocks for pixels, the keyboard for actions.

What a key means and how a command changes a game are pure functions; only `play` touches the
terminal.
"""

import contextlib
import os
import re
import select
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
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

from genie_fn import world
from genie_fn.bundle import Bundle, action_effects, key_actions
from genie_fn.errors import UserError
from genie_fn.maskgit import SampleConfig
from genie_fn.play import session
from genie_fn.play.session import Session
from genie_fn.runtime.signals import Stop, wakeups
from genie_fn.world import Programs, World

CONTROLS = {"p": "run", "u": "rewind", "r": "reset", "q": "quit"}
ACTION_KEYS = "".join(
    key for key in string.digits[1:] + string.ascii_lowercase if key not in CONTROLS
)
ARROW_KEYS = {"\x1b[A": "UP", "\x1b[B": "DOWN", "\x1b[C": "RIGHT", "\x1b[D": "LEFT"}
GAME_KEYS = {
    **ARROW_KEYS,
    # What some terminals send in some modes.
    **{key.replace("[", "O"): name for key, name in ARROW_KEYS.items()},
    " ": "UP",  # which is the jump
}
# Whole escape sequences, so that the end of a longer one does not count as a key.
KEY = re.compile(r"\x1b(?:[\[O][0-9;]*[A-Za-z~])?|.", re.DOTALL)
MAX_FPS = 15


class Controls(NamedTuple):
    """What is known about a world's actions."""

    keys: Mapping[str, int] = MappingProxyType({})
    """The world's action for each key, by the name of a recorded action."""
    arrows: Sequence[str] = ()
    """A character for each action that shows its motion; empty if that is not known."""


UNKNOWN = Controls()


class Command(NamedTuple):
    """`act` (with `action`), `run`, `rewind`, `reset` or `quit`."""

    kind: str
    action: int = 0


class Game(NamedTuple):
    """A session being played."""

    start: Session
    """The session at its start frame."""
    session: Session
    held: int = 0
    """The action that is held while the game runs."""
    running: bool = False
    """Whether frames follow each other without key presses."""
    quit: bool = False


Advance = Callable[[Session, int], Session]
"""The session one frame later, given an action."""


def bindings(actions: int, named: Mapping[str, int] | None = None) -> dict[str, Command]:
    """What each key does.

    With `named`, the world's action for the name of each recorded one, arrows and space act, too.
    """
    pairs = zip(range(actions), ACTION_KEYS, strict=False)
    keys = {key: Command("act", action) for action, key in pairs}
    known = {}
    for name, action in (named or {}).items():
        name = name.upper()
        known["UP" if name == "JUMP" else name] = action
    keys |= {key: Command("act", known[name]) for key, name in GAME_KEYS.items() if name in known}
    return keys | {key: Command(kind) for key, kind in CONTROLS.items()}


def commands(typed: str, keys: dict[str, Command]) -> list[Command]:
    """The commands in a text that was typed.

    Repetitions of an action are left out: a key held down would otherwise pile up frames.
    """
    result: list[Command] = []
    previous = None
    for key in KEY.findall(typed):
        if key not in keys:
            continue
        command = keys[key]
        if command != previous or command.kind != "act":
            result.append(command)
        previous = command
    return result


def tick(game: Game, advance: Advance) -> Game:
    """The game one frame later, with the held action."""
    return game._replace(session=advance(game.session, game.held))


def apply(game: Game, command: Command, advance: Advance) -> Game:
    """The game after a command.

    While the game runs, an action is held from the next frame on; otherwise it makes one frame.
    """
    match command.kind:
        case "act":
            game = game._replace(held=command.action)
            return game if game.running else tick(game, advance)
        case "run":
            return game._replace(running=not game.running)
        case "rewind":
            back = session.moved(game.session, game.session.at - 1)
            return game._replace(session=back, running=False)
        case "reset":
            return Game(game.start, game.start)
    return game._replace(quit=True)


def fit(height: int, width: int, columns: int, lines: int, scale: int = 0) -> tuple[int, int]:
    """The size (height, width) at which to draw a frame: `scale` times, or as large as fits.

    A line holds two rows of pixels, and one line stays free. A factor above 1 is a whole number.
    """
    factor = scale or min(columns / width, 2 * (lines - 1) / height)
    factor = int(factor) if factor >= 1 else factor
    return max(2, int(height * factor) // 2 * 2), max(1, int(width * factor))


def picture(pixels_HWC: np.ndarray, height: int, width: int) -> Segments:
    """A frame in half blocks, with the upper pixel as foreground and the lower as background."""
    shrinking = height < len(pixels_HWC)
    resampling = Image.Resampling.BOX if shrinking else Image.Resampling.NEAREST
    rows = np.asarray(Image.fromarray(pixels_HWC).resize((height, width), resampling)).tolist()
    blocks = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            style = Style.from_color(Color.from_rgb(*above), Color.from_rgb(*below))
            blocks.append(Segment("▀", style))
        blocks.append(Segment.line())
    return Segments(blocks)


def controls_of(bundle: Bundle) -> Controls:
    """The controls of a world."""
    effects = bundle.effects
    arrows = [] if effects is None else [action_effects.arrow(mean) for mean in effects.motion]
    return Controls(key_actions(bundle), arrows)


def status(game: Game, actions: int, fps: float, arrows: Sequence[str] = ()) -> str:
    """The line below the picture; `arrows` show the motion of the actions."""

    def label(action: int) -> str:
        return f"{action + 1}{arrows[action]}" if arrows else str(action + 1)

    record = game.session.present.record
    action = "start" if record is None else f"action {label(record.action)}"
    running = f"running with {label(game.held)}" if game.running else "paused"
    known = ACTION_KEYS[:actions]
    each = " ".join(key + mark for key, mark in zip(known, arrows, strict=False))
    keys = f"{each or f'1-{known[-1]}'} act, p run, u back, r reset, q quit"
    return f"frame {game.session.at} · {action} · {fps:.1f} FPS · {running} · {keys}"


def frame_rate(seconds: float, running: bool) -> float:
    """Frames per second of one frame's time; a running game is slowed down to MAX_FPS."""
    return min(1 / seconds, MAX_FPS) if running else 1 / seconds


@contextlib.contextmanager
def _raw_keys(fd: int) -> Iterator[None]:
    """Keys arrive as they are pressed, without echo. The terminal is restored however this ends."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSANOW)
        changed = termios.tcgetattr(fd)
        # No suspension by a key: a shell would not restore the screen.
        changed[6][termios.VSUSP] = bytes([os.fpathconf(fd, "PC_VDISABLE")])
        termios.tcsetattr(fd, termios.TCSANOW, changed)
        yield
    finally:
        termios.tcflush(fd, termios.TCIFLUSH)  # keys still to be read are not for the shell
        termios.tcsetattr(fd, termios.TCSANOW, before)


def _read_keys(fd: int, signals: int, timeout: float | None) -> str:
    """What has been typed, as soon as there is anything, after a signal, or after `timeout` seconds.

    `signals` is the file descriptor of `signals.wakeups`. Returns the key for quitting where the
    terminal is gone.
    """
    if fd not in select.select([fd, signals], [], [], timeout)[0]:
        return ""
    try:
        return os.read(fd, 1024).decode(errors="ignore") or "q"
    except OSError:
        return "q"


def _console() -> Console:
    """A console with true colour. Raises UserError where there is no terminal to play in."""
    if os.name != "posix":
        raise UserError(
            "playing in the terminal needs Linux or macOS: "
            "use the browser, or --cfg.output for a video"
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "playing in the terminal needs a terminal for both keys and picture: "
            "do not redirect them"
        )
    # Colour is the picture, whatever the environment asks.
    console = Console(color_system="truecolor", no_color=False)
    if console.is_dumb_terminal:
        raise UserError(
            "this terminal (TERM=dumb) cannot show pictures: "
            "use one with true colour, or the browser"
        )
    if not console.encoding.startswith("utf"):
        raise UserError(
            f"the encoding of this terminal ({console.encoding}) lacks the half blocks of the "
            "picture: choose a locale with UTF-8 (LANG=C.UTF-8), or use the browser"
        )
    return console


def _draw(live: Live, game: Game, line: str, scale: int) -> None:
    """Draw the present frame; the start frame is the image itself, not its reconstruction."""
    now = game.session
    pixels = now.start if now.at == 0 else now.present.pixels
    height, width, _ = pixels.shape
    size = fit(height, width, *live.console.size, scale)
    text = Text(line, no_wrap=True, overflow="ellipsis")
    live.update(Group(picture(pixels, *size), text), refresh=True)


def play(
    world_model: World,
    image_HWC: np.ndarray,
    sample: SampleConfig,
    seed: int = 0,
    programs: Programs = world.EAGER,
    controls: Controls = UNKNOWN,
    scale: int = 0,
) -> None:
    """Play from a uint8 image until q is pressed; `scale` 0 is as large as fits.

    Raises UserError where there is no terminal to play in.
    """
    console = _console()
    fd = sys.stdin.fileno()
    actions = world_model.dynamics.cfg.actions
    keys = bindings(actions, controls.keys)

    def advance(now: Session, action: int) -> Session:
        return session.advance(world_model, now, action, sample, programs)

    screen = Live(console=console, screen=True, auto_refresh=False)
    with torch.no_grad(), Stop() as stop, wakeups() as signals, _raw_keys(fd), screen as live:
        start = session.begin(world_model, image_HWC, seed, programs=programs)
        stop.can_save = True  # from now on a first signal ends the game between two frames
        game = Game(start, start)
        due = 0.0
        fps = 0.0
        while not game.quit:
            began = time.monotonic()
            _draw(live, game, status(game, actions, fps, controls.arrows), scale)
            drawing = time.monotonic() - began
            wait = max(0.0, due - time.monotonic()) if game.running else None
            typed = _read_keys(fd, signals, wait)
            if stop:
                stop.leave()

            began = time.monotonic()
            before = game.session.at
            for command in commands(typed, keys):
                game = apply(game, command, advance)
            if game.running and began >= due:
                game = tick(game, advance)
                due = began + 1 / MAX_FPS
            frames = game.session.at - before
            if frames > 0:
                fps = frame_rate((time.monotonic() - began) / frames + drawing, game.running)
