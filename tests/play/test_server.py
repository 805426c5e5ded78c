"""The protocol between page and server, over sockets: answers, refusals, and what is kept."""

import gc
import io
import json
import struct
import time
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from genie_fn import random, world
from genie_fn.bundle import Bundle, play_map
from genie_fn.data import games, procgen
from genie_fn.maskgit import PLAY
from genie_fn.play import recording
from genie_fn.play.engine import Engine
from genie_fn.play.guard import HEADERS
from genie_fn.play.server import Limits, Server, describe
from genie_fn.runtime.backend import AUTO

CPU = torch.device("cpu")
HOME = "http://localhost"
RIGHT, NOOP = procgen.ACTIONS.index("RIGHT"), procgen.ACTIONS.index("NOOP")


@pytest.fixture(scope="module")
def engine(playable):
    engine = Engine(playable, CPU, compiled=False)
    yield engine
    engine.close()


@pytest.fixture
def serve(engine):
    """A server with the limits asked for, as a client of its own origin."""
    clients = []

    def start(limits=Limits(), token="", engine=engine):  # noqa: B008, it is frozen
        server = Server(engine, "tiny", token, limits)
        clients.append(TestClient(server.app, base_url=HOME).__enter__())
        clients[-1].server = server
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__(None, None, None)


class Page:
    """What a page does with its socket."""

    def __init__(self, socket):
        self.socket, self.hello = socket, None
        self.hello = self.text("hello")

    def say(self, kind, **fields):
        self.socket.send_text(json.dumps({"type": kind, **fields}))

    def text(self, kind):
        """The next message of a kind; frames and status messages before it are skipped."""
        while True:
            message = self.socket.receive()
            if message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"])
            if message.get("text") is not None:
                content = json.loads(message["text"])
                if content["type"] == kind:
                    return content
                assert content["type"] == "status", content

    def frame(self):
        """The next frame: its header, and its arrays."""
        while (message := self.socket.receive()).get("bytes") is None:
            assert json.loads(message["text"])["type"] == "status", message
        content = message["bytes"]
        (length,) = struct.unpack_from("<I", content)
        header, at = json.loads(content[4 : 4 + length]), 4 + length
        pixels, tokens = (
            header["height"] * header["width"] * 3,
            header["grid"][0] * header["grid"][1],
        )
        sizes = {"rgb": pixels, "probability": tokens, "revealed": tokens, "ids": 4 * tokens}
        sizes |= {"game_rgb": pixels} if header["game"] else {}
        arrays = {}
        for name, size in sizes.items():
            arrays[name] = np.frombuffer(content[at : at + size], "<u4" if name == "ids" else "u1")
            at += size
        assert at == len(content)
        return header, arrays

    def ask(self, kind, **fields):
        self.say(kind, **fields)
        return self.frame()

    def start(self, **fields):
        return self.ask("start", **{"from": "heldout", "clip": 3, "seed": 5} | fields)

    def refused(self, kind, **fields):
        self.say(kind, **fields)
        return self.text("error")["message"]


@contextmanager
def visit(client, session="", origin=HOME, **parameters):
    """A page on a server; after the context the server has noticed that it is gone."""
    url, fields = "ws://localhost/play", {"session": session, **parameters}
    with client.websocket_connect(url, params=fields, headers={"origin": origin}) as socket:
        page = Page(socket)
        visitor = client.server.places[page.hello["session"]].visitor
        yield page
        socket.close()
        wait_for(
            lambda: all(place.visitor is not visitor for place in client.server.places.values())
        )


def png(height=40, width=50, seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), "u1")).save(
        file, "png"
    )
    return file.getvalue()


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_a_visit(serve, stage, playable):
    world_model, _, store = stage
    to_latent = play_map(playable).to_latent
    with visit(serve()) as page:
        received = page.hello
        assert received["frame"] is None and received["settings"] == {
            "temperature": 1.0,
            "steps": PLAY.steps,
        }
        expected = {
            "height": 64,
            "width": 64,
            "grid": [4, 4],
            "codes": [16],
            "actions": 5,
            "kind": "latent",
        }
        assert expected.items() <= received["world"].items() and received["world"]["names"] == list(
            procgen.ACTIONS
        )
        assert (
            received["world"]["map"]["to_latent"] == to_latent and received["world"]["clips"] == 40
        )
        header, arrays = page.start()
        assert (header["frame"], header["action"], header["seed"]) == (0, None, 5) and not arrays[
            "revealed"
        ].any()
        header, arrays = page.ask("act", action=3)
        assert (header["frame"], header["newest"], header["action"], header["recorded"]) == (
            1,
            1,
            3,
            None,
        )
        assert (
            set(arrays["revealed"]) <= set(range(1, 9))
            and arrays["ids"].max() < 16
            and header["ms"] > 0
        )
        header, _ = page.ask("act", recorded=RIGHT)
        assert (header["action"], header["recorded"]) == (to_latent[RIGHT], RIGHT)
        page.say("settings", temperature=0.5, steps=2)
        header, arrays = page.ask("act", action=0)
        assert (header["temperature"], header["steps"], arrays["revealed"].max()) == (0.5, 2, 2)


def test_a_frame_is_the_worlds_own(serve, stage):
    """A page shows what world.reset and world.step give for the same start, actions and seed."""
    client, actions = serve(), (1, 4, 0, 0, 2)
    with visit(client) as page:
        start = page.start()[1]["rgb"]
        shown = [page.ask("act", action=action)[1] for action in actions]
    cpu, image = torch.device("cpu"), client.server.first_image({"clip": 3})
    sample = world.play_sample(PLAY, stage[0].dynamics.cfg)
    world_model = world.World(*(s._replace(backend=AUTO.resolve(cpu, False)) for s in stage[0]))
    with torch.no_grad():
        state, prompt = world.reset(world_model, torch.from_numpy(image)[None, None])
        assert np.array_equal(start, prompt.pixels.numpy().ravel())
        for t, (action, arrays) in enumerate(zip(actions, shown, strict=True), 1):
            key = random.fold_in(random.key(5), t)
            state, frame = world.step(world_model, state, torch.tensor([action]), key, sample)
            assert np.array_equal(arrays["rgb"], frame.pixels.numpy().ravel())
            assert np.array_equal(arrays["ids"], frame.ids[0]) and np.array_equal(
                arrays["revealed"], frame.step[0]
            )


def test_going_back_and_on_again_is_exact(serve):
    with visit(serve()) as page:
        page.start()
        shown = [page.ask("act", action=a)[0]["hash"] for a in (0, 1, 2, 3, 4, 0)]
        header, arrays = page.ask("goto", frame=2)
        assert (header["frame"], header["newest"], header["hash"]) == (2, 6, shown[1])
        assert page.ask("goto", frame=99)[0]["hash"] == shown[5]
        page.ask("goto", frame=2)
        header, _ = page.ask("act", action=2)
        assert (header["newest"], header["hash"]) == (3, shown[2])
        assert [page.ask("act", action=a)[0]["hash"] for a in (3, 4, 0)] == shown[3:]
        page.ask("goto", frame=2)
        assert page.ask("act", action=1)[0]["hash"] != shown[2]


def test_a_branch_goes_its_own_way(serve):
    client = serve()
    with visit(client) as page:
        page.start()
        shown = [page.ask("act", action=a)[0]["hash"] for a in (0, 1, 2)]
        page.ask("goto", frame=2)
        page.say("branch")
        name = page.text("branched")["session"]
        with visit(client, name) as other:
            assert (other.hello["frame"], other.hello["newest"]) == (2, 3)
            assert other.ask("act", action=2)[0]["hash"] == shown[2]
            assert other.ask("act", action=0)[0]["frame"] == 4
        assert page.ask("goto", frame=9)[0]["frame"] == 3


def test_a_recording_replays_to_the_same_frames(serve):
    client = serve()
    with visit(client) as page:
        page.start(seed=9)
        page.ask("act", action=3)
        page.say("settings", temperature=2.0, steps=3)
        page.ask("act", recorded=RIGHT)
        shown = page.ask("act", action=0)[0]
        page.say("record")
        made = json.loads(json.dumps(page.text("recording")["recording"]))
    assert (
        made["format"] == "genie_fn recording" and made["world"] == "tiny" and made["level"] is None
    )
    assert [f["real"] for f in made["frames"]] == [None, RIGHT, None]
    with visit(client) as page:
        page.say("replay", recording=made)
        replayed = [page.frame()[0] for _ in range(4)]
        assert replayed[-1] == shown | {"ms": replayed[-1]["ms"]}
        assert page.text("replayed") == {"type": "replayed", "frames": 3, "same": True}
        made["frames"][1]["hash"] = "0"
        page.say("replay", recording=made)
        for _ in range(4):
            page.frame()
        assert page.text("replayed") == {"type": "replayed", "frames": 3, "same": False, "first": 2}
        assert "another world" in page.refused("replay", recording=made | {"world": "other"})
        assert page.ask("act", action=0)[0]["frame"] == 4, "a refused recording spoilt the session"


def test_an_image_becomes_the_first_frame(serve):
    client = serve()
    names = [client.post("/upload", content=png(seed=seed)).json()["image"] for seed in (1, 2, 1)]
    with visit(client) as page:
        one, two, again = (
            page.start(**{"from": "image", "image": name})[0]["hash"] for name in names
        )
        assert one == again != two
        assert "no longer kept" in page.refused(
            "start", **{"from": "image", "image": "x", "seed": 0}
        )
        assert "no longer kept" in page.refused(
            "start", **{"from": "image", "image": ["x"], "seed": 0}
        )


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"no image", 400, "not an image"),
        (png()[:500], 400, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 400, "not an image"),
        (b"", 400, "not an image"),
        (b"x" * (33 << 20), 413, "32 MB"),
    ],
)
def test_a_wrong_upload_is_a_sentence(serve, content, status, words):
    reply = serve().post("/upload", content=content)
    assert reply.status_code == status and words in reply.json()["error"]


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(10_000, 10_000), (10_000, 1)])
def test_an_image_of_ten_thousand_pixels_a_side_is_refused_before_it_is_decoded(
    serve, size, monkeypatch
):
    file = io.BytesIO()
    Image.new("1", size).save(file, "png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    reply = serve().post("/upload", content=file.getvalue())
    assert reply.status_code == 400 and f"{size[0]}x{size[1]} pixels" in reply.json()["error"]


def test_films(serve):
    client = serve()
    with visit(client) as page:
        page.start()
        page.ask("act", action=0)
        for kind, magic in (("gif", b"GIF8"), ("mp4", b"ftyp")):
            reply = client.get("/render", params={"session": page.hello["session"], "format": kind})
            assert (
                magic in reply.content[:12] and "attachment" in reply.headers["content-disposition"]
            )
        for fields in (
            {"session": page.hello["session"], "format": "exe"},
            {"session": "x", "format": "gif"},
        ):
            assert client.get("/render", params=fields).status_code == 404


# Who may come in


def refused(client, **options):
    with pytest.raises(WebSocketDisconnect) as caught, visit(client, **options):
        pass
    return caught.value.code


def test_only_the_servers_own_origin_may_open_a_socket(serve):
    client = serve()
    for origin in (
        "http://evil.example",
        "http://localhost:81",
        "https://localhost.evil.example",
        "null",
    ):
        assert refused(client, origin=origin) == 1008
        assert client.post("/upload", content=png(), headers={"origin": origin}).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://localhost/play"):
        pass
    assert client.post("/upload", content=png(), headers={"origin": HOME}).status_code == 200


def test_another_name_for_this_machine_is_refused(serve):
    """Of a site whose name was made to point here, origin and host agree."""
    client = serve()
    for host in ("evil.example", "evil.example:8000", "[", ""):
        assert client.get("/", headers={"host": host}).status_code == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/", headers={"host": host}).status_code == 200


def test_with_a_token_nothing_goes_without_it(serve):
    client = serve(token="secret")
    for token in ("", "secre", "secrets", "é"):
        assert client.get("/", params={"token": token}).status_code == 403
        assert client.post("/upload", params={"token": token}, content=png()).status_code == 403
        assert refused(client, token=token) == 1008
    assert (
        client.get("/", params={"token": "secret"}, headers={"host": "far.example"}).status_code
        == 200
    )
    foreign = {"origin": "https://play.example"}
    assert client.get("/static/app.js", headers=foreign).status_code == 200  # imports carry none
    with visit(client, token="secret") as page:
        page.start()


def test_with_the_token_a_proxy_may_rewrite_host_and_origin(serve):
    """The page of a proxy has the proxy's origin; the server hears of its own name, or another."""
    client = serve(token="secret")
    for host in ("localhost", "inside:8000", "play.example"):
        headers = {"host": host, "origin": "https://play.example"}
        for method, path in (("GET", "/"), ("POST", "/upload"), ("POST", "/play")):
            reply = client.request(
                method, path, params={"token": "secret"}, content=png(), headers=headers
            )
            assert reply.is_success
            assert client.request(method, path, headers=headers).status_code == 403
    with visit(client, token="secret", origin="https://play.example") as page:
        page.start()


@pytest.mark.parametrize(
    ("token", "headers", "words"),
    [
        ("", {"origin": "https://play.example"}, "own origin, localhost"),
        ("", {"host": "evil.example", "origin": "http://evil.example"}, "--cfg.origin"),
        ("secret", {"origin": HOME}, "the whole address that the program printed"),
    ],
)
def test_a_page_learns_why_its_socket_is_refused(serve, token, headers, words):
    client = serve(token=token)
    reply = client.post("/play", headers=headers)
    assert reply.status_code == 403 and words in reply.json()["error"]
    url = "ws://localhost/play"
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(url, headers=headers):
        pass
    assert client.post("/play", params={"token": token}, headers={"origin": HOME}).is_success


def test_every_answer_says_what_a_browser_may_do_with_it(serve):
    client = serve()
    replies = [client.get(path) for path in ("/", "/static/app.js", "/static/no", "/render", "/no")]
    replies += [
        client.post("/upload", content=b""),
        client.get("/", headers={"host": "evil.example"}),
    ]
    for reply in replies:
        assert {name.lower(): value for name, value in HEADERS.items()}.items() <= dict(
            reply.headers
        ).items()
    assert "default-src 'self'" in replies[0].headers["content-security-policy"]


# What is kept, and for how long


def test_a_killed_socket_resumes_its_session(serve):
    client = serve()
    with visit(client) as page:
        page.start()
        page.say("settings", temperature=0.5, steps=3)
        shown = [page.ask("act", action=a)[0]["hash"] for a in (1, 2)]
        name = page.hello["session"]
    with visit(client, name) as page:
        assert page.hello["session"] == name and (page.hello["frame"], page.hello["newest"]) == (
            2,
            2,
        )
        assert page.hello["settings"] == {"temperature": 0.5, "steps": 3}
        assert page.ask("goto", frame=2)[0]["hash"] == shown[1]
        assert page.ask("act", action=0)[0]["frame"] == 3


def test_a_session_that_another_window_opens_leaves_this_one(serve):
    client = serve()
    with visit(client) as page:
        page.start()
        with visit(client, page.hello["session"]) as other:
            assert "another window" in page.text("expired")["message"]
            assert page.socket.receive()["code"] == 4000
            assert other.ask("act", action=0)[0]["frame"] == 1
            assert client.server.visitors() == 1


def test_a_full_server_says_so(serve):
    client = serve(Limits(visitors=2))
    with visit(client) as page, visit(client):
        with client.websocket_connect("ws://localhost/play", headers={"origin": HOME}) as third:
            received = third.receive_json()
            assert received["type"] == "full" and "2 places" in received["message"]
            assert third.receive()["code"] == 1013
        page.start()
    with visit(client):
        pass


def test_idle_sessions_expire(serve):
    client = serve(Limits(idle=0.4))
    with visit(client) as page:
        page.start()
    with client.websocket_connect(
        f"ws://localhost/play?session={page.hello['session']}", headers={"origin": HOME}
    ) as ws:
        assert ws.receive_json()["type"] == "hello"
        while (message := ws.receive()).get("type") != "websocket.close":
            received = json.loads(message["text"])
        assert received["type"] == "expired" and received["wait"]
    assert not client.server.places
    with client.websocket_connect(
        f"ws://localhost/play?session={page.hello['session']}", headers={"origin": HOME}
    ) as ws:
        assert ws.receive_json()["type"] == "expired" and ws.receive()["code"] == 4000


def test_fifty_abandoned_sessions_free_their_memory(serve):
    client, alive = serve(Limits(idle=1.0)), []
    for _ in range(50):
        with visit(client) as page:
            page.say("settings", steps=1)
            page.start()
            page.ask("act", action=0)
            moments = client.server.places[page.hello["session"]].session.moments
            alive += [weakref.ref(moment.added.dynamics.cache.k_LB1NGE) for moment in moments]
            del moments
    assert len(client.server.places) <= 32 + 1
    wait_for(lambda: not client.server.places)
    gc.collect()
    assert len(alive) == 100 and not any(ref() is not None for ref in alive)


def test_memory_is_bounded_by_dropping_the_longest_unused(serve):
    client = serve(Limits(memory=1))
    with visit(client) as page:
        page.start()
        page.say("branch")
        name = page.text("branched")["session"]
        assert name not in client.server.places, (
            "a session without a visitor takes memory that there is not"
        )
        page.ask("act", action=0)
    size = sum(
        moment.size for moment in client.server.places[page.hello["session"]].session.moments
    )
    client = serve(Limits(memory=size + 1))
    with visit(client) as page:
        page.start()
        page.ask("act", action=0)
        names = []
        for _ in range(3):  # they share their frames
            page.say("branch")
            names.append(page.text("branched")["session"])
        assert {*names} < client.server.places.keys()


# Messages


def test_of_acts_that_pile_up_the_latest_counts(serve, engine):
    client = serve()
    with visit(client) as page:
        page.start()
        gate = engine._submit(lambda: time.sleep(0.3))
        for action in (0, 1, 2, 3, 4):
            page.say("act", action=action)
        gate.result()
        page.say("settings", steps=2)
        shown = [page.frame()[0]]
        while shown[-1]["action"] != 4:
            shown.append(page.frame()[0])
        assert len(shown) <= 2
        assert page.ask("act", action=1)[0]["frame"] == len(shown) + 1


WRONG = [
    ("act", {}, "whole number from 0 to 4"),
    ("act", {"action": 5}, "whole number from 0 to 4"),
    ("act", {"action": True}, "whole number"),
    ("act", {"action": "1"}, "whole number"),
    ("act", {"recorded": 99}, "whole number from 0 to 14"),
    ("goto", {"frame": -1}, "whole number"),
    ("goto", {"frame": 0.5}, "whole number"),
    ("settings", {"temperature": -1}, "temperature"),
    ("settings", {"temperature": float("nan")}, "temperature"),
    ("settings", {"temperature": 10**400}, "temperature"),
    ("settings", {"steps": 65}, "whole number from 1 to 64"),
    ("start", {"from": "heldout", "clip": "a", "seed": 0}, "whole number"),
    ("start", {"from": "heldout", "clip": 0}, "seed"),
    ("start", {"from": "game", "level": -5, "seed": 0}, "level"),
    ("replay", {}, "not a recording"),
    ("dance", {}, "unknown type"),
    ("__init__", {}, "unknown type"),
]


@pytest.mark.parametrize(("kind", "fields", "words"), WRONG)
def test_a_wrong_message_is_a_sentence_and_no_more(serve, kind, fields, words):
    with visit(serve()) as page:
        page.start()
        received = page.refused(kind, **fields)
        assert words in received and received[0].isupper() and received.endswith(".")
        assert page.ask("act", action=0)[0]["frame"] == 1


def test_what_is_no_message_is_a_sentence(serve):
    with visit(serve()) as page:
        for text in ("", "{", "[]", "3", '{"type": []}', "[" * 100_000, '{"type": {"a": 1}}'):
            page.socket.send_text(text)
            assert "unknown type" in page.text("error")["message"]
        page.socket.send_bytes(b"\x00")
        assert "unknown type" in page.text("error")["message"]
        assert "No session has begun" in page.refused("act", action=0)
        assert "No session has begun" in page.refused("record")


def test_a_fault_of_ours_does_not_end_the_session(serve, monkeypatch):
    client = serve()
    with visit(client) as page:
        page.start()
        monkeypatch.setattr(recording, "write", lambda *_: 1 / 0)
        assert "Something went wrong" in page.refused("record")
        assert page.ask("act", action=0)[0]["frame"] == 1


# Next to the real game


def test_the_real_game_steps_next_to_the_world(serve, stage):
    client = serve()
    with visit(client) as page:
        header, arrays = page.start(**{"from": "game", "level": 11})
        opened = games.open_game(11, stage[2].meta)
        assert header["game"] and np.array_equal(arrays["game_rgb"], opened.frame().ravel())
        shown = [page.ask("act", recorded=RIGHT) for _ in range(4)]
        for header, arrays in shown:
            assert np.array_equal(arrays["game_rgb"], opened.step(RIGHT).frame.ravel())
            assert header["recorded"] == RIGHT and header["psnr"] > 0
        scores = [header["psnr"] for header, _ in shown]
        assert shown[-1][0]["mean_psnr"] == pytest.approx(sum(scores) / 4)
        assert "own keys" in page.refused("act", action=0)
        page.ask("goto", frame=1)
        header, arrays = page.ask("act", recorded=RIGHT)
        assert np.array_equal(arrays["game_rgb"], shown[1][1]["game_rgb"])
        assert header["mean_psnr"] == pytest.approx(sum(scores[:2]) / 2)
        page.say("record")
        made = page.text("recording")["recording"]
        assert made["level"] == 11
        page.say("replay", recording=made)
        again = [page.frame() for _ in range(3)]
        assert np.array_equal(again[-1][1]["game_rgb"], arrays["game_rgb"])
        assert page.text("replayed")["same"]
        made["frames"][1]["real"] = None
        page.say("replay", recording=made)
        page.frame(), page.frame()
        assert "own keys" in page.text("error")["message"]


def test_a_world_whose_actions_were_never_measured_has_no_keys_and_no_game(serve, playable):
    unknown = playable._replace(action_map=None, effects=None)
    engine = Engine(unknown, CPU, compiled=False)
    client = serve(engine=engine)
    with visit(client) as page:
        described = page.hello["world"]
        assert described["map"] is None and described["effects"] is None and not described["game"]
        assert described["keys"] == {} and client.get("/examples?action=0").status_code == 404
        page.start()
        assert "evaluate.py" in page.refused("act", recorded=RIGHT)
        assert "evaluate.py" in page.refused("start", **{"from": "game", "level": 1, "seed": 0})
    engine.close()


def test_without_a_map_the_keys_follow_from_what_the_actions_do(playable):
    described = describe(playable._replace(action_map=None))
    assert described["keys"] == {"LEFT": 0, "RIGHT": 1, "UP": 2, "DOWN": 3, "NOOP": 4}
    assert described["map"] is None and not described["game"], "the game has recorded actions"
    assert describe(playable)["keys"] == {}


def test_each_action_is_described_with_its_examples(serve, playable):
    client = serve()
    with visit(client) as page:
        left, *_, still = page.hello["world"]["effects"]
    expected = {"motion": [-2, 0], "still": False, "text": "moves left, 2.0 pixels per step"}
    assert left == expected | {"share": 0.2, "examples": 1} and still["still"]
    reply = client.get("/examples?action=0")
    assert reply.headers["content-type"] == "image/png"
    assert reply.content == playable.effects.strips[0]
    for wrong in ("", "?action=5", "?action=-1", "?action=x"):
        assert client.get(f"/examples{wrong}").status_code == 404


def test_a_world_without_a_dataset_starts_from_images(serve, playable):
    without = Bundle(playable.world, action_map=playable.action_map)
    engine = Engine(without, CPU, compiled=False)
    client = serve(engine=engine)
    with visit(client) as page:
        assert page.hello["world"]["clips"] == 0 and not page.hello["world"]["game"]
        assert "start from an image" in page.refused(
            "start", **{"from": "heldout", "clip": 0, "seed": 0}
        )
        name = client.post("/upload", content=png()).json()["image"]
        assert page.start(**{"from": "image", "image": name})[0]["frame"] == 0
    engine.close()


def test_a_world_of_recorded_actions_takes_them_as_they_are(serve, playable):
    recorded = playable.world._replace(lam=None)
    engine = Engine(playable._replace(world=recorded, action_map=None), CPU, compiled=False)
    with visit(serve(engine=engine)) as page:
        assert page.hello["world"]["kind"] == "recorded" and page.hello["world"]["game"]
        page.start()
        header, _ = page.ask("act", recorded=4)
        assert (header["action"], header["recorded"]) == (4, 4)
        assert "from 0 to 4" in page.refused(
            "act", recorded=5
        )  # this tiny world knows five of the fifteen
    engine.close()
