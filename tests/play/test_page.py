"""The page in a real browser, against the real server with a tiny untrained world."""

import base64
import io
import json
import re
import shutil
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from genie_fn.bundle import name_of
from genie_fn.maskgit import PLAY
from genie_fn.play.engine import Engine
from genie_fn.play.server import Limits, Server, serve_on

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
expect = sync_api.expect
expect.set_options(timeout=30_000)  # on a busy machine everything takes long
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="the browser test needs Chromium"),
]

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}


def started(loaded):
    """The address of a server in a thread."""
    engine = Engine(loaded, torch.device("cpu"), compiled=False)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(engine, "tiny", "", Limits())
    threading.Thread(target=serve_on, args=(server, listening), daemon=True).start()
    return f"http://localhost:{listening.getsockname()[1]}"


@pytest.fixture(scope="module")
def site(playable):
    return started(playable)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def keys_page(browser, site):
    """One page for all tests of what keys mean, which do not play."""
    page = browser.new_page()
    page.goto(site)
    yield page
    page.close()


@pytest.fixture
def visit(browser, site):
    """Open the page in a context of its own; no error and no foreign request may occur."""
    contexts, wrong, origin = [], [], site.replace("http", "ws")

    def hear(message):
        refused = message.location["url"].endswith(
            "/upload"
        )  # Chromium reports every refusal, though it is meant
        if message.type in ("error", "warning") and not refused:
            wrong.append(message.text)

    def listen(page):
        page.on("console", hear)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((site, "blob:")) or wrong.append(request.url),
        )
        page.on(
            "websocket", lambda socket: socket.url.startswith(origin) or wrong.append(socket.url)
        )

    def visit(prepare=lambda page: None, **options):
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        listen(page)
        prepare(page)
        page.goto(site)
        expect(page.locator("body:not(.waiting) #actions button").first).to_be_visible()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def pixels(page):
    """What is on the canvas, as text that is equal for equal pixels."""
    return page.locator("#frame").evaluate("canvas => canvas.toDataURL()")


def play(page, keys, start=0):
    """Press keys one after another; returns what the canvas shows from frame `start` on."""
    shown = [pixels(page)]
    for t, key in enumerate(keys, start + 1):
        page.keyboard.press(key)
        expect(page.locator("#number")).to_have_text(str(t))
        shown.append(pixels(page))
    return shown


def meaning(page, key, code, actions=10, **options):
    """What a key press means to the page."""
    return page.evaluate(
        """async ([options, actions]) => {
            const keys = await import("/static/keys.js");
            const event = new KeyboardEvent("keydown", options);
            return {
                command: keys.commandKey(event),
                action: keys.actionOf(event, actions),
                direction: keys.directionOf(event) ?? "",
                reserved: keys.isReserved(event),
            };
        }""",
        [{"key": key, "code": code, **options}, actions],
    )


def send_key(page, key, code):
    """Press a key that has another character than on a US layout."""
    page.evaluate(
        """options => {
            for (const type of ["keydown", "keyup"]) {
                document.body.dispatchEvent(new KeyboardEvent(type, options));
            }
        }""",
        {"key": key, "code": code, "bubbles": True},
    )


def png(seed):
    image, file = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), "u1"), io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return {"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()}


@pytest.mark.subprocess
def test_a_key_generates_a_frame(visit):
    page = visit()
    shown = play(page, ["1", "2", "2", "3"])
    assert len(set(shown)) == 5
    expect(page.locator("#actions .chosen")).to_have_attribute("data-action", "2")
    for figure in ("#fps", "#ms", "#trip"):
        expect(page.locator(figure)).to_have_text(re.compile(r"^\d+$"))
    expect(page.locator("#ready")).not_to_be_empty()
    page.locator("#actions button").first.click()
    expect(page.locator("#number")).to_have_text("5")


def test_a_held_key_repeats_and_nothing_piles_up(visit):
    page = visit()
    page.keyboard.down("1")
    expect(page.locator("#number")).to_have_text(re.compile(r"^[4-9]|\d\d"))
    page.keyboard.up("1")
    page.wait_for_timeout(200)
    expect(page.locator("body.waiting")).to_have_count(0)  # what was on its way has arrived
    reached = page.locator("#number").inner_text()
    page.wait_for_timeout(300)
    assert page.locator("#number").inner_text() == reached
    page.keyboard.press("p")
    expect(page.locator("#number")).to_have_text(re.compile(rf"^(?!{reached}$)"))
    page.keyboard.press("p")
    expect(page.locator("[data-do=run]")).to_have_attribute("aria-pressed", "false")


def test_rewinding_shows_the_very_frame_and_play_goes_on_from_there(visit):
    page = visit()
    shown, number = play(page, ["1", "2", "3"]), page.locator("#number")
    page.keyboard.press("Backspace")
    expect(number).to_have_text("2 of 3")
    assert pixels(page) == shown[2]
    page.locator("#timeline").fill("0")
    expect(number).to_have_text("0 of 3")
    assert pixels(page) == shown[0]
    page.keyboard.press("]")
    expect(number).to_have_text("1 of 3")
    assert pixels(page) == shown[1]
    assert play(page, ["2"], 1)[1] == shown[2]  # the same action again, and what came later is gone


def test_an_image_becomes_the_first_frame_however_it_comes(visit):
    page = visit()
    given = pixels(page)
    play(page, ["1"])
    page.locator("#image").set_input_files(png(1))
    expect(page.locator("#number")).to_have_text("0")
    expect(page.locator("#note")).to_contain_text("your image")
    mine = pixels(page)
    assert mine != given
    with page.expect_download() as download:
        page.keyboard.press("d")
    start = base64.b64decode(json.loads(download.value.path().read_text())["start"])
    assert np.array_equal(Image.open(io.BytesIO(start)), Image.open(io.BytesIO(png(1)["buffer"])))
    page.locator("#image").set_input_files(png(2))
    page.wait_for_timeout(200)
    assert pixels(page) not in (mine, given)
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        list(png(1)["buffer"]),
    )
    page.wait_for_timeout(200)
    assert pixels(page) == mine


def test_a_wrong_file_is_an_error_message(visit, tmp_path):
    page = visit()
    alert = page.get_by_role("alert")
    expect(alert).to_be_hidden()
    for size in (100, 2**25 + 1):
        image = tmp_path / f"{size}.png"  # its content would be sent to the browser as JSON
        image.write_bytes(b"x" * size)
        page.locator("#image").set_input_files(image)
        expect(alert).to_contain_text(re.compile(r"[a-z].*[.:]"))
        page.keyboard.press("Escape")
        expect(alert).to_be_hidden()
    page.locator("#recording").set_input_files(
        {"name": "a.json", "mimeType": "application/json", "buffer": b"{}"}
    )
    expect(alert).to_contain_text("not a recording")
    play(page, ["1"])
    expect(alert).to_be_hidden()


def test_a_recording_replays_to_identical_frames(visit):
    page = visit()
    shown = play(page, ["1", "3", "2"])
    with page.expect_download() as download:
        page.keyboard.press("d")
    assert download.value.suggested_filename.endswith("-seed0-3.json")
    recording = json.loads(download.value.path().read_text())
    again = visit()
    play(again, ["2"])
    verdict = again.locator("#verdict")

    def replay(content):
        file = {
            "name": "r.json",
            "mimeType": "application/json",
            "buffer": json.dumps(content).encode(),
        }
        again.locator("#recording").set_input_files(file)

    replay(recording)
    expect(verdict).to_have_text("Identical to the recording: all 3 frames.")
    assert pixels(again) == shown[3]
    recording["frames"][1]["hash"] = "00000000"
    replay(recording)
    expect(verdict).to_have_text("Frame 2 differs from the recording.")


def test_videos_are_downloaded(visit):
    page = visit()
    play(page, ["1", "2"])
    for key, magic in (("a", b"GIF8"), ("v", b"ftyp")):
        with page.expect_download() as download:
            page.keyboard.press(key)
        assert magic in download.value.path().read_bytes()[:12]


def test_the_real_game_next_to_the_world(visit):
    page = visit()
    expect(page.locator("#real-game")).to_be_hidden()
    page.keyboard.press("g")
    expect(page.locator("#real-game")).to_be_visible()
    play(page, ["ArrowRight", "Space"])
    expect(page.locator("#psnr")).to_have_text(re.compile(r"^\d+\.\d$"))
    expect(page.locator("#psnr-mean")).to_have_text(re.compile(r"^\d+\.\d$"))
    assert page.locator("#arrows .chosen").count() == 1
    page.keyboard.press("k")
    expect(page.locator("#real-game")).to_be_hidden()


def test_a_look_inside(visit):
    page = visit()
    play(page, ["1"])
    overlay = page.locator("#overlay")
    plain = overlay.evaluate("canvas => canvas.toDataURL()")
    looks = {plain}
    for key in "ci":
        page.keyboard.press(key)
        looks.add(overlay.evaluate("canvas => canvas.toDataURL()"))
    assert len(looks) == 3
    page.locator("#frame").hover()
    expect(page.get_by_role("tooltip")).to_contain_text(
        re.compile(r"row \d+, column \d+: token \d+, probability \d+ %")
    )
    page.keyboard.press("i")
    page.keyboard.press("c")
    assert overlay.evaluate("canvas => canvas.toDataURL()") == plain
    page.keyboard.press("m")
    text = page.locator("#unmask-text")
    expect(text).to_have_text(re.compile(r"step 1 of \d+: \d+ of \d+ tokens known"))
    page.locator("#unmask").fill("2")
    expect(text).to_have_text(re.compile(r"step 2 of"))
    page.keyboard.press("Escape")
    expect(text).to_be_hidden()


def test_branches_are_independent(visit):
    page = visit()
    play(page, ["1", "2"])
    page.keyboard.press("b")
    chips = page.locator("#branches button")
    expect(chips).to_have_count(2)
    expect(page.locator("#number")).to_have_text("2")
    there = play(page, ["3"], 2)
    page.keyboard.press("x")
    expect(page.locator("#number")).to_have_text("2")
    here = play(page, ["1"], 2)
    assert here[0] == there[0] and here[1] != there[1]
    chips.nth(1).click()
    expect(chips.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("body.waiting")).to_have_count(0)
    assert pixels(page) == there[1]


def test_everything_from_the_keyboard(visit):
    page = visit()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.do ?? document.activeElement.id"))
    buttons = set(
        page.locator("[data-do]:visible").evaluate_all("all => all.map(e => e.dataset.do)")
    )
    assert buttons - {"forward", "back"} <= reached
    assert {"clip", "seed", "level", "temperature", "steps", "speed"} <= reached
    page.locator("#actions button").nth(1).focus()
    page.keyboard.press("Enter")  # what has the focus is pressed, and the arrow keys still play
    expect(page.locator("#number")).to_have_text("1")
    page.locator("#temperature").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#temperature-out")).to_have_text("0.95")
    page.keyboard.press(".")
    expect(page.locator("#steps-out")).to_have_text(str(PLAY.steps + 1))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    keys = page.locator("#keys kbd").all_inner_texts()
    assert len(set(keys)) == len(keys), "one key, two meanings"
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize(
    ("key", "code", "expected"),
    [
        ("p", "KeyP", "P"),
        ("P", "KeyP", "P"),  # Shift or Caps Lock
        ("з", "KeyP", "P"),  # Cyrillic
        ("З", "KeyP", "P"),
        ("π", "KeyP", "P"),  # Greek
        ("ㅔ", "KeyP", "P"),  # Hangul
        ("פ", "KeyP", "P"),  # Hebrew
        ("ح", "KeyP", "P"),  # Arabic
        ("せ", "KeyP", "P"),  # kana
        ("х", "BracketLeft", "["),
        ("「", "BracketLeft", "["),
        ("؟", "Slash", "?"),
        ("Process", "KeyP", "P"),  # an input method hides the character
        ("ｐ", "KeyP", "P"),  # full width
        ("a", "KeyQ", "A"),  # AZERTY
        ("q", "KeyA", "Q"),
        ("â", "KeyQ", "A"),  # after a dead key
        ("ñ", "Semicolon", "Ñ"),
        ("ü", "BracketLeft", "Ü"),
        ("ı", "KeyI", "I"),  # Turkish
        ("-", "NumpadSubtract", "-"),
        ("£", "BracketRight", "£"),
        ("Escape", "Escape", "ESCAPE"),
        ("Unidentified", "", ""),  # a keyboard on a screen
    ],
)
def test_a_commands_key_on_every_layout(keys_page, key, code, expected):
    assert meaning(keys_page, key, code)["command"] == expected


@pytest.mark.parametrize(
    ("key", "code", "options", "expected"),
    [
        ("3", "Digit3", {}, 2),
        ('"', "Digit3", {}, 2),  # AZERTY
        ("3", "Digit3", {"shiftKey": True}, 2),  # AZERTY: Shift types the digit
        ("3", "Digit3", {"shiftKey": True, "actions": 20}, 12),
        ("#", "Digit3", {"shiftKey": True, "actions": 20}, 12),
        ("?", "Digit7", {"shiftKey": True}, -1),  # Cyrillic: the help
        ("٣", "Digit3", {}, 2),  # Arabic
        ("[", "Digit8", {"modifierAltGraph": True}, -1),  # German
        ("0", "Digit0", {}, 9),
        ("9", "Digit9", {"actions": 6}, -1),
        ("3", "Numpad3", {}, 2),
        ("PageDown", "Numpad3", {}, -1),  # without Num Lock
    ],
)
def test_an_actions_key_on_every_layout(keys_page, key, code, options, expected):
    assert meaning(keys_page, key, code, **options)["action"] == expected


def test_keys_that_belong_to_an_input_method_or_the_browser(keys_page):
    assert meaning(keys_page, "Dead", "BracketLeft")["reserved"]
    assert meaning(keys_page, "ㅔ", "KeyP", isComposing=True)["reserved"]
    assert meaning(keys_page, "p", "KeyP", ctrlKey=True)["reserved"]
    assert not meaning(keys_page, "[", "Digit8", ctrlKey=True, altKey=True, modifierAltGraph=True)[
        "reserved"
    ]
    assert meaning(keys_page, "ArrowLeft", "Numpad4")["direction"] == "LEFT"


def test_a_letter_of_another_script_is_a_command_and_its_label(visit):
    page = visit()
    page.keyboard.press("1")
    expect(page.locator("#number")).to_have_text("1")
    send_key(page, "т", "KeyN")
    expect(page.locator("#number")).to_have_text("2")
    expect(page.locator("[data-do=step]")).to_have_attribute("title", re.compile(r"\(Т\)$"))
    assert "Т" in page.locator("#keys kbd").all_text_contents()


def test_a_button_shows_what_its_action_does(visit):
    page = visit()
    left, still = page.locator("#actions button").first, page.locator("#actions button").last
    spoken = re.compile("^Action 1.*: moves left, 2.0 pixels per step$")
    expect(left).to_have_attribute("aria-label", spoken)
    expect(page.locator("#actions .motion")).to_have_count(5)
    expect(page.locator("#actions .dot")).to_have_count(1)
    examples = page.locator("#examples")
    expect(examples).to_be_hidden()
    left.hover()
    expect(examples).to_contain_text("Moves left, 2.0 pixels per step")
    before, after = (examples.locator("canvas").nth(n) for n in range(2))
    look = "canvas => canvas.toDataURL()"
    assert before.evaluate(look) != after.evaluate(look)
    page.keyboard.press("Escape")
    expect(examples).to_be_hidden()
    page.locator("[data-do=help]").focus()
    page.keyboard.press("Tab")
    still.focus()
    expect(examples).to_contain_text("Hardly moves")
    box, button = examples.bounding_box(), still.bounding_box()
    above = box["y"] + box["height"] <= button["y"]
    assert above or box["y"] >= button["y"] + button["height"], "it covers its button"
    assert 0 <= box["x"] and box["x"] + box["width"] <= 1280
    still.blur()
    expect(examples).to_be_hidden()


def test_without_a_map_the_arrow_keys_select_what_moves_that_way(browser, playable):
    page = browser.new_page()
    page.goto(started(playable._replace(action_map=None)))
    expect(page.locator("body:not(.waiting) #actions button").first).to_be_visible()
    for key, action, shown in (
        ("ArrowRight", 1, "RIGHT"),
        ("ArrowDown", 3, "DOWN"),
        ("1", 0, "LEFT"),
    ):
        page.keyboard.press(key)
        expect(page.locator("#actions .chosen")).to_have_attribute("data-action", str(action))
        expect(page.locator("#arrows .chosen")).to_have_attribute("data-direction", shown)
    page.keyboard.press("n")  # a step without a key
    expect(page.locator("#actions .chosen")).to_have_attribute("data-action", "4")
    expect(page.locator("#arrows .chosen")).to_have_count(0)
    expect(page.locator("#map")).to_contain_text("moves the agent that way")
    page.close()


def test_a_phone(visit):
    page = visit(**PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    button = page.locator("#actions button").first
    button.tap()
    expect(page.locator("#number")).to_have_text("1")
    page.wait_for_timeout(700)  # longer than a press has to be held
    expect(page.locator("#number")).to_have_text("1")
    box = button.bounding_box()
    touch = page.context.new_cdp_session(page)
    finger = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [finger]})
    expect(page.locator("#number")).to_have_text(
        re.compile(r"^[4-9]|\d\d")
    )  # as long as the finger stays
    expect(page.locator("#examples")).to_be_visible()
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#examples")).to_be_hidden()
    page.wait_for_timeout(200)
    expect(page.locator("body.waiting")).to_have_count(0)
    reached = page.locator("#number").inner_text()
    page.wait_for_timeout(300)
    assert page.locator("#number").inner_text() == reached
    assert box["height"] >= 44 and box["y"] + box["height"] <= 844, "in reach without scrolling"


def test_a_phone_on_its_side(visit):
    page = visit(**PHONE | {"viewport": {"width": 844, "height": 390}})
    assert page.evaluate("document.documentElement.scrollWidth") == 844
    frame = page.locator("#frame").bounding_box()
    last = page.locator("#actions button").last.bounding_box()
    time = page.locator("#transport").bounding_box()
    assert last["x"] > frame["x"] + frame["width"], "the buttons are beside the frame"
    for box in (frame, last, time):
        assert box["y"] + box["height"] <= 390, "in reach without scrolling"


def test_a_window_of_1280_by_800_shows_everything(visit):
    page = visit()
    assert page.evaluate("document.documentElement.scrollHeight") <= 800


def test_only_actions_that_occur_have_buttons(browser, playable):
    stage = playable.world.dynamics
    stage = stage._replace(cfg=replace(stage.cfg, occurring=(0, 2)))
    page = browser.new_page()
    page.goto(started(playable._replace(world=playable.world._replace(dynamics=stage))))
    buttons = page.locator("#actions button")
    expect(buttons).to_have_count(2)
    assert buttons.evaluate_all("all => all.map(({dataset}) => dataset.action)") == ["0", "2"]
    page.keyboard.press("2")
    expect(page.locator("#note")).to_contain_text("does not occur")
    page.keyboard.press("3")
    expect(page.locator("#number")).to_have_text("1")
    expect(buttons.last).to_have_class(re.compile("chosen"))
    page.close()


def test_a_served_page_can_be_installed(visit, site, playable):
    page = visit()
    assert page.title() == f"{name_of(playable.path)}: genie_fn"
    found = page.context.new_cdp_session(page).send("Page.getAppManifest")
    assert not found["errors"]
    manifest = json.loads(found["data"])
    assert manifest["start_url"] == f"{site}/" and manifest["name"] == name_of(playable.path)


def test_a_lost_connection_comes_back_to_its_session(visit):
    sockets = []

    def between(page):
        page.route_web_socket(
            re.compile("/play"), lambda socket: sockets.append(socket) or socket.connect_to_server()
        )

    page = visit(between)
    shown = play(page, ["1", "2"])
    sockets[-1].close(code=1011)
    expect(page.get_by_role("alert")).to_contain_text("connection is lost")
    expect(page.locator("#link")).to_have_attribute("data-state", "connected")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert len(sockets) == 2 and pixels(page) == shown[2]
    play(page, ["1"], 2)


def test_a_reload_continues_and_a_lost_session_starts_again(visit):
    page = visit()
    shown = play(page, ["1", "2"])
    page.reload()
    expect(page.locator("#number")).to_have_text("2")
    assert pixels(page) == shown[2]
    page.evaluate("sessionStorage.genie_fn = JSON.stringify({ session: 'gone', branches: [] })")
    page.reload()
    expect(page.locator("#note")).to_contain_text("no longer kept")
    play(page, ["1"])


def test_two_windows_do_not_fight_for_a_session(visit):
    first, second = visit(), visit()
    shown, number = play(first, ["1", "2"]), first.locator("#number")
    second.evaluate(
        "stored => { sessionStorage.genie_fn = stored }", first.evaluate("sessionStorage.genie_fn")
    )
    second.reload()
    expect(first.get_by_role("alert")).to_contain_text("another window")
    play(second, ["3"], 2)
    first.keyboard.press("1")  # brings the session back
    expect(first.get_by_role("alert")).to_be_hidden()
    expect(number).to_have_text("3")
    assert pixels(first) == pixels(second) != shown[2]
    expect(second.get_by_role("alert")).to_contain_text("another window")


@pytest.mark.parametrize(
    ("reply", "state", "words"),
    [
        (
            {"status": 403, "json": {"error": "Use the token."}},
            "refused",
            "Use the token. This page",
        ),
        ({"status": 204}, "no connection", "A proxy between has to pass WebSockets on."),
        ({"status": 502, "body": "bad gateway"}, "no connection", "Is play.py running"),
        (None, "no connection", "Is play.py running"),
    ],
    ids=["refused", "no WebSockets", "server gone", "all gone"],
)
def test_a_socket_that_does_not_open_is_explained(browser, site, reply, state, words):
    page = browser.new_page()
    page.route_web_socket(re.compile("/play"), lambda socket: socket.close(code=1006))
    page.route(
        re.compile("/play"), lambda route: route.fulfill(**reply) if reply else route.abort()
    )
    page.goto(site)
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#link-text")).to_have_text(state)
    page.close()


def test_a_page_behind_a_proxy_is_told_what_to_do(browser, site):
    """The proxy passes requests on under the server's own name, but not their origin."""
    published = "http://play.example"
    page = browser.new_page()

    def forward(route):
        url = route.request.url.replace(published, site)
        route.fulfill(response=route.fetch(url=url))

    page.route(re.compile(published), forward)
    page.route_web_socket(re.compile("/play"), lambda socket: socket.close(code=1006))
    page.goto(published)
    expect(page.get_by_role("alert")).to_contain_text("start `genie-fn play` with --cfg.origin")
    expect(page.locator("#link-text")).to_have_text("refused")
    page.close()


def test_a_full_server_is_reported(visit, browser, site):
    page = browser.new_page()

    def full(socket):
        socket.send(json.dumps({"type": "full", "message": "All 8 places are taken."}))
        socket.close(code=1013)

    page.route_web_socket(re.compile("/play"), full)
    page.goto(site)
    expect(page.get_by_role("alert")).to_contain_text(
        "All 8 places are taken. This page tries again"
    )
    page.close()
