"""Hooks of `mkdocs build`: pages generated from files outside docs/, and equations as MathML.

The site loads nothing from the network.
"""

import ast
import html
import re
from pathlib import Path

import latex2mathml.converter
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "genie_fn"
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "assets/worlds/README.md": "worlds.md",
}
TOUR = "tour/README.md"
PICTURES = (".gif", ".jpg", ".png", ".svg")


def modules():
    """The docstring of every module that has one, by full name."""
    docstrings = {}
    packages = [path.parent for path in PACKAGE.rglob("__init__.py")]
    for path in sorted(path for package in packages for path in package.glob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if text := ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            docstrings[name] = text
    return docstrings


def tour():
    """The notebooks, in order."""
    return sorted((ROOT / "docs" / "tour").glob("*.ipynb"))


def on_config(config):
    """Fill in the parts of the navigation that depend on files."""
    pages = {"Reference": ["reference/index.md", *(f"reference/{name}.md" for name in modules())]}
    pages["Tour"] = [TOUR, *(f"tour/{path.stem}.md" for path in tour())]
    filled = [
        {title: pages.get(title, part) for title, part in entry.items()} for entry in config.nav
    ]
    config.nav = [entry for entry in filled if all(entry.values())]
    return config


def on_files(files, config):
    """Add the generated pages."""
    for source, page in FROM_ROOT.items():
        text = re.sub(r"\]\((\.\./)*docs/", "](", (ROOT / source).read_text(encoding="utf-8"))
        for other, target in FROM_ROOT.items():
            text = text.replace(f"]({other}", f"]({target}")
        files.append(File.generated(config, page, content=text))
    for path in (ROOT / "assets").iterdir():
        if path.suffix in PICTURES:
            files.append(File.generated(config, f"assets/{path.name}", abs_src_path=str(path)))
    files.remove(files.get_file_from_path(TOUR))
    text = (ROOT / "docs" / TOUR).read_text(encoding="utf-8").replace(".ipynb)", ".md)")
    files.append(File.generated(config, TOUR, content=text))
    for path in tour():
        for name, content in notebook(path).items():
            files.append(File.generated(config, f"tour/{name}", content=content))
    docstrings = modules()
    for name in docstrings:
        content = f"---\ntitle: {name.removeprefix('genie_fn.')}\n---\n\n# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    rows = (
        f"| [`{name}`]({name}.md) | {first_sentence(text)} |\n" for name, text in docstrings.items()
    )
    table = (
        "# Reference\n\nFrom the docstrings of the code.\n\n| module | |\n|---|---|\n"
        + "".join(rows)
    )
    files.append(File.generated(config, "reference/index.md", content=table))
    return files


def first_sentence(docstring):
    sentence = re.split(r"(?<=[.:])\s", docstring.replace("\n", " "), maxsplit=1)[0]
    return sentence.rstrip(":").replace("|", "\\|")


def notebook(path):
    """The page and the pictures of a notebook with its stored outputs, by file name."""
    text, resources = MarkdownExporter().from_filename(
        str(path), resources={"unique_key": path.stem}
    )
    return {f"{path.stem}.md": text} | resources["outputs"]


def on_page_markdown(markdown, **_):
    """Adapt a page that is written for GitHub: links out of docs/, and lists without an empty line above them."""
    for source, page in FROM_ROOT.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}")
    markdown = markdown.replace("](../assets/", "](assets/")
    out, fenced, before = [], False, ""
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        item = re.match(r"(-|\d+\.) ", line)
        if item and not fenced and before.strip() and not re.match(r"(-|\d+\.) | ", before):
            out.append("")
        out.append(line)
        before = line
    return "\n".join(out)


def on_page_content(content, **_):
    """Convert the LaTeX that arithmatex marked to MathML, which browsers display without a script."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', mathml, content, flags=re.DOTALL
    )


def mathml(match):
    display = "block" if match[1] == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(match[2]).strip(), display=display)
