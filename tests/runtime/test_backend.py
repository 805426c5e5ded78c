"""The choice of implementations for a machine."""

import pytest

from genie_fn.errors import UserError
from genie_fn.runtime import stored_config
from genie_fn.runtime.backend import AUTO, Backend


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
    assert AUTO.resolve(device, compiled) == Backend("sdpa", time, "reference")


def test_what_was_chosen_stays():
    chosen = Backend("triton", "reference", "triton")
    assert chosen.resolve("cpu", True) == chosen
    assert Backend(time="sdpa").resolve("cpu", False) == Backend("sdpa", "sdpa")


def test_unknown_names_are_refused():
    for stored in ({"lfq": "cuda"}, {"lfq": "sdpa"}, {"space": "fused"}, {"time": "flash"}):
        with pytest.raises(UserError, match="has an invalid"):
            stored_config.from_dict(Backend, stored)
