"""A world as a Gymnasium environment, so that an agent can act and learn inside the world model.

`gymnasium.make("genie_fn.play.gym_env:genie_fn/World-v0", run=..., root=...)` makes one from
folders. An environment is by its interface an object with state, so it is one of the few stateful
classes here; its state is a `Session`.
"""

from typing import Any

import numpy as np
import torch

from genie_fn import bundle, world
from genie_fn.errors import UserError
from genie_fn.maskgit import PLAY, SampleConfig
from genie_fn.play import session
from genie_fn.play.session import Session
from genie_fn.runtime.backend import pick_device
from genie_fn.world import Programs, World

try:
    import gymnasium
    from gymnasium.spaces import Discrete
except ImportError as error:
    raise UserError(f"Gymnasium cannot be imported ({error}): `pip install gymnasium`.") from error

ID = "genie_fn/World-v0"

ActionLike = int | np.integer | np.ndarray | torch.Tensor
"""An action as agents return it: an integer, or an array or tensor without axes that holds one."""


class WorldEnv(gymnasium.Env):
    """Observations are uint8 frames (H, W, 3), actions the world's, episodes `horizon` steps.

    The reward is always 0.0 and no episode terminates: the world model predicts pixels, neither
    rewards nor ends. A subclass or a wrapper may. An episode starts from one of the start frames,
    uint8 (M, H, W, 3), as the tokenizer encodes it. The seed of `reset` determines which one, and
    everything that is sampled: the same seed and actions give the same frames.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(
        self,
        world_model: World,
        starts_MHWC: np.ndarray,
        horizon: int = 128,
        sample: SampleConfig = PLAY,
        programs: Programs = world.EAGER,
        render_mode: str | None = None,
    ):
        size = world_model.tokenizer.cfg
        shape = (size.height, size.width, 3)
        if starts_MHWC.shape[1:] != shape or starts_MHWC.dtype != np.uint8 or not len(starts_MHWC):
            raise UserError(
                f"an environment needs at least one start frame, a uint8 frame of {shape}, "
                f"but the shape of its start frames is {starts_MHWC.shape} ({starts_MHWC.dtype})"
            )
        if horizon < 1:
            raise UserError(f"an episode needs at least 1 step: got a horizon of {horizon}")
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self._actions = Discrete(world_model.dynamics.cfg.actions)
        self.action_space = self._actions
        self.render_mode = render_mode
        self.horizon = horizon
        self._world = world_model
        self._starts = starts_MHWC
        self._programs = programs
        self._sample = world.play_sample(sample, world_model.dynamics.cfg)
        self._session: Session | None = None

    @torch.no_grad()
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; `info["start"]` is the index of its start frame.

        `options["start"]` chooses the start frame. Other options are ignored, as in other
        environments.
        """
        super().reset(seed=seed)
        start = int(self.np_random.integers(len(self._starts)))
        session_seed = int(self.np_random.integers(2**32))
        if options and "start" in options:
            start = element(Discrete(len(self._starts)), options["start"], "start frame")
        self._session = session.begin(
            self._world, self._starts[start], session_seed, programs=self._programs
        )
        return self._session.present.pixels, {"start": start}

    @torch.no_grad()
    def step(self, action: ActionLike):
        """Generate the frame that `action` leads to: any integer that the action space contains."""
        if self._session is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        number = element(self._actions, action, "action")
        self._session = session.advance(
            self._world, self._session, number, self._sample, self._programs, keep=1
        )
        truncated = self._session.at >= self.horizon
        return self._session.present.pixels, 0.0, False, truncated, {}

    def render(self) -> np.ndarray | None:
        """The present frame, where the environment was made with `render_mode="rgb_array"`."""
        if self.render_mode != "rgb_array" or self._session is None:
            return None
        return self._session.present.pixels


def element(space: Discrete, value: ActionLike, name: str) -> int:
    """`value` as a Python integer. Raises UserError unless the space contains it."""
    found = value.numpy(force=True) if isinstance(value, torch.Tensor) else value
    if not space.contains(found):
        raise UserError(
            f"there is no {name} {value!r}: choose an integer from 0 to {int(space.n) - 1}"
        )
    return int(found)


def from_run(
    run: str = "runs/demo/dynamics",
    root: str = "",
    starts: int = 64,
    device: str = "cpu",
    **options: Any,
) -> WorldEnv:
    """The environment of a dynamics run or a world file; `options` are `WorldEnv`'s.

    A run starts from held-out frames of the dataset at `root`, by default the one that it was made
    from; a world file starts from its own.
    """
    chosen = pick_device(device, flag="device")
    loaded = bundle.load(run, chosen, data=root, start_frames=starts)
    return WorldEnv(loaded.world, loaded.start_frames, **options)


gymnasium.register(ID, entry_point=from_run)
