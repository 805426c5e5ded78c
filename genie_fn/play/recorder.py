"""The server of the page on which a person plays a game, and what they do becomes a dataset.

One person at a time. A recording is what happened in a level since it began, over as many episodes as
were played. It is written when the person saves it, leaves the page or ends the program, and goes to
train, val and test in turns of five, so that five recordings are a dataset to train on.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from genie_fn import data
from genie_fn.data import Store, games
from genie_fn.data.game import MAX_LEVEL, Game
from genie_fn.errors import UserError
from genie_fn.play.guard import Guard
from genie_fn.play.server import PAGE
from genie_fn.runtime.console import console

RECORD_PAGE = Path(__file__).parent / "record_page"
SPLITS = ("train", "train", "train", "val", "test")
"""The splits of successive recordings."""
MAX_BYTES = 1 << 30
"""Bytes of the frames of a recording, which are held in memory until it is written."""
TAKEN = "Somebody is recording already: close that page first."


class Take:
    """A recording that is being made: the level's game, and what happened in it."""

    def __init__(self, game: Game):
        self.game = game
        self.frame = game.frame()
        self.frames: list[np.ndarray] = []
        self.actions: list[int] = []
        self.rewards: list[float] = []
        self.starts: list[bool] = []
        self.completed = 0
        self._begins = True

    def act(self, action: int) -> tuple[bool, float]:
        """Take an action: whether the episode ended, and the reward. Raises UserError for one that the
        game does not have, and when the recording is too long."""
        if (len(self.frames) + 1) * self.frame.nbytes > MAX_BYTES:
            raise UserError(f"a recording has at most {len(self.frames)} frames: save it")
        step = self.game.step(action)
        self.completed += step.completed
        self.frames.append(self.frame)
        self.actions.append(action)
        self.rewards.append(step.reward)
        self.starts.append(self._begins)
        self.frame = step.frame
        self._begins = step.ended
        return step.ended, step.reward

    def forget(self) -> None:
        """Drop what happened so far."""
        for values in (self.frames, self.actions, self.rewards, self.starts):
            values.clear()

    def recording(self, split: str) -> data.Recording:
        """What a store keeps of it."""
        info = {"completed": self.completed, "reward": sum(self.rewards)}
        return data.Recording(
            self.game.level,
            np.stack(self.frames),
            np.array(self.actions),
            np.array(self.rewards, np.float32),
            np.array(self.starts, bool),
            split,
            info,
        )


class Recorder:
    """The application, the dataset that it writes, and the recording that is being made."""

    def __init__(self, store: Store, first_level: int, fps: int, token: str):
        self.store = store
        self.fps = fps
        self.stop: Callable[[], None] = lambda: None
        self._first_level = first_level
        self._busy = False
        # One thread for the game, so that one thing happens at a time, also where a request was
        # cancelled; and some games can only be drawn in the thread that opened them.
        self._thread = ThreadPoolExecutor(1, "game")
        self.take = self._thread.submit(self._begin).result()
        routes = [
            Route("/", self.page),
            Route("/play", self.answer, methods=["POST"]),
            WebSocketRoute("/play", self.play),
            Mount("/static/record", StaticFiles(directory=RECORD_PAGE)),
            Mount("/static", StaticFiles(directory=PAGE)),
        ]
        self.app = Guard(Starlette(routes=routes, lifespan=self.lifespan), token)

    @contextlib.asynccontextmanager
    async def lifespan(self, _) -> AsyncIterator[None]:
        """Write what has not been saved when the program ends."""
        yield
        await self._in_thread(self._end)

    async def page(self, _: Request) -> Response:
        """Answer with the page itself."""
        return FileResponse(RECORD_PAGE / "index.html")

    async def answer(self, _: Request) -> Response:
        """Answer a page whose socket was not opened, with the reason of the guard if it refuses."""
        return Response(status_code=204)

    async def play(self, socket: WebSocket) -> None:
        """Let one person play until the connection ends."""
        await socket.accept()
        if self._busy:
            await socket.send_json({"type": "error", "message": TAKEN})
            return await socket.close(1013)
        self._busy = True
        try:
            await self._converse(socket)
        except (WebSocketDisconnect, RuntimeError, OSError):  # the person left
            pass
        finally:
            # Waited for without `await`, which would end at once where this task was cancelled.
            self._thread.submit(self._save_or_say).result()
            self._busy = False

    async def _converse(self, socket: WebSocket) -> None:
        height, width = self.take.frame.shape[:2]
        names = list(self.take.game.action_names)
        hello = {"type": "hello", "names": names, "height": height, "width": width, "fps": self.fps}
        hello |= {"env": games.collection(self.store.meta)["env"], "root": str(self.store.root)}
        await socket.send_json(hello)
        await self._show(socket, ended=False, reward=0.0)
        while True:
            message = await self._receive(socket)
            try:
                ended, reward = await self._in_thread(self.answer_to, message)
            except UserError as error:
                await socket.send_json({"type": "error", "message": str(error)})
                continue
            except Exception as error:  # the game's own
                text = f"the game failed ({type(error).__name__}: {error}); save what there is"
                console.print(text, markup=False, soft_wrap=True)
                await socket.send_json({"type": "error", "message": text})
                continue
            await self._show(socket, ended, reward)

    async def _in_thread(self, function: Callable, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def _save_or_say(self) -> None:
        """`save`, where an error has nobody to go to."""
        try:
            self.save()
        except Exception as error:  # a full disk, or the game's own
            console.print(
                f"what was recorded cannot be saved: {error}", markup=False, soft_wrap=True
            )

    def _end(self) -> None:
        self._save_or_say()
        self.take.game.close()

    @staticmethod
    async def _receive(socket: WebSocket) -> dict[str, Any]:
        """A message of the page; {} for what is none."""
        text = await socket.receive_text()
        try:
            message = json.loads(text[:1000])
        except ValueError:
            return {}
        return message if isinstance(message, dict) else {}

    def answer_to(self, message: dict[str, Any]) -> tuple[bool, float]:
        """Do what a message asks for: whether an episode ended, and the reward."""
        kind = message.get("type")
        action = message.get("action")
        if kind == "act" and type(action) is int:
            return self.take.act(action)
        if kind == "save":
            self.save()
        elif kind == "discard":
            self._replace(self.take.game.level)
        else:
            raise UserError("the page asked for something unknown: load it again")
        return False, 0.0

    async def _show(self, socket: WebSocket, ended: bool, reward: float) -> None:
        """Send the current frame, and what is recorded."""
        state = {
            "type": "frame",
            "ended": ended,
            "reward": reward,
            "level": self.take.game.level,
            "frames": len(self.take.frames),
            "saved": len(self.store.segments),
            "saved_frames": sum(segment.length for segment in self.store.segments),
            "split": self._split(),
        }
        await socket.send_json(state)
        await socket.send_bytes(np.ascontiguousarray(self.take.frame).tobytes())

    def save(self) -> None:
        """Write the recording, if it has frames, and begin the next level. In the game's thread."""
        if not self.take.frames:
            return
        recording = self.take.recording(self._split())
        self.store = data.append_segments(self.store, [recording])
        self.take.forget()  # even if the next level cannot be opened, it is saved once
        self._replace(self._level())

    def _replace(self, level: int) -> None:
        """Begin anew in a level."""
        before = self.take.game
        self.take = Take(self._open(level))
        before.close()

    def _split(self) -> str:
        """The split of the next recording."""
        return SPLITS[len(self.store.segments) % len(SPLITS)]

    def _level(self) -> int:
        """The level of the next recording."""
        return (self._first_level + len(self.store.segments)) % (MAX_LEVEL + 1)

    def _begin(self) -> Take:
        return Take(self._open(self._level()))

    def _open(self, level: int) -> Game:
        return games.open_game(level, self.store.meta, own_modules=True)


def open_or_create(root: Path, collection: dict[str, Any], level: int) -> Store:
    """The dataset at `root`, new or to be added to. Raises UserError if it is of something else."""
    if not data.is_store(root):
        return games.new_store(root, collection, level)
    store = data.open_store(root)
    stored = store.meta.get("collection", {})
    for name, value in collection.items():
        if stored.get(name) != value:
            raise UserError(
                f"{root} was recorded with {name} {stored.get(name)}, not {value}: choose another "
                "--cfg.root"
            )
    return store
