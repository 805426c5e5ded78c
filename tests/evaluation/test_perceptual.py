"""LPIPS, FID and FVD, with small stand-ins in the formats of the networks' files."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from genie_fn import metrics, random
from genie_fn.errors import UserError
from genie_fn.evaluation import perceptual
from genie_fn.evaluation.perceptual import WeightsConfig
from genie_fn.evaluation.record import Perceptual
from genie_fn.nets import vgg

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


class Inception(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8 and return_features
        return x.float().mean(dim=(2, 3))


class I3d(torch.nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features
        assert x.size(1) == 3 and x.size(3) == 224 and float(x.max()) <= 1.0
        return 1000 * x.mean(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> WeightsConfig:
    home, state, inputs = tmp_path_factory.mktemp("weights"), {}, 3
    indices = [i for i, kind in enumerate(vgg.LAYERS) if kind == "conv"]
    for i, width in zip(indices, WIDTHS, strict=True):
        key = random.fold_in(random.key(0), i)
        state[f"features.{i}.weight"] = (
            random.normal(key, (width, inputs, 3, 3)) * (2 / (9 * inputs)) ** 0.5
        )
        state[f"features.{i}.bias"] = torch.zeros(width)
        inputs = width
    linear = {}
    for i, width in enumerate((64, 128, 256, 512, 512)):
        linear[f"lin{i}.model.1.weight"] = random.uniform(random.key(i), (1, width, 1, 1))
    torch.save(state, home / "vgg16.pth")
    torch.save(linear, home / "lpips.pth")
    for name, net in (("inception", Inception()), ("i3d", I3d())):
        torch.jit.script(net).save(str(home / f"{name}.pt"))
    return WeightsConfig(
        *(str(home / name) for name in ("vgg16.pth", "lpips.pth", "inception.pt", "i3d.pt"))
    )


@pytest.fixture(scope="module")
def videos():
    real = random.randint(random.key(1), (6, 10, 32, 32, 3), 0, 256).to(torch.uint8)
    return real, (real.int() + random.randint(random.key(2), real.shape, -60, 61)).clamp(0, 255).to(
        torch.uint8
    )


def lpips_by_hand(files: WeightsConfig, a: torch.Tensor, b: torch.Tensor) -> float:
    """Place by place with NumPy on the features, as the paper writes it (equation 1)."""
    state, linear = torch.load(files.vgg), torch.load(files.lpips)
    total, x = 0.0, torch.stack((a, b)).permute(0, 3, 1, 2) / 127.5 - 1
    x = (x - torch.tensor([-0.03, -0.088, -0.188])[:, None, None]) / torch.tensor(
        [0.458, 0.448, 0.45]
    )[:, None, None]
    taken = 0
    for i, kind in enumerate(vgg.LAYERS[:30]):
        if kind == "pool":
            x = F.max_pool2d(x, 2)
        elif kind == "conv":
            x = F.conv2d(x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1)
        else:
            x = x.clamp(min=0)
            if vgg.LAYERS[i + 1] == "pool":
                weight, (f, g) = linear[f"lin{taken}.model.1.weight"].flatten().numpy(), x.numpy()
                places = [
                    (f[:, h, w], g[:, h, w]) for h in range(f.shape[1]) for w in range(f.shape[2])
                ]
                unit = [(p / np.linalg.norm(p), q / np.linalg.norm(q)) for p, q in places]
                total += np.mean([(weight * (p - q) ** 2).sum() for p, q in unit])
                taken += 1
    assert taken == 5
    return total


def test_lpips_is_the_papers(files, videos):
    nets, (real, made) = perceptual.load(files), videos
    found = perceptual.lpips(nets.vgg, nets.lpips, real[0, :2], made[0, :2])
    assert found[1].item() == pytest.approx(lpips_by_hand(files, real[0, 1], made[0, 1]), rel=1e-3)
    assert perceptual.lpips(nets.vgg, nets.lpips, real[0, :1], real[0, :1]).item() == 0


def test_all_that_the_files_allow(files, videos):
    real, made = videos
    found = perceptual.measure(perceptual.load(files), real, made)
    assert None not in (found.lpips, found.fid, found.fvd)
    of_frames = [x.flatten(0, 1).float().mean((1, 2)) for x in videos]
    assert found.fid == pytest.approx(metrics.frechet(*of_frames), abs=1e-3)
    of_clips = [
        1000 * (x.float().mean((1, 2, 3)) / 127.5 - 1) for x in videos
    ]  # which resizing keeps, nearly
    assert found.fvd == pytest.approx(metrics.frechet(*of_clips), rel=0.2)
    short = perceptual.measure(perceptual.load(files), real[:, :4], made[:, :4])
    assert short.fvd is None  # too short for the network
    assert perceptual.measure(perceptual.load(WeightsConfig()), real, made) == Perceptual()


def test_files_that_cannot_be_read_are_named(files, tmp_path):
    with pytest.raises(UserError, match="both"):
        WeightsConfig(vgg="a.pth")
    (tmp_path / "other").write_text("no network")
    for name, given in (
        ("inception", {"inception": str(tmp_path / "other")}),
        ("i3d", {"i3d": "nowhere.pt"}),
        ("lpips", {"vgg": files.vgg, "lpips": files.vgg}),
        ("vgg", {"vgg": files.lpips, "lpips": files.lpips}),
    ):
        with pytest.raises(UserError, match=f"--cfg.weights.{name} .*cannot be read"):
            perceptual.load(WeightsConfig(**given))
