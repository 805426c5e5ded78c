"""Check that texts use the terms of the glossary in CONTRIBUTING.md.

python tools/check_language.py                    # every tracked text file
python tools/check_language.py README.md docs     # these files and folders

The tables between the markers `<!-- language: begin -->` and `<!-- language: end -->` in
CONTRIBUTING.md hold the rules: their last column lists the phrases, in backticks, that must not be
used for the term in the first column. A phrase matches whole words in any case. A space in it also
matches a line break, an underscore or a hyphen, so `in a row` finds `in_a_row`. A phrase that ends
in `*` also matches longer words. An entry `except: phrase` allows a phrase that contains a banned
one.

A line that contains `language: allow` is not checked. Exit status 1 if anything was found.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
BEGIN = "<!-- language: begin -->"
END = "<!-- language: end -->"
ALLOW = "language: allow"
SUFFIXES = {".cff", ".css", ".html", ".ipynb", ".js", ".md", ".py", ".toml", ".yaml", ".yml"}
NAMES = {"Makefile"}
LEFT_OUT = {
    "docs/LOG.md",  # its older entries are history
    "tests/docs/test_language.py",  # it tests the checker with banned phrases
}
GAP = r"(?:[\s_\-#*/]+)"


class Rule(NamedTuple):
    """A banned phrase as a regular expression, and what to write instead."""

    pattern: re.Pattern
    instead: str
    exceptions: tuple[re.Pattern, ...]


class Hit(NamedTuple):
    """One use of a banned phrase."""

    path: str
    line: int
    text: str
    instead: str


def compile_phrase(phrase: str) -> re.Pattern:
    """The regular expression of a phrase: whole words, any case, any gap between the words."""
    open_end = phrase.endswith("*")
    words = re.split(r"[\s_\-]+", phrase.removesuffix("*"))
    body = GAP.join(re.escape(word) for word in words)
    end = "" if open_end else r"(?:'?s)?(?![A-Za-z])"
    return re.compile(rf"(?<![A-Za-z]){body}{end}", re.IGNORECASE)


def read_rules(guide: str) -> list[Rule]:
    """The rules in the text of CONTRIBUTING.md; ValueError if it has none."""
    rules = []
    for section in re.findall(f"{BEGIN}(.*?){END}", guide, re.DOTALL):
        for row in re.findall(r"^\|(.+)\|\s*$", section, re.MULTILINE):
            cells = [cell.strip() for cell in row.split("|")]
            entries = re.findall(r"`([^`]+)`", cells[-1])
            allowed = [e.removeprefix("except: ") for e in entries if e.startswith("except: ")]
            exceptions = tuple(compile_phrase(phrase) for phrase in allowed)
            for entry in entries:
                if not entry.startswith("except: "):
                    rules.append(Rule(compile_phrase(entry), cells[0], exceptions))
    if not rules:
        raise ValueError(f"{GUIDE.name} has no rules between {BEGIN} and {END}")
    return rules


def check_text(path: str, text: str, rules: list[Rule]) -> Iterator[Hit]:
    """Every banned phrase in a text."""
    lines = text.splitlines()
    for rule in rules:
        for match in rule.pattern.finditer(text):
            if is_exception(text, match, rule.exceptions):
                continue
            number = text.count("\n", 0, match.start()) + 1
            if ALLOW not in lines[number - 1]:
                yield Hit(path, number, " ".join(match.group().split()), rule.instead)


def is_exception(text: str, match: re.Match, exceptions: tuple[re.Pattern, ...]) -> bool:
    """Whether the match lies inside an allowed phrase."""
    start = max(match.start() - 80, 0)
    surroundings = text[start : match.end() + 80]
    return any(
        allowed.start() + start <= match.start() and match.end() <= allowed.end() + start
        for pattern in exceptions
        for allowed in pattern.finditer(surroundings)
    )


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of a file; of a notebook, of every cell without its outputs."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(text)["cells"], 1):
            yield f"{name}:cell {number}", "".join(cell["source"])
    elif path == GUIDE:
        blank = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
        yield name, blank.sub(lambda match: "\n" * match.group().count("\n"), text)
    else:
        yield name, text


def tracked_files(paths: list[str]) -> list[Path]:
    """Text files under the given paths that git tracks or does not ignore; all if no path is given."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    files = [ROOT / name for name in listed.splitlines() if name not in LEFT_OUT]
    return [
        file for file in files if file.is_file() and (file.suffix in SUFFIXES or file.name in NAMES)
    ]


def main(paths: list[str]) -> int:
    rules = read_rules(GUIDE.read_text(encoding="utf-8"))
    hits = []
    for file in tracked_files(paths):
        for name, text in read_texts(file):
            hits += check_text(name, text, rules)
    for hit in sorted(hits):
        print(f'{hit.path}:{hit.line}: "{hit.text}": write {hit.instead}')
    if hits:
        print(f"{len(hits)} banned phrases; see the glossary in {GUIDE.name}", file=sys.stderr)
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
