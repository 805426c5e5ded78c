"""Trained worlds from the folders of their runs or from world files, and their packing into such files."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from genie_fn import dynamics, lam, tokenizer, tree
from genie_fn.bundle import world_file
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.runtime import backend, stored_config
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import checkpoint
from genie_fn.tree import Tree
from genie_fn.world import Stage, World, empty_state

MOST_STARTS = 1024  # frames to start from, in a world file


LARGEST_STATE = 1 << 30  # bytes of a session of a world that comes from a file


MODULES = {
    "tokenizer": (tokenizer, TokenizerConfig),
    "lam": (lam, LamConfig),
    "dynamics": (dynamics, DynamicsConfig),
}


def load_stage(
    run: str | Path, stage: str, device: torch.device | str = "cpu", compiled: bool = False
) -> tuple[Stage, dict]:
    """A trained stage (`tokenizer`, `lam` or `dynamics`) from its run's folder, and the whole stored configuration.

    Its implementations are chosen for `device`, and for being compiled or not, wherever it was trained.
    """
    loaded = checkpoint.load(run, stage=stage, device=device)
    model, weights = loaded.config.get("model"), checkpoint.weights(loaded)
    if not isinstance(model, dict):
        raise UserError(
            f"{run} does not hold a {stage}: pass the folder of a run of train_{stage}.py"
        )
    if stage == "lam" and loaded.config.get(
        "train_lam"
    ):  # a dynamics run that trained its latent actions along
        model, weights = loaded.config["lam_model"], weights["lam"]
    cfg, spec = describe(stage, model, run)
    cfg = backend.resolve(cfg, torch.device(device), compiled, anew=True)
    own = {
        name: weights[name] for name in spec.keys() & weights.keys()
    }  # a run may train other networks along
    return Stage(cfg, checkpoint.check(own, spec, f"the {stage} in {run}")), loaded.config


def describe(
    stage: str, model: dict, run: str | Path
) -> tuple[TokenizerConfig | LamConfig | DynamicsConfig, Tree]:
    """The configuration that a run has stored of a stage's model, and the spec of its parameters."""
    module, config = MODULES[stage]
    try:
        cfg = checkpoint.from_dict(config, model)
        return cfg, module.spec(cfg)
    except UserError:
        raise
    except Exception as error:  # numbers that make no sense fail wherever they are first used
        raise UserError(
            f"the configuration of the {stage} in {run} makes no sense: train it again"
        ) from error


def check_resolution(stage: Stage | None, height: int, width: int, run: str | Path) -> None:
    """Raise UserError if a trained stage expects frames of another size."""
    if stage is not None and (stage.cfg.height, stage.cfg.width) != (height, width):
        raise UserError(
            f"the model in {run} was trained on {stage.cfg.height}x{stage.cfg.width} frames, but these are "
            f"{height}x{width}: train it on this data, or pass data of its size"
        )


def check_framewise(stage: Stage, run: str | Path) -> None:
    """Raise UserError if a tokenizer codes several frames at once: an action per frame needs a grid per frame."""
    if stage.cfg.time_factor != 1:
        raise UserError(
            f"the tokenizer in {run} codes {stage.cfg.time_factor} frames at once, but every action needs a frame of "
            "its own: train one that does not compress time, such as --cfg.preset magvit2-framewise"
        )


def load(run: str | Path, device: torch.device | str = "cpu", compiled: bool = False) -> World:
    """The world of a dynamics run, with the tokenizer and the latent actions that it was trained on; or that of a world
    file."""
    if Path(run).is_file():
        return unpack(run, device, compiled)[0]
    stage, config = load_stage(run, "dynamics", device, compiled)
    along = run if config["train_lam"] else config["lam"]
    actions = (
        load_stage(along, "lam", device, compiled)[0] if config["actions"] == "latent" else None
    )
    return World(load_stage(config["tokenizer"], "tokenizer", device, compiled)[0], stage, actions)


def _used(world: Tree) -> Tree:
    """Of the models' parameters, or specs, by name, those that are used once a world is trained."""
    return {
        name: lam.encoder(params) if name == "lam" else params for name, params in world.items()
    }


def pack(world: World, starts_MHWC: Tensor, about: dict) -> bytes:
    """The content of a world file: the world in bfloat16, uint8 frames to start from, and what is told about it."""
    stages = {name: stage for name, stage in world._asdict().items() if stage is not None}
    used = tree.paths(_used({name: stage.params for name, stage in stages.items()}))
    tensors = {path: x.detach().to("cpu", torch.bfloat16) for path, x in used.items()} | {
        "starts": starts_MHWC
    }
    models = {name: asdict(stage.cfg) for name, stage in stages.items()}
    return world_file.pack(models, about | {"starts": len(starts_MHWC)}, tensors)


def unpack(
    path: str | Path, device: torch.device | str = "cpu", compiled: bool = False
) -> tuple[World, Tensor, dict]:
    """What `pack` was given, of a world file: the world in float32 on `device`, the frames to start from, and what is
    told about it. Of its latent action model there is what infers actions. Raises UserError for anything else.
    """
    head = world_file.header(path)
    try:
        cfgs = {
            name: checkpoint.from_dict(MODULES[name][1], stored_config.update_model(cfg))
            for name, cfg in head.models.items()
        }
        spec, starts = (
            _used({name: MODULES[name][0].spec(cfg) for name, cfg in cfgs.items()}),
            head.about["starts"],
        )
        sound = isinstance(starts, int) and 0 < starts <= MOST_STARTS and _agree(**cfgs)
    except UserError as error:
        raise world_file.damaged(path, str(error)) from error
    except Exception as error:  # a configuration from outside may be wrong in any way
        raise world_file.damaged(
            path, f"its configurations are impossible: {error!r:.200}"
        ) from error
    if not sound:
        raise world_file.damaged(path, "its models do not fit together")
    wanted = {name: world_file.Spec("BF16", leaf.shape) for name, leaf in tree.paths(spec).items()}
    frames = world_file.Spec("U8", (starts, cfgs["tokenizer"].height, cfgs["tokenizer"].width, 3))
    tensors = world_file.tensors(path, head, wanted | {"starts": frames})
    params = tree.map_with_path(lambda name, _: tensors[name].to(device, torch.float32), spec)
    settled = {
        n: backend.resolve(cfg, torch.device(device), compiled, anew=True)
        for n, cfg in cfgs.items()
    }
    stages = {name: Stage(cfg, params[name]) for name, cfg in settled.items()}
    return World(**{"lam": None} | stages), tensors["starts"], head.about


def _agree(
    tokenizer: TokenizerConfig, dynamics: DynamicsConfig, lam: LamConfig | None = None
) -> bool:
    """Whether models make a world, one whose sessions take no more memory than any trained world's."""
    side, state = (tokenizer.height, tokenizer.width), empty_state(tokenizer, dynamics, 1, "meta")
    return (
        (dynamics.codes, dynamics.tokens) == (tokenizer.quantizer.codes, tokenizer.tokens)
        and tokenizer.time_factor == 1
        and (lam is None or (lam.actions, lam.height, lam.width) == (dynamics.actions, *side))
        and sum(x.numel() * x.element_size() for x in tree.leaves(state)) <= LARGEST_STATE
    )


def fingerprint(*stages: Stage | None) -> str:
    """A hash of what models compute: their parameters, bit for bit, and their configurations."""
    digest = hashlib.sha256()
    for stage in stages:
        if stage is not None:
            settled = backend.resolve(
                stage.cfg, torch.device("cpu"), compiled=False, anew=True
            )  # the same everywhere
            digest.update(repr(settled).encode())
            for path, value in sorted(tree.paths(stage.params).items()):
                digest.update(path.encode() + value.detach().cpu().numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()
