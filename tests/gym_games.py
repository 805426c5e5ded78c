"""Small Gymnasium environments, and policies for them."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete


class Walk(gymnasium.Env):
    """A white square on a background of random colour. An episode ends at a border, or by chance."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = Box(0, 99, (2,), np.int64)

    def __init__(self, render_mode=None, actions="names", height=20):
        spaces = {
            "names": Discrete(3),
            "start": Discrete(2, start=5),
            "multi": MultiDiscrete([2, 3]),
            "binary": MultiBinary(2),
            "many": MultiDiscrete([20, 20]),
            "too many": MultiDiscrete([300, 300]),
            "one too many": Discrete(65_537),
            "box": Box(-1, 1, (1,)),
        }
        self.render_mode = render_mode
        self.action_space = spaces[actions]
        self.height = height
        if actions == "names":
            self.get_action_meanings = lambda: ["NOOP", "UPLEFT", "RIGHTFIRE"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.colour = self.np_random.integers(0, 200, 3).astype(np.uint8)
        self.x = 15
        return np.array([self.x, 0]), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.last = action
        move = int(np.sum(action)) % 3
        self.x += (0, -2, 2)[move]
        lucky = bool(self.np_random.random() < 0.02)
        return np.array([self.x, move]), float(move), not 2 < self.x < 28, lucky, {}

    def render(self):
        frame = np.full((self.height, 30, 3), self.colour)
        frame[5:9, self.x - 2 : self.x + 2] = 255
        return frame


class Grey(Walk):
    def render(self):
        return super().render()[..., 0]


gymnasium.register("Walk-v0", Walk)
gymnasium.register("Grey-v0", Grey)


def right(observation, rng):
    """Goes right, and now and then left."""
    assert observation.shape == (2,)
    return 1 if rng.random() < 0.1 else 2


def wrong(observation, rng):
    return "left"


def beyond(observation, rng):
    return 7
