"""VGG16's convolutional features (Simonyan & Zisserman 2014), from torchvision's file.

Not torchvision.models.vgg16: it would be a dependency for one stack of convolutions and a file that
torch reads by itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn.errors import UserError
from genie_fn.tree import Tree

FILE = "vgg16-397923af.pth"
"""The name of the weights on download.pytorch.org/models."""
LAYERS = tuple(kind for count in (2, 2, 3, 3, 3) for kind in (*("conv", "relu") * count, "pool"))
"""The kinds of the layers features.0, features.1 and so on."""
# ImageNet's statistics, of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def load(path: str, device: torch.device | str = "cpu") -> Tree:
    """The convolutions of torchvision's file: {"features.0": {"w", "b"}, …}.

    Raises UserError if the file does not exist or holds something else.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        names = [f"features.{i}" for i, kind in enumerate(LAYERS) if kind == "conv"]
        params = {
            name: {"w": state[f"{name}.weight"], "b": state[f"{name}.bias"]} for name in names
        }
        last = f"features.{len(LAYERS) - 1}"
        features(params, torch.zeros((1, 32, 32, 3), device=device), (last,))
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}: download {FILE} from download.pytorch.org/models"
        ) from None
    except Exception as error:  # a file of another kind can raise anything
        raise UserError(
            f"{path} does not hold torchvision's vgg16 ({type(error).__name__}): "
            f"download {FILE} from download.pytorch.org/models"
        ) from error
    return params


def check_size(height: int, width: int, names: tuple[str, ...]) -> None:
    """Raise UserError if frames are too small for the layers with these torchvision names."""
    last = max(int(name.split(".")[1]) for name in names)
    least = 2 ** LAYERS[: last + 1].count("pool")
    if min(height, width) < least:
        raise UserError(
            f"VGG16's layer features.{last} needs frames of at least {least}x{least} pixels, not "
            f"{height}x{width}: leave out the flag that names its file"
        )


def features(params: Tree, frames_MHWC: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    """Frames in [-1, 1] → the outputs (M, C, h, w) of the layers with these torchvision names."""
    mean = frames_MHWC.new_tensor(MEAN)
    std = frames_MHWC.new_tensor(STD)
    x = (((frames_MHWC + 1) / 2 - mean) / std).permute(0, 3, 1, 2)
    outputs = []
    last = max(int(name.split(".")[1]) for name in names)
    for i, kind in enumerate(LAYERS[: last + 1]):
        if kind == "conv":
            layer = params[f"features.{i}"]
            x = F.conv2d(x, layer["w"].to(x.dtype), layer["b"].to(x.dtype), padding=1)
        elif kind == "relu":
            x = x.relu()
        else:
            x = F.max_pool2d(x, 2)
        if f"features.{i}" in names:
            outputs.append(x)
    return outputs
