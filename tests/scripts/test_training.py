"""The scripts as their users run them: a tiny world trained, killed and resumed, evaluated, played, and misused."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import evaluate
import export_world
import play
import train_dynamics
import train_lam
import train_tokenizer
from genie_fn import bundle, data, dynamics, lam, random, tokenizer, tree, world
from genie_fn.bundle import action_effects, action_map
from genie_fn.data import token_cache
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.lam import LamConfig
from genie_fn.layers import STConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.microbatch import WHOLE_BATCH
from genie_fn.nets.adversarial import AdversarialConfig
from genie_fn.nets.blueprint import Blueprints
from genie_fn.nets.discriminator import DiscriminatorConfig
from genie_fn.nets.flow import FlowConfig
from genie_fn.quantize import QuantizerConfig
from genie_fn.runtime import cli
from genie_fn.runtime.backend import AUTO
from genie_fn.tokenizer import TokenizerConfig
from genie_fn.training import checkpoint, inputs, setup
from genie_fn.training.optim import OptimConfig

ROOT = Path(__file__).parents[2]
STACK = STConfig(layers=1, dim=16, heads=2, window=4)
SCRIPTS = {"tokenizer": train_tokenizer, "lam": train_lam, "dynamics": train_dynamics}
STEPS, SAMPLE_EVERY = 60, 20


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a small synthetic dataset: a square that moves by the action, on a background of its level."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    store = data.create(home / "data", {"made": "here"}, 64, 64, 3, ("LEFT", "NOOP", "RIGHT"))
    for level in range(10):
        frames = np.empty((60, 64, 64, 3), np.uint8)
        actions, x = rng.integers(0, 3, 60), 24
        background, colour = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        for t in range(60):
            frames[t] = background
            frames[t, 24:40, x : x + 16] = colour
            x = int(np.clip(x + 8 * (actions[t] - 1), 0, 48))
        starts = np.zeros(60, bool)
        store = data.append_segments(
            store, [data.Recording(level, frames, actions, np.zeros(60), starts)]
        )
    return home


def config(home: Path, stage: str, out: str, **options):
    model = {
        "tokenizer": TokenizerConfig(
            patch=16, encoder=STACK, decoder=STACK, quantizer=QuantizerConfig(codes=64)
        ),
        "lam": LamConfig(patch=16, encoder=STACK, decoder=STACK),
        "dynamics": DynamicsConfig(stack=STACK),
    }[stage]
    if stage == "dynamics":
        options |= {"tokenizer": str(home / "tokenizer"), "lam": str(home / "lam")}
    model = options.pop("model", model)
    return SCRIPTS[stage].Config(
        data=str(home / "data"),
        out=str(home / out),
        steps=STEPS,
        batch_size=2,
        num_frames=4,
        save_every=30,
        sample_every=SAMPLE_EVERY,
        compile="off",
        optim=OptimConfig(lr=3e-3, warmup=5, ema=0.9, schedule="cosine"),
        model=model,
        **options,
    )


@pytest.fixture(scope="module")
def trained(home) -> Path:
    for stage, script in SCRIPTS.items():
        script.main(config(home, stage, stage))
    return home


def test_dynamics_trains_from_the_token_cache_as_from_frames(trained, monkeypatch):
    """Whole levels are single episodes here; encoded once, they give the same training but for the context of ids."""
    train_dynamics.main(config(trained, "dynamics", "cached", cache=True))
    rows = {
        name: [
            json.loads(line)["cross_entropy"]
            for line in (trained / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("dynamics", "cached")
    }
    assert rows["cached"] != rows["dynamics"]
    assert abs(rows["cached"][-1] - rows["dynamics"][-1]) < 0.15 * rows["dynamics"][0]
    monkeypatch.setattr(token_cache, "encode", None)  # a second run must not encode again
    train_dynamics.main(config(trained, "dynamics", "cached_again", cache=True))
    first, second = (
        checkpoint.load(trained / name, stage="dynamics").state
        for name in ("cached", "cached_again")
    )
    assert all(
        torch.equal(a, b) for a, b in zip(tree.leaves(first), tree.leaves(second), strict=True)
    )


@pytest.mark.parametrize("stage", ["lam", "dynamics"])
def test_clips_of_one_frame_are_refused(trained, stage):
    """Before anything is written."""
    with pytest.raises(UserError, match="at least 2, not 1: raise --cfg.num-frames"):
        SCRIPTS[stage].main(replace(config(trained, stage, "short"), num_frames=1))
    assert not (trained / "short").exists()


def test_training_learns(trained):
    """The square world is easy: each stage must do far better than it began."""
    for stage, score in (
        ("tokenizer", "mse"),
        ("lam", "weighted_mse"),
        ("dynamics", "cross_entropy"),
    ):
        rows = [
            json.loads(line)
            for line in (trained / stage / "metrics.jsonl").read_text().splitlines()
        ]
        assert rows[-1][score] < 0.8 * rows[0][score], stage
        assert (trained / stage / "samples" / f"{STEPS:07d}.png").exists()


def test_earlier_stages_are_frozen_and_stay_out_of_the_optimizer(trained):
    state = checkpoint.load(trained / "dynamics", stage="dynamics").state
    names = {path.split("/")[0] for path in tree.paths(state["params"])}
    assert names == {"token", "action", "place", "stack", "head"}
    assert tree.paths(state["opt"]["m"]).keys() == tree.paths(state["params"]).keys()


def test_recorded_actions(trained):
    train_dynamics.main(
        replace(config(trained, "dynamics", "recorded"), actions="recorded", steps=3)
    )
    model = bundle.load(trained / "recorded").world
    assert model.lam is None and model.dynamics.cfg.actions == 3
    assert model.dynamics.cfg.occurring == (0, 1, 2)
    with pytest.raises(UserError, match="recorded actions"):
        world.infer_actions(model, torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8))


def evaluation(trained: Path, run: str, **options) -> evaluate.Config:
    sizes = {"clips": 4, "frames": 5, "action_clips": 3, "probe_steps": 2, "long_frames": 0}
    sizes |= options
    return evaluate.Config(run=str(trained / run), data=str(trained / "data"), **sizes)


def test_evaluate_writes_numbers_pictures_and_a_page(trained, capsys):
    evaluate.main(evaluation(trained, "dynamics", long_frames=12))
    out = trained / "dynamics" / "evaluation"
    result = json.loads((out / "metrics.json").read_text())
    assert result["schema"] == 5 and result["reconstruction"]["codes_used"] <= 64
    assert result["rollouts"].keys() == {"1", "4"}
    for scores in (half for protocol in result["rollouts"].values() for half in protocol.values()):
        methods = {"own_actions", "shuffled", "random", "copy_last", "joint"}
        assert methods <= scores["psnr"].keys()
        assert all(len(values["mean"]) == 5 for values in scores["psnr"].values())
        assert scores["delta"].keys() == {"random", "shuffled", "copy_last"}
    actions = result["actions"]
    assert actions["kind"] == "latent" and sum(actions["share"]) == pytest.approx(1, abs=1e-3)
    assert actions["long_rollouts"]["times"] == [10, 12]
    assert actions["transitions"] == 30 and actions["inverse_dynamics"]["steps"] == 2
    durations = [
        frame.info["duration"] for frame in ImageSequence.Iterator(Image.open(out / "rollouts.gif"))
    ]
    assert sum(durations) == 6 * 200  # six frames: a gif holds equal neighbours once, for longer
    assert (out / "strip.png").exists()
    assert "report.html" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert result["data"]["hash"] in page and f"{result['reconstruction']['psnr']:.2f} dB" in page
    # The keys are chosen on other levels than those of the evaluation.
    evaluate.main(evaluation(trained, "dynamics", split="val", out=str(trained / "val")))
    val = json.loads((trained / "val" / "metrics.json").read_text())["actions"]
    assert val["recorded"]["all"]["table"] != actions["recorded"]["all"]["table"]
    assert action_map.load(trained / "dynamics").table == val["recorded"]["all"]["table"]
    effects = action_effects.load(bundle.load(trained / "dynamics").world, trained / "dynamics")
    assert effects.share == val["share"]


def test_evaluate_repeats_itself_and_compares(trained, tmp_path, capsys):
    for name in "ab":
        evaluate.main(
            evaluation(trained, "dynamics", out=str(tmp_path / name), prompts=(2,), probe_steps=0)
        )
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert first["actions"]["inverse_dynamics"] is None
    for record in (first, second):
        for part in ("config", "machine", "seconds"):
            del record[part]
    assert first == second
    capsys.readouterr()
    evaluate.main(
        evaluate.Config(compare=(str(tmp_path / "a"), str(tmp_path / "b")), out=str(tmp_path))
    )
    assert capsys.readouterr().out.count("tokenizer, PSNR") == 1
    assert str(tmp_path / "b") in (tmp_path / "compare.html").read_text()


def test_a_brief_evaluation_has_the_headlines_and_no_more(trained, tmp_path):
    evaluate.main(evaluation(trained, "dynamics", out=str(tmp_path), prompts=(1,), brief=True))
    found = json.loads((tmp_path / "metrics.json").read_text())
    methods = {"own_actions", "shuffled", "random", "copy_last", "copy_displaced"}
    assert {*found["rollouts"]["1"]["all"]["psnr"]} == methods
    assert found["actions"]["held_keys"] is None
    assert found["actions"]["inverse_dynamics"] is None
    assert found["actions"]["recorded"] is not None
    assert "Δ_t PSNR" in (tmp_path / "report.html").read_text()


def test_a_world_file_is_played_without_anything_else_and_evaluated(trained, tmp_path, capsys):
    path = tmp_path / "square.safetensors"
    exported = {"run": str(trained / "dynamics"), "output": str(path), "frames": 3}
    export_world.main(export_world.Config(**exported, data=str(trained / "data")))
    assert f"{path.stat().st_size / 1e6:.1f} MB" in capsys.readouterr().out
    cfg = play.Config(
        world=str(path),
        data=str(tmp_path / "none"),
        actions="0,5,1",
        output=str(tmp_path / "a.png"),
    )
    play.main(cfg)
    assert np.array(Image.open(tmp_path / "a.png")).any()
    with pytest.raises(UserError, match="not one of the 3 held-out frames"):
        play.main(replace(cfg, clip=3))
    quick = evaluation(
        trained, "none", clips=2, frames=4, action_clips=2, prompts=(1,), probe_steps=0
    )
    evaluate.main(replace(quick, world=str(path)))
    result = json.loads((tmp_path / "square" / "evaluation" / "metrics.json").read_text())
    assert result["config"]["run"] == str(path) and result["actions"]["kind"] == "latent"
    for wrong in ({"output": "a.pt"}, {"frames": 0}):
        with pytest.raises(UserError, match="--cfg"):
            export_world.Config(**wrong)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("runs/own/dynamics", "own"),
        ("runs/own/dynamics/", "own"),
        ("runs/own/dynamics/checkpoints/450", "own"),
        ("runs/best", "best"),
        (".", "best"),
        ("../own/dynamics", "own"),
        ("/", "world"),
        ("/dynamics", "world"),
    ],
)
def test_a_world_file_is_named_after_its_run(tmp_path, monkeypatch, run, name):
    (tmp_path / "best").mkdir()
    monkeypatch.chdir(tmp_path / "best")
    cfg = export_world.Config(run=run)
    assert export_world.default_output(cfg) == f"{name}.safetensors"
    assert export_world.default_output(replace(cfg, format="onnx")) == f"{name}-onnx"


def test_evaluate_a_world_with_recorded_actions(trained):
    train_dynamics.main(
        replace(config(trained, "dynamics", "recorded_evaluated"), actions="recorded", steps=3)
    )
    evaluate.main(evaluation(trained, "recorded_evaluated"))
    result = json.loads(
        (trained / "recorded_evaluated" / "evaluation" / "metrics.json").read_text()
    )
    assert result["actions"]["kind"] == "recorded" and result["actions"]["names"] == [
        "LEFT",
        "NOOP",
        "RIGHT",
    ]
    assert (
        result["actions"]["recorded"] is None
        and action_map.load(trained / "recorded_evaluated") is None
    )


def test_play_writes_the_same_video_again(trained, tmp_path):
    image = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)).save(image)
    cfg = play.Config(run=str(trained / "dynamics"), image=str(image), actions="0,5,1")
    for name in ("a.png", "b.png"):
        play.main(replace(cfg, output=str(tmp_path / name), scale=1))
    a, b = (np.array(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert a.shape == (64, 4 * 64 + 3, 3) and np.array_equal(a, b)
    play.main(
        replace(cfg, image="", data=str(trained / "data"), output=str(tmp_path / "held_out.mp4"))
    )
    assert (tmp_path / "held_out.mp4").stat().st_size > 0


def test_world_session_is_a_pure_pytree(trained):
    """Branching: the same state stepped twice gives the same frame, and another action may give another."""
    model = bundle.load(trained / "dynamics").world
    prompt = torch.from_numpy(
        data.read_clips(data.open_store(trained / "data"), np.array([0]), 3).frames
    )
    state, encoded = world.reset(model, prompt, torch.tensor([[0, 1]]))
    assert encoded.pixels.shape == prompt.shape and encoded.pixels.dtype == torch.uint8
    before = [leaf.clone() for leaf in tree.leaves(state)]
    results = [
        world.step(model, state, torch.tensor([action]), random.key(1), SampleConfig(steps=3))
        for action in (2, 2, 4)
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, tree.leaves(state), strict=True))
    assert torch.equal(results[0][1].pixels, results[1][1].pixels)
    assert not torch.equal(results[0][1].probability, results[2][1].probability)
    assert results[0][0].dynamics.cache.seen == 4


@pytest.fixture(scope="module")
def magvit2(home) -> Path:
    """MAGVIT-2 with 2^18 codes and a discriminator, a grid per frame, at a width for tests."""
    nets = Blueprints(
        tokenizer.magvit2_encoder(18, 8, (1, 1, 1, 1), times=(1, 1, 1)),
        tokenizer.magvit2_decoder(18, 8, (1, 1, 1, 1, 1), times=(1, 1, 1)),
    )
    model = TokenizerConfig(arch="magvit2", blueprints=nets, quantizer=QuantizerConfig(codes=2**18))
    critic = DiscriminatorConfig(dim=8, mults=(1, 2), down=(2, 2), heads=2, head_dim=8)
    losses = AdversarialConfig(gan=0.1, perceptual=1.0, frames=1, start=15, discriminator=critic)
    cfg = replace(
        config(home, "tokenizer", "magvit2"),
        model=model,
        adversarial=losses,
        batch_size=4,
        steps=30,
    )
    train_tokenizer.main(replace(cfg, num_frames=2))
    return home / "magvit2"


def test_a_vocabulary_of_2_to_the_18_from_tokenizer_to_play(trained, magvit2, tmp_path):
    cfg = replace(config(trained, "dynamics", "large"), tokenizer=str(magvit2), steps=20)
    train_dynamics.main(cfg)
    model = bundle.load(trained / "large").world
    assert model.dynamics.cfg.sizes == (512, 512)
    play.main(
        play.Config(
            run=str(trained / "large"),
            data=str(trained / "data"),
            actions="0,5,1",
            output=str(tmp_path / "a.png"),
            scale=1,
        )
    )
    assert np.array(Image.open(tmp_path / "a.png")).shape == (64, 4 * 64 + 3, 3)
    rows = [
        json.loads(line) for line in (trained / "large" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]


def test_trained_with_a_discriminator_it_learns_reports_its_codes_and_sees_no_future(
    trained, magvit2
):
    rows = [json.loads(line) for line in (magvit2 / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["codes_used"] > 1 and rows[-1]["perplexity"] > 1
    assert rows[-1]["grad_norm_discriminator"] > 0
    stage, _ = bundle.load_stage(magvit2, "tokenizer")
    assert "discriminator" not in stage.params
    store = data.open_store(trained / "data")
    real = torch.from_numpy(data.read_clips(store, data.eval_clips(store, "train", 2, 8), 2).frames)
    start = tree.init(tokenizer.spec(stage.cfg), random.key(0))
    before, after = (
        tokenizer.loss(params, real, stage.cfg)[1][0]["mse"] for params in (start, stage.params)
    )
    assert after < 0.8 * before
    video = random.randint(random.key(0), (2, 5, 64, 64, 3), 0, 256).to(torch.uint8)
    for t in (1, 3):
        other = torch.cat((video[:, :t], 255 - video[:, t:]), 1)
        (codes, ids), (_, changed) = (
            tokenizer.tokenize(stage.params, v, stage.cfg) for v in (video, other)
        )
        assert torch.equal(ids[:, :t], changed[:, :t]) and not torch.equal(
            ids[:, t:], changed[:, t:]
        )
        a, b = (
            tokenizer.decode(stage.params, c, stage.cfg)
            for c in (codes, torch.cat((codes[:, :t], -codes[:, t:]), 1))
        )
        torch.testing.assert_close(a[:, :t], b[:, :t])
        assert not torch.allclose(a[:, t:], b[:, t:], atol=1e-3)


def test_a_tokenizer_that_compresses_time_is_refused_by_the_dynamics(trained):
    nets = Blueprints(
        tokenizer.magvit2_encoder(18, 8, (1, 1, 1, 1)),
        tokenizer.magvit2_decoder(18, 8, (1, 1, 1, 1, 1)),
    )
    model = TokenizerConfig(arch="magvit2", blueprints=nets, quantizer=QuantizerConfig(codes=2**18))
    train_tokenizer.main(replace(config(trained, "tokenizer", "four"), model=model, steps=1))
    stage, _ = bundle.load_stage(trained / "four", "tokenizer")
    assert stage.cfg.time_factor == 4
    with pytest.raises(UserError, match="encodes 4 frames together.*magvit2-framewise"):
        train_dynamics.main(
            replace(config(trained, "dynamics", "none"), tokenizer=str(trained / "four"))
        )


def test_joint_training_of_latent_actions(trained):
    """One run contains both models, and its world infers latent actions."""
    lam_model = LamConfig(
        patch=16, encoder=STACK, decoder=STACK, quantizer=QuantizerConfig(kind="vq", codes=4)
    )
    cfg = replace(
        config(trained, "dynamics", "joint"), train_lam=True, lam_model=lam_model, lam="nowhere"
    )
    train_dynamics.main(replace(cfg, steps=50))
    rows = [
        json.loads(line) for line in (trained / "joint" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["lam_weighted_mse"] < rows[0]["lam_weighted_mse"]
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]
    model = bundle.load(trained / "joint").world
    assert model.lam.cfg.actions == model.dynamics.cfg.actions == 4
    frames = data.read_clips(data.open_store(trained / "data"), np.array([0]), 3).frames
    assert world.infer_actions(model, torch.from_numpy(frames)).shape == (1, 2)
    with pytest.raises(UserError, match="leave one of them out"):
        replace(cfg, actions="recorded")


def test_joint_training_of_actions_from_motion_with_flips_and_a_stride(trained):
    """It has its own learning rate, resumes to the bit, and its world takes the run's stride."""
    codes = QuantizerConfig(kind="vq", codes=6, latent_dim=8, sphere=True, pairs=2)
    cfg = replace(
        config(trained, "dynamics", "joint-motion", stride=2, flip=True),
        train_lam=True,
        lam_model=LamConfig(arch="motion", quantizer=codes, flow=FlowConfig(cell=8, radius=2)),
        lam_optim=OptimConfig(lr=7e-4, warmup=0, ema=0.5),
        steps=4,
        save_every=2,
    )
    train_dynamics.main(cfg)
    row = json.loads((trained / "joint-motion" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["lr_lam"] == pytest.approx(7e-4) and row["lr"] != row["lr_lam"]
    whole = checkpoint.load(cfg.out, stage="dynamics").state
    assert whole["ema"].keys() == whole["params"].keys()
    shutil.rmtree(trained / "joint-motion" / "checkpoints" / "4")
    train_dynamics.main(replace(cfg, resume=True))
    resumed = checkpoint.load(cfg.out, stage="dynamics").state
    for path, value in tree.paths(whole).items():
        assert torch.equal(value, tree.paths(resumed)[path]), path
    loaded = bundle.load(cfg.out)
    assert bundle.open_dataset(loaded).stride == 2
    assert loaded.world.lam.cfg.arch == "motion" and loaded.world.dynamics.cfg.actions == 6


def distillation(trained: Path, out: str, **options) -> train_dynamics.Config:
    """The continuation of the world that is imitated, on its own earlier stages."""
    cfg = config(trained, "dynamics", out, teacher=str(trained / "dynamics"), **options)
    optim = OptimConfig(lr=2e-3, warmup=0, ema=0.5)
    return replace(cfg, tokenizer="", lam="", steps=4, save_every=2, optim=optim)


def test_guidance_is_distilled_into_the_weights(trained):
    """From the teacher's parameters, on its earlier stages; resumed to the bit; played without guidance."""
    cfg = distillation(trained, "distilled", distill_guidance=2.0)
    train_dynamics.main(cfg)
    teacher = bundle.load(trained / "dynamics").world.dynamics
    loaded = bundle.load(cfg.out)
    student = loaded.world.dynamics
    assert student.cfg == replace(teacher.cfg, distilled=2.0)
    distance = tree.leaves(
        tree.map(lambda a, b: (a - b).abs().max(), student.params, teacher.params)
    )
    assert 0 < max(distance) < 0.1
    assert world.play_sample(SampleConfig(), student.cfg).guidance == 0
    row = json.loads((trained / "distilled" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["divergence"] >= 0 and 0 <= row["agreement"] <= 1
    whole = checkpoint.load(cfg.out, stage="dynamics").state
    shutil.rmtree(trained / "distilled" / "checkpoints" / "4")
    train_dynamics.main(replace(cfg, resume=True))
    resumed = checkpoint.load(cfg.out, stage="dynamics").state
    for path, value in tree.paths(whole).items():
        assert torch.equal(value, tree.paths(resumed)[path]), path


def test_a_teacher_that_cannot_be_imitated_is_refused(trained):
    with pytest.raises(UserError, match="has latent actions: pass --cfg.actions latent"):
        train_dynamics.main(distillation(trained, "refused", actions="recorded"))
    with pytest.raises(UserError, match="must be a number above 0"):
        distillation(trained, "refused", distill_guidance=float("nan"))
    with pytest.raises(UserError, match="leave --cfg.train-lam out"):
        distillation(trained, "refused", train_lam=True)
    cfg = distillation(trained, "refused")
    with pytest.raises(UserError, match="no checkpoint|no dynamics"):
        train_dynamics.main(replace(cfg, teacher=str(trained / "nowhere")))
    with pytest.raises(UserError, match="pass the folder of a run of train_dynamics.py"):
        train_dynamics.main(replace(cfg, teacher=str(trained / "lam")))
    assert not (trained / "refused").exists()


def test_a_distillation_is_continued_with_its_teacher_alone(trained):
    cfg = distillation(trained, "continued")
    train_dynamics.main(replace(cfg, steps=2))
    with pytest.raises(UserError, match="imitates .*dynamics: pass --cfg.teacher"):
        train_dynamics.main(replace(cfg, teacher="", resume=True))
    plain = replace(cfg, out=str(trained / "dynamics"), teacher=cfg.out, resume=True)
    with pytest.raises(UserError, match="imitates no teacher"):
        train_dynamics.main(plain)
    with pytest.raises(UserError, match="was distilled itself"):
        train_dynamics.main(replace(cfg, teacher=cfg.out, out=str(trained / "twice")))
    other = trained / "another"
    train_dynamics.main(replace(config(trained, "dynamics", "another"), steps=2))
    with pytest.raises(UserError, match="was trained further since"):
        train_dynamics.main(replace(cfg, teacher=str(other), resume=True))


@pytest.mark.parametrize(("arch", "context"), [("st_vivit", 1), ("motion", 0)])
def test_the_first_latent_action_of_a_clip_is_inferred_from_real_history(
    monkeypatch, arch, context
):
    """In joint training a clip has a frame before those of the dynamics model, where the encoder sees
    the past."""
    codes = QuantizerConfig(kind="vq", codes=4)
    model = LamConfig(32, 32, 16, STACK, STACK, codes, flow=FlowConfig(cell=8, radius=1), arch=arch)
    actions = train_dynamics.joint_training(model, AUTO)
    cfg = train_dynamics.Config(train_lam=True, lam_model=model, num_frames=3)
    assert actions.with_context(cfg).num_frames == 3 + context

    frames = random.randint(random.key(0), (2, 3 + context, 32, 32, 3), 0, 256).to(torch.uint8)
    batch = train_dynamics.on_frames(
        lambda state, batch, key: batch, lambda frames: frames[..., 0, 0, :1].long(), actions
    )(None, data.Batch(frames, None), None)
    assert torch.equal(batch.ids, frames[:, context:, 0, 0, :1].long())

    params = {"lam": tree.init(lam.spec(model), random.key(1))}
    given = []
    zero = torch.zeros(())

    def remember(params, ids, actions, *args, **options):
        given.append(actions)
        return zero, ({}, ())

    monkeypatch.setattr(dynamics, "loss", remember)
    train_dynamics.joint_objective(cfg).loss(params, batch, random.key(2), zero.long(), WHOLE_BATCH)
    inferred = lam.infer_actions(params["lam"], frames, model)
    assert torch.equal(given[0], inferred[:, context:]) and given[0].shape == (2, 2)


def test_flips_change_what_a_step_learns(trained):
    """Both frames and recorded actions of half of the clips are flipped, in every step."""

    def after(flip: bool) -> dict:
        cfg = config(trained, "dynamics", f"flip-{flip}")
        optim = OptimConfig(lr=1e-3)
        train_dynamics.main(replace(cfg, steps=1, actions="recorded", flip=flip, optim=optim))
        return tree.paths(checkpoint.load(Path(cfg.out), stage="dynamics").state["params"])

    plain = after(flip=False)
    flipped = after(flip=True)
    assert not all(torch.equal(plain[path], flipped[path]) for path in plain)


def test_a_latent_action_model_of_another_stride_is_refused(trained):
    cfg = config(trained, "dynamics", "other-stride")
    with pytest.raises(UserError, match="trained with a stride of 1, and this run has 2"):
        train_dynamics.main(replace(cfg, stride=2))


@pytest.mark.parametrize("options", [{}, {"actions": "recorded"}])
def test_dynamics_take_the_stride_of_the_earlier_stages(trained, tmp_path, options):
    """That of the latent action model, or without one of the tokenizer."""
    for stage in ("tokenizer", "lam"):
        cfg = config(trained, stage, f"strided-{stage}", stride=3 if stage == "lam" else 2)
        if not Path(cfg.out).exists():
            SCRIPTS[stage].main(replace(cfg, steps=1))
    cfg = replace(
        config(trained, "dynamics", "follows", stride="auto", **options),
        out=str(tmp_path),
        tokenizer=str(trained / "strided-tokenizer"),
        lam=str(trained / "strided-lam"),
        steps=1,
    )
    train_dynamics.main(cfg)
    assert inputs.read(tmp_path).stride == (2 if options else 3)
    train_dynamics.main(replace(cfg, resume=True, steps=2))
    assert inputs.read(tmp_path).stride == (2 if options else 3)


BAD = {
    "no dataset": (["train_tokenizer.py", "--cfg.data", "nowhere"], "generate_dataset.py"),
    "no tokenizer": (
        ["train_dynamics.py", "--cfg.data", "DATA", "--cfg.tokenizer", "nowhere"],
        "train_tokenizer.py",
    ),
    "no world": (["evaluate.py", "--cfg.run", "nowhere"], "train_dynamics.py"),
    "nothing to compare": (
        ["evaluate.py", "--cfg.compare", "HOME/lam", "HOME/tokenizer"],
        "holds no evaluation",
    ),
    "half of a metric": (["evaluate.py", "--cfg.weights.lpips", "a.pth"], "--cfg.weights.vgg"),
    "unknown preset": (["train_lam.py", "--cfg.preset", "cionrun"], "coinrun"),
    "negative batch": (["train_tokenizer.py", "--cfg.batch-size", "-4"], "batch-size"),
    "patch": (["train_tokenizer.py", "--cfg.model.patch", "7"], "patch"),
    "used folder": (
        ["train_tokenizer.py", "--cfg.data", "DATA", "--cfg.out", "HOME/tokenizer"],
        "--cfg.resume",
    ),
    "not a lam": (
        [
            "train_dynamics.py",
            "--cfg.data",
            "DATA",
            "--cfg.tokenizer",
            "HOME/tokenizer",
            "--cfg.lam",
            "HOME/dynamics",
        ],
        "is a run of train_dynamics.py",
    ),
    "not an image": (
        ["play.py", "--cfg.run", "HOME/dynamics", "--cfg.image", __file__, "--cfg.actions", "1"],
        "not an image",
    ),
    "no such action": (
        ["play.py", "--cfg.run", "HOME/dynamics", "--cfg.data", "DATA", "--cfg.actions", "1,9"],
        "0 to 5",
    ),
    "odd output": (["play.py", "--cfg.output", "out.txt"], ".mp4"),
}


def test_an_unknown_schedule_is_refused_with_the_possible_ones(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_lam.py", "--cfg.optim.schedule", "linear"])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(train_lam.main, train_lam.PRESETS)
    assert exit_info.value.code == 2 and "wsd" in capsys.readouterr().err


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(trained, case, capsys, monkeypatch, tmp_path):
    (script, *flags), expected = BAD[case]
    flags = [
        flag.replace("DATA", str(trained / "data")).replace("HOME", str(trained)) for flag in flags
    ]
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.chdir(tmp_path)  # the checkout may hold runs and data
    module = {
        "train_tokenizer.py": train_tokenizer,
        "train_lam.py": train_lam,
        "train_dynamics.py": train_dynamics,
    }
    module |= {"evaluate.py": evaluate, "play.py": play}
    with pytest.raises(SystemExit) as exit_info:
        cli.run(module[script].main, getattr(module[script], "PRESETS", None))
    said = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert expected in said.replace("\n", " ") and "Traceback" not in said
    assert len(said.strip().splitlines()) <= 3


def test_a_tokenizer_of_another_resolution_is_refused(trained, tmp_path):
    store = data.create(tmp_path / "data", {}, 32, 32, 3)
    frames = np.zeros((20, 32, 32, 3), np.uint8)
    for level in (0, 8):
        data.append_segments(
            store, [data.Recording(level, frames, np.zeros(20), np.zeros(20), np.zeros(20, bool))]
        )
        store = data.open_store(tmp_path / "data")
    with pytest.raises(UserError, match="64x64.*32x32"):
        train_dynamics.main(
            replace(config(trained, "dynamics", "other"), data=str(tmp_path / "data"))
        )


def test_a_broken_checkpoint_says_so(trained, tmp_path):
    run = tmp_path / "run"
    train_tokenizer.main(replace(config(trained, "tokenizer", "unused"), out=str(run), steps=1))
    for file in (run / "checkpoints" / "1").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, 10)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(run, stage="tokenizer")


def test_ctrl_c_saves_and_resume_continues(trained, monkeypatch):
    """SIGINT between two steps ends the run with a checkpoint of the step it had reached."""
    out = trained / "interrupted"
    cfg = replace(config(trained, "tokenizer", "interrupted"), save_every=10_000)
    seen = []

    def interrupt(params, path):
        seen.append(path)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "draw", lambda path, *rows: interrupt(rows, path))
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer.main(cfg)
    assert checkpoint.latest(out) == SAMPLE_EVERY
    train_tokenizer.main(replace(cfg, resume=True))
    assert checkpoint.latest(out) == STEPS


def test_each_codebook_of_vq_is_a_factor_with_initial_values_from_its_codes(capsys):
    quantizer = QuantizerConfig(kind="vq", codes=4**2, books=2, latent_dim=4)
    assert train_dynamics.factors(DynamicsConfig(), quantizer) == 2
    assert train_dynamics.factors(DynamicsConfig(factors=1), quantizer) == 1
    assert train_dynamics.factors(DynamicsConfig(), replace(quantizer, codes=3**2)) == 0
    assert train_dynamics.factors(DynamicsConfig(), QuantizerConfig(codes=2**4, books=2)) == 0

    book = random.normal(random.key(0), (8, 2))
    model = TokenizerConfig(32, 32, patch=16, encoder=STACK, decoder=STACK, quantizer=quantizer)
    stage = world.Stage(model, {"quantizer": {"codebook": book}}, AUTO)
    demo = train_dynamics.demo()

    def initial(count: int) -> tuple[dict, dict] | None:
        cfg = replace(demo, model=DynamicsConfig(tokens=4, codes=16, stack=STACK, factors=count))
        adapt = train_dynamics.code_initialiser(cfg, stage, torch.device("cpu"))
        params = tree.init(dynamics.spec(cfg.model), random.key(1))
        return adapt and (params, adapt(params))

    params, adapted = initial(2)
    embedded = adapted["token"][:4]
    assert not torch.equal(embedded, params["token"][:4])
    nearest = torch.cdist(book[:4], book[:4]).fill_diagonal_(9e9).argmin(1)
    distance = torch.cdist(embedded, embedded).fill_diagonal_(9e9)
    assert (distance.gather(1, nearest[:, None]) <= distance.median(1, keepdim=True)[0]).all()
    assert "no effect" not in capsys.readouterr().err
    assert initial(1) is None
    assert "no effect" in capsys.readouterr().err
