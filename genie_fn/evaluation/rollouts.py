"""Rollouts from held-out clips under several action sequences, scored against the recorded frames.

The protocol is GenieRedux's (arXiv 2409.06445): a few prompt frames, then ten generated ones, given
all actions. Controllability is the Δ_t PSNR of Genie (arXiv 2402.15391), section 3: the PSNR lost
at frame t with other actions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genie_fn import maskgit, metrics, random, tokenizer
from genie_fn import world as worlds
from genie_fn.evaluation import statistics
from genie_fn.evaluation.clips import Clips
from genie_fn.evaluation.record import Curve, Method, Protocol, Scores
from genie_fn.maskgit import SampleConfig
from genie_fn.world import World

HEADLINE = 4  # the t of the paper's Δ_t PSNR
Videos = dict[Method, Tensor]
"""By method, the frames after the prompt, (B, T - prompt, H, W, 3) uint8."""


def batched(function: Callable[..., Tensor], key: Tensor, *tensors: Tensor) -> Tensor:
    """`function(key, *tensors)` in chunks of a few clips, each chunk with its own key."""
    return torch.cat(
        [function(random.fold_in(key, i), *part) for i, part in enumerate(worlds.chunks(*tensors))]
    )


def free_running(
    world: World,
    codes: Tensor,
    ids: Tensor,
    actions: Tensor,
    key: Tensor,
    sample: SampleConfig,
) -> Tensor:
    """The frames after a tokenized prompt, each generated from the prompt and the frames before it.

    Of T prompt frames, `codes` are (B, T, N, K) and `ids` (B, T, N). With `actions` (B, T - 1 + F)
    the result is (B, F, H, W, 3) uint8.
    """
    start = ids.shape[1] - 1

    def generate(key: Tensor, codes: Tensor, ids: Tensor, actions: Tensor) -> Tensor:
        state, _ = worlds.start(world, codes, ids, actions[:, :start])
        return worlds.generate(world, state, actions[:, start:], key, sample, first=start)

    return batched(generate, key, codes, ids, actions)


def teacher_forcing(
    world: World, clips: Clips, prompt: int, key: Tensor, sample: SampleConfig
) -> Tensor:
    """The frames after the prompt, each generated from the recorded frames before it."""

    def generate(key: Tensor, codes: Tensor, ids: Tensor, actions: Tensor) -> Tensor:
        prompt_actions = actions[:, : prompt - 1]
        state, _ = worlds.start(world, codes[:, :prompt], ids[:, :prompt], prompt_actions)
        frames = []
        for t in range(prompt, ids.shape[1]):
            step_key = random.fold_in(key, t - 1)
            _, frame = worlds.step(world, state, actions[:, t - 1], step_key, sample)
            frames.append(frame.pixels)
            now = slice(t, t + 1)
            entering = actions[:, t - 1 : t]
            state, _ = worlds.observe(world, state, codes[:, now], ids[:, now], entering)
        return torch.stack(frames, 1)

    return batched(generate, key, clips.codes, clips.ids, clips.actions)


def joint(world: World, clips: Clips, prompt: int, key: Tensor, sample: SampleConfig) -> Tensor:
    """The frames after the prompt, their tokens masked and revealed together."""
    decoder = world.tokenizer
    model = world.dynamics

    def generate(key: Tensor, ids: Tensor, actions: Tensor) -> Tensor:
        ids = maskgit.generate_jointly(
            model.params, ids, actions, key, model.cfg, sample, backend=model.backend
        )
        video = tokenizer.detokenize(decoder.params, ids, decoder.cfg, backend=decoder.backend)
        return video[:, prompt:]

    return batched(generate, key, clips.ids[:, :prompt], clips.actions)


def of_another_clip(x: Tensor) -> Tensor:
    """What belongs to clips (B, ...), for each clip that of the clip whose actions are its shuffled
    ones."""
    return x.roll(1, 0)


def action_sequences(actions: Tensor, prompt: int, key: Tensor) -> dict[Method, Tensor]:
    """The clip's own actions (B, T-1), another clip's, and uniform ones of those that occur in any
    clip.

    Between prompt frames they are always the clip's own.
    """
    occurring = actions.unique()
    uniform = occurring[random.randint(key, actions.shape, 0, len(occurring))]
    others: dict[Method, Tensor] = {
        "own_actions": actions,
        "shuffled": of_another_clip(actions),
        "random": uniform,
    }
    prompt_actions = actions[:, : prompt - 1]
    return {
        method: torch.cat((prompt_actions, values[:, prompt - 1 :]), 1)
        for method, values in others.items()
    }


def generate_all(
    world: World,
    clips: Clips,
    prompt: int,
    key: Tensor,
    sample: SampleConfig,
    extra_methods: bool = True,
) -> Videos:
    """The frames after the prompt by every method.

    `own_actions`: free-running rollout under the clip's own (inferred or recorded) actions;
    `shuffled`: another clip's; `random`: uniform ones of those that occur. These three share random
    numbers, so that a world that ignores its actions generates the same frames. `joint`: joint decoding of all frames;
    `teacher_forcing`: every frame from the recorded ones before it (from one prompt frame only:
    with more, the methods hardly differ); the baselines of `baselines`. Without `extra_methods`, `joint`
    and `teacher_forcing` are left out.
    """
    action_key, key = random.split(key).unbind(0)
    sequences = action_sequences(clips.actions, prompt, action_key)
    videos: Videos = {
        method: free_running(
            world, clips.codes[:, :prompt], clips.ids[:, :prompt], actions, key, sample
        )
        for method, actions in sequences.items()
    }
    if extra_methods:
        videos["joint"] = joint(world, clips, prompt, key, sample)
    if extra_methods and prompt == 1:
        videos["teacher_forcing"] = teacher_forcing(world, clips, prompt, key, sample)
    return videos | baselines(clips.frames[:, prompt - 1 :])


def baselines(frames_BTHWC: Tensor) -> Videos:
    """Predictions without a model, from frames that begin with the last prompt frame.

    `copy_last`: the prompt frame; `copy_displaced`: the prompt frame moved as far as the recorded
    picture has moved, which says what knowing the motion alone is worth.
    """
    future = frames_BTHWC[:, 1:]
    last = frames_BTHWC[:, :1].expand_as(future)
    steps = metrics.displacement(frames_BTHWC[:, :-1], future)
    return {"copy_last": last, "copy_displaced": metrics.displaced(last, steps.cumsum(1))}


def moving_half(frames_BTHWC: Tensor) -> Tensor:
    """(B,) bool: the half of the clips in which the picture moves furthest up to t = 4.

    `frames_BTHWC` begin with the last prompt frame. Of clips without any motion none is chosen, so
    that there may be fewer than half; if fewer than two clips have any, all are.
    """
    shown = frames_BTHWC[:, : HEADLINE + 1]
    steps = metrics.displacement(shown[:, :-1], shown[:, 1:])
    distance = steps.float().norm(dim=-1).sum(1)
    if (distance > 0).sum() < 2:
        return torch.ones_like(distance, dtype=torch.bool)
    return (distance >= distance.median()) & (distance > 0)


def score(future: Tensor, videos: Videos, level_B: Tensor, key: Tensor) -> Protocol:
    """Scores by frame against the recorded frames, for all clips and for the moving half.

    Intervals are over the levels (B,) of the clips.
    """
    error = {method: metrics.frame_error(future, video) for method, video in videos.items()}
    ssim = {method: metrics.frame_ssim(future, video) for method, video in videos.items()}
    psnr = {method: _psnr(values) for method, values in error.items()}
    edges = {method: metrics.edges(video) for method, video in videos.items()}
    recorded_edges = metrics.edges(future)
    aligned = {method: metrics.aligned_error(video, future) for method, video in videos.items()}
    moving = moving_half(torch.cat((videos["copy_last"][:, :1], future), 1))

    def scores(chosen: Tensor) -> Scores:
        def curves(values: Tensor, of: Callable[[Tensor], Tensor] = statistics.identity) -> Curve:
            return curve(values[chosen], level_B[chosen.to(level_B.device)], key, of)

        delta = {
            method: curves(psnr["own_actions"] - psnr[method])
            for method in ("random", "shuffled")
            if method in psnr
        }
        pair = torch.stack((error["own_actions"], error["copy_last"]), -1)
        delta["copy_last"] = curves(pair, _psnr_gain)
        return Scores(
            psnr={method: curves(values) for method, values in psnr.items()},
            ssim={method: curves(values) for method, values in ssim.items()},
            pooled={method: curves(values, _psnr) for method, values in error.items()},
            delta=delta,
            edges={
                method: curves(torch.stack((values, recorded_edges), -1), _ratio)
                for method, values in edges.items()
            },
            aligned={method: curves(_psnr(values)) for method, (values, _) in aligned.items()},
            position_error={method: curves(pixels) for method, (_, pixels) in aligned.items()},
        )

    return Protocol(all=scores(torch.ones_like(moving)), moving=scores(moving))


def _psnr(error: Tensor) -> Tensor:
    return metrics.psnr(error, 255.0)


def _psnr_gain(errors: Tensor) -> Tensor:
    """PSNR of the first of two errors (..., 2) minus that of the second."""
    return -torch.diff(_psnr(errors), dim=-1)[..., 0]


def _ratio(pair: Tensor) -> Tensor:
    """The first of two values (..., 2) divided by the second."""
    return pair[..., 0] / pair[..., 1].clamp(min=1e-6)


def curve(
    values_BT: Tensor,
    level_B: Tensor,
    key: Tensor,
    of: Callable[[Tensor], Tensor] = statistics.identity,
) -> Curve:
    """Means over clips by frame and over the frames, with intervals over levels, rounded to four
    digits."""
    by_frame = statistics.bootstrap(values_BT, key, of=of, groups=level_B)
    average = statistics.bootstrap(values_BT.mean(1), key, of=of, groups=level_B)
    mean, low, high = ([round(x, 4) for x in part.tolist()] for part in by_frame)
    return Curve(mean, low, high, average=[round(part.item(), 4) for part in average])
