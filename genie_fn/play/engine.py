"""The engine behind the page: one thread that owns the models and generates frames.

Requests of all visitors are answered in the order in which they arrive.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from genie_fn import metrics, world
from genie_fn.bundle import Bundle, world_actions
from genie_fn.data import games
from genie_fn.data.game import Game
from genie_fn.export import graphs, prepared
from genie_fn.maskgit import PLAY, SampleConfig
from genie_fn.play import session
from genie_fn.play.session import Session
from genie_fn.runtime import compilation
from genie_fn.runtime.backend import AUTO, multiplies_bfloat16
from genie_fn.runtime.console import console
from genie_fn.world import Programs, World

TURN = 1e-4
"""Seconds of a turn of the interpreter while programs are prepared."""
TRIAL_FRAMES = 4
"""Frames that new programs generate before they are used; CUDA graphs are recorded after a warm-up."""
SLOW = 0.2
"""Seconds of a frame from which on a CPU torch is tried, too, in bfloat16 and compiled."""
MAX_GAMES = 8  # levels of the real game that are kept open


class Act(NamedTuple):
    """A request for the next frame of a session."""

    session: Session
    action: int
    recorded: int | None
    """The recorded action that was chosen, if one was."""
    temperature: float
    steps: int
    compiled: bool | None = None
    """Whether compiled programs generate it, where they are ready; None: if they are ready."""


class Runner(NamedTuple):
    """A world whose implementations are chosen for its programs."""

    world: World
    programs: Programs


class Tried(NamedTuple):
    """A runner, and the seconds of its fastest frame."""

    runner: Runner
    seconds: float


class Engine:
    """Generates frames in a thread of its own; `start` and `act` return a Future of a `Session`.

    With `compiled`, faster programs are prepared in a second thread while play begins without them:
    graphs for ONNX Runtime on a CPU, and torch where these are slow; compiled programs on a GPU.
    """

    def __init__(
        self, bundle: Bundle, device: torch.device, compiled: bool, sample: SampleConfig = PLAY
    ):
        self.bundle = bundle
        on_cpu = device.type == "cpu"
        self.world = world.in_float32(bundle.world) if on_cpu else bundle.world
        self.device = device
        self.sample = world.play_sample(sample, self.world.dynamics.cfg)
        self.ready = "compiling" if compiled else "eager"
        self._eager = Runner(_resolved(self.world, device, False), Programs())
        self._compiled: Runner | None = None
        self._games: dict[int, tuple[Game, bytes]] = {}
        self._queue: queue.Queue = queue.Queue()
        self._on_ready: Callable[[], Any] = lambda: None
        threading.Thread(target=self._serve, daemon=True, name="engine").start()
        if compiled:
            threading.Thread(
                target=self._prepare_beside_play, daemon=True, name="compiling"
            ).start()

    def when_ready(self, callback: Callable[[], Any]) -> None:
        """Call `callback()` when `ready` changes, from another thread."""
        self._on_ready = callback

    def start(self, image: np.ndarray | None, seed: int, level: int | None = None) -> Future:
        """A new session from a uint8 image (H, W, 3), or from the real game's `level`."""
        return self._submit(partial(self._start, image, seed, level))

    def act(self, *request) -> Future:
        """The session with one more frame; the arguments are those of an `Act`."""
        return self._submit(partial(self._act, Act(*request)))

    def close(self) -> None:
        """End the thread after the requests made so far."""
        self._queue.put((None, None))

    def to_latent(self, recorded: int) -> int:
        """The action of this world that stands for a recorded one."""
        return recorded if self.world.lam is None else self._world_actions[recorded]

    @cached_property
    def _world_actions(self) -> Sequence[int]:
        return world_actions(self.bundle)

    def _submit(self, work: Callable[[], Session]) -> Future:
        future: Future = Future()
        self._queue.put((work, future))
        return future

    # In the engine's thread

    @torch.no_grad()
    def _serve(self) -> None:
        while self._serve_next():
            pass  # local variables of `_serve_next` hold sessions, which must not be kept

    def _serve_next(self) -> bool:
        """Wait for a request and answer it; False at the end."""
        work, future = self._queue.get()
        if work is None:
            return False
        if future.set_running_or_notify_cancel():  # the visitor may have left
            try:
                future.set_result(work())
            except BaseException as error:  # belongs to the visitor who asked, not to this thread
                future.set_exception(error)
        return True

    def _start(self, image: np.ndarray | None, seed: int, level: int | None) -> Session:
        """Without compiled programs, so that every session starts alike."""
        if level is None:
            if image is None:
                raise ValueError("a session starts from an image or a level")
            return session.begin(self._eager.world, image, seed)
        game, saved = self._game(level)
        game.load(saved)
        frame = game.frame()
        started = session.begin(self._eager.world, frame, seed, level)
        psnr = _psnr(started.present.pixels, frame)
        return session.amended(started, game=frame, saved=saved, psnr=psnr)

    def _act(self, act: Act) -> Session:
        began = time.perf_counter()
        new, compiled = self._advance(act)
        new = session.relabelled(new, recorded=act.recorded, compiled=compiled)
        if act.session.level is not None:
            new = self._with_game(new, act)
        return session.amended(new, ms=1000 * (time.perf_counter() - began))

    def _advance(self, act: Act) -> tuple[Session, bool]:
        """The session with one more frame, and whether compiled programs generated it."""
        sample = replace(self.sample, steps=act.steps, temperature=act.temperature)
        fast = self._compiled if act.compiled in (None, True) else None
        if fast is not None:
            try:
                return _advance(fast, act, sample), True
            except Exception:  # CUDA graphs of older torch versions fail in other threads
                new = _advance(self._eager, act, sample)  # fails, too, if the request is invalid
                self._finish_compiling(None)
                return new, False
        return _advance(self._eager, act, sample), False

    def _with_game(self, new: Session, act: Act) -> Session:
        """The session with the real game's frame after the same action, and the PSNR against it."""
        before = act.session.present
        assert act.session.level is not None and act.recorded is not None
        assert before.saved is not None
        game, _ = self._game(act.session.level)
        game.load(before.saved)
        frame = game.step(act.recorded).frame
        psnr = _psnr(new.present.pixels, frame)
        mean = before.mean_psnr or 0.0
        mean += (psnr - mean) / new.at
        saved = game.save()
        return session.amended(new, game=frame, saved=saved, psnr=psnr, mean_psnr=mean)

    def _game(self, level: int) -> tuple[Game, bytes]:
        """A level's game, which the sessions on that level share, and its first state."""
        if level not in self._games:
            if len(self._games) >= MAX_GAMES:
                oldest = next(iter(self._games))
                self._games.pop(oldest)[0].close()
            size = self.world.tokenizer.cfg
            dataset = self.bundle.dataset
            game = games.open_game(level, dataset.meta, size.height, size.width, dataset.stride)
            self._games[level] = (game, game.save())
        return self._games[level]

    # In a thread of its own

    @torch.no_grad()
    def _prepare_beside_play(self) -> None:
        """Prepare faster programs during play, and use them from then on if they work.

        Meanwhile the turns of the interpreter are short: torch's compiler is Python code, and a frame takes
        thousands of short operations, after each of which the engine's thread waits for its turn.
        """
        runner = None
        usual = sys.getswitchinterval()
        sys.setswitchinterval(TURN)
        try:
            runner = self._fastest()
        except Exception as error:  # play continues as it began
            _report_failure(error)
        finally:
            sys.setswitchinterval(usual)
        self._finish_compiling(runner)

    def _fastest(self) -> Runner | None:
        """The fastest runner of this machine, or None to stay with the first one.

        Where frames of a CPU are slow, torch in bfloat16 may be faster than ONNX Runtime in float32, and
        compilation, which takes a minute or more, worth its time.
        """
        fast = _resolved(self.world, self.device, True)
        runners = [Runner(fast, programs) for programs in self._fast_programs()]
        tried = [Tried(runner, self._try_out(runner)) for runner in runners]
        if not tried:
            return None
        if self.device.type == "cpu" and min(t.seconds for t in tried) > SLOW:
            more: list[Runner] = []
            if multiplies_bfloat16():
                fast = _in_bfloat16(fast)
                more.append(Runner(_in_bfloat16(self._eager.world), Programs()))
            if compilation.works(self.device):
                more.append(Runner(fast, world.compiled(self.device)))
            try:
                tried += [Tried(runner, self._try_out(runner)) for runner in more]
            except Exception as error:  # those of ONNX Runtime work
                _report_failure(error)
        return min(tried, key=lambda t: t.seconds).runner

    def _fast_programs(self) -> list[Programs]:
        """Programs for ONNX Runtime on a CPU, with one thread and with all: in a small model, waking a
        second thread for each operation takes longer than it saves. Compiled ones on a GPU, or where
        that is not possible; none where neither is."""
        if self.device.type == "cpu":
            absent = graphs.missing()
            if not absent:
                try:
                    counts = sorted({1, torch.get_num_threads()})
                    return [prepared.programs(self.world, self.sample, n) for n in counts]
                except Exception as error:  # a model that cannot be exported
                    console.print(f"{error}: compiling instead", markup=False, soft_wrap=True)
            else:
                console.print(
                    "play is prepared in a minute and faster with some packages: run "
                    f"`pip install {' '.join(absent)}`",
                    markup=False,
                    soft_wrap=True,
                )
        return [world.compiled(self.device)] if compilation.works(self.device) else []

    def _finish_compiling(self, runner: Runner | None) -> None:
        """Use compiled programs from now on, or none."""
        self._compiled = runner
        self.ready = "eager" if runner is None else "compiled"
        self._on_ready()

    def _try_out(self, runner: Runner) -> float:
        """Generate frames as a session does: other strides would make programs compile again.

        Returns the seconds of the fastest frame.
        """
        size = self.world.tokenizer.cfg
        black = np.zeros((size.height, size.width, 3), np.uint8)
        current = session.begin(self._eager.world, black, 0)
        seconds: list[float] = []
        for _ in range(TRIAL_FRAMES):
            began = time.perf_counter()
            current = session.advance(runner.world, current, 0, self.sample, runner.programs)
            seconds.append(time.perf_counter() - began)
        return min(seconds)


def _report_failure(error: Exception) -> None:
    reason = compilation.missing(error)
    console.print(f"playing without faster programs, which failed ({reason})", markup=False)


def _advance(runner: Runner, act: Act, sample: SampleConfig) -> Session:
    return session.advance(runner.world, act.session, act.action, sample, runner.programs)


def _resolved(world: World, device: torch.device, compiled: bool) -> World:
    """The world with the implementations that are fastest on this device."""
    backend = AUTO.resolve(device, compiled)
    return World(
        world.tokenizer._replace(backend=backend),
        world.dynamics._replace(backend=backend),
        world.lam and world.lam._replace(backend=backend),
    )


def _in_bfloat16(world: World) -> World:
    """The world with the matrix products of a frame in bfloat16; its state stays in float32."""
    backend = replace(world.dynamics.backend, products="bfloat16")
    return world._replace(
        tokenizer=world.tokenizer._replace(backend=backend),
        dynamics=world.dynamics._replace(backend=backend),
    )


def _psnr(pixels: np.ndarray, reference: np.ndarray) -> float:
    return metrics.frame_psnr(torch.from_numpy(pixels), torch.from_numpy(reference)).item()
