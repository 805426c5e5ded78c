"""The folder of a training run: its trained model, its world, and their fingerprint."""

import hashlib
from pathlib import Path

import torch

from genie_fn import dynamics, lam, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.runtime import stored_config
from genie_fn.runtime.backend import AUTO
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import checkpoint
from genie_fn.tree import Tree
from genie_fn.world import Stage, World

MODELS = {
    "tokenizer": (tokenizer, TokenizerConfig),
    "lam": (lam, LamConfig),
    "dynamics": (dynamics, DynamicsConfig),
}
"""The module and the configuration of each stage's model."""


def load_stage(
    run: str | Path, stage: str, device: torch.device | str = "cpu", compiled: bool = False
) -> tuple[Stage, dict]:
    """A trained stage (`tokenizer`, `lam` or `dynamics`) and the stored configuration of its run.

    The implementation is chosen for `device` and for `compiled`, whatever the run was trained with.
    """
    loaded = checkpoint.load(run, stage=stage, device=device)
    model = loaded.config.get("model")
    weights = checkpoint.weights(loaded)
    if not isinstance(model, dict):
        raise UserError(
            f"{run} does not hold a {stage}: pass the folder of a run of train_{stage}.py"
        )
    if stage == "lam" and loaded.config.get("train_lam"):  # trained jointly with the dynamics
        model = loaded.config["lam_model"]
        weights = weights["lam"]
    cfg, spec = read_config(stage, model, run)
    # A run may also have trained other networks, such as a discriminator.
    params = {name: weights[name] for name in spec.keys() & weights.keys()}
    params = checkpoint.check(params, spec, f"the {stage} in {run}")
    return Stage(cfg, params, AUTO.resolve(device, compiled)), loaded.config


def read_config(
    stage: str, model: dict, run: str | Path
) -> tuple[TokenizerConfig | LamConfig | DynamicsConfig, Tree]:
    """The configuration of a stage's model as stored by a run, and the spec of its parameters."""
    module, config = MODELS[stage]
    try:
        cfg = stored_config.from_dict(config, model)
        return cfg, module.spec(cfg)
    except UserError:
        raise
    except Exception as error:  # impossible numbers fail wherever they are first used
        raise UserError(
            f"the configuration of the {stage} in {run} is impossible: train it again"
        ) from error


def load_world(
    run: str | Path, device: torch.device | str = "cpu", compiled: bool = False
) -> World:
    """The world of a dynamics run, with the models that it was trained with."""
    stage, config = load_stage(run, "dynamics", device, compiled)
    actions = None
    if config["actions"] == "latent":
        folder = run if config["train_lam"] else config["lam"]
        actions, _ = load_stage(folder, "lam", device, compiled)
    frames, _ = load_stage(config["tokenizer"], "tokenizer", device, compiled)
    return World(frames, stage, actions)


def check_resolution(stage: Stage | None, height: int, width: int, run: str | Path) -> None:
    """Raise UserError if a trained stage expects frames of another size."""
    if stage is None:
        return
    expected = (stage.cfg.height, stage.cfg.width)
    if expected != (height, width):
        raise UserError(
            f"the model in {run} was trained on {expected[0]}x{expected[1]} frames, "
            f"but these are {height}x{width}: train it on this data, or pass data of its size"
        )


def check_framewise(stage: Stage, run: str | Path) -> None:
    """Raise UserError if a tokenizer compresses time, since every action needs its own frame."""
    if stage.cfg.time_factor != 1:
        raise UserError(
            f"the tokenizer in {run} encodes {stage.cfg.time_factor} frames together, but every "
            "action needs a frame of its own: train a tokenizer that does not compress time, "
            "such as --cfg.preset magvit2-framewise"
        )


def fingerprint(*stages: Stage | None) -> str:
    """A hash of what models compute: their configurations, and their parameters bit for bit."""
    digest = hashlib.sha256()
    for stage in stages:
        if stage is not None:
            digest.update(repr(stage.cfg).encode())
            for path, value in sorted(tree.paths(stage.params).items()):
                digest.update(path.encode() + value.detach().cpu().numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()
