"""An evaluation of random frames and actions, for tests of what reads records."""

import torch

from genie_fn import random
from genie_fn.evaluation import actions, few_labels, record_file, rollouts
from genie_fn.evaluation.actions import Transitions
from genie_fn.evaluation.few_labels import Pairs
from genie_fn.evaluation.record import (
    Actions,
    Correlation,
    Dataset,
    Evaluation,
    Guesses,
    InverseDynamics,
    LongRollouts,
    Perceptual,
    Prediction,
    Protocol,
    Reconstruction,
    Transfer,
)
from genie_fn.lam import LamConfig
from genie_fn.nets.flow import FlowConfig
from genie_fn.quantize import QuantizerConfig

SIDE = 16
MOTION_MODEL = LamConfig(
    SIDE,
    SIDE,
    arch="motion",
    quantizer=QuantizerConfig(kind="vq", codes=2, latent_dim=4, sphere=True, pairs=1),
    flow=FlowConfig(reduce=1, radius=2, cell=4, hidden=8),
)
"""A latent action model of two actions, for frames of SIDE x SIDE pixels."""
NOISE = {
    "own_actions": 20,
    "shuffled": 40,
    "random": 50,
    "joint": 30,
    "copy_last": 60,
    "copy_displaced": 55,
}
CONFIG = {"run": "runs/a & b/dynamics", "frames": 6}


def protocol() -> Protocol:
    """Scores of noisy copies of random frames."""
    real = random.randint(random.key(0), (8, 6, 16, 16, 3), 0, 256).to(torch.uint8)

    def noisy(scale: int) -> torch.Tensor:
        noise = random.randint(random.key(scale), real.shape, -scale, scale + 1)
        return (real.int() + noise).clamp(0, 255).to(torch.uint8)

    videos = {method: noisy(scale) for method, scale in NOISE.items()}
    return rollouts.score(real, videos, torch.arange(8) // 2, random.key(1))


def action_report() -> Actions:
    """Of codes that equal the recorded actions, one of which has a name that must be escaped."""
    recorded = random.randint(random.key(2), (40, 5), 0, 3)
    level = torch.arange(40) // 10
    shift = torch.stack((1 - recorded, torch.zeros_like(recorded)), -1)
    transitions = Transitions(recorded, recorded, level, shift)
    return actions.describe(transitions, 4, ("LEFT", "<b>", "RIGHT"), True, random.key(3))


def evaluation() -> Evaluation:
    """The record of a world of latent actions on CoinRun."""
    scores = protocol()
    report = action_report()
    model = InverseDynamics(
        parameters=10,
        encoder_parameters=20,
        steps=7,
        seconds=3.0,
        all=Guesses(0.8, 0.9, 1.25),
        sides=Guesses(0.8, 0.9, None),
    )
    labelled = random.randint(random.key(4), (40, 5), 0, 3)
    pairs = Pairs(labelled, labelled)
    names = ("LEFT", "<b>", "RIGHT")
    measures = {
        "inverse_dynamics": model,
        "transfer": Transfer(
            frames=6,
            pairs=8,
            transferred=Correlation([0.51, 0.4, 0.6], None, [0.31, 0.2, 0.42]),
            permuted=Correlation([0.01], None, [0.02]),
            p=0.003,
            own=Correlation([0.71, 0.6, 0.8], None, [0.61, 0.5, 0.7]),
        ),
        "long_rollouts": LongRollouts(
            starts=8,
            times=[10, 50],
            psnr=[15.4, None],
            edges=[0.83, 0.42],
            perplexity=[30.5, 22.1],
            recorded_perplexity=35.2,
            kept=[0.57, 0.44],
            recorded_kept=0.64,
            followed=[0.75, None],
            dissolved=50,
        ),
        "few_labels": few_labels.evaluate(pairs, pairs, 4, names, random.key(5)),
    }
    machine = {"device": "a machine", "threads": 2, "torch": "2.13"}
    return Evaluation(
        config=CONFIG,
        machine=machine | {"commit": "0123456789abcdef", "date": "2026-01-01"},
        models={"tokenizer": 12345, "dynamics": 67890, "lam": 4242},
        data=Dataset("data", "f" * 64, "test", 8, 4, {"collection": {"env": "coinrun"}}),
        seconds={"tokenizer": 1.0},
        reconstruction=Reconstruction(23.456, 0.654, 0.871, 1024, 853, 5.85, 347.0),
        prediction=Prediction(3.412, 0.31),
        rollouts={"1": scores, "4": scores},
        actions=Actions(**vars(report) | measures),
        perceptual={
            "reconstruction": Perceptual(lpips=0.123),
            "1": Perceptual(fid=45.678),
            "4": Perceptual(),
        },
        of_schema=record_file.SCHEMA,
    )
