"""What a world dreams of held-out clips under different actions, and how near that comes to what happened.

The protocol is GenieRedux's (arXiv 2409.06445): a few prompt frames, then ten dreamed ones, given all actions. How much
a world obeys is the Δ_t PSNR of Genie (arXiv 2402.15391), section 3: what wrong actions cost at frame t.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genie_fn import dynamics, metrics, random, tokenizer, world
from genie_fn.dynamics import SampleConfig
from genie_fn.evaluation import statistics
from genie_fn.world import World

HEADLINE = 4  # the t of the paper's Δ_t PSNR


def batched(function: Callable, key: Tensor, *tensors: Tensor):
    """`function(key, *tensors)` a few clips at a time, each time with a key of its own."""
    return torch.cat(
        [function(random.fold_in(key, i), *few) for i, few in enumerate(world.chunks(*tensors))]
    )


def true_past(
    dream: World, prompt: int, key: Tensor, frames: Tensor, actions: Tensor, sample: SampleConfig
) -> Tensor:
    """Every frame after the prompt dreamed from the real frames before it: (B, T - prompt, H, W, 3) uint8."""
    model, coder = dream.dynamics, dream.tokenizer
    codes, ids = tokenizer.tokenize(coder.params, frames, coder.cfg, backend=coder.backend)
    entering = dynamics.entering(actions, model.cfg)
    state, _ = world.reset(dream, frames[:, :prompt], actions[:, : prompt - 1])
    found = []
    for t in range(prompt, frames.shape[1]):
        _, shown = world.step(dream, state, actions[:, t - 1], random.fold_in(key, t - 1), sample)
        found.append(shown.pixels)
        past, now = state, slice(t, t + 1)
        cache = dynamics.remember(
            model.params, ids[:, now], entering[:, now], past.dynamics, model.cfg, model.backend
        )
        _, decoder = tokenizer.decode_next(
            coder.params, codes[:, now], past.decoder, coder.cfg, coder.backend
        )
        state = world.State(cache, decoder)
    return torch.stack(found, 1)


def at_once(
    dream: World, key: Tensor, prompt_BTHWC: Tensor, actions: Tensor, sample: SampleConfig
) -> Tensor:
    """All frames after the prompt hidden and revealed together, rather than one after another."""
    model, coder = dream.dynamics, dream.tokenizer
    _, ids = tokenizer.tokenize(coder.params, prompt_BTHWC, coder.cfg, backend=coder.backend)
    ids = dynamics.generate_jointly(
        model.params, ids, actions, key, model.cfg, sample, backend=model.backend
    )
    video = tokenizer.detokenize(coder.params, ids, coder.cfg, backend=coder.backend)
    return video[:, prompt_BTHWC.shape[1] :]


def dream_all(
    dream: World,
    frames: Tensor,
    actions: Tensor,
    prompt: int,
    key: Tensor,
    sample: SampleConfig,
    brief: bool = False,
) -> dict[str, Tensor]:
    """The frames after the prompt as dreamed in every way, (B, T - prompt, H, W, 3) uint8 each.

    `own`: given the clip's own actions; `shuffled`: from the prompt on another clip's; `random`: uniform ones. They
    share random numbers, so that a world that ignores actions dreams the same frames. `one_go`: own actions, all at
    once; `true_past`: own actions, every frame from the real ones before it; `copy_last`: the prompt's last frame.
    `brief` leaves out `one_go` and `true_past`.
    """
    chance_key, key = random.split(key).unbind(0)
    chance = random.randint(chance_key, actions.shape, 0, dream.dynamics.cfg.actions)
    first, seen = frames[:, :prompt], actions[:, : prompt - 1]
    given = {"own": actions, "shuffled": actions.roll(1, 0), "random": chance}
    given = {name: torch.cat((seen, other[:, prompt - 1 :]), 1) for name, other in given.items()}

    def continued(key: Tensor, first: Tensor, actions: Tensor) -> Tensor:
        return world.rollout(dream, first, actions, key, sample)

    def together(key: Tensor, first: Tensor, actions: Tensor) -> Tensor:
        return at_once(dream, key, first, actions, sample)

    def corrected(key: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
        return true_past(dream, prompt, key, frames, actions, sample)

    found = {name: batched(continued, key, first, chosen) for name, chosen in given.items()}
    if not brief:
        found["one_go"] = batched(together, key, first, actions)
    if prompt == 1 and not brief:  # with more the prompts differ in no more than the first frames
        found["true_past"] = batched(corrected, key, frames, actions)
    found["copy_last"] = first[:, -1:].expand_as(found["own"])
    return found


def moving(copied_BT: Tensor) -> Tensor:
    """The half of the clips in which the picture changes most until t = 4, by the PSNR of copying the last frame."""
    at = copied_BT[:, HEADLINE - 1]
    return at <= at.median()


def score(future: Tensor, dreams: dict[str, Tensor], key: Tensor) -> dict:
    """Scores by frame, with intervals over clips, for all of them and for the moving half.

    `psnr` and `ssim` are means over clips; `pooled` is the PSNR of the mean squared error over clips, in which a frame
    that equals the last does not count 100 dB; `delta` is what other ways of dreaming lose against the clip's own
    actions, by `psnr` for wrong actions and by `pooled` for copying the last frame.
    """
    error = {name: metrics.frame_error(future, made) for name, made in dreams.items()}
    ssim = {name: metrics.frame_ssim(future, made) for name, made in dreams.items()}
    psnr = {name: metrics.psnr(values, 255.0) for name, values in error.items()}
    half = moving(psnr["copy_last"])

    def pooled(mean: Tensor) -> Tensor:
        return metrics.psnr(mean, 255.0)

    def curves(chosen: Tensor) -> dict:
        found: dict = {"psnr": {}, "ssim": {}, "pooled": {}, "delta": {}}
        for name in dreams:
            found["psnr"][name] = intervals(psnr[name][chosen], key)
            found["ssim"][name] = intervals(ssim[name][chosen], key)
            found["pooled"][name] = intervals(error[name][chosen], key, pooled)
        for name in ("random", "shuffled"):
            found["delta"][name] = intervals((psnr["own"] - psnr[name])[chosen], key)
        both = torch.stack((error["own"], error["copy_last"]), -1)[chosen]
        found["delta"]["copy_last"] = intervals(
            both, key, lambda mean: -torch.diff(pooled(mean), dim=-1)[..., 0]
        )
        return found

    return {"all": curves(torch.ones_like(half)), "moving": curves(half)}


def intervals(
    values_BT: Tensor, key: Tensor, of: Callable = lambda mean: mean
) -> dict[str, list[float]]:
    """For JSON: mean and interval by frame, and under `average` [mean, low, high] of the mean over the frames."""
    by_frame = statistics.bootstrap(values_BT, key, of=of)
    over = statistics.bootstrap(values_BT.mean(1), key, of=of)
    found = {name: ends.tolist() for name, ends in by_frame._asdict().items()} | {
        "average": [x.item() for x in over]
    }
    return {name: [round(x, 4) for x in numbers] for name, numbers in found.items()}
