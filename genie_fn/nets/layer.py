"""The interface of layers: frozen dataclasses of options, with pure functions."""

from dataclasses import dataclass

from torch import Tensor

from genie_fn.nets.causal import Context
from genie_fn.tree import Tree

Triple = tuple[int, int, int]  # (time, height, width)
Size = int | tuple[int, ...]  # the same for all axes, or (time, space), or (time, height, width)


def triple(size: Size) -> Triple:
    """A size per axis: time, height, width."""
    if isinstance(size, int):
        return size, size, size
    if len(size) == 2:
        return size[0], size[1], size[1]
    time, height, width = size
    return time, height, width


def odd_kernel(kernel_size: Size) -> Triple:
    """A kernel size per axis. Raises ValueError where it has no middle in space."""
    kernel = triple(kernel_size)
    if any(side % 2 == 0 for side in kernel[1:]):
        raise ValueError(f"its kernel_size {kernel_size} is even in space, but must be odd there")
    return kernel


@dataclass(frozen=True)
class Layer:
    """One kind of layer; the fields are its options.

    Subclasses define what it does to channels, frames and pixels. Impossible options raise
    ValueError in `__post_init__`; fields of a `Literal` type are checked by `blueprint.parse`.
    """

    @property
    def inputs(self) -> int | None:
        """The number of input channels, None if any."""
        return getattr(self, "in_channels", None)

    @property
    def outputs(self) -> int | None:
        """The number of output channels, None if as many as the input has."""
        return getattr(self, "out_channels", None) or self.inputs

    @property
    def shrinks(self) -> tuple[int, int]:
        """The factors by which it divides the frame rate and the pixels per side."""
        return 1, 1

    @property
    def grows(self) -> tuple[int, int]:
        """The factors by which it multiplies the frame rate and the pixels per side."""
        return 1, 1

    @property
    def condition(self) -> int:
        """The width of the external condition that it needs, 0 if none."""
        return 0

    def spec(self) -> Tree:
        """Its parameters, as a tree of `ParamSpec`."""
        return {}

    def apply(
        self, params: Tree, x: Tensor, cache: Tree | None, context: Context
    ) -> tuple[Tensor, Tree]:
        """(B, T, H, W, inputs) → (B, T', H', W', outputs) and the cache for the frames after them.

        See genie_fn/nets/causal.py for the cache and the context.
        """
        raise NotImplementedError
