"""Behaviour cloning from latent actions: Genie (arXiv 2402.15391), section 3.3.

An expert's video comes without actions. The latent action model labels every transition, a policy
learns to predict the next label from a few frames, and a few transitions with recorded actions
translate labels into actions of the game. The oracle is the same network, trained on the recorded
actions of the same transitions.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genie_fn import data, layers, metrics, random
from genie_fn.data import Store, procgen
from genie_fn.data import expert as experts
from genie_fn.data.expert import Search
from genie_fn.data.procgen import ACTIONS, ProcgenGame
from genie_fn.data.storage import Segment
from genie_fn.errors import UserError
from genie_fn.evaluation import actions as action_statistics
from genie_fn.evaluation import inverse_dynamics, statistics
from genie_fn.microbatch import Microbatch
from genie_fn.nets import blueprint
from genie_fn.nets.blueprint import Blueprint
from genie_fn.runtime import files
from genie_fn.runtime.progress import track
from genie_fn.training import setup
from genie_fn.training.config import RunConfig
from genie_fn.tree import Tree

FRAMES = 3  # that a policy sees: the current one and the two before
CLIP = 11  # frames of the clips that are labelled
Policy = Callable[[Tensor], Tensor]
"""Frames (B, FRAMES, H, W, 3) uint8 → probabilities of the game's actions (B, ACTIONS)."""


class Episode(NamedTuple):
    """Frames start..end-1 on the store's time axis."""

    start: int
    end: int
    train: bool
    """Whether it is in the train split."""
    solved: bool
    """Whether a reward was earned."""
    first: bool
    """Whether it is the first of its level."""
    complete: bool
    """Whether it was recorded to its end."""


class Expert(NamedTuple):
    """S moments of solved episodes: FRAMES frames and the action that followed."""

    offsets: np.ndarray
    """(S,)."""
    latent: np.ndarray
    """(S,): labels of the latent action model."""
    recorded: np.ndarray
    """(S,)."""


def episodes(store: Store) -> list[Episode]:
    """All episodes of a store. Raises UserError if no solved one can be learnt from."""
    result = [episode for segment in store.segments for episode in _of_segment(store, segment)]
    if not _usable(store, result):
        raise UserError(
            f"{store.root} holds no solved episode to learn from: "
            "collect a game with rewards, and more episodes"
        )
    return result


def _of_segment(store: Store, segment: Segment) -> Iterator[Episode]:
    span = slice(segment.offset, segment.offset + segment.length)
    rewards = np.asarray(store.arrays["rewards"][span].read().result())
    starts = np.flatnonzero(np.asarray(store.arrays["episode_starts"][span].read().result()))
    ends = np.append(starts[1:], segment.length)
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        solved = bool(rewards[start:end].sum() > 0)
        yield Episode(
            start=span.start + start,
            end=span.start + end,
            train=segment.split == "train",
            solved=solved,
            first=i == 0,
            complete=end < segment.length or solved,
        )


def _usable(store: Store, all_episodes: list[Episode]) -> list[Episode]:
    """The solved episodes of the train split that are as long as a clip."""
    least = store.span(CLIP)
    return [
        episode
        for episode in all_episodes
        if episode.solved and episode.train and episode.end - episode.start >= least
    ]


def label(
    store: Store,
    all_episodes: list[Episode],
    infer: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    limit: int,
) -> Expert:
    """The moments of at most `limit` solved episodes of the train split, evenly spread over these.

    `infer(frames, recorded actions)` returns the latent actions of clips.
    """
    usable = _usable(store, all_episodes)
    rows = np.linspace(0, len(usable) - 1, min(limit, len(usable))).round().astype(int)
    chosen = [usable[row] for row in rows]
    clips = np.concatenate([_clip_starts(episode, store) for episode in chosen])
    stride = store.stride
    latent = np.full(clips.max() + store.span(CLIP), -1)
    codes = action_statistics.map_clips(store, clips, CLIP, infer, device)
    latent[clips[:, None] + np.arange(CLIP - 1) * stride] = codes.numpy()
    offsets = np.concatenate(
        [np.arange(episode.start, episode.end - FRAMES * stride) for episode in chosen]
    )
    now = offsets + (FRAMES - 1) * stride
    known = latent[now] >= 0  # short episodes are not covered by clips of every phase
    recorded = np.asarray(store.arrays["actions"][now].read().result()).astype(np.int64)
    return Expert(offsets[known], latent[now][known], recorded[known])


def _clip_starts(episode: Episode, store: Store) -> np.ndarray:
    """Where clips begin that cover an episode's transitions.

    The last ones may overlap those before.
    """
    stride = store.stride
    last = episode.end - store.span(CLIP)
    hop = (CLIP - 1) * stride
    regular = [np.arange(episode.start + phase, last, hop) for phase in range(stride)]
    final = np.arange(max(episode.start, last - stride + 1), last + 1)
    return np.concatenate((*regular, final))


def logits(params: Tree, frames_BTHWC: Tensor, net: Blueprint) -> Tensor:
    """Logits of the action that follows FRAMES uint8 frames, (B, kinds).

    The input is the last frame and the last two differences, where the inverse dynamics model also
    sees the next frame.
    """
    x = layers.to_float(frames_BTHWC)
    change = 4 * torch.diff(x, dim=1)
    inputs = torch.cat((x[:, -1:], change[:, -1:], change[:, :1]), -1)
    y, _ = blueprint.apply(params["net"], inputs, net)
    return layers.linear(params["head"], y.flatten(1))


class Examples(NamedTuple):
    """What a policy learns: `target` (S,) follows the FRAMES frames from `offsets` (S,)."""

    offsets: np.ndarray
    target: np.ndarray
    kinds: int


def fit(store: Store, examples: Examples, dim: int, cfg: RunConfig, steps: Iterable[int]) -> Policy:
    """A policy over `examples.kinds`, trained for `cfg.steps` steps, which `steps` may display."""
    net = inverse_dynamics.network(dim)
    parameters = inverse_dynamics.spec(dim, store.height, store.width, examples.kinds)
    device = torch.device(cfg.device)
    indices = np.arange(len(examples.offsets))

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for step in itertools.count():
            rows = data.clip_offsets(indices, cfg.seed, step, cfg.batch_size)
            frames = data.read_clips(store, examples.offsets[rows], FRAMES).frames
            yield setup.to_device((frames, examples.target[rows]), device)

    def loss(
        params: Tree, batch: tuple[Tensor, ...], key: Tensor, step: Tensor, microbatch: Microbatch
    ):
        return F.cross_entropy(logits(params, batch[0], net), batch[1]), ({}, ())

    params = inverse_dynamics.descend(loss, parameters, batches(), cfg, steps)

    def policy(frames: Tensor) -> Tensor:
        return logits(params, frames.to(device), net).softmax(-1).cpu()

    return policy


def translation(
    latent: np.ndarray, recorded: np.ndarray, codes: int, *, commonest: bool = False
) -> Tensor:
    """p(game action | latent action) from N labelled transitions, (codes, ACTIONS).

    Their frequencies, or 1 for the commonest action of each code. A code that does not occur among
    them has the frequencies of all of them.
    """
    table = metrics.contingency(
        torch.from_numpy(latent), torch.from_numpy(recorded), codes, len(ACTIONS)
    ).double()
    table = torch.where(table.sum(1, keepdim=True) > 0, table, table.sum(0))
    if commonest:
        return F.one_hot(table.argmax(1), len(ACTIONS)).double()
    return table / table.sum(1, keepdim=True)


def constant(probability_A: Tensor) -> Policy:
    """A policy that ignores the frames."""
    return lambda frames: probability_A.expand(len(frames), -1)


def translated(policy: Policy, translation_KA: Tensor) -> Policy:
    """A policy over latent actions as one over the game's actions."""
    return lambda frames: policy(frames).double() @ translation_KA


def open_levels(count: int, meta: dict, stride: int = 1) -> list[tuple[ProcgenGame, bytes]]:
    """The first test levels of the game that a store came from, each with its first state.

    An action is held for `stride` frames of the store.
    """
    seeds = (level for level in range(100 * count) if data.split_of(level) == "test")
    games = [_open(level, meta, stride) for level in itertools.islice(seeds, count)]
    return [(game, game.save()) for game in games]


def demonstrations(store: Store, root: Path, mode: str, count: int) -> Store:
    """The expert's video of `count` levels of the train split, of the game that a store came from.

    The dataset at `root` holds one episode per level, and has the store's stride. Levels that it
    holds already are kept. Raises UserError if the store did not come from a game of Procgen, and
    if `root` holds anything else.
    """
    meta = _demonstrations_meta(store, mode)
    if not data.is_store(root):
        files.check_folder("--cfg.out", root)
        data.create(root, meta, procgen.SIZE, procgen.SIZE, len(ACTIONS), ACTIONS)
    made = data.open_store(root)
    if made.meta != meta:
        raise UserError(
            f"{root} holds demonstrations of another game, mode or stride: delete it, or choose "
            "another --cfg.out"
        )
    seeds = (level for level in itertools.count() if data.split_of(level) == "train")
    missing = list(itertools.islice(seeds, len(made.segments), count))
    search = _open_search(made, store.stride)
    for level in track(missing, "the expert plays, level"):
        game = _open(level, meta)
        made = data.append_segments(made, [experts.play(search, game)])
        game.close()
    return replace(made, stride=store.stride)


def _open(level: int, meta: dict[str, Any], stride: int = 1) -> ProcgenGame:
    """A level of the game of Procgen that a store with this `meta` came from."""
    options = procgen.collection(meta)
    return procgen.open_level(level, options, stride * options.get("frame_skip", 1))


def _demonstrations_meta(store: Store, mode: str) -> dict[str, Any]:
    """The description of a dataset of demonstrations."""
    collected = procgen.collection(store.meta)
    options = {
        "env": collected["env"],
        "distribution_mode": mode,
        "frame_skip": collected.get("frame_skip", 1),
        "policy": "expert",
    }
    visuals = procgen.visuals_of(collected)
    if visuals != "full":  # demonstrations of earlier versions do not name it
        options["visuals"] = visuals
    return {"collection": options, "stride": store.stride}


def _open_search(store: Store, stride: int) -> Search:
    options = store.meta["collection"]
    return experts.open_search(
        options["env"],
        options["distribution_mode"],
        options["frame_skip"],
        stride,
        procgen.visuals_of(options),
    )


def solved_by_search(
    store: Store, levels: Iterable[tuple[ProcgenGame, bytes]], frames: int
) -> list[int]:
    """Which levels the expert solves in as much time as `frames` steps of `play` take (0 or 1)."""
    search = _open_search(store, store.stride)
    solved = []
    for game, saved in levels:
        game.load(saved)
        plan = experts.solve(search, game)
        solved.append(int(plan.solved and len(plan.actions) <= frames * store.stride))
    return solved


@torch.no_grad()
def play(
    policy: Policy, levels: list[tuple[ProcgenGame, bytes]], chance_LT: np.ndarray
) -> np.ndarray:
    """Play every level once, from its beginning, for at most T steps: which were solved, (L,) bool.

    `chance` is uniform on [0, 1): each action is that number's quantile of the policy's
    distribution, so that policies that meet the same numbers differ by their probabilities only.
    """
    for game, saved in levels:
        game.load(saved)
    frames = np.stack([np.stack([game.frame()] * FRAMES) for game, _ in levels])
    solved = np.zeros(len(levels), bool)
    running = np.arange(len(levels))
    for t in range(chance_LT.shape[1]):
        cumulative = policy(torch.from_numpy(frames[running])).double().cumsum(1)
        quantile = torch.from_numpy(chance_LT[running, t])[:, None] * cumulative[:, -1:]
        actions = (cumulative <= quantile).sum(1).tolist()
        steps = [levels[i][0].step(action) for i, action in zip(running, actions, strict=True)]
        solved[running] = [step.reward > 0 for step in steps]
        new = np.stack([step.frame for step in steps])[:, None]
        frames[running] = np.concatenate((frames[running, 1:], new), 1)
        running = running[[not step.ended for step in steps]]
        if not len(running):
            break
    return solved


def share(solved_SL: Tensor, key: Tensor) -> list[float]:
    """[mean, low, high] over S seeds and L levels, by a bootstrap over both."""
    seed_key, level_key = random.split(key).unbind(0)
    seeds, levels = solved_SL.shape
    seed_weights = statistics.resampling(seed_key, seeds) / seeds
    level_weights = statistics.resampling(level_key, levels) / levels
    means = torch.einsum("ns,sl,nl->n", seed_weights, solved_SL.float(), level_weights)
    ends = means.quantile(means.new_tensor([0.025, 0.975])).tolist()
    return [round(x, 4) for x in (solved_SL.float().mean().item(), *ends)]
