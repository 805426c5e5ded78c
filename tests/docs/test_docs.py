"""Consistency of the pages with each other, with pyproject.toml and with the Makefile."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_matches_the_project():
    citation = (ROOT / "CITATION.cff").read_text()
    cited = {
        name: re.search(rf"^{name}: (.*)$", citation, re.MULTILINE)[1]
        for name in ("title", "version", "license")
    }
    assert cited == {
        "title": PROJECT["name"],
        "version": PROJECT["version"],
        "license": PROJECT["license"],
    }


def test_every_page_is_in_the_navigation():
    """mkdocs checks this too, but is not always installed."""
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    generated = {"index.md", "CONTRIBUTING.md", "worlds.md"}
    added_by_hooks = {"tour/README.md"}
    assert sorted(listed) == sorted(written - added_by_hooks | generated)


def test_links_between_files_have_a_target():
    """As on GitHub, without the site."""
    outside = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "assets/worlds/README.md"))
    for page in (*outside, *(ROOT / "docs").rglob("*.md")):
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert target.startswith("https://") or (page.parent / target).exists(), (
                f"{page.name}: {target}"
            )


def test_every_documented_target_is_phony():
    """`make help` lists the targets that have a comment; a file of the same name must not hide them."""
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    assert set(phony) == set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))


def table_rows(page):
    """The tables of a page as {label: line}."""
    lines = re.findall(r"^\| .* \|$", page.read_text(), re.MULTILINE)
    return {line.split(" | ")[0].strip("| "): line for line in lines}


def test_the_results_of_the_readme_are_those_of_the_bundled_worlds():
    short = table_rows(ROOT / "README.md")
    complete = table_rows(ROOT / "assets" / "worlds" / "README.md")
    shared = {label for label in short.keys() & complete.keys() if " dB" in complete[label]}
    assert len(shared) >= 4
    assert all(short[label] == complete[label] for label in shared)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
