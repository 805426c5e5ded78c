"""The page is opened in browsers with windows only."""

import subprocess
import threading
import webbrowser

import pytest

from genie_fn.play import browser

ADDRESS = "http://localhost:8000/"


@pytest.fixture
def opened(monkeypatch):
    """The addresses opened, on Linux, with the variables that a case sets and no others."""
    commands = []
    monkeypatch.setattr(browser.sys, "platform", "linux")
    for name in ("BROWSER", *browser.DISPLAYS):
        monkeypatch.delenv(name, raising=False)

    def run(command, **options):
        assert options["start_new_session"] and options["stdin"] == subprocess.DEVNULL
        commands.append(command[-1])

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("found", "variables", "opens"),
    [
        (webbrowser.BackgroundBrowser("xdg-open"), {"DISPLAY": ":0"}, True),
        (webbrowser.BackgroundBrowser("xdg-open"), {"WAYLAND_DISPLAY": "wayland-0"}, True),
        (webbrowser.GenericBrowser("/remote/helpers/browser.sh"), {"BROWSER": "browser.sh"}, True),
        (webbrowser.BackgroundBrowser("xdg-open"), {}, False),
        (webbrowser.BackgroundBrowser("xdg-open"), {"DISPLAY": ""}, False),
        (webbrowser.GenericBrowser("w3m"), {"DISPLAY": ":0"}, False),
        (webbrowser.GenericBrowser("www-browser"), {}, False),
        (webbrowser.GenericBrowser("/usr/bin/lynx"), {"BROWSER": "/usr/bin/lynx"}, False),
    ],
)
def test_a_text_browser_is_not_opened(monkeypatch, opened, found, variables, opens):
    monkeypatch.setattr(webbrowser, "get", lambda: found)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    browser.open_page(ADDRESS)
    assert opened == [ADDRESS] * opens


def test_without_a_browser_nothing_is_opened(monkeypatch, opened):
    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    monkeypatch.setenv("DISPLAY", ":0")
    browser.open_page(ADDRESS)
    assert not opened


def test_a_page_is_opened_soon(monkeypatch):
    opened, done = [], threading.Event()
    monkeypatch.setattr(browser, "DELAY", 0.01)
    monkeypatch.setattr(browser, "open_page", lambda address: (opened.append(address), done.set()))
    browser.open_soon(ADDRESS)
    assert done.wait(10)
    assert opened == [ADDRESS]
