"""A world in one HTML file, or in a folder for a static host: the page of play, whose world is in it.

The graphs of `genie_fn.export.folder` are run in the browser by ONNX Runtime, which is taken from npm once.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from genie_fn.bundle import Bundle, fingerprint, rounded
from genie_fn.data import images
from genie_fn.errors import UserError
from genie_fn.export import folder, prepared
from genie_fn.maskgit import PLAY
from genie_fn.play.description import describe
from genie_fn.runtime import files

PAGE = Path(__file__).parent / "page"
WORKER = ("random.js", "world.js", "png.js", "worker.js")
"""The worker's modules, each after those that it imports."""
MODULES = (
    "local.js",
    "server.js",
    "protocol.js",
    "controls.js",
    "describe.js",
    "examples.js",
    "keys.js",
    "view.js",
    "page.js",
    "session.js",
    "app.js",
)
"""The page's modules, each after those that it imports."""
GRAPHS = ("start", "unmask", "finish")
FORMAT = "genie_fn page"
"""What the world.json of a folder for a static host names as its format."""
CONTENT = ("index.html", "static", "world", folder.DESCRIPTION)
"""The names in a folder for a static host."""
SECONDS = 300
"""How long npm may take."""


class Part(NamedTuple):
    """A file of a package."""

    path: str
    sha256: str


class Package(NamedTuple):
    """A package of npm, and the files of it that a page needs."""

    name: str
    version: str
    parts: dict[str, Part]
    """By the names of the page's parts."""
    notice: str


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        {
            "runtime": Part(
                "dist/ort.wasm.bundle.min.mjs",
                "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
            ),
            "wasm": Part(
                "dist/ort-wasm-simd-threaded.wasm",
                "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
            ),
        },
        "ONNX Runtime Web. Copyright (c) Microsoft Corporation.",
    ),
    Package(
        "gifenc",
        "1.0.3",
        {
            "gif": Part(
                "dist/gifenc.esm.js",
                "217761244379253ba5815510d3048a4fb1f4c4dbe9fb51a5cfbfe26f34eec093",
            ),
        },
        "gifenc. Copyright (c) 2017 Matt DesLauriers.",
    ),
)
LICENCE = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software
and associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense,
and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so,
subject to the following conditions: The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS",
WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR
OTHER DEALINGS IN THE SOFTWARE."""
"""The MIT licence, under which these packages and this project are."""


def write_file(path: Path, bundle: Bundle) -> int:
    """Write a world as one HTML file, which needs no server; returns its size in bytes."""
    content = page_of(parts_of(bundle)).encode()
    files.write_atomically(path, content)
    return len(content)


def page_of(parts: dict[str, bytes]) -> str:
    """A page with everything in it."""
    sources = {module: (PAGE / module).read_text(encoding="utf-8") for module in MODULES}
    worker = "".join(_as_script((PAGE / module).read_text(encoding="utf-8")) for module in WORKER)
    embedded = [
        f'<script type="application/octet-stream" id="genie-{part}">{_base64(_gzip(content))}</script>'
        for part, content in parts.items()
    ]
    boot = BOOT.replace("WORKER", _literal(worker), 1).replace("SOURCES", _literal(sources), 1)
    script = f'<meta name="genie-world" content="here">\n<script type="module">{boot}</script>'
    icon = f"data:image/svg+xml;base64,{_base64((PAGE / 'icon.svg').read_bytes())}"
    page = _index()
    page = page.replace('href="static/icon.svg"', f'href="{icon}"')
    page = page.replace(
        '<link rel="stylesheet" href="static/style.css">',
        f"<style>\n{(PAGE / 'style.css').read_text(encoding='utf-8')}</style>",
    )
    page = page.replace('<script type="module" src="static/app.js"></script>', script)
    return page.replace("</body>", "\n".join([*embedded, "</body>"]))


def _index() -> str:
    """The page's HTML, with the licences of what it contains."""
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    return page.replace("<!doctype html>", f"<!doctype html>\n<!--\n{notice()}\n-->")


def write_folder(place: Path, bundle: Bundle) -> int:
    """Write a world as a folder for a static host; returns its size in bytes.

    Raises UserError where the folder holds something else than an earlier export.
    """
    folder.check(place, FORMAT, CONTENT)
    parts = parts_of(bundle)
    page = _index()
    page = page.replace("<head>", '<head>\n  <meta name="genie-world" content="world">')
    with folder.replacing(place) as partial:
        (partial / "static").mkdir()
        (partial / "world").mkdir()
        for module in (*WORKER, *MODULES, "style.css", "icon.svg"):
            shutil.copy(PAGE / module, partial / "static" / module)
        for part, content in parts.items():
            (partial / "world" / f"{part}.bin").write_bytes(_gzip(content))
        marked = json.dumps({"format": FORMAT, "version": folder.VERSION})
        (partial / folder.DESCRIPTION).write_text(marked + "\n", encoding="utf-8")
        (partial / "index.html").write_text(page, encoding="utf-8")
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    return size


BOOT = r"""
const address = (source) => URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
const urls = {};
for (const [name, source] of Object.entries(SOURCES)) {
  const linked = source.replace(/from "\.\/([\w.]+)"/g, (_, other) => `from "${urls[other]}"`);
  urls[name] = address(linked);
}
globalThis.genieWorker = address(WORKER);
import(urls["app.js"]).catch((problem) => {
  document.getElementById("alert").hidden = false;
  document.getElementById("alert-text").textContent = `This browser cannot run the page (${problem.message}).`;
});
"""
"""Modules in one file: each gets an address, and imports the others by theirs."""


def parts_of(bundle: Bundle) -> dict[str, bytes]:
    """What a page needs beside its own files, by the names that local.js knows.

    Its parameters are those of a world file, so that recordings fit both.
    """
    bundle = rounded(bundle)
    parts: dict[str, bytes] = {}
    for package in PACKAGES:
        parts |= fetch(package)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "world"
        folder.write(place, bundle.world, PLAY, bundle.start_frames[:0], {})
        for graph in GRAPHS:
            parts[graph] = (place / f"{graph}.onnx").read_bytes()
        parts["weights"] = (place / folder.WEIGHTS).read_bytes()
        about = json.loads((place / folder.DESCRIPTION).read_text(encoding="utf-8"))
    about |= {
        "identity": fingerprint(*bundle.world),
        "background": images.background_of(bundle.dataset.meta),
        "images": [_base64(frame.tobytes()) for frame in bundle.start_frames],
        "strips": [_address(strip) for strip in bundle.effects.strips] if bundle.effects else [],
        "page": describe(bundle) | {"game": False},
    }
    parts["world"] = json.dumps(about).encode()
    return parts


def check() -> None:
    """Raise UserError where a page cannot be written: packages are missing, or npm's files."""
    folder.check_packages()
    for package in PACKAGES:
        fetch(package)


def fetch(package: Package) -> dict[str, bytes]:
    """The files of a package, from this machine's cache, or else from npm, which has to be installed.

    Their checksums are checked in any case. Raises UserError where npm is missing or fails, or sends
    something else.
    """
    place = prepared.cache("npm") / f"{package.name}-{package.version}"
    try:
        return {part: _checked(place / part, known) for part, known in package.parts.items()}
    except (OSError, ValueError):  # nothing is kept yet, or it is damaged
        _install(package, place)
    try:
        return {part: _checked(place / part, known) for part, known in package.parts.items()}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{package.name}@{package.version} is not what it was when this program was written: "
            "try again later"
        ) from error


def _checked(path: Path, known: Part) -> bytes:
    """The content of a file. Raises ValueError if it is not the known one."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != known.sha256:
        raise ValueError(f"{path} is damaged")
    return content


def _install(package: Package, place: Path) -> None:
    """Fetch a package, and keep the files that a page needs."""
    what = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        command = ["npm", "pack", what, "--loglevel=error", "--pack-destination", temporary]
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                encoding="utf-8",
                cwd=temporary,
                timeout=SECONDS,
            )
            (archive,) = Path(temporary).glob("*.tgz")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise UserError(
                f"a page needs {what} from npm once: install Node.js, and connect this machine "
                f"({_said(error)})"
            ) from error
        partial = Path(temporary) / "parts"
        partial.mkdir()
        with suppress(
            KeyError, EOFError, tarfile.TarError, zlib.error
        ):  # what is missing is found next
            _extract(package, archive, partial)
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # another process was faster
            partial.replace(place)


def _extract(package: Package, archive: Path, place: Path) -> None:
    """Write the files that a page needs. Raises KeyError for one that the archive does not have."""
    with tarfile.open(archive) as content:
        for part, known in package.parts.items():
            member = content.extractfile(f"package/{known.path}")
            if member is not None:
                (place / part).write_bytes(member.read())


def _said(error: Exception) -> str:
    """The first line of what npm said, or else the reason why it did not run."""
    said = getattr(error, "stderr", "") or files.reason(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return next(iter(text.strip().splitlines()), "npm failed")


def notice() -> str:
    """The licences of what a page contains."""
    names = "\n".join(["genie_fn.", *(package.notice for package in PACKAGES)])
    return f"{names}\n\n{LICENCE}"


def _literal(value: Any) -> str:
    """A value as JavaScript that can stand in a page."""
    return json.dumps(value).replace("</", "<\\/")


def _as_script(module: str) -> str:
    """A module without its imports and exports, to be joined with those that it imports."""
    lines = [line for line in module.splitlines() if not line.startswith("import ")]
    return "\n".join(line.removeprefix("export ") for line in lines) + "\n"


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _address(png: bytes) -> str:
    """The data address of a PNG file."""
    return f"data:image/png;base64,{_base64(png)}" if png else ""
