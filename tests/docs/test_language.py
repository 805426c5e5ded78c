"""The checker of language: which phrases it finds, and that the glossary itself can be read."""

import pytest

from tools import check_language

GUIDE = f"""
{check_language.BEGIN}
| term | meaning | not |
|---|---|---|
| rollout | generated frames | `dream`, `one go` |
| flip | augmentation | `mirror*`, `except: mirror image` |
{check_language.END}
| outside | the markers | `never` |
"""


def found(text):
    rules = check_language.read_rules(GUIDE)
    return sorted((hit.line, hit.text) for hit in check_language.check_text("file", text, rules))


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("A Dream.", [(1, "Dream")]),
        ("first\n`dream_frames` and DreamerV3", [(2, "dream")]),
        ("in one\n    go", [(1, "one go")]),
        ("# in one\n# go", [(1, "one # go")]),
        ("one_go, one-go", [(1, "one-go"), (1, "one_go")]),
        ("mirrored", [(1, "mirror")]),
        ("a mirror image", []),
        ("dream  # language: allow", []),
        ("outside, never", []),
        ("daydream, stone gong", []),
    ],
)
def test_phrases_are_found(text, hits):
    assert found(text) == hits


def test_a_hit_names_the_term_to_write():
    rules = check_language.read_rules(GUIDE)
    hit = next(check_language.check_text("a.md", "a dream", rules))
    assert hit == ("a.md", 1, "dream", "rollout")


def test_a_guide_without_rules_is_refused():
    with pytest.raises(ValueError, match="no rules"):
        check_language.read_rules("# Contributing")


def test_the_glossary_has_rules_and_is_not_checked_itself():
    guide = check_language.GUIDE
    assert len(check_language.read_rules(guide.read_text())) > 40
    rules = check_language.read_rules(guide.read_text())
    texts = dict(check_language.read_texts(guide))
    assert not list(check_language.check_text("guide", texts[guide.name], rules))


def test_notebooks_are_read_by_cell():
    path = check_language.ROOT / "docs" / "tour" / "01_pixels_to_tokens.ipynb"
    names = [name for name, _ in check_language.read_texts(path)]
    assert names[0] == "docs/tour/01_pixels_to_tokens.ipynb:cell 1"
    assert len(names) > 5
