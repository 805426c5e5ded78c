"""The choice of device, compile mode and implementations for a machine."""

import pytest
import torch

from genie_fn.errors import UserError
from genie_fn.runtime import compilation, stored_config
from genie_fn.runtime.backend import AUTO, Backend, available_devices, pick_compile, pick_device

NO_DEVICES = ["toaster", "", "meta", "cuda:99", "cuda:-1", "vulkan", "xla", "mkldnn", "hpu", "CPU"]


@pytest.mark.parametrize(
    ("device", "compiled", "time"),
    [
        ("cpu", False, "reference"),
        ("cuda", False, "sdpa"),
        ("cpu", True, "fused"),
        ("cuda", True, "fused"),
    ],
)
def test_every_choice_is_resolved(device, compiled, time):
    assert AUTO.resolve(device, compiled) == Backend("sdpa", time, "reference", "float32")


def test_what_was_chosen_stays():
    chosen = Backend("triton", "reference", "triton", "bfloat16")
    assert chosen.resolve("cpu", True) == chosen
    resolved = Backend(time="sdpa").resolve("cpu", False)
    assert resolved == Backend("sdpa", "sdpa", products="float32")


@pytest.mark.parametrize(
    ("device", "training", "capabilities", "products"),
    [
        ("cpu", True, {"avx512_bf16": True}, "bfloat16"),
        ("cpu", True, {"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ("cpu", True, {"avx512_bf16": False, "avx2": True}, "float32"),
        ("cpu", True, {}, "float32"),
        ("cpu", False, {"avx512_bf16": True}, "float32"),
        ("cuda", True, {"avx512_bf16": True}, "float32"),
    ],
)
def test_training_rounds_products_where_the_cpu_is_faster_with_it(
    device, training, capabilities, products, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert AUTO.resolve(device, False, training=training).products == products


def test_unknown_names_are_refused():
    for stored in ({"lfq": "cuda"}, {"lfq": "sdpa"}, {"space": "fused"}, {"time": "flash"}):
        with pytest.raises(UserError, match="has an invalid"):
            stored_config.from_dict(Backend, stored)


@pytest.mark.parametrize("name", [*NO_DEVICES, "cuda", "mps", "xpu"])
def test_a_device_that_torch_cannot_use_is_a_sentence(name, monkeypatch):
    if name.split(":")[0] in available_devices()[-1] and name not in NO_DEVICES:
        pytest.skip("this machine has one")
    with pytest.raises(
        UserError, match=r"--cfg.device .* cannot be used here.* offers cpu"
    ) as refused:
        pick_device(name)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_devices_that_there_are():
    assert pick_device("cpu") == pick_device("cpu:3") == torch.device("cpu")
    for name in available_devices():
        assert pick_device(name) == torch.device(name)
    assert pick_device("auto").type in ("cpu", "cuda")


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    for works in (True, False):
        monkeypatch.setattr(compilation, "works", lambda device, works=works: works)
        assert pick_compile("split", torch.device("cpu")) == ("split" if works else "off")
        assert pick_compile("off", torch.device("cpu")) == "off"
