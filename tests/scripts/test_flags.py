"""The flags that messages advise are flags of the scripts."""

import ast
import importlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from tyro.conf import Suppress

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem for path in ROOT.glob("*.py") if "class Config" in path.read_text(encoding="utf-8")
)
FLAG = re.compile(r"--cfg\.([a-z0-9-]+(?:\.[a-z0-9-]+)*)")


def flags(config: type, prefix: str = "") -> set[str]:
    """The flags of a configuration, and the beginnings of nested ones."""
    found = set()
    for name, kind in get_type_hints(config, include_extras=True).items():
        if name not in {field.name for field in fields(config)}:
            continue
        if any(mark is Suppress[int].__metadata__[0] for mark in getattr(kind, "__metadata__", ())):
            continue
        flag = prefix + name.replace("_", "-")
        found |= {flag, f"{prefix}no-{name.replace('_', '-')}"} if kind is bool else {flag}
        if is_dataclass(kind):
            found |= flags(kind, f"{flag}.")
    return found


def advised(path: Path) -> set[str]:
    """The flags in the texts of a module that are no documentation."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
    )
    return {flag for text in texts for flag in FLAG.findall(text)}


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The flags of every script."""
    return {name: flags(importlib.import_module(name).Config) for name in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_advises_flags_of_a_script(known, script):
    everywhere = set().union(*known.values())
    assert advised(ROOT / f"{script}.py") <= everywhere


def test_the_package_advises_flags_of_a_script(known):
    everywhere = set().union(*known.values())
    wrong = {
        f"{path.relative_to(ROOT)}: --cfg.{flag}"
        for path in (ROOT / "genie_fn").rglob("*.py")
        for flag in advised(path) - everywhere
    }
    assert not wrong
