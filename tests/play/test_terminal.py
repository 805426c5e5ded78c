"""Playing in the terminal: keys, commands, drawing, and a game under a pseudo-terminal."""

import io
import os
import pty
import re
import signal
import sys
import termios
import time

import numpy as np
import pytest
import torch
from rich.console import Console

from genie_fn import bundle, random, world
from genie_fn.errors import UserError
from genie_fn.maskgit import SampleConfig
from genie_fn.play import session, terminal
from genie_fn.play.session import ActionRecord, Moment
from genie_fn.play.terminal import Command, Game
from genie_fn.runtime import cli
from tests import forked
from tests.conftest import tiny_world

MAP = {"LEFT": 1, "DOWN": 2, "NOOP": 3, "UP": 4, "RIGHT": 2}
ACT = [Command("act", action) for action in range(5)]


# What keys mean


def test_digits_are_the_actions_and_letters_follow():
    keys = terminal.bindings(12)
    assert [keys[key].action for key in "123456789abc"] == list(range(12))
    assert all(keys[key].kind == "act" for key in "19abc") and "d" not in keys and "0" not in keys
    assert {keys[key].kind for key in "purq"} == {"run", "rewind", "reset", "quit"}
    assert "6" not in terminal.bindings(5)


def test_arrows_and_space_act_through_the_map():
    assert terminal.commands("\x1b[D\x1b[C\x1b[A\x1bOB", terminal.bindings(5, MAP)) == [
        ACT[1],
        ACT[2],
        ACT[4],
        ACT[2],
    ]
    assert terminal.commands(" ", terminal.bindings(5, MAP)) == [ACT[4]]
    assert terminal.commands("\x1b[D \x1b[C", terminal.bindings(3, {"Jump": 2, "left": 0})) == [
        ACT[0],
        ACT[2],
    ]
    assert terminal.commands("\x1b[D \x1b[C", terminal.bindings(5)) == []


def test_the_status_shows_how_each_action_moves_the_agent(playable):
    controls = terminal.controls_of(playable._replace(action_map=None))
    assert terminal.bindings(5, controls.keys)["\x1b[D"] == ACT[0]
    line = terminal.status(after("2"), 5, 0, controls.arrows)
    assert "action 2→" in line and "1← 2→ 3↑ 4↓ 5· act" in line
    mapped = terminal.controls_of(playable)
    assert mapped.keys == bundle.recorded_actions(playable) and mapped.arrows == controls.arrows
    unknown = terminal.controls_of(playable._replace(action_map=None, effects=None))
    assert unknown == terminal.UNKNOWN._replace(arrows=[])


def test_other_keys_mean_nothing_however_they_end():
    """Delete, F1, part of a mouse wheel, Escape, and a shifted arrow, which ends like an arrow."""
    assert terminal.commands("\x1b[3~\x1bOP\x1b[1;5D\x1bZé", terminal.bindings(5, MAP)) == []
    assert terminal.commands("\x1b1", terminal.bindings(5)) == [ACT[0]]


def test_a_key_held_down_is_one_press_per_look():
    assert terminal.commands("1112u11uu", terminal.bindings(5)) == [
        *(ACT[0], ACT[1], Command("rewind"), ACT[0]),
        *(Command("rewind"), Command("rewind")),
    ]


# What commands do


FRAME = np.zeros((4, 4, 3), np.uint8)


def moment(state, record=None):
    return Moment(FRAME, FRAME, FRAME, FRAME, state, record)


def count(now, action, keep=100):
    """A world whose state is the list of its actions, as a dict, which is no tensor or cache."""
    record = ActionRecord(action, None, 1.0, 1, False)
    return session.extended(now, moment({"actions": [*actions(now), action]}, record), keep)


def actions(now):
    """The state of such a world: the actions up to the present frame."""
    return tuple(now.present.added["actions"])


def begin():
    start = session.started(moment({"actions": []}), 0, FRAME)
    return Game(start, start)


def after(typed, keep=100):
    game = begin()
    for command in terminal.commands(typed, terminal.bindings(5)):
        game = terminal.apply(game, command, lambda now, action: count(now, action, keep))
    return game


def test_an_action_is_one_frame():
    game = after("132")
    assert actions(game.session) == (0, 2, 1) and game.session.at == 3
    assert not game.quit and not game.running


def test_rewinding_goes_back_and_on_from_there_but_not_before_the_start():
    assert actions(after("132u").session) == (0, 2)
    assert actions(after("132uu5").session) == (0, 4)
    assert actions(after("1uuu2").session) == (1,)


def test_while_the_game_runs_an_action_is_held():
    game = after("1p3")
    assert game.running and actions(game.session) == (0,)
    assert actions(terminal.tick(game, count).session) == (0, 2)
    assert not after("1pp").running and not after("1pu").running


def test_reset_and_quit():
    game = after("12r")
    assert len(game.session.moments) == 1 and actions(game.session) == ()
    assert not after("12pr").running
    assert after("12q").quit


def test_the_past_is_bounded_and_the_start_is_kept():
    game = after("12345", keep=3)
    assert len(game.session.moments) == 3 and (game.session.first, game.session.at) == (3, 5)
    assert after("12345uuuu", keep=3).session.at == 3
    assert after("12345r", keep=3).session.at == 0


# What is drawn


@pytest.mark.parametrize(
    ("columns", "lines", "scale", "size"),
    [(100, 40, 0, (64, 64)), (200, 80, 0, (128, 128)), (80, 24, 0, (46, 46)), (30, 60, 0, (30, 30))]
    + [(500, 30, 0, (58, 58)), (80, 24, 2, (128, 128)), (1, 1, 0, (2, 1))],
)
def test_a_frame_is_as_large_as_fits(columns, lines, scale, size):
    assert terminal.fit(64, 64, columns, lines, scale) == size


def drawn(pixels, height, width):
    console = Console(color_system="truecolor", force_terminal=True, no_color=False, width=width)
    with console.capture() as captured:
        console.print(terminal.picture(pixels, height, width))
    lines = captured.get().rstrip("\n").split("\n")
    found = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀")
    rows = np.array([found.findall(line) for line in lines], np.uint8).reshape(
        len(lines), width, 2, 3
    )
    return rows.swapaxes(1, 2).reshape(2 * len(lines), width, 3)


def test_the_picture_holds_every_pixel(clip):
    pixels = clip[0, 0].numpy()
    assert np.array_equal(drawn(pixels, 32, 32), pixels)
    assert np.array_equal(drawn(pixels, 64, 64), pixels.repeat(2, 0).repeat(2, 1))
    means = pixels.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(drawn(pixels, 16, 16) - means).max() <= 1


def test_the_status_line():
    line = terminal.status(begin(), 5, 0)
    assert line.startswith("frame 0 · start · 0.0 FPS · paused · 1-5 act")
    assert terminal.status(after("13p2"), 12, 9.96).startswith(
        "frame 2 · action 3 · 10.0 FPS · running with 2 · 1-c act"
    )


# A whole game


class InDestructor:
    """Its destructor receives a signal. What a handler raises there, Python prints and ignores."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


def _play(terminal_path, settings, broken, signalled):
    """Play in a terminal that runs no other program.

    With `broken`, the first action fails; with `signalled`, that signal arrives in a destructor
    during it.
    """
    os.environ.update(settings)
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    fd = os.open(terminal_path, os.O_RDWR | os.O_NOCTTY)
    for standard in (0, 1):
        os.dup2(fd, standard)
    sys.stdin = io.TextIOWrapper(io.FileIO(0))
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), encoding="utf-8")
    sys.argv = ["play"]
    if broken:
        world.step = lambda *_: 1 / 0
    if signalled:
        step = world.step
        world.step = lambda *arguments: InDestructor(signalled) and step(*arguments)

    def main():
        frame = random.randint(random.key(0), (32, 32, 3), 0, 256).to(torch.uint8)
        terminal.play(tiny_world(), frame.numpy(), SampleConfig(2), seed=3)

    cli.run(main)


class Played:
    """A game in a pseudo-terminal of 100 x 20 without colour; `seen` is its output."""

    def __init__(self, log, term="xterm-256color", broken=False, signalled=None):
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (20, 100))
        os.set_blocking(self.master, False)
        self.before, self.seen, self.log = termios.tcgetattr(self.slave), "", log
        settings = {"TERM": term, "NO_COLOR": "1"}
        path = os.ttyname(self.slave)
        self.process = forked.start(log, _play, path, settings, broken, signalled)

    def read(self):
        try:
            self.seen += os.read(self.master, 1 << 20).decode(errors="ignore")
        except BlockingIOError:
            time.sleep(0.01)

    def wait_for(self, text):
        hopeless = time.monotonic() + 120
        while (
            text not in self.seen and self.process.exitcode is None and time.monotonic() < hopeless
        ):
            self.read()
        assert text in self.seen, self.log.read_text()

    def press(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """The exit code, after checking that modes, screen and cursor are restored."""
        hopeless = time.monotonic() + 120
        while self.process.exitcode is None and time.monotonic() < hopeless:
            self.read()
        self.read()
        assert termios.tcgetattr(self.slave) == self.before
        assert self.seen.count("\x1b[?1049h") == self.seen.count("\x1b[?1049l")
        assert self.seen.count("\x1b[?25l") <= self.seen.count("\x1b[?25h")
        return self.process.exitcode


@pytest.fixture
def played(tmp_path):
    children = []

    def start(**options):
        children.append(Played(tmp_path / "log", **options))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.join()
        os.close(child.master)
        os.close(child.slave)


@pytest.mark.subprocess
def test_a_game_from_the_keyboard(played, world_model):
    child = played()
    child.wait_for("frame 0 · start")
    modes = termios.tcgetattr(child.slave)
    assert modes[3] & (termios.ECHO | termios.ICANON) == 0 and modes != child.before
    child.press("2")
    child.wait_for("frame 1 · action 2")
    child.press("5")
    child.wait_for("frame 2 · action 5")
    child.seen = child.seen.replace("frame 1", "earlier")
    child.press("u")
    child.wait_for("frame 1 · action 2")
    child.press("p")
    child.wait_for("frame 4 · action 5")  # running, with the action held
    child.press("q")
    assert child.end() == 0

    frame = random.randint(random.key(0), (1, 1, 32, 32, 3), 0, 256).to(torch.uint8)
    state, _ = world.reset(world_model, frame)
    expected = world.step(
        world_model, state, torch.tensor([1]), random.fold_in(random.key(3), 1), SampleConfig(2)
    )[1]
    for pixels in (frame[0, 0], expected.pixels[0]):
        upper, lower = pixels[0, 0].tolist(), pixels[1, 0].tolist()
        assert "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower) in child.seen


@pytest.mark.subprocess
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_game_leaves_the_terminal_as_it_was(played, number, code):
    child = played()
    child.wait_for("frame 0 · start")
    os.kill(child.process.pid, number)
    assert child.end() == code


@pytest.mark.subprocess
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_arrives_in_a_destructor_ends_the_game_too(played, number, code):
    child = played(signalled=number)
    child.wait_for("frame 0 · start")
    child.press("1")
    assert child.end() == code


@pytest.mark.subprocess
def test_a_failing_game_leaves_the_terminal_as_it_was(played):
    child = played(broken=True)
    child.wait_for("frame 0 · start")
    child.press("1")
    assert child.end() == 1
    assert "ZeroDivisionError" in child.log.read_text()


@pytest.mark.subprocess
def test_a_dumb_terminal_is_a_sentence(played):
    child = played(term="dumb")
    assert child.end() == 2
    assert "use one with true colour" in child.log.read_text()


def test_no_terminal_is_a_sentence(world_model, clip):
    with pytest.raises(
        UserError, match="do not redirect them"
    ):  # pytest's own standard input is no terminal
        terminal.play(world_model, clip[0, 0].numpy(), SampleConfig(2))


class Latin1Terminal(io.TextIOWrapper):
    """A terminal whose encoding has no half blocks."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="latin-1")

    def isatty(self):
        return True


def test_a_terminal_without_half_blocks_is_a_sentence(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, Latin1Terminal())
    with pytest.raises(UserError, match=r"\(iso-8859-1|\(latin-1"):
        terminal._console()
