"""What pages and files beside the code say of it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    said = {
        name: re.search(rf"^{name}: (.*)$", citation, re.MULTILINE)[1]
        for name in ("title", "version", "license")
    }
    assert said == {
        "title": PROJECT["name"],
        "version": PROJECT["version"],
        "license": PROJECT["license"],
    }


def test_every_page_has_its_place_in_the_navigation():
    """mkdocs says so, too, but only where it is installed."""
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    from_elsewhere, with_the_notebooks = (
        {"index.md", "CONTRIBUTING.md", "worlds.md"},
        {"tour/README.md"},
    )
    assert sorted(listed) == sorted(written - with_the_notebooks | from_elsewhere)


def test_links_between_files_lead_somewhere():
    """On GitHub, where no site is built."""
    apart = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "assets/worlds/README.md"))
    for page in (*apart, *(ROOT / "docs").rglob("*.md")):
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert target.startswith("https://") or (page.parent / target).exists(), (
                f"{page.name}: {target}"
            )


def test_every_target_of_the_makefile_is_a_command():
    """`make help` lists what has a comment, and what is listed is not taken for a file."""
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    assert set(phony) == set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
