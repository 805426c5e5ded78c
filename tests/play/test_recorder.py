"""Recording a person's play: what happened is in the dataset, whatever ends it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import record as script
from genie_fn import data
from genie_fn.data import games
from genie_fn.errors import UserError
from genie_fn.play import recorder
from genie_fn.play.server import serve_on

ROOT = Path(script.__file__).parent
CFG = script.Config(env="gym:tests.gym_games:Walk-v0", size=(20, 30), start_level=4)


def opened(root, cfg=CFG):
    store = recorder.open_or_create(root, script.collection(cfg), cfg.start_level)
    return recorder.Recorder(store, cfg.start_level, cfg.fps, "")


class Page:
    """What the page does."""

    def __init__(self, socket):
        self.socket = socket
        self.hello = socket.receive_json()
        self.state, self.frame = self.see()

    def see(self):
        state = self.socket.receive_json()
        if state["type"] == "error":
            return state, None
        shape = (self.hello["height"], self.hello["width"], 3)
        return state, np.frombuffer(self.socket.receive_bytes(), np.uint8).reshape(shape)

    def ask(self, **message):
        self.socket.send_json(message)
        return self.see()


def visit(client):
    return client.websocket_connect("ws://localhost/play", headers={"origin": "http://localhost"})


def client(server):
    return TestClient(server.app, base_url="http://localhost")


def check_recording(store, segment, actions):
    """That a segment holds what the game shows under these actions."""
    recording = data.read_segment(store, segment)
    assert recording.actions.tolist() == actions
    game = games.open_game(segment.level, store.meta, own_modules=True)
    begins = True
    for frame, action, reward, start in zip(
        recording.frames, actions, recording.rewards, recording.episode_starts, strict=True
    ):
        np.testing.assert_array_equal(frame, game.frame())
        step = game.step(action)
        assert (reward, start) == (step.reward, begins)
        begins = step.ended


def test_what_is_played_is_recorded(tmp_path):
    with client(opened(tmp_path / "s")) as browser, visit(browser) as socket:
        page = Page(socket)
        assert page.hello["names"] == ["NOOP", "LEFT+UP", "RIGHT+FIRE"]
        assert (page.hello["fps"], page.state["level"]) == (10, 4)
        played = [[2, 2, 0, 1] * 6, [1] * 5]
        ended = []
        for actions in played:
            for action in actions:
                state, frame = page.ask(type="act", action=action)
                ended.append(state["ended"])
            assert state["frames"] == len(actions)
            state, frame = page.ask(type="save")
            assert state["frames"] == 0
        assert any(ended)
        assert (state["level"], state["saved"], state["saved_frames"]) == (6, 2, 29)
        np.testing.assert_array_equal(frame, opened_at(tmp_path, 6).frame())
    store = data.open_store(tmp_path / "s")
    assert [segment.level for segment in store.segments] == [4, 5]
    for segment, actions in zip(store.segments, played, strict=True):
        check_recording(store, segment, actions)


def opened_at(tmp_path, level):
    meta = data.open_store(tmp_path / "s").meta
    return games.open_game(level, meta, own_modules=True)


def test_five_recordings_fill_all_splits(tmp_path):
    with client(opened(tmp_path / "s")) as browser, visit(browser) as socket:
        page = Page(socket)
        for _ in range(6):
            page.ask(type="act", action=0)
            page.ask(type="save")
    splits = [segment.split for segment in data.open_store(tmp_path / "s").segments]
    assert splits == ["train", "train", "train", "val", "test", "train"]


def test_what_is_discarded_is_not_kept(tmp_path):
    with client(opened(tmp_path / "s")) as browser, visit(browser) as socket:
        page = Page(socket)
        page.ask(type="act", action=2)
        state, frame = page.ask(type="discard")
        assert (state["frames"], state["level"]) == (0, 4)
        np.testing.assert_array_equal(frame, page.frame)
        page.ask(type="save")  # there is nothing to save
    assert not data.open_store(tmp_path / "s").segments


def test_who_leaves_without_saving_loses_nothing(tmp_path):
    server = opened(tmp_path / "s")
    with client(server) as browser:
        for count in (3, 2):
            with visit(browser) as socket:
                page = Page(socket)
                for _ in range(count):
                    page.ask(type="act", action=1)
            wait_for(lambda: not server._busy)
    store = data.open_store(tmp_path / "s")
    assert [segment.length for segment in store.segments] == [3, 2]


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_one_person_at_a_time(tmp_path):
    with client(opened(tmp_path / "s")) as browser, visit(browser) as socket:
        page = Page(socket)
        with visit(browser) as other:
            assert other.receive_json() == {"type": "error", "message": recorder.TAKEN}
        state, _ = page.ask(type="act", action=1)
        assert state["frames"] == 1


@pytest.mark.parametrize(
    "message",
    [
        {"type": "act", "action": 3},
        {"type": "act", "action": -1},
        {"type": "act", "action": True},
        {"type": "act"},
        {"type": "dance"},
        {},
        [],
        7,
    ],
)
def test_wrong_messages_are_answered_and_change_nothing(message, tmp_path):
    with client(opened(tmp_path / "s")) as browser, visit(browser) as socket:
        page = Page(socket)
        socket.send_text(json.dumps(message))
        state, _ = page.see()
        assert state["type"] == "error"
        state, _ = page.ask(type="act", action=1)
        assert state["frames"] == 1


def test_a_recording_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_BYTES", 2 * 20 * 30 * 3)
    with client(opened(tmp_path / "s")) as browser, visit(browser) as socket:
        page = Page(socket)
        for _ in range(2):
            page.ask(type="act", action=0)
        state, _ = page.ask(type="act", action=0)
        assert "at most 2 frames: save it" in state["message"]


def test_other_sites_are_refused(tmp_path):
    browser = client(opened(tmp_path / "s"))
    assert browser.get("/").status_code == 200
    assert browser.get("/", headers={"host": "evil.example"}).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        browser.websocket_connect("ws://localhost/play", headers={"origin": "http://evil.example"}),
    ):
        pass


def test_more_is_added_and_other_options_are_refused(tmp_path):
    for _ in range(2):
        with client(opened(tmp_path / "s")) as browser, visit(browser) as socket:
            Page(socket).ask(type="act", action=1)
    store = data.open_store(tmp_path / "s")
    assert [segment.level for segment in store.segments] == [4, 5]
    for change, sentence in (
        ({"size": 32}, r"recorded with size \[20, 30\], not \[32, 32\]"),
        ({"frame_skip": 2}, "recorded with frame_skip 1, not 2"),
    ):
        with pytest.raises(UserError, match=sentence):
            opened(tmp_path / "s", replace(CFG, **change))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fps": 0}, "--cfg.fps is 0"),
        ({"port": 70000}, "--cfg.port is 70000"),
        ({"size": 4}, "--cfg.size is 4"),
        ({"frame_skip": 0}, "--cfg.frame-skip is 0"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(CFG, **options)


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_program_saves(number, tmp_path):
    websockets = pytest.importorskip("websockets.sync.client")
    flags = ["--cfg.env", "coinrun", "--cfg.root", "s", "--cfg.port", "0", "--cfg.no-open"]
    pytest.importorskip("procgen")
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "record.py", *flags],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "200"},
    )
    line = process.stdout.readline()
    address = re.search(r"http://(localhost:\d+)/", line)[1]
    for _ in range(200):
        try:
            connection = websockets.connect(f"ws://{address}/play", origin=f"http://{address}")
            break
        except OSError:
            time.sleep(0.05)
    with connection:
        for action in (7, 8):
            connection.send(json.dumps({"type": "act", "action": action}))
        for _ in range(7):  # hello, and three times a state and a frame
            connection.recv(timeout=30)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    assert "1 recordings, frames: 2 train" in printed
    store = data.open_store(tmp_path / "s")
    check_recording(store, store.segments[0], [7, 8])


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="the browser test needs Chromium")
def test_the_page_plays_by_keyboard_and_saves(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    server = opened(tmp_path / "s", replace(CFG, fps=60))
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_on, args=(server, listening), daemon=True).start()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        problems = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://localhost:{listening.getsockname()[1]}/")
        expect = sync_api.expect
        expect(page.locator("#state")).to_contain_text(
            "level 4: 0 frames, for train", timeout=30_000
        )
        page.keyboard.press("ArrowRight")  # no action is RIGHT alone: nothing is pressed
        page.keyboard.press("3")
        expect(page.locator("#state")).to_contain_text(re.compile(r"level 4: [12] frames"))
        page.get_by_role("button", name="Run").click()
        wait_for(lambda: len(server.take.frames) > 20)
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_contain_text("level 5: 0 frames")
        expect(page.locator("#run")).to_have_text("Run")
        page.screenshot(path=str(tmp_path / "page.png"))
        browser.close()
    assert not problems
    server.stop()
    store = data.open_store(tmp_path / "s")
    actions = data.read_segment(store, store.segments[0]).actions.tolist()
    assert 2 in actions
    assert actions.count(0) > 10
