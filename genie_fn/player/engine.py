"""The engine behind the page: one thread that owns the models and dreams a frame after another for every visitor.

Requests that wait at the same time and ask for as many MaskGIT steps are dreamed together on a GPU, each with its own
key, temperature and past (`world.vmapped`); so a visitor's frames do not depend on who else plays, up to the rounding of
larger products. On a CPU a batch takes as long as its frames one after another, so there they are.
"""

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from genie_fn import action_map, impls, metrics, random, tree, world
from genie_fn.dynamics import SampleConfig
from genie_fn.errors import UserError
from genie_fn.player import game, session
from genie_fn.player.session import Moment, Session
from genie_fn.world import Programs, World

TOGETHER = 8  # sessions at most in one batch
GAMES = 8  # levels of the real game kept open
MAX_STEPS = 64


class Act(NamedTuple):
    """A frame that is wished for."""

    session: Session
    action: int
    real: int | None
    temperature: float
    steps: int


class Engine:
    """Dreams in a thread of its own; every method returns a Future of a `Session`. An object, since it holds a thread.

    `meta` is the dataset's, from which the real game is known; None, or a world whose actions cannot be told from real
    ones, leaves it out.
    """

    def __init__(
        self,
        dream: World,
        device: torch.device,
        found: action_map.ActionMap | None,
        compiled: bool,
        meta: dict | None = None,
        sample: SampleConfig = SampleConfig(),  # noqa: B008, it is frozen
    ):
        self.device, self.sample, self.found, self.meta = device, sample, found, meta
        self.latent = dream.lam is not None
        self._eager = self._fast = _settled(dream, device, False)
        self._programs, self._together = Programs(), world.vmapped()
        self.ready = "compiling" if compiled else "eager"
        self._games: dict[int, tuple[game.Game, bytes]] = {}
        self._queue: queue.Queue = queue.Queue()
        self._on_ready = lambda: None
        threading.Thread(target=self._serve, daemon=True, name="engine").start()
        if compiled:
            threading.Thread(target=self._compile, args=(dream,), daemon=True, name="compiling").start()

    @property
    def cfg(self):
        """The configurations of the tokenizer and of the dynamics."""
        return self._eager.tokenizer.cfg, self._eager.dynamics.cfg

    def when_ready(self, callback) -> None:
        """Have `callback()` called, from another thread, when the programs are compiled."""
        self._on_ready = callback

    def start(self, image: np.ndarray, seed: int, level: int | None = None) -> Future:
        """A new session from an image (H, W, 3) uint8, or with a `level`, from the real game's first frame."""
        return self._submit(partial(self._start, image, seed, level))

    def act(self, at: Session, action: int, real: int | None, temperature: float, steps: int) -> Future:
        """The session with one more frame."""
        return self._submit(Act(at, action, real, temperature, steps))

    def to_latent(self, real: int) -> int:
        """The action of this world that stands for a real one."""
        if not self.latent:
            return real
        if self.found is None:
            raise UserError("this world's actions were never compared with the real ones: run evaluate.py once")
        return self.found.to_latent[real]

    # In the engine's thread.

    def _submit(self, work) -> Future:
        future: Future = Future()
        self._queue.put((work, future))
        return future

    @torch.no_grad()
    def _serve(self) -> None:
        while True:
            waiting = [self._queue.get()]
            while not self._queue.empty() and len(waiting) < TOGETHER:
                waiting.append(self._queue.get())
            groups: dict = {}
            for work, future in waiting:
                alone = not isinstance(work, Act) or self.device.type == "cpu"
                groups.setdefault(id(future) if alone else work.steps, []).append((work, future))
            for group in groups.values():
                works, futures = zip(*group, strict=True)
                try:
                    done = self._acts(works) if isinstance(works[0], Act) else [works[0]()]
                    for future, result in zip(futures, done, strict=True):
                        future.set_result(result)
                except BaseException as error:  # whatever happened belongs to those who asked, not to this thread
                    for future in futures:
                        future.set_exception(error)

    def _start(self, image: np.ndarray, seed: int, level: int | None) -> Session:
        beside = saved = None
        if level is not None:
            opened, saved = self._game(level)
            game.load(opened, saved)
            image = beside = game.frame(opened)
        prompt = torch.from_numpy(image).to(self.device)[None, None]
        state, seen = world.reset(self._eager, prompt)
        pixels, tokens = seen[0, 0].cpu().numpy(), self.cfg[0].tokens
        ids = world.tokenizer.tokenize(self._eager.tokenizer.params, prompt, self.cfg[0])[1]
        sure, none = np.full(tokens, 255, np.uint8), np.zeros(tokens, np.uint8)
        first = Moment(pixels, ids[0, 0].cpu().numpy().astype(np.uint32), sure, none, session.added(state))
        first = first._replace(game=beside, saved=saved, psnr=_psnr(pixels, beside))
        return Session((first,), 0, seed, image, level)

    def _acts(self, acts: tuple[Act, ...]) -> list[Session]:
        began = time.perf_counter()
        dream, states = self._fast, [session.state(act.session) for act in acts]
        keys = [random.fold_in(random.key(a.session.seed, self.device), a.session.at + 1) for a in acts]
        pressed = torch.tensor([[act.action] for act in acts], device=self.device)
        heat = torch.tensor([act.temperature for act in acts], device=self.device)
        sample = replace(self.sample, steps=acts[0].steps)
        if len(acts) == 1:
            made = [world.step(dream, states[0], pressed[0], keys[0], sample, self._programs, heat[0])]
        else:
            stacked = tree.map(lambda *x: torch.stack(x), *states)
            state, frame = world.step(dream, stacked, pressed, torch.stack(keys), sample, self._together, heat)
            made = [tree.map(lambda x, i=i: x[i], (state, frame)) for i in range(len(acts))]
        results = [self._moment(act, *each) for act, each in zip(acts, made, strict=True)]
        ms = 1000 * (time.perf_counter() - began)
        return [
            session.extended(act.session, moment._replace(ms=ms)) for act, moment in zip(acts, results, strict=True)
        ]

    def _moment(self, act: Act, state, frame: world.Frame) -> Moment:
        pixels, ids, probability, revealed = (x[0].cpu().numpy() for x in frame)
        beside = saved = None
        if act.session.level is not None:
            opened, _ = self._game(act.session.level)
            game.load(opened, act.session.present.saved)
            beside = game.step(opened, act.real).frame
            saved = game.save(opened)
        numbers = ids.astype(np.uint32), (255 * probability).astype(np.uint8), revealed.astype(np.uint8)
        made = Moment(pixels, *numbers, session.added(state), act.action, act.real, act.temperature, act.steps)
        return made._replace(game=beside, saved=saved, psnr=_psnr(pixels, beside))

    def _game(self, level: int) -> tuple[game.Game, bytes]:
        """A level's game, which the sessions on that level share, and its first state."""
        if level not in self._games:
            if len(self._games) >= GAMES:
                game.close(self._games.pop(next(iter(self._games)))[0])
            opened = game.open_game(level, self.meta or {}, self.cfg[0].height, self.cfg[0].width)
            self._games[level] = opened, game.save(opened)
        return self._games[level]

    @torch.no_grad()
    def _compile(self, dream: World) -> None:
        """Compile beside the play, by dreaming a frame; then let the thread use what came out."""
        fast, programs = _settled(dream, self.device, True), world.compiled(device=self.device)
        coder = self.cfg[0]
        state, _ = world.reset(fast, torch.zeros((1, 1, coder.height, coder.width, 3), dtype=torch.uint8).to(self.device))
        action, heat = torch.zeros(1, dtype=torch.int64, device=self.device), torch.ones((), device=self.device)
        try:
            for t in range(4):  # more than once, for what is recorded only then
                key = random.fold_in(random.key(0, self.device), t)
                state, _ = world.step(fast, state, action, key, replace(self.sample, steps=2), programs, heat)
        except Exception as error:  # without a working compiler the play goes on as it began
            self.ready = "eager"
            self.why = str(error).splitlines()[0]
        else:
            self._fast, self._programs, self.ready = fast, programs, "compiled"
        self._on_ready()


def _settled(dream: World, device: torch.device, compiled: bool) -> World:
    """The world with the implementations that are best on this device."""
    stages = (s and s._replace(cfg=impls.resolve(s.cfg, device, compiled, anew=True)) for s in dream)
    return World(*stages)


def _psnr(pixels: np.ndarray, beside: np.ndarray | None) -> float | None:
    if beside is None:
        return None
    return metrics.frame_psnr(torch.from_numpy(pixels), torch.from_numpy(beside)).item()
