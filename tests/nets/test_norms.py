"""Group norm against torch's."""

import torch
from torch.nn import functional as F

from genie_fn import random
from genie_fn.nets import norms


def noise(*shape, seed=0):
    return random.normal(random.key(seed), shape)


def test_group_norm_is_torchs_on_every_frame():
    params = {"scale": noise(8), "shift": noise(8, seed=1)}
    x = noise(2, 3, 4, 4, 8, seed=2)
    flat = x.flatten(0, 1).permute(0, 3, 1, 2)
    expected = (
        F.group_norm(flat, 2, params["scale"], params["shift"], 1e-6)
        .permute(0, 2, 3, 1)
        .unflatten(0, (2, 3))
    )
    torch.testing.assert_close(norms.group_norm(params, x, 2), expected)
