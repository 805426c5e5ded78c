"""Opening the page in a browser that has windows. A text browser would take over the terminal."""

import os
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path

TEXT_BROWSERS = {"www-browser", "w3m", "lynx", "links", "links2", "elinks", "browsh", "edbrowse"}
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
DELAY = 0.5
"""Seconds after which `open_soon` opens a page."""


def has_windows() -> bool:
    """Whether the default browser opens windows: it is no text browser, and there is a display.

    A browser that BROWSER names is taken to have its own, as those of remote editors do.
    """
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    if Path(getattr(browser, "name", "")).name in TEXT_BROWSERS:
        return False
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("BROWSER", *DISPLAYS))


def open_page(address: str) -> None:
    """Open a page in the default browser, if that has windows.

    It gets no terminal: what a desktop calls instead may still be a text browser.
    """
    if has_windows():
        subprocess.run(
            [sys.executable, "-m", "webbrowser", address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )


def open_soon(address: str) -> None:
    """Open a page as `open_page` does, once the server that the caller is about to start listens."""
    timer = threading.Timer(DELAY, open_page, [address])
    timer.daemon = True
    timer.start()
