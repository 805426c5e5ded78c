"""The command `genie-fn`: the scripts of the checkout as its subcommands.

    genie-fn play                              as python play.py
    genie-fn train tokenizer --cfg.steps 100   as python train_tokenizer.py --cfg.steps 100

Error messages and descriptions name the subcommands in place of the scripts.
"""

import difflib
import importlib
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

import genie_fn.runtime.startup  # noqa: F401  # isort: skip

from genie_fn.runtime import cli, signals
from genie_fn.runtime.console import console

SCRIPTS = {
    "play": "play",
    "collect": "generate_dataset",
    "record": "record",
    "import": "import_videos",
    "train tokenizer": "train_tokenizer",
    "train lam": "train_lam",
    "train dynamics": "train_dynamics",
    "evaluate": "evaluate",
    "evaluate-lam": "evaluate_lam",
    "evaluate-frames": "evaluate_frames",
    "clone": "clone",
    "export": "export_world",
}
"""The module in `genie_fn.scripts` of every subcommand."""
SUMMARIES = {
    "play": "play a world: the newest one trained here, or the bundled pretrained world",
    "collect": "collect video of a game into a dataset",
    "record": "play a game by keyboard, and keep what you do as a dataset",
    "import": "import videos or recorded episodes into a dataset",
    "train tokenizer": "train the video tokenizer",
    "train lam": "train the latent action model",
    "train dynamics": "train the dynamics model",
    "evaluate": "measure a world on held-out clips",
    "evaluate-lam": "measure a latent action model alone",
    "evaluate-frames": "measure frames that any model generated",
    "clone": "clone behaviour from video through latent actions",
    "export": "write a world as one file, as a web page or as ONNX graphs",
    "demo": "collect data, train the three stages and evaluate, in the current folder",
}
DEMO = (
    "collect --cfg.num-levels 200",
    "train tokenizer --cfg.preset demo --cfg.resume",
    "train lam --cfg.preset demo --cfg.resume",
    "train dynamics --cfg.preset demo --cfg.resume",
    "evaluate --cfg.prompts 1 --cfg.no-extra-methods --cfg.long-frames 50",
)
"""The subcommands that `demo` runs, one after the other."""


def main() -> None:
    """The entry point of the console command."""
    name, arguments = _split(sys.argv[1:])
    if name == "demo":
        return _demo(arguments)
    module = importlib.import_module(f"genie_fn.scripts.{SCRIPTS[name]}")
    sys.argv = [f"genie-fn {name}", *arguments]
    cli.run(module.main, getattr(module, "PRESETS", None), translate=translate)


def translate(text: str) -> str:
    """`text` with the subcommand in place of every script's name."""
    names = {script: name for name, script in SCRIPTS.items()}
    pattern = rf"(?:python )?\b({'|'.join(names)})\.py\b"
    return re.sub(pattern, lambda match: f"genie-fn {names[match[1]]}", text)


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The subcommand that the words begin with, and the other words. Ends with help, or a sentence."""
    if not words or words[0] in ("-h", "--help"):
        _help()
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in SUMMARIES:
            return name, words[count:]
    if words[0] == "train" and words[1:2] in ([], ["-h"], ["--help"]):
        _help()
    name = " ".join(words[:2]) if words[0] == "train" else words[0]
    (nearest,) = difflib.get_close_matches(name, SUMMARIES, n=1, cutoff=0)
    console.print(
        f"error: there is no subcommand {name!r}: did you mean {nearest!r}? "
        "(genie-fn --help lists them.)",
        style="red",
        soft_wrap=True,
        markup=False,
    )
    sys.exit(2)


def _help() -> NoReturn:
    width = max(map(len, SUMMARIES))
    print("usage: genie-fn SUBCOMMAND [--cfg.…]\n")
    for name, summary in SUMMARIES.items():
        print(f"  {name:<{width}}  {summary}")
    print("\nEvery subcommand has its own --help.")
    sys.exit(0)


def _demo(arguments: list[str]) -> None:
    """Run the subcommands of DEMO. After an interruption, the same command goes on."""
    if arguments:
        print("usage: genie-fn demo\n\nIt has no flags, and runs:\n")
        print("\n".join(f"  genie-fn {line}" for line in DEMO))
        sys.exit(0 if arguments in (["-h"], ["--help"]) else 2)
    for line in DEMO:
        console.print(f"genie-fn {line}", style="bold", soft_wrap=True)
        code = _call(line.split())
        if code:
            sys.exit(code)


def _call(words: Sequence[str]) -> int:
    """Run a subcommand in a process of its own. Returns its exit code.

    Ctrl-C reaches that process, too, which saves its work; SIGTERM is passed on to it.
    """
    started: list[subprocess.Popen] = []

    def wait_on(*_) -> None:
        pass

    def pass_on(*_) -> None:
        for process in started:
            process.terminate()

    with signals.handled({signal.SIGINT: wait_on, signal.SIGTERM: pass_on}):
        started.append(subprocess.Popen([sys.executable, "-m", "genie_fn", *words]))
        return started[0].wait()
