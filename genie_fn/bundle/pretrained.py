"""The bundled pretrained worlds: in a wheel a folder of the package, in a checkout assets/worlds."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "worlds", _PACKAGE.parent / "assets" / "worlds")


def path(name: str) -> Path:
    """The world file of a bundled world, such as `coinrun`; it need not exist."""
    paths = [folder / f"{name}.safetensors" for folder in _FOLDERS]
    return next((path for path in paths if path.is_file()), paths[-1])


def find(name: str) -> str:
    """The path of the bundled world of this name, if there is one and no such file; else the name."""
    bundled = path(name)
    known = bool(name) and "/" not in name and not Path(name).exists() and bundled.is_file()
    return str(bundled) if known else name
