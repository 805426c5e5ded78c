"""The benchmark at tiny sizes: its rows and files, and that it refuses to compare what does not
agree. No times."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import benchmark
from benchmarks import baselines, counts, report, suites, timing
from genie_fn import dynamics, guidance, maskgit, random, tokenizer, tree
from genie_fn.dynamics import DynamicsConfig
from genie_fn.errors import UserError
from genie_fn.kernels import lfq
from genie_fn.layers import STConfig
from genie_fn.maskgit import SampleConfig
from genie_fn.runtime.cli import run

STACK = STConfig(layers=2, dim=16, heads=2, window=4)
TINY = benchmark.Config(
    repeats=2,
    device="cpu",
    compile="off",
    model=DynamicsConfig(32, 6, 3, stack=STACK),
    sample=SampleConfig(steps=3),
)
CPU = torch.device("cpu")
SMALL_TOKENIZER = tokenizer.TokenizerConfig(32, 32, 16)


def tiny_lfq(cfg=TINY, device=CPU, **options):
    return suites.lfq_suite(cfg, device, bits=(4, 6, 8), most=6, tokens=64, **options)


def check_rows(rows, repeats):
    for row in rows:
        ratio, seconds = row["ratio"], row["seconds"]
        assert len(ratio["all"]) == len(seconds["all"]) == repeats
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert seconds["min"] > 0
        if row["variant"] == row["baseline"]:
            assert ratio["all"] == [1.0] * repeats


def test_generate_compares_two_ways():
    rows = suites.generate_suite(TINY, CPU)
    check_rows(rows, 2)
    assert [row["variant"] for row in rows] == ["no cache", "cached past"]
    assert {row["baseline"] for row in rows} == {"no cache"}


@pytest.mark.parametrize("name", ["window", "actions", "reveal"])
def test_generate_refuses_ways_that_disagree(monkeypatch, name):
    """A baseline that sees another past, other actions, or that reveals other tokens."""
    true = baselines.uncached_unmask

    def broken(params, ids_BN, action_B, past, *rest):
        if name == "window":
            past = (past[0].flip(1), past[1])
        if name == "actions":
            action_B = (action_B + 1) % 3
        ids_BN, p_BN = true(params, ids_BN, action_B, past, *rest)
        return (ids_BN + 1 if name == "reveal" else ids_BN) % 33, p_BN

    monkeypatch.setattr(baselines, "uncached_unmask", broken)
    with pytest.raises(RuntimeError, match="the generated ids differ"):
        suites.generate_suite(TINY, CPU)


def test_the_uncached_way_uses_no_cache(monkeypatch):
    seen = []
    true = dynamics.predict_next

    def spy(params, ids_BTN, actions_BT, cache, cfg, **options):
        seen.append((ids_BTN.shape[1], cache is None))
        return true(params, ids_BTN, actions_BT, cache, cfg, **options)

    for module in (dynamics, guidance, maskgit):
        monkeypatch.setattr(module, "predict_next", spy)
    suites.generate_suite(TINY, CPU)
    assert set(seen) == {
        (3, False),
        (4, True),
        (1, False),
    }  # the past into the cache; no cache; cached
    calls = 3 + 2 + TINY.repeats  # checks, warm-up, measurements
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
    assert [row["variant"] for row in rows] == ["softmax", "factorised", "triton"] * 2 + [
        "factorised",
        "triton",
    ]


def test_lfq_refuses_ways_that_disagree(monkeypatch):
    true = lfq.entropies
    monkeypatch.setattr(lfq, "entropies", lambda z, t: true(z * 1.1, t))
    with pytest.raises(RuntimeError, match="the entropies of 4 bits differ"):
        tiny_lfq()
    monkeypatch.setattr(
        lfq, "entropies", lambda z, t: tuple(x.detach() + 0 * z.sum() for x in true(z, t))
    )
    with pytest.raises(RuntimeError, match="the entropies of 4 bits differ"):  # the gradient alone
        tiny_lfq()


def test_the_module_is_the_functional_model():
    """Loss and gradients from the same weights, so that the ratio of their times means
    something."""
    model = replace(SMALL_TOKENIZER, encoder=STACK, decoder=STACK)
    params = tree.init(tokenizer.spec(model), random.key(0))
    video = random.randint(random.key(1), (2, 4, 32, 32, 3), 0, 256).to(torch.uint8)
    net = baselines.Tokenizer(model)
    net.load(params)
    loss, _ = net(video)
    loss.backward()
    (expected, _), grads = tree.value_and_grad(tokenizer.loss)(params, video, model)
    torch.testing.assert_close(loss.detach(), expected)
    pairs = (
        (
            net.encoder.blocks[1].time.qkv.weight.grad.T,
            grads["encoder"]["stack"]["blocks"]["time"]["qkv"]["w"][1],
        ),
        (
            net.decoder.blocks[0].up.weight.grad.T,
            grads["decoder"]["stack"]["blocks"]["mlp"]["up"]["w"][0],
        ),
        (net.encoder.place.grad, grads["encoder"]["place"]),
        (
            net.decoder.blocks[0].space.k_norm.weight.grad,
            grads["decoder"]["stack"]["blocks"]["space"]["k_norm"][0],
        ),
    )
    for theirs, ours in pairs:
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-6)
    assert sum(p.numel() for p in net.parameters()) == tree.count(params)


def test_step_compares_training_steps(monkeypatch):
    monkeypatch.setitem(
        tokenizer.PRESETS, "demo", replace(SMALL_TOKENIZER, encoder=STACK, decoder=STACK)
    )
    rows = suites.step_suite(replace(TINY, shape=(2, 3)), CPU)
    check_rows(rows, 2)
    assert [row["variant"] for row in rows] == ["nn.Module", "functional, off"]
    assert all(row["peak bytes"] > 4 * 2 * 3 * 32 * 32 * 3 and row["share"] > 0 for row in rows)


def test_step_refuses_ways_that_disagree(monkeypatch):
    monkeypatch.setitem(
        tokenizer.PRESETS, "demo", replace(SMALL_TOKENIZER, encoder=STACK, decoder=STACK)
    )
    true = tokenizer.loss
    monkeypatch.setattr(
        tokenizer, "loss", lambda *a, **k: (lambda loss, aux: (loss * 1.01, aux))(*true(*a, **k))
    )
    with pytest.raises(RuntimeError, match="the losses differ"):
        suites.step_suite(replace(TINY, shape=(2, 3)), CPU)


def test_attention_compares_every_implementation_over_both_axes():
    rows = suites.attention_suite(replace(TINY, suite="attention", shape=(1, 4, 6, 2, 8)), CPU)
    check_rows(rows, 2)
    over = {
        axis: [row["variant"] for row in rows if row["case"].startswith(axis)]
        for axis in ("time", "space")
    }
    assert over["time"] == ["SDPA with transposes", "reference", "sdpa", "fused"]
    assert over["space"] == ["SDPA with transposes", "reference", "sdpa"]


def test_counted_flops_are_those_that_torch_counts():
    """torch counts the products of an eager step; causal attention over time is counted whole
    there."""
    from torch.utils.flop_counter import FlopCounterMode

    model = replace(SMALL_TOKENIZER, encoder=STACK, decoder=STACK)
    params = tree.init(tokenizer.spec(model), random.key(0))
    video = torch.zeros((2, 3, 32, 32, 3), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        tree.value_and_grad(tokenizer.loss)(params, video, model)
    ours = counts.tokenizer_step(model, 2, 3)
    assert abs(counter.get_total_flops() / ours - 1) < 0.15


def test_peak_bytes_counts_what_is_alive():
    def function():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return b.view(10, 100) * 2

    function()
    assert 0 <= timing.peak_bytes(function, CPU) - 2 * 4000 < 100  # and a number or two


def test_a_ceiling_is_a_rate(monkeypatch):
    ceiling = timing.measure_ceiling(CPU, torch.float32)
    assert 1e8 < ceiling.flops < 1e15 and 1e8 < ceiling.bytes < 1e14


def test_the_table_is_made_from_results(tmp_path):
    rows = timing.compare("case", {"slow": lambda: None, "fast": lambda: None}, 3)
    rows = [
        row | {"peak bytes": size, "share": 0.25}
        for row, size in zip(rows, (400, 100), strict=True)
    ]
    where = {"device": "a machine", "torch": "2.0", "threads": 1}
    (tmp_path / "lfq-cpu.json").write_text(json.dumps(where | {"rows": rows}))
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{report.RATIOS[0]}\nold\n{report.RATIOS[1]}\nbelow\n")
    for _ in range(2):  # writing it again changes nothing
        report.put(readme, *report.RATIOS, report.table(tmp_path))
        text = readme.read_text()
        assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
        assert (
            "case: fast | slow" in text and "1/4.0 | 25%" in text and "a machine, torch 2.0" in text
        )
    with pytest.raises(UserError, match="no results"):
        report.table(tmp_path / "none")
    readme.write_text("no marks")
    with pytest.raises(UserError, match="lacks the lines"):
        report.put(readme, *report.RATIOS, report.table(tmp_path))


def test_the_table_of_speedruns_is_made_from_records(tmp_path):
    stages = {"dataset": {"levels": 9}, "tokenizer": {"steps": 7}, "dynamics": {"steps": 5}}
    results = {
        "tokenizer, PSNR": [23.456],
        "PSNR at t = 4, moving clips": [14.1, 13.0, 15.2],
        "actions used": [6],
    }
    for seed in (0, 1):
        config = {"preset": "demo", "minutes": 20, "seed": seed}
        row = {
            "config": config,
            "device": "a machine",
            "minutes": 19.96,
            "stages": stages,
            "results": results,
        }
        (tmp_path / f"{seed}.json").write_text(json.dumps(row))
        results = {"tokenizer, PSNR": [24.0]}
    lines = report.speedruns(tmp_path).splitlines()
    assert (
        lines[0] == "| | demo, 20 min, seed 0 | demo, 20 min, seed 1 |"
        and lines[1] == "|---|---|---|"
    )
    assert (
        "| steps: tokenizer, dynamics | 7, 5 | 7, 5 |" in lines
        and "| minutes taken | 20.0 | 20.0 |" in lines
    )
    assert "| tokenizer, PSNR | 23.46 dB | 24.00 dB |" in lines
    assert "| PSNR at t = 4, moving clips | 14.10 dB [13.00, 15.20] | – |" in lines
    assert {line.count("|") for line in lines} == {4}
    with pytest.raises(UserError, match="no records"):
        report.speedruns(tmp_path / "none")


@pytest.mark.parametrize(
    ("page", "marks", "made", "folder"),
    [
        (report.PERFORMANCE, report.RATIOS, report.table, "results"),
        (report.RESULTS, report.RUNS, report.speedruns, "records"),
    ],
)
def test_the_pages_show_what_is_stored(page, marks, made, folder):
    root = suites.ROOT
    shown = (root / page).read_text().split(marks[0])[1].split(marks[1])[0].strip()
    assert shown == made(root / "benchmarks" / folder)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_check_same(value):
    ids = torch.arange(5)
    baselines.check_same(ids, ids.clone(), "ids")
    with pytest.raises(RuntimeError):
        baselines.check_same(ids, ids + value, "ids")


def test_turns_are_taken_in_alternating_order():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    rows = timing.compare("case", ways, 3, frames=10)
    assert "".join(calls) == "aabb" + "ba" + "ab" + "ba"  # each first called twice
    assert [len(row["seconds"]["all"]) for row in rows] == [3, 3]
    assert all(row["frames/s"] > 0 for row in rows)


def test_main_writes_what_was_measured_and_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark.SUITES, "lfq", tiny_lfq)
    flags = ["--cfg.suite", "lfq", "--cfg.repeats", "2", "--cfg.device", "cpu", "--cfg.out"]
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
    "flags",
    [{"repeats": 0}, {"model": DynamicsConfig(stack=STConfig(window=1))}],
)
def test_wrong_flags_are_one_sentence(flags):
    with pytest.raises(UserError, match="--cfg"):
        benchmark.Config(**flags)


def test_an_unknown_suite_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--cfg.suite", "lfqq"])
    with pytest.raises(SystemExit):
        run(benchmark.main)
    assert "--cfg.suite" in capsys.readouterr().err
