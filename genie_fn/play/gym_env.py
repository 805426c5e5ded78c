"""A world as a Gymnasium environment, so that an agent can act, and learn, inside the dream.

`gymnasium.make("genie_fn.play.gym_env:genie_fn/Dream-v0", run=..., root=...)` makes one from folders. An environment is
by its interface an object with state, so here, and nowhere else in the package, is a class that has some: where its
episode is.
"""

from typing import Any

import numpy as np
import torch

from genie_fn import bundle, random, world
from genie_fn.dynamics import PLAY, SampleConfig
from genie_fn.errors import UserError
from genie_fn.world import Programs, World

try:
    import gymnasium
except ImportError as error:
    raise UserError(
        f"Gymnasium cannot be imported ({error}): `pip install 'genie_fn[play]'`."
    ) from error

ID = "genie_fn/Dream-v0"


class WorldEnv(gymnasium.Env):
    """Observations are uint8 frames (H, W, 3), actions the world's own, episodes `horizon` steps long.

    The reward is always 0.0 and no episode terminates: the world model predicts pixels, neither rewards nor ends. A
    subclass or a wrapper may. An episode starts from one of the given frames, uint8 (M, H, W, 3), as the tokenizer sees
    it; the seed of `reset` decides which, and all that is sampled after: the same seed and actions, the same frames.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        dreamt: World,
        starts_MHWC: np.ndarray,
        horizon: int = 128,
        sample: SampleConfig = PLAY,
        programs: Programs = world.EAGER,
        render_mode: str | None = None,
    ):
        coder, model = dreamt.tokenizer.cfg, dreamt.dynamics
        shape = (coder.height, coder.width, 3)
        if starts_MHWC.shape[1:] != shape or starts_MHWC.dtype != np.uint8 or not len(starts_MHWC):
            raise UserError(
                f"episodes start from at least one uint8 frame of {shape}, not from {starts_MHWC.shape}"
            )
        if horizon < 1:
            raise UserError(f"an episode needs at least 1 step: got a horizon of {horizon}")
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(model.cfg.actions)
        self.render_mode, self.horizon = render_mode, horizon
        self._world, self._starts, self._programs = dreamt, starts_MHWC, programs
        self._sample = world.played(dreamt, sample)
        self._device = model.params["token"].device
        self._key = self._state = self._pixels = None
        self._steps = 0

    @torch.no_grad()
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; `info["start"]` tells from which frame. There are no options."""
        super().reset(seed=seed)
        start = int(self.np_random.integers(len(self._starts)))
        self._key = random.key(int(self.np_random.integers(2**32)), self._device)
        prompt_11HWC = torch.from_numpy(self._starts[start]).to(self._device)[None, None]
        self._state, seen_11HWC = world.reset(self._world, prompt_11HWC, programs=self._programs)
        self._steps, self._pixels = 0, seen_11HWC[0, 0].cpu().numpy()
        return self._pixels, {"start": start}

    @torch.no_grad()
    def step(self, action: int):
        """Dream the frame that `action` leads to. Frame t of an episode is sampled with fold_in(key, t)."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        if not self.action_space.contains(action):
            raise UserError(
                f"there is no action {action!r}: choose an integer from 0 to {self.action_space.n - 1}"
            )
        self._steps += 1
        pressed, key = (
            torch.tensor([action], device=self._device),
            random.fold_in(self._key, self._steps),
        )
        self._state, frame = world.step(
            self._world, self._state, pressed, key, self._sample, self._programs
        )
        self._pixels = frame.pixels[0].cpu().numpy()
        return self._pixels, 0.0, False, self._steps >= self.horizon, {}

    def render(self) -> np.ndarray | None:
        """The present frame, where the environment was made with `render_mode="rgb_array"`."""
        return self._pixels if self.render_mode == "rgb_array" else None


def from_run(
    run: str = "runs/demo/dynamics",
    root: str = "data/coinrun",
    starts: int = 64,
    device: str = "cpu",
    **options: Any,
) -> WorldEnv:
    """The world of a dynamics run, started from held-out frames of a dataset, or of a world file, started from its own.
    `options` are `WorldEnv`'s."""
    loaded = bundle.load(run, device, data=root, start_frames=starts)
    return WorldEnv(loaded.world, loaded.start_frames, **options)


gymnasium.register(ID, entry_point=from_run)
