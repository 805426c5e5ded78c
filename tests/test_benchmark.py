"""The benchmark at tiny sizes: its rows and files, and that it refuses to compare what does not agree. No times."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import benchmark
from genie_fn import dynamics, random, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig, SampleConfig
from genie_fn.errors import UserError, run
from genie_fn.kernels import lfq
from genie_fn.layers import STConfig

STACK = STConfig(layers=2, dim=16, heads=2, window=4)
TINY = benchmark.Config(
    repeats=2, device="cpu", model=DynamicsConfig(32, 6, 3, stack=STACK), sample=SampleConfig(steps=3)
)
CPU = torch.device("cpu")
SMALL_CODER = tokenizer.TokenizerConfig(32, 32, 16)


def tiny_lfq(cfg=TINY, device=CPU, **options):
    return benchmark.lfq_suite(cfg, device, bits=(4, 6, 8), most=6, tokens=64, **options)


def check_rows(rows, repeats):
    for row in rows:
        ratio, seconds = row["ratio"], row["seconds"]
        assert len(ratio["all"]) == len(seconds["all"]) == repeats
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert seconds["min"] > 0
        if row["variant"] == row["baseline"]:
            assert ratio["all"] == [1.0] * repeats


def test_generate_compares_two_ways():
    rows = benchmark.generate_suite(TINY, CPU)
    check_rows(rows, 2)
    assert [row["variant"] for row in rows] == ["no cache", "cached past"]
    assert {row["baseline"] for row in rows} == {"no cache"}


@pytest.mark.parametrize("name", ["window", "actions", "reveal"])
def test_generate_refuses_ways_that_disagree(monkeypatch, name):
    """A baseline that sees another past, other actions, or that reveals other tokens."""
    true = benchmark.baselines.uncached_unmask

    def broken(params, ids_BN, action_B, past, *rest):
        if name == "window":
            past = (past[0].flip(1), past[1])
        if name == "actions":
            action_B = (action_B + 1) % 3
        ids_BN, p_BN = true(params, ids_BN, action_B, past, *rest)
        return (ids_BN + 1 if name == "reveal" else ids_BN) % 33, p_BN

    monkeypatch.setattr(benchmark.baselines, "uncached_unmask", broken)
    with pytest.raises(RuntimeError, match="the generated ids differ"):
        benchmark.generate_suite(TINY, CPU)


def test_the_uncached_way_uses_no_cache(monkeypatch):
    seen = []
    true = dynamics.logits_next

    def spy(params, ids_BTN, actions_BT, cache, cfg):
        seen.append((ids_BTN.shape[1], cache is None))
        return true(params, ids_BTN, actions_BT, cache, cfg)

    monkeypatch.setattr(dynamics, "logits_next", spy)
    benchmark.generate_suite(TINY, CPU)
    assert set(seen) == {(3, False), (4, True), (1, False)}  # the past into the cache; no cache; cached
    calls = 3 + 1 + TINY.repeats  # checks, warm-up, measurements
    assert seen.count((4, True)) == calls * TINY.sample.steps
    assert seen.count((1, False)) == calls * (TINY.sample.steps + 1)  # and the frame into the cache


def test_lfq_rows_have_ratios_and_peaks():
    rows = tiny_lfq()
    check_rows(rows, 2)
    assert [row["variant"] for row in rows] == ["softmax", "factorised"] * 2 + ["factorised"]
    peaks = [row["peak bytes"] for row in rows]
    assert peaks[2] >= 4 * 64 * 2**6 * 4  # several float32 (tokens, codes) at once
    assert peaks[3] < peaks[2] / 2


def test_lfq_measures_the_kernel_too():
    pytest.importorskip("triton")
    rows = tiny_lfq(kernel=True)
    assert [row["variant"] for row in rows] == ["softmax", "factorised", "triton"] * 2 + ["factorised", "triton"]


def test_lfq_refuses_ways_that_disagree(monkeypatch):
    true = lfq.entropies
    monkeypatch.setattr(lfq, "entropies", lambda z, t: true(z * 1.1, t))
    with pytest.raises(RuntimeError, match="the entropies of 4 bits differ"):
        tiny_lfq()
    monkeypatch.setattr(lfq, "entropies", lambda z, t: tuple(x.detach() + 0 * z.sum() for x in true(z, t)))
    with pytest.raises(RuntimeError, match="the entropies of 4 bits differ"):  # the gradient alone
        tiny_lfq()


def test_the_module_is_the_functional_model():
    """Loss and gradients from the same weights, so that the ratio of their times means something."""
    model = replace(SMALL_CODER, encoder=STACK, decoder=STACK)
    params = tree.init(tokenizer.spec(model), random.key(0))
    video = random.randint(random.key(1), (2, 4, 32, 32, 3), 0, 256).to(torch.uint8)
    net = benchmark.baselines.Tokenizer(model)
    net.load(params)
    loss, _ = net(video)
    loss.backward()
    (expected, _), grads = tree.value_and_grad(tokenizer.loss)(params, video, model)
    torch.testing.assert_close(loss.detach(), expected)
    pairs = (
        (net.encoder.blocks[1].time.qkv.weight.grad.T, grads["encoder"]["stack"]["blocks"]["time"]["qkv"]["w"][1]),
        (net.decoder.blocks[0].up.weight.grad.T, grads["decoder"]["stack"]["blocks"]["mlp"]["up"]["w"][0]),
        (net.encoder.place.grad, grads["encoder"]["place"]),
        (net.decoder.blocks[0].space.k_norm.weight.grad, grads["decoder"]["stack"]["blocks"]["space"]["k_norm"][0]),
    )
    for theirs, ours in pairs:
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-6)
    assert sum(p.numel() for p in net.parameters()) == tree.count(params)


def test_step_compares_training_steps(monkeypatch):
    monkeypatch.setitem(tokenizer.PRESETS, "demo", replace(SMALL_CODER, encoder=STACK, decoder=STACK))
    rows = benchmark.step_suite(TINY, CPU, (2, 3))
    check_rows(rows, 2)
    assert [row["variant"] for row in rows] == ["nn.Module", "functional, off"]


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_check_same(value):
    ids = torch.arange(5)
    benchmark.baselines.check_same(ids, ids.clone(), "ids")
    with pytest.raises(RuntimeError):
        benchmark.baselines.check_same(ids, ids + value, "ids")


def test_peak_bytes_counts_what_is_alive():
    with benchmark.baselines.PeakBytes() as bytes_alive:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)  # no new bytes
        del b
        c = c * 2
    assert len(c) == 10
    assert bytes_alive.peak == 2 * 4000


def test_turns_are_taken_in_alternating_order():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    rows = benchmark.compare("case", ways, 3, frames=10)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba"
    assert [len(row["seconds"]["all"]) for row in rows] == [3, 3]
    assert all(row["frames/s"] > 0 for row in rows)


def test_main_writes_what_was_measured_and_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark.SUITES, "lfq", tiny_lfq)
    flags = "--cfg.suite lfq --cfg.repeats 2 --cfg.device cpu --cfg.out".split()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags, str(tmp_path / "new")])
    run(benchmark.main)
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "lfq-cpu.json"
    record = json.loads(path.read_text())
    assert record["torch"] == torch.__version__
    assert record["command"] == ["python", *sys.argv]
    assert record["device"] and record["python"] and "commit" in record
    check_rows(record["rows"], 2)
    printed = capsys.readouterr().out
    assert "baseline" in printed and ".." in printed and "peak bytes" in printed


@pytest.mark.parametrize(
    "flags", [{"suite": "lfqq"}, {"repeats": 0}, {"model": DynamicsConfig(stack=STConfig(window=1))}]
)
def test_wrong_flags_are_one_sentence(flags):
    with pytest.raises(UserError, match="--cfg"):
        benchmark.Config(**flags)
