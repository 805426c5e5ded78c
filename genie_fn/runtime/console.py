"""The consoles of every command: messages and progress go to stderr, results to stdout.

Text is printed as it is: brackets are no markup, and `:name:` is no picture.
"""

from rich.console import Console

console = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""For messages and progress."""
results = Console(highlight=False, markup=False, emoji=False)
"""For tables of results; lines of results are printed with `print`."""
