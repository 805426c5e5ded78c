"""The engine behind the page: one thread that owns the models and dreams a frame after another for every visitor.

On a GPU, requests that wait at the same time and ask for as many MaskGIT steps are dreamed together, each with its own
key, temperature and past (`world.vmapped`); so a visitor's frames do not depend on who else plays, up to the rounding
of larger products. On a CPU that gains too little for what everybody would wait (one core, uncompiled: two frames
together take 0.96 of their time one after another, four 0.88; attention has no batched form there), so there they take
turns.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from genie_fn import metrics, random, tokenizer, tree, world
from genie_fn.bundle import action_map
from genie_fn.data import procgen
from genie_fn.dynamics import PLAY, SampleConfig
from genie_fn.errors import UserError
from genie_fn.play import session
from genie_fn.play.session import Moment, Note, Session
from genie_fn.runtime import backend
from genie_fn.world import Programs, World

SIZES = (2, 4, 8)  # of the batches; a smaller one is filled up
GAMES = 8  # levels of the real game kept open


class Act(NamedTuple):
    """A frame that is wished for. `compiled` says by which program; None takes the fastest that is ready."""

    session: Session
    action: int
    real: int | None
    temperature: float
    steps: int
    compiled: bool | None = None


@dataclass
class Way:
    """A way of dreaming: a world settled for it, its programs, and those for batches, by size."""

    dream: World
    programs: Programs
    together: dict[int, Programs] = field(default_factory=dict)


class Engine:
    """Dreams in a thread of its own; `start` and `act` return a Future of a `Session`. An object, since it holds one.

    `found` is the world's map of actions and `meta` its dataset's, from which the real game is known. With `compiled`,
    programs are compiled beside the play, which begins without.
    """

    def __init__(
        self,
        dream: World,
        device: torch.device,
        found: action_map.ActionMap | None,
        compiled: bool,
        meta: dict | None = None,
        sample: SampleConfig = PLAY,
    ):
        self.device, self.sample, self.found, self.meta = (
            device,
            world.played(dream, sample),
            found,
            meta,
        )
        self.latent = dream.lam is not None
        batches = () if device.type == "cpu" else SIZES
        self._ways = {
            False: Way(
                _settled(dream, device, False), Programs(), dict.fromkeys(batches, world.vmapped())
            )
        }
        self.cfg = dream.tokenizer.cfg, dream.dynamics.cfg
        self.ready = "compiling" if compiled else "eager"
        self._games: dict[int, tuple[procgen.Game, bytes]] = {}
        self._queue: queue.Queue = queue.Queue()
        self._on_ready: Callable = lambda: None
        threading.Thread(target=self._serve, daemon=True, name="engine").start()
        if compiled:
            threading.Thread(
                target=self._compile, args=(dream, batches), daemon=True, name="compiling"
            ).start()

    def when_ready(self, callback: Callable) -> None:
        """Have `callback()` called, from another thread, when `ready` changes."""
        self._on_ready = callback

    def start(self, image: np.ndarray | None, seed: int, level: int | None = None) -> Future:
        """A new session from an image (H, W, 3) uint8, or with a `level`, from the real game's first frame."""
        return self._submit(partial(self._start, image, seed, level))

    def act(self, *wish) -> Future:
        """The session with one more frame; the arguments are those of an `Act`."""
        return self._submit(Act(*wish))

    def close(self) -> None:
        """End the thread, after what was asked for before."""
        self._queue.put((None, None))

    def to_latent(self, real: int) -> int:
        """The action of this world that stands for a real one."""
        if not self.latent:
            return real
        if self.found is None:
            raise UserError(
                "this world's actions were never compared with the real ones: run evaluate.py once"
            )
        return self.found.to_latent[real]

    def _submit(self, work) -> Future:
        future: Future = Future()
        self._queue.put((work, future))
        return future

    # In the engine's thread.

    @torch.no_grad()
    def _serve(self) -> None:
        while self._serve_those_waiting():
            pass  # a function of its own, since its variables hold sessions, which must not outlive it

    def _serve_those_waiting(self) -> bool:
        """Wait for work, and do all that there is; False at the end."""
        waiting = [self._queue.get()]
        while not self._queue.empty() and len(waiting) < SIZES[-1]:
            waiting.append(self._queue.get())
        groups: dict = {}
        for work, future in waiting:
            if work is None:
                return False
            if future.set_running_or_notify_cancel():  # who asked may be gone by now
                way = self._way(work) if isinstance(work, Act) else None
                alike = id(future) if way is None or not way.together else (id(way), work.steps)
                groups.setdefault(alike, []).append((work, future))
        for group in groups.values():
            self._carry_out(*zip(*group, strict=True))
        return True

    def _carry_out(self, works: tuple, futures: tuple[Future, ...]) -> None:
        try:
            results = self._acts(works) if isinstance(works[0], Act) else [works[0]()]
        except (
            BaseException
        ) as error:  # whatever happened belongs to those who asked, not to this thread
            for future in futures:
                future.set_exception(error)
        else:
            for future, result in zip(futures, results, strict=True):
                future.set_result(result)

    def _way(self, act: Act) -> Way:
        """The way asked for, as far as it is there."""
        fastest = max(self._ways)
        return self._ways.get(
            fastest if act.compiled is None else act.compiled, self._ways[fastest]
        )

    def _start(self, image: np.ndarray | None, seed: int, level: int | None) -> Session:
        """Always without compiled programs: the same in every session."""
        dream, beside, saved = self._ways[False].dream, None, None
        if level is not None:
            opened, saved = self._game(level)
            procgen.load(opened, saved)
            image = beside = procgen.frame(opened)
        prompt = torch.from_numpy(image).to(self.device)[None, None]
        state, seen = world.reset(dream, prompt)
        ids = tokenizer.tokenize(dream.tokenizer.params, prompt, self.cfg[0])[1][0, 0].cpu().numpy()
        sure, given = np.full(len(ids), 255, np.uint8), np.zeros(len(ids), np.uint8)
        pixels = seen[0, 0].cpu().numpy()
        first = Moment(
            pixels,
            ids.astype(np.uint32),
            sure,
            given,
            session.added(state),
            game=beside,
            saved=saved,
        )
        return session.begun(first._replace(psnr=_psnr(pixels, beside)), seed, image, level)

    def _acts(self, acts: tuple[Act, ...]) -> list[Session]:
        """One frame for each, in a batch where there are programs for one of that size."""
        way = self._way(acts[0])
        size = next((size for size in SIZES if size >= len(acts)), 0)
        if len(acts) > 1 and size not in way.together:
            return [self._acts((act,))[0] for act in acts]
        began = time.perf_counter()
        batch = acts if len(acts) == 1 else (*acts, *acts[-1:] * (size - len(acts)))
        states = [session.state(act.session) for act in batch]
        keys = [
            random.fold_in(random.key(act.session.seed, self.device), act.session.at + 1)
            for act in batch
        ]
        pressed = torch.tensor([[act.action] for act in batch], device=self.device)
        heat = torch.tensor([act.temperature for act in batch], device=self.device)
        sample = replace(self.sample, steps=acts[0].steps)
        if len(acts) == 1:
            made = [
                world.step(way.dream, states[0], pressed[0], keys[0], sample, way.programs, heat[0])
            ]
        else:
            stacked = tree.map(lambda *x: torch.stack(x), *states)
            result = world.step(
                way.dream, stacked, pressed, torch.stack(keys), sample, way.together[size], heat
            )
            made = [tree.map(lambda x, i=i: x[i], result) for i in range(len(acts))]
        compiled = way is not self._ways[False]
        return [
            self._extended(act, *each, compiled, began)
            for act, each in zip(acts, made, strict=True)
        ]

    def _extended(
        self, act: Act, state: world.State, frame: world.Frame, compiled: bool, began: float
    ) -> Session:
        """The session with a dreamed frame, and with the real game's where there is one beside it."""
        now, beside, saved = act.session, None, None
        pixels, ids, probability, revealed = (x[0].cpu().numpy() for x in frame)
        if now.level is not None:
            opened, _ = self._game(now.level)
            procgen.load(opened, now.present.saved)
            beside = procgen.step(opened, act.real).frame
            saved = procgen.save(opened)
        psnr, before = _psnr(pixels, beside), now.present.mean_psnr or 0.0
        mean = None if psnr is None else before + (psnr - before) / (now.at + 1)
        note = Note(
            act.action, act.real, act.temperature, act.steps, compiled, session.frame_hash(pixels)
        )
        numbers = (
            ids.astype(np.uint32),
            (255 * probability).astype(np.uint8),
            revealed.astype(np.uint8),
        )
        ms = 1000 * (time.perf_counter() - began)
        new = Moment(pixels, *numbers, session.added(state), note, ms, beside, saved, psnr, mean)
        return session.extended(now, new)

    def _game(self, level: int) -> tuple[procgen.Game, bytes]:
        """A level's game, which the sessions on that level share, and its first state."""
        if level not in self._games:
            if len(self._games) >= GAMES:
                procgen.close(self._games.pop(next(iter(self._games)))[0])
            opened = procgen.open_game(
                level, self.meta or {}, self.cfg[0].height, self.cfg[0].width
            )
            self._games[level] = opened, procgen.save(opened)
        return self._games[level]

    # In a thread of its own.

    @torch.no_grad()
    def _compile(self, dream: World, batches: tuple[int, ...]) -> None:
        """Compile beside the play, by dreaming, and hand over what works: the single frame first, then batches."""
        try:
            fast = Way(_settled(dream, self.device, True), world.compiled(self.device))
            self._try_out(fast, 0)
        except Exception:  # without a working compiler the play goes on as it began
            self.ready = "eager"
            self._on_ready()
            return
        self._ways[True], self.ready = fast, "compiled"
        self._on_ready()
        for size in batches:
            try:
                programs = world.compiled(self.device, world.vmapped())
                self._try_out(replace(fast, programs=programs), size)
            except Exception:  # then its visitors take turns
                return
            fast.together[size] = programs

    def _try_out(self, way: Way, size: int) -> None:
        """Dream a few frames, of states put together as a session's are: of other strides, programs compile again."""
        black = torch.zeros(
            (1, 1, self.cfg[0].height, self.cfg[0].width, 3), dtype=torch.uint8, device=self.device
        )
        pieces = [session.added(world.reset(self._ways[False].dream, black)[0])]
        key, action = (
            random.key(0, self.device),
            torch.zeros(1, dtype=torch.int64, device=self.device),
        )
        sample, heat = replace(self.sample, steps=2), torch.ones((), device=self.device)
        for _ in range(4):  # more than once, for what is recorded only then
            inputs = session.rebuilt(pieces), action, key, heat
            state, *rest = tree.map(lambda x: torch.stack([x] * size), inputs) if size else inputs
            state, _ = world.step(way.dream, state, rest[0], rest[1], sample, way.programs, rest[2])
            pieces.append(session.added(tree.map(lambda x: x[0], state) if size else state))


def _settled(dream: World, device: torch.device, compiled: bool) -> World:
    """The world with the implementations that are best on this device."""
    return World(
        *(s and s._replace(cfg=backend.resolve(s.cfg, device, compiled, anew=True)) for s in dream)
    )


def _psnr(pixels: np.ndarray, beside: np.ndarray | None) -> float | None:
    if beside is None:
        return None
    return metrics.frame_psnr(torch.from_numpy(pixels), torch.from_numpy(beside)).item()
