"""The console to which every command writes its messages: stderr, so that stdout is left to
results."""

from rich.console import Console

console = Console(stderr=True, highlight=False)
