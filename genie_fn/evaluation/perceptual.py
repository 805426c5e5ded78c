"""Metrics that need other people's networks: LPIPS, FID and FVD, from files that the user has. Nothing is downloaded.

| metric | files, in their usual formats |
|---|---|
| LPIPS, VGG (Zhang et al. 2018, arXiv 1801.03924) | torchvision's vgg16-397923af.pth; the authors' v0.1/vgg.pth |
| FID (Heusel et al. 2017, arXiv 1706.08500) | TorchScript inception-2015-12-05.pt, as published with StyleGAN2-ADA |
| FVD (Unterthiner et al. 2018, arXiv 1812.01717) | TorchScript i3d_torchscript.pt, as published with StyleGAN-V |

FID and FVD of few clips are biased upwards: compare them only between evaluations of equally many.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers, metrics
from genie_fn.errors import UserError
from genie_fn.nets import vgg as vgg16
from genie_fn.tree import Tree

STAGES = (
    "features.3",
    "features.8",
    "features.15",
    "features.22",
    "features.29",
)  # of VGG16, after a ReLU each
I3D_SIDE, I3D_FRAMES = 224, 10


@dataclass(frozen=True)
class WeightsConfig:
    """Files of weights; a metric whose files are not named is left out."""

    vgg: str = ""
    """torchvision's vgg16-397923af.pth; for LPIPS, with `lpips`."""
    lpips: str = ""
    """vgg.pth of LPIPS 0.1."""
    inception: str = ""
    """inception-2015-12-05.pt; for FID."""
    i3d: str = ""
    """i3d_torchscript.pt; for FVD."""

    def __post_init__(self):
        if bool(self.vgg) != bool(self.lpips):
            raise UserError(
                "LPIPS needs two files: give both --cfg.weights.vgg and --cfg.weights.lpips, or neither"
            )


class Networks(NamedTuple):
    """What could be loaded; None where no file was named."""

    vgg: Tree | None
    lpips: list[Tensor] | None
    inception: Callable | None
    i3d: Callable | None


def load(cfg: WeightsConfig, device: torch.device | str = "cpu") -> Networks:
    """Read the files. Raises UserError where one is missing or not what it should be."""
    vgg = linear = None
    if cfg.vgg:
        vgg = _read("vgg", cfg.vgg, lambda path: vgg16.load(path, device))
        linear = _read(
            "lpips", cfg.lpips, lambda path: _linear(torch.load(path, device, weights_only=True))
        )
    scripts = {
        name: _read(name, path, lambda path: torch.jit.load(path, device).eval()) if path else None
        for name, path in (("inception", cfg.inception), ("i3d", cfg.i3d))
    }
    return Networks(vgg, linear, **scripts)


def _linear(state: Tree) -> list[Tensor]:
    return [state[f"lin{i}.model.1.weight"].reshape(-1) for i in range(len(STAGES))]


def _read(name: str, path: str, reader: Callable):
    try:
        return reader(path)
    except Exception as error:  # a file that is missing, or of another kind, fails in many ways
        raise UserError(
            f"--cfg.weights.{name} {path} cannot be read ({type(error).__name__}): give the file that "
            "docs/evaluation.md names, or leave the flag out"
        ) from error


def lpips(vgg: Tree, linear: list[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The learned distance of each pair of frames, (M, H, W, 3) uint8 → (M,): 0 where they are equal."""
    total = torch.zeros(len(a), device=a.device)
    pairs = zip(
        *(vgg16.features(vgg, layers.to_float(x), STAGES) for x in (a, b)),
        linear,
        strict=True,
    )
    for x, y, weight in pairs:
        x, y = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
        total = total + ((x - y).square() * weight[:, None, None]).sum(1).mean((1, 2))
    return total


def measure(nets: Networks, real: Tensor, made: Tensor) -> dict[str, float]:
    """Every metric that the networks allow, of videos (B, T, H, W, 3) uint8."""
    found = {}
    if nets.vgg is not None:
        pairs = zip(real.flatten(0, 1).split(32), made.flatten(0, 1).split(32), strict=True)
        found["lpips"] = (
            torch.cat([lpips(nets.vgg, nets.lpips, a, b) for a, b in pairs]).mean().item()
        )
    if nets.inception is not None:
        found["fid"] = metrics.frechet(
            *(_inception_features(nets.inception, x) for x in (real, made))
        )
    if nets.i3d is not None and real.shape[1] >= I3D_FRAMES:
        found["fvd"] = metrics.frechet(*(_i3d_features(nets.i3d, x) for x in (real, made)))
    return {name: round(value, 4) for name, value in found.items()}


def _inception_features(net: Callable, video: Tensor) -> Tensor:
    """(B·T, 2048); the network itself brings uint8 frames to its size and range."""
    batches = video.flatten(0, 1).permute(0, 3, 1, 2).split(64)
    return torch.cat([net(x, return_features=True) for x in batches])


def _i3d_features(net: Callable, video: Tensor) -> Tensor:
    """(B, 400) of frames resized to what the network takes, in [-1, 1]."""
    found = []
    for clips in video.split(4):
        frames = layers.to_float(clips).permute(0, 4, 1, 2, 3)
        size = (frames.shape[2], I3D_SIDE, I3D_SIDE)
        frames = F.interpolate(frames, size, mode="trilinear", align_corners=False)
        found.append(net(frames, rescale=False, resize=False, return_features=True))
    return torch.cat(found)
