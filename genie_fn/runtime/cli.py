"""The command line of every script: presets, flags, and errors that end in one sentence and exit
code 2."""

import dataclasses
import difflib
import functools
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import tyro

from genie_fn.errors import UserError
from genie_fn.runtime import distributed, files, output
from genie_fn.runtime.console import console

KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
Presets = Mapping[str, Callable[[], Any]]
Translate = Callable[[str], str]
"""Says of a help text or of an error how it is written for those who did not call a script."""


def _unchanged(text: str) -> str:
    return text


def run(
    main: Callable[[Any], None],
    presets: Presets | None = None,
    *,
    translate: Translate = _unchanged,
) -> None:
    """Parse the command line into `main(cfg)` and call it; a `UserError` and an error of the system
    become one sentence and exit code 2.

    --help begins with the docstring of the script. `presets` are functions that return a config:
    `--cfg.preset NAME` chooses one, and the other flags override it. A `~` at the beginning of a
    value is the home folder, also where the shell leaves it. Nothing that is printed ends the
    program. Ctrl-C exits with code 130, and SIGTERM with 143 where `main` handles it, as a shell
    expects; `main` has saved its work by then. Of several processes that fail with the same error
    only the first reports it.
    """
    with output.never_failing():
        try:
            main(*map(with_home, _parse(main, presets, translate)))
        except OSError as error:
            if error.errno is None:
                raise
            _report(translate(files.sentence(error)))
        except UserError as error:
            _report(translate(str(error)))
        except KeyboardInterrupt:
            sys.exit(130)


def _report(sentence: str) -> NoReturn:
    distributed.wait_for_first_to_report()
    console.quiet = False
    console.print("error:", sentence, style="red", soft_wrap=True)
    sys.exit(2)


def _parse(
    main: Callable[..., None], presets: Presets | None, translate: Translate
) -> tuple[Any, ...]:
    """The arguments of `main`, from the command line.

    The chosen preset is the default of the argument, so that --help shows its values.
    """

    @functools.wraps(main)
    def entry(*arguments: Any, **options: Any) -> tuple[Any, ...]:
        return (*arguments, *options.values())

    if presets:
        preset = presets[_preset_name(sys.argv[1:], presets)]()
        parameter = inspect.Parameter("cfg", KEYWORD, default=preset, annotation=type(preset))
        entry.__signature__ = inspect.Signature([parameter])  # pyright: ignore[reportAttributeAccessIssue]
        entry.__annotations__ = {"cfg": type(preset)}
    description = translate(inspect.getdoc(sys.modules[main.__module__]) or "")
    parse = functools.partial(
        tyro.cli, entry, prog=os.path.basename(sys.argv[0]), description=description
    )
    _check_patterns(sys.argv[1:], functools.partial(parse, console_outputs=False))
    return parse()


def _check_patterns(arguments: list[str], parse: Callable[..., Any]) -> None:
    """Raise UserError for a flag of one value that is followed by several names of files.

    This is what a shell makes of a pattern without quotes. Such a command line is wrong, and right
    with the first of these names alone.
    """
    for start, count in _runs_of_files(arguments):
        first_alone = arguments[: start + 1] + arguments[start + count :]
        if not _is_accepted(parse, arguments) and _is_accepted(parse, first_alone):
            raise UserError(
                f"{arguments[start - 1]} takes one value, not {count} files: if the shell made them "
                "of a pattern such as *.mp4, put the pattern in quotes"
            )


def _runs_of_files(arguments: list[str]) -> Iterator[tuple[int, int]]:
    """Where a flag is followed by several words that name files: the first one's index, and how
    many they are."""
    flags = [i for i, word in enumerate(arguments) if word.startswith("--")]
    for flag, end in itertools.pairwise([*flags, len(arguments)]):
        names = arguments[flag + 1 : end]
        if len(names) > 1 and all(map(os.path.exists, names)):
            yield flag + 1, len(names)


def _is_accepted(parse: Callable[..., Any], arguments: list[str]) -> bool:
    try:
        parse(args=arguments)
    except SystemExit:
        return False
    return True


def with_home(value: Any) -> Any:
    """A configuration with the home folder for a `~` at the beginning of any of its texts."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~") else value
    if isinstance(value, tuple | list):
        items = [with_home(item) for item in value]
        unchanged = all(new is old for new, old in zip(items, value, strict=True))
        return value if unchanged else type(value)(items)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    before = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    after = {name: with_home(item) for name, item in before.items()}
    changed = {name: item for name, item in after.items() if item is not before[name]}
    return dataclasses.replace(value, **changed) if changed else value


def _preset_name(arguments: list[str], presets: Presets) -> str:
    """The value of --cfg.preset, which may be written with a space or with "="; by default the
    first preset."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if "--cfg.preset" not in words[:-1]:
        return next(iter(presets))
    name = words[words.index("--cfg.preset") + 1]
    if name not in presets:
        nearest = difflib.get_close_matches(name, presets, n=1, cutoff=0)[0]
        raise UserError(
            f"there is no preset {name!r}: did you mean {nearest!r}? "
            f"(The presets are {', '.join(presets)}.)"
        )
    return name
