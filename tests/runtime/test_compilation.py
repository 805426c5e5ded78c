"""Compiled functions, with and without CUDA graphs, against the functions themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genie_fn.runtime import compilation
from genie_fn.runtime.compilation import compiled

ROOT = Path(__file__).parents[2]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
        ],
    ),
]


@pytest.mark.compile
@pytest.mark.parametrize("device", DEVICES)
def test_results_are_those_of_the_function_and_stay_the_callers_own(device):
    def function(params, x, name):
        return {"y": params["w"] * x[0] + x[1], "name": name}

    fast = compiled(function, cuda_graph=True)
    params = {"w": torch.tensor([2.0], device=device)}
    one = torch.ones((), device=device)
    results = []
    for i in range(6):
        x = torch.full((3,), float(i), device=device)
        results.append(fast(params, (x, one), "a"))
    for i, result in enumerate(results):  # no later replay changes them
        assert result["y"].tolist() == [2.0 * i + 1] * 3 and result["name"] == "a"
    params["w"].fill_(5.0)  # the first argument is read where it lies
    x = torch.ones(3, device=device)
    assert fast(params, (x, one), "a")["y"].tolist() == [6.0] * 3


@pytest.mark.compile
@pytest.mark.parametrize("device", DEVICES)
def test_other_shapes_and_other_options_are_other_graphs(device):
    fast = compiled(lambda p, x, k: p + x * k, cuda_graph=True)
    p = torch.ones((), device=device)
    for _ in range(5):
        assert fast(p, torch.ones(2, device=device), 3).tolist() == [4.0] * 2
        assert fast(p, torch.ones(3, device=device), 3).tolist() == [4.0] * 3
        assert fast(p, torch.ones(3, device=device), 4).tolist() == [5.0] * 3


@pytest.mark.compile
@pytest.mark.parametrize("device", DEVICES)
def test_a_state_is_overwritten_once_per_call(device):
    def step(state, batch):
        state["x"].add_(batch)
        return state["x"] * 1

    fast = compiled(step, cuda_graph=True)
    state = {"x": torch.zeros(2, device=device)}
    seen = [fast(state, torch.ones(2, device=device))[0].item() for _ in range(6)]
    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert state["x"].tolist() == [6.0, 6.0]


COMPILERS = {
    "missing": "",
    "without headers": "echo 'a.cpp:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1",
    "silent": "exit 1",
}
"""Compilers that cannot compile, as scripts."""

TRY = """
import torch
from genie_fn.runtime import backend
cpu = torch.device("cpu")
print(backend.pick_compile("step", cpu), backend.pick_compile("split", cpu))
"""


@pytest.mark.compile
@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "No working C++ compiler"),
        pytest.param("without headers", "(Python.h: No such file", marks=pytest.mark.slow),
        pytest.param("silent", "", marks=pytest.mark.slow),
    ],
)
def test_a_compiler_that_does_not_work_is_one_line(tmp_path, kind, reason):
    compiler = tmp_path / "c++"
    if COMPILERS[kind]:
        real = "case $* in *--version*|*-dumpversion*) exec c++ $*;; esac"
        compiler.write_text(f"#!/bin/sh\n{real}\n{COMPILERS[kind]}\n", encoding="utf-8")
        compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", TRY],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["off", "off"], done.stderr[-3000:]
    (line,) = done.stderr.splitlines()
    assert line.startswith("compiling does not work here (") and reason in line


@pytest.mark.compile
def test_a_program_is_tried_once_for_each_device(monkeypatch, capsys):
    tried = []

    def refuse(*_, **__):
        tried.append(1)
        raise RuntimeError("CppCompileError: C++ compile error\n\nfatal error: omp.h: missing\n")

    compilation.works.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    cpu = torch.device("cpu")
    assert [compilation.works(cpu) for _ in range(3)] == [False] * 3 and len(tried) == 1
    compilation.works.cache_clear()
    assert "(omp.h: missing)" in capsys.readouterr().err.replace("\n", " ")


def test_another_compiler_is_another_program(monkeypatch, tmp_path):
    before = compilation._toolchain_factor()
    assert 1 <= before < 2 and before == compilation._toolchain_factor()
    monkeypatch.setenv("CXX", "g++-99")
    missing = compilation._toolchain_factor()
    compiler = tmp_path / "cxx"
    compiler.touch(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert len({before, missing, compilation._toolchain_factor()}) == 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "C++ compile error\n\na.cpp:4:10: fatal error: omp.h: No such file\n 4 |",
            "omp.h: No such file",
        ),
        ("InvalidCxxCompiler: No working C++ compiler\n\nSet TORCH", "No working C++ compiler"),
        ("backend='inductor' raised:\nCppCompileError: C++ compile error\n", "C++ compile error"),
        ("Failed to find C compiler", "Failed to find C compiler"),
        ("", "RuntimeError"),
    ],
)
def test_what_is_missing_is_the_compilers_own_error(text, line):
    assert compilation.missing(RuntimeError(text)) == line
