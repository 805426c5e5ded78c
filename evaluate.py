"""Measure a trained world on held-out levels: numbers to metrics.json, pictures to a PNG strip and a GIF.

    python evaluate.py                                  # the demo's world
    python evaluate.py --cfg.run runs/small/dynamics --cfg.clips 256

Next to every PSNR stand what copying the last real frame scores and what wrong actions score: where little moves, a
high PSNR alone says nothing. "moving" is the half of the clips in which the picture changes most.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genie_fn import data, dynamics, metrics, random, tokenizer, train, video, world
from genie_fn.dynamics import SampleConfig
from genie_fn.errors import UserError, run
from genie_fn.world import World


@dataclass(frozen=True)
class Config:
    run: str = "runs/demo/dynamics"
    """The folder of the dynamics run; it names the tokenizer and the latent actions."""
    data: str = "data/coinrun"
    split: str = "test"
    clips: int = 64
    frames: int = 10
    """Frames to dream after the first of each clip."""
    out: str = ""
    """Where the results go; by default `evaluation` in the run's folder."""
    seed: int = 0
    device: str = "auto"
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self):
        if self.clips < 2 or self.frames < 4:
            raise UserError(f"evaluation needs 2 clips and 4 frames or more, not {self.clips} and {self.frames}")


def reconstruction(dream: World, frames_BTHWC: Tensor, ids_BTN: Tensor) -> dict:
    """How well the tokenizer alone keeps the frames, and how many of its codes it uses."""
    coder, codes = dream.tokenizer, dream.tokenizer.cfg.quantizer.codes
    again = tokenizer.detokenize(coder.params, ids_BTN, coder.cfg)
    return {
        "psnr": metrics.frame_psnr(frames_BTHWC, again).mean().item(),
        "ssim": metrics.frame_ssim(frames_BTHWC, again).mean().item(),
        "codes": codes,
        "codes_used": len(ids_BTN.unique()),
        "unigram_entropy": metrics.entropy(ids_BTN, codes),
    }


def prediction(dream: World, ids_BTN: Tensor, actions_BT: Tensor, key: Tensor) -> dict:
    """The dynamics' cross-entropy in nats per hidden token, under the masks of training."""
    model = dream.dynamics
    mask = dynamics.sample_mask(key, *ids_BTN.shape[:2], model.cfg)
    _, (scores, _) = dynamics.loss(model.params, ids_BTN, actions_BT, mask, model.cfg)
    return {name: value.item() for name, value in scores.items()}


def teacher_forced(dream: World, ids: Tensor, actions_BT: Tensor, key: Tensor, sample: SampleConfig) -> Tensor:
    """Every next frame dreamed from the real frames before it, ids (B, T, N), to pixels (B, T-1, H, W, 3)."""
    model, coder = dream.dynamics, dream.tokenizer
    entering = dynamics.entering(actions_BT, model.cfg)
    cache = dynamics.empty_cache(model.cfg, len(ids), ids.device)
    frames = []
    for t in range(ids.shape[1] - 1):
        cache = dynamics.remember(model.params, ids[:, t : t + 1], entering[:, t : t + 1], cache, model.cfg)
        new = dynamics.next_frame(model.params, entering[:, t + 1], cache, random.fold_in(key, t), model.cfg, sample)
        video = torch.cat((ids[:, : t + 1], new.ids[:, None]), 1)
        frames.append(tokenizer.detokenize(coder.params, video, coder.cfg)[:, -1])
    return torch.stack(frames, 1)


def action_report(actions_BT: Tensor, true_BT: Tensor, num_actions: int) -> dict:
    """Use of the actions, and how much they tell of the recorded ones."""
    share = torch.bincount(actions_BT.flatten(), minlength=num_actions) / actions_BT.numel()
    return {
        "share": share.tolist(),
        "used": int((share > 0.01).sum()),
        "perplexity": torch.special.entr(share).sum().exp().item(),
        "information_with_true": metrics.mutual_information(actions_BT.flatten(), true_BT.flatten()),
    }


def measure(dream: World, clips: data.Batch, cfg: Config) -> tuple[dict, Tensor, Tensor]:
    """All numbers as one nested dict, the rollout with the clip's own actions (B, F, H, W, 3), and each clip's
    copy-last PSNR (B,), which is low where much moves."""
    frames, true = clips
    _, ids = tokenizer.tokenize(dream.tokenizer.params, frames, dream.tokenizer.cfg)
    latent = dream.lam is not None
    actions = world.infer_actions(dream, frames) if latent else true
    choices, keys = dream.dynamics.cfg.actions, random.split(random.key(cfg.seed, frames.device), 4)
    shuffled = actions[torch.arange(len(actions)).roll(1)]
    chance = random.randint(keys[0], actions.shape, 0, choices)
    prompt, future = frames[:, :1], frames[:, 1:]
    dreams = {
        "own": world.rollout(dream, prompt, actions, keys[1], cfg.sample),
        "shuffled": world.rollout(dream, prompt, shuffled, keys[1], cfg.sample),
        "random": world.rollout(dream, prompt, chance, keys[1], cfg.sample),
        "teacher_forced": teacher_forced(dream, ids, actions, keys[1], cfg.sample),
        "copy_last": prompt.expand_as(future),
    }
    psnr = {name: metrics.frame_psnr(future, made) for name, made in dreams.items()}
    moving = psnr["copy_last"][:, 3] <= psnr["copy_last"][:, 3].median()

    def curves(chosen: Tensor) -> dict:
        table = {name: value[chosen].mean(0) for name, value in psnr.items()}
        delta = {f"delta_{name}": table["own"] - table[name] for name in ("random", "shuffled")}
        return {name: [round(x, 4) for x in value.tolist()] for name, value in (table | delta).items()}

    result = {
        "reconstruction": reconstruction(dream, frames, ids),
        "dynamics": prediction(dream, ids, actions, keys[2]),
        "actions": {"kind": "latent" if latent else "true"} | action_report(actions, true, choices),
        "psnr": {"all": curves(torch.ones_like(moving)), "moving": curves(moving)},
        "ssim": {name: metrics.frame_ssim(future, made).mean().item() for name, made in dreams.items()},
    }
    return result, dreams["own"], psnr["copy_last"].mean(1)


def summary(result: dict) -> Table:
    """The numbers that one looks at first."""
    table = Table(title="held-out levels", show_header=False)
    made, model, acts = result["reconstruction"], result["dynamics"], result["actions"]
    table.add_row("tokenizer", f"{made['psnr']:.2f} dB PSNR, SSIM {made['ssim']:.3f}")
    table.add_row("codes used", f"{made['codes_used']} of {made['codes']}")
    table.add_row("dynamics", f"{model['cross_entropy']:.2f} nats/token (by frequency {made['unigram_entropy']:.2f})")
    table.add_row(f"{acts['kind']} actions", f"{acts['used']} used, perplexity {acts['perplexity']:.2f}")
    table.add_row("information with the recorded actions", f"{acts['information_with_true']:.3f}")
    for which, curve in result["psnr"].items():
        mean = {name: sum(values) / len(values) for name, values in curve.items()}
        table.add_row(
            f"{len(curve['own'])} dreamed frames, {which} clips",
            f"{mean['own']:.2f} dB (shuffled actions {mean['shuffled']:.2f}, copy-last {mean['copy_last']:.2f}, "
            f"real past {mean['teacher_forced']:.2f})",
        )
        table.add_row(f"Δ₄ PSNR, {which} clips", f"{curve['delta_random'][3]:.2f} dB")
    return table


def main(cfg: Config) -> None:
    device = train.pick_device(cfg.device)
    dream = world.load(cfg.run, device)
    store = data.open_store(cfg.data)
    world.check_resolution(dream.tokenizer, store.height, store.width, cfg.run)
    offsets = data.eval_clips(store, cfg.split, cfg.frames + 1, cfg.clips, cfg.seed)
    clips = data.Batch(*(torch.from_numpy(x).to(device) for x in data.read_clips(store, offsets, cfg.frames + 1)))
    with torch.no_grad(), Console(stderr=True).status("dreaming"):
        result, dreamed, stillness = measure(dream, clips, cfg)
    out = Path(cfg.out or Path(cfg.run) / "evaluation")
    out.mkdir(parents=True, exist_ok=True)
    record = {"config": asdict(cfg), "data_hash": store.data_hash, "torch": torch.__version__} | result
    (out / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
    order = stillness.argsort()
    shown = order[len(order) // 8 :: max(1, len(order) // 8)][:6]  # from lively to still
    real, made = clips.frames[shown], torch.cat((clips.frames[:, :1], dreamed), 1)[shown]
    rows = torch.stack((real, made), 1).flatten(0, 1)
    video.write_png(out / "strip.png", video.enlarge(video.grid(rows.cpu().numpy()), 2))
    pairs = torch.cat((real, made), 2)  # real above dreamed
    video.write_video(out / "dream.gif", torch.cat(tuple(pairs), 2).cpu().numpy(), fps=5, scale=2)
    console = Console()
    console.print(summary(result))
    files = f"real above dreamed: {out / 'dream.gif'}, {out / 'strip.png'}; all numbers: {out / 'metrics.json'}"
    console.print(files, soft_wrap=True)  # a path broken over two lines cannot be copied


if __name__ == "__main__":
    run(main)
