"""Metrics of pretrained networks: LPIPS, FID and FVD, from files of weights that the user has.

Nothing is downloaded.

- LPIPS, VGG (Zhang et al. 2018, arXiv 1801.03924): torchvision's vgg16-397923af.pth and the
  authors' v0.1/vgg.pth
- FID (Heusel et al. 2017, arXiv 1706.08500): TorchScript inception-2015-12-05.pt, as published with
  StyleGAN2-ADA
- FVD (Unterthiner et al. 2018, arXiv 1812.01717): TorchScript i3d_torchscript.pt, as published with
  StyleGAN-V

FID and FVD of few clips are biased upwards: compare them only between evaluations of equally many.
torchmetrics brings its own weights by download and has no FVD, so its classes are not used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import layers, metrics
from genie_fn.errors import UserError
from genie_fn.evaluation.record import Perceptual
from genie_fn.nets import vgg as vgg16
from genie_fn.tree import Tree

T = TypeVar("T")

# Layers of VGG16, each after a ReLU.
STAGES = ("features.3", "features.8", "features.15", "features.22", "features.29")
I3D_SIDE = 224  # pixels
I3D_FRAMES = 10  # the fewest


@dataclass(frozen=True)
class WeightsConfig:
    """Files of weights; a metric without its files is left out."""

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
                "LPIPS needs two files: "
                "give both --cfg.weights.vgg and --cfg.weights.lpips, or neither"
            )


class Networks(NamedTuple):
    """The networks that could be loaded; None for those without a file."""

    vgg: Tree | None
    lpips: list[Tensor] | None
    inception: Callable | None
    i3d: Callable | None


def load(cfg: WeightsConfig, device: torch.device | str = "cpu") -> Networks:
    """Read the files. Raises UserError for one that is missing or of another kind."""

    def vgg(path: str) -> Tree:
        return vgg16.load(path, device)

    def lpips(path: str) -> list[Tensor]:
        state = torch.load(path, device, weights_only=True)
        return [state[f"lin{i}.model.1.weight"].reshape(-1) for i in range(len(STAGES))]

    def script(path: str) -> Callable:
        return torch.jit.load(path, device).eval()

    return Networks(
        vgg=_read("vgg", cfg.vgg, vgg),
        lpips=_read("lpips", cfg.lpips, lpips),
        inception=_read("inception", cfg.inception, script),
        i3d=_read("i3d", cfg.i3d, script),
    )


def _read(name: str, path: str, reader: Callable[[str], T]) -> T | None:
    if not path:
        return None
    try:
        return reader(path)
    except Exception as error:  # a file that is missing, or of another kind, fails in many ways
        raise UserError(
            f"--cfg.weights.{name} {path} cannot be read ({type(error).__name__}): "
            "give the file that docs/evaluation.md names, or leave the flag out"
        ) from error


def lpips(vgg: Tree, linear: list[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The learned distance of pairs of frames, (M, H, W, 3) uint8 → (M,)."""
    vgg16.check_size(a.shape[1], a.shape[2], STAGES)
    features_a, features_b = (vgg16.features(vgg, layers.to_float(x), STAGES) for x in (a, b))
    total = torch.zeros(len(a), device=a.device)
    for x, y, weight in zip(features_a, features_b, linear, strict=True):
        difference = (_normalised(x) - _normalised(y)).square()
        total = total + (difference * weight[:, None, None]).sum(1).mean((1, 2))
    return total


def _normalised(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def measure(nets: Networks, recorded: Tensor, generated: Tensor) -> Perceptual:
    """Every metric whose network is there, of videos (B, T, H, W, 3) uint8."""
    lpips_mean = fid = fvd = None
    if nets.vgg is not None and nets.lpips is not None:
        lpips_mean = _mean_lpips(nets.vgg, nets.lpips, recorded, generated)
    if nets.inception is not None:
        fid = _frechet(nets.inception, _inception_features, recorded, generated)
    if nets.i3d is not None and recorded.shape[1] >= I3D_FRAMES:
        fvd = _frechet(nets.i3d, _i3d_features, recorded, generated)
    return Perceptual(lpips_mean, fid, fvd)


def _mean_lpips(vgg: Tree, linear: list[Tensor], recorded: Tensor, generated: Tensor) -> float:
    pairs = zip(recorded.flatten(0, 1).split(32), generated.flatten(0, 1).split(32), strict=True)
    distances = torch.cat([lpips(vgg, linear, a, b) for a, b in pairs])
    return round(distances.mean().item(), 4)


def _frechet(net: Callable, features: Callable, recorded: Tensor, generated: Tensor) -> float:
    return round(metrics.frechet(features(net, recorded), features(net, generated)), 4)


def _inception_features(net: Callable, video: Tensor) -> Tensor:
    """(B·T, 2048); the network itself brings uint8 frames to its size and range."""
    batches = video.flatten(0, 1).permute(0, 3, 1, 2).split(64)
    return torch.cat([net(x, return_features=True) for x in batches])


def _i3d_features(net: Callable, video: Tensor) -> Tensor:
    """(B, 400) of frames resized to the network's size, in [-1, 1]."""
    features = []
    for clips in video.split(4):
        frames = layers.to_float(clips).permute(0, 4, 1, 2, 3)
        size = (frames.shape[2], I3D_SIDE, I3D_SIDE)
        frames = F.interpolate(frames, size, mode="trilinear", align_corners=False)
        features.append(net(frames, rescale=False, resize=False, return_features=True))
    return torch.cat(features)
