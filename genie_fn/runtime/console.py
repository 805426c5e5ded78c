"""The console that every command writes its messages to: stderr, so that stdout stays for results."""

from rich.console import Console

console = Console(stderr=True, highlight=False)
