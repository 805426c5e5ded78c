"""Ready-made blueprints: MAGVIT-2's tokenizer, and two kinds of latent action model.

Sizes are by default those of Open-Genie. See genie_fn/nets/blueprint.py for the format.
"""

from typing import Any

Entry = str | tuple[str, dict[str, Any]]
Description = tuple[Entry, ...]


def _residual(inputs: int, repeats: int = 1, outputs: int = 0) -> Entry:
    options = {"in_channels": inputs, "out_channels": outputs or inputs, "n_rep": repeats}
    return "video-residual", options


def _down(channels: int, time: int, space: int = 2) -> Entry:
    options = {"in_channels": channels, "time_factor": time, "space_factor": space}
    return "spacetime_downsample", options


def _up(channels: int, time: int, space: int = 2) -> Entry:
    options = {"in_channels": channels, "time_factor": time, "space_factor": space}
    return "depth2spacetime_upsample", options


def _adaptive_norm(channels: int, condition: int) -> Entry:
    return "adaptive_group_norm", {"num_channels": channels, "dim_cond": condition}


def magvit2_encoder(
    bits: int = 18,
    dim: int = 128,
    repeats: tuple[int, ...] = (4, 3, 4, 7),
    times: tuple[int, ...] = (1, 2, 2),
) -> Description:
    """MAGVIT-2's encoder: residual stages of width 1, 2, 2, 4 · dim with downsampling between them.

    `times` are the factors by which the three downsamplings divide the frame rate; with ones only,
    every frame is coded.
    """
    a, b, c, d = repeats
    return (
        ("causal-conv3d", {"in_channels": 3, "out_channels": dim}),
        _residual(dim, a),
        _down(dim, times[0]),
        _residual(dim, 1, 2 * dim),
        _residual(2 * dim, b),
        _down(2 * dim, times[1]),
        _residual(2 * dim, c),
        _down(2 * dim, times[2]),
        _residual(2 * dim, 1, 4 * dim),
        _residual(4 * dim, d),
        ("group_norm", {"num_channels": 4 * dim}),
        "silu",
        ("causal-conv3d", {"in_channels": 4 * dim, "out_channels": bits, "kernel_size": 1}),
    )


def magvit2_decoder(
    bits: int = 18,
    dim: int = 128,
    repeats: tuple[int, ...] = (4, 4, 3, 4, 3),
    times: tuple[int, ...] = (2, 2, 1),
) -> Description:
    """MAGVIT-2's decoder: group norms adapt to the codes, and `times` multiply the frame rate."""
    a, b, c, d, e = repeats
    return (
        ("causal-conv3d", {"in_channels": bits, "out_channels": 4 * dim}),
        _residual(4 * dim, a),
        _adaptive_norm(4 * dim, bits),
        _residual(4 * dim, b),
        _up(4 * dim, times[0]),
        _adaptive_norm(4 * dim, bits),
        _residual(4 * dim, 1, 2 * dim),
        _residual(2 * dim, c),
        _up(2 * dim, times[1]),
        _adaptive_norm(2 * dim, bits),
        _residual(2 * dim, d),
        _up(2 * dim, times[2]),
        _adaptive_norm(2 * dim, bits),
        _residual(2 * dim, 1, dim),
        _residual(dim, e),
        ("group_norm", {"num_channels": dim}),
        "silu",
        ("causal-conv3d", {"in_channels": dim, "out_channels": 3}),
    )


def small_magvit2_encoder() -> Description:
    """MAGVIT-2's kinds of layers on patches of 4 pixels, with a grid of 18 bits per frame."""
    return (
        ("space_downsample", {"in_channels": 3, "out_channels": 64, "factor": 4}),
        ("image-residual", {"in_channels": 64}),
        ("spacetime_downsample", {"in_channels": 64, "out_channels": 96, "time_factor": 1}),
        ("video-residual", {"in_channels": 96, "n_rep": 2}),
        ("proj_out", {"in_channels": 96, "out_channels": 18, "kernel_size": 1}),
    )


def small_magvit2_decoder() -> Description:
    """The decoder of `small_magvit2_encoder`."""
    return (
        ("causal-conv3d", {"in_channels": 18, "out_channels": 96}),
        _adaptive_norm(96, 18),
        ("video-residual", {"in_channels": 96, "n_rep": 2}),
        ("depth2space_upsample", {"in_channels": 96, "out_channels": 64, "space_factor": 2}),
        _adaptive_norm(64, 18),
        ("image-residual", {"in_channels": 64}),
        ("group_norm", {"num_channels": 64}),
        "silu",
        ("depth2space_upsample", {"in_channels": 64, "out_channels": 3, "space_factor": 4}),
    )


def latent_act_encoder(
    dim: int = 256, heads: int = 4, head_dim: int = 16, repeats: int = 2
) -> Description:
    """The encoder of Open-Genie's latent action model; between its blocks the grid is halved."""
    options = {"n_rep": repeats, "n_embd": dim, "n_head": heads, "d_head": head_dim}
    block = ("space-time_attn", options)
    halve = ("spacetime_downsample", {"in_channels": dim, "time_factor": 1, "space_factor": 2})
    return (block, halve, block)


def latent_act_decoder(
    dim: int = 256, heads: int = 4, head_dim: int = 16, repeats: int = 2, condition: int = 8
) -> Description:
    """Its decoder, conditioned on the action's code; between its blocks the grid is doubled."""
    options = {
        "n_rep": repeats,
        "n_embd": dim,
        "n_head": heads,
        "d_head": head_dim,
        "has_ext": True,
        "time_attn_kw": {"key_dim": condition},
    }
    block = ("space-time_attn", options)
    double = ("spacetime_upsample", {"in_channels": dim, "time_factor": 1, "space_factor": 2})
    return (block, double, block)


def conv_encoder(dim: int = 64) -> Description:
    """A small convolutional encoder of a latent action model; it divides the grid by four.

    It learns to detect motion in fewer steps than attention does.
    """
    halve = ("image-residual", {"in_channels": dim, "downsample": (1, 2)})
    return (
        halve,
        ("video-residual", {"in_channels": dim}),
        halve,
        ("group_norm", {"num_channels": dim}),
        "silu",
    )


def conv_decoder(dim: int = 64, condition: int = 32, blocks: int = 3) -> Description:
    """Its decoder: a group norm that adapts to the action's code precedes every residual block."""
    block = (_adaptive_norm(dim, condition), ("image-residual", {"in_channels": dim}))
    return (*block * blocks, ("group_norm", {"num_channels": dim}), "silu")


MAGVIT2_ENC_DESC = magvit2_encoder()
MAGVIT2_DEC_DESC = magvit2_decoder()
LATENT_ACT_ENC = latent_act_encoder()
LATENT_ACT_DEC = latent_act_decoder()
