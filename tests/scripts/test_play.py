"""The script that plays: which world it chooses, and where it serves its page."""

import os
import re
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import play
from genie_fn import bundle, data
from genie_fn.bundle import Bundle, action_effects, action_map
from genie_fn.data import games
from genie_fn.data.game import Step
from genie_fn.errors import UserError
from genie_fn.play import browser, server
from genie_fn.training import checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def served(monkeypatch, stage, playable, tmp_path, capsys):
    """Call `play.serve`: the server, the socket, the printed text, and the addresses opened."""

    def serve(folder=tmp_path, **options):
        found, opened = [], []
        monkeypatch.setattr(server, "serve_on", lambda *given: found.extend(given))
        monkeypatch.setattr(browser, "open_soon", opened.append)
        cfg = play.Config(**{"port": 0, "data": str(stage[2].root)} | options)
        if bundle.is_world_file(folder):
            loaded = bundle.load(folder)
        else:
            unplaced = Bundle(stage[0], str(folder), effects=playable.effects)
            loaded = play.add_dataset(cfg, unplaced, "browser")
        play.serve(cfg, loaded, CPU, False)
        found[0].engine.close()
        found[1].close()
        return *found, " ".join(capsys.readouterr().err.split()), opened

    return serve


def test_recorded_actions_are_those_of_the_map_or_the_dataset(stage):
    world_model, found, store = stage
    latent = bundle.with_dataset(Bundle(world_model), store)
    assert bundle.recorded_actions(latent) == {}
    mapped = bundle.recorded_actions(latent._replace(action_map=found))
    assert mapped == dict(zip(found.names, found.to_latent, strict=True))
    model = replace(world_model.dynamics.cfg, actions=store.num_actions)
    recorded = world_model._replace(lam=None, dynamics=world_model.dynamics._replace(cfg=model))
    assert bundle.recorded_actions(latent._replace(world=recorded)) == {
        name: i for i, name in enumerate(store.action_names)
    }
    assert bundle.recorded_actions(Bundle(recorded)) == {}
    other = latent._replace(world=world_model._replace(lam=None))
    assert bundle.recorded_actions(other) == {}, "the dataset has other actions"


def test_what_actions_do_is_measured_before_play_unless_it_is_known(stage, playable, monkeypatch):
    asked = []
    monkeypatch.setattr(
        action_effects, "measure", lambda *given: asked.append(given) or playable.effects
    )
    cfg = play.Config(data=str(stage[2].root))
    loaded = play.add_dataset(cfg, Bundle(stage[0]), "terminal")
    assert loaded.effects == playable.effects and len(asked) == 1
    assert play.add_dataset(cfg, loaded, "browser").effects == playable.effects
    assert play.add_dataset(cfg, Bundle(stage[0]), "video").effects is None and len(asked) == 1


def test_on_this_machine_there_is_no_token(served):
    made, listening, printed, opened = served()
    assert made.app.token == "" and made.world["clips"] == 40
    (address,) = re.findall(r"http://localhost:\d+/", printed)
    assert opened == [address] and "token" not in printed


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.2"])
def test_elsewhere_the_address_has_a_token(served, host):
    made, _, printed, opened = served(host=host, open=False)
    assert len(made.app.token) >= 24 and f"/?token={made.app.token}" in printed and not opened
    assert (host if host != "0.0.0.0" else socket.gethostname()) in printed
    assert served(host=host)[0].app.token != made.app.token


@pytest.mark.parametrize(
    "origin", ["https://play.example", "http://[::1]:81/", "https://hub.example/user/a/proxy/8000/"]
)
def test_behind_a_proxy_the_address_is_the_proxys_with_a_token(served, origin):
    made, _, printed, opened = served(origin=origin)
    assert len(made.app.token) >= 24
    assert opened == [f"{origin.rstrip('/')}/?token={made.app.token}"] and opened[0] in printed


@pytest.mark.parametrize(
    "origin",
    ["play.example", "ftp://a", "https://", "http://a:x", "http://[", "http://a/?b", "http://a b"],
)
def test_an_origin_that_is_no_address_is_refused(origin):
    with pytest.raises(UserError, match="address at the proxy"):
        play.Config(origin=origin)


def test_a_port_that_is_taken_is_a_sentence(served):
    taken = pytest.raises(UserError, match="choose another --cfg.port")
    with socket.create_server(("127.0.0.1", 0)) as other, taken:
        served(port=other.getsockname()[1])


def test_without_a_dataset_the_page_starts_from_images(served, tmp_path):
    made, _, printed, _ = served(data=str(tmp_path / "none"))
    assert (
        made.world["clips"] == 0 and not made.world["game"] and "without held-out frames" in printed
    )


def test_a_world_file_needs_no_dataset(served, stage, tmp_path):
    world_model, found, store = stage
    action_map.save(found, tmp_path)
    path = tmp_path / "world.safetensors"
    mapping = action_map.load(tmp_path)
    bundle.save(path, bundle.with_dataset(Bundle(world_model, action_map=mapping), store, 5))
    made, _, printed, _ = served(folder=path, data=str(tmp_path / "none"))
    assert made.world["clips"] == 5 and made.world["game"] and made.world["map"] == found._asdict()
    assert "without" not in printed
    expected = bundle.with_dataset(Bundle(world_model), store).start_frames[2]
    assert np.array_equal(made.first_image({"clip": 7}), expected)


def test_a_dataset_without_held_out_levels_gives_no_start_frames(served, stage, tmp_path):
    store = data.create(tmp_path / "data", {}, 64, 64, 3)
    made, *_ = served(
        data=str(
            data.append_segments(
                store,
                [
                    data.read_segment(stage[2], stage[2].segments[0])._replace(
                        level=0, split="train"
                    )
                ],
            ).root
        )
    )
    assert made.world["clips"] == 0


def test_the_newest_world_is_played(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(play, "PRETRAINED", tmp_path / "pretrained.safetensors")
    with pytest.raises(UserError, match="genie-fn demo"):
        play.newest_world()
    play.PRETRAINED.touch()
    assert play.newest_world() == str(play.PRETRAINED)
    for age, name in enumerate(("older", "old", "new", "unfinished")):
        run = tmp_path / "runs" / name / "dynamics"
        (run / "checkpoints" / "5").mkdir(parents=True)
        if name == "unfinished":
            (run / "checkpoints" / "5").rmdir()
        checkpoint.put_last(run)
        os.utime(
            run / "checkpoints", (1000 - age, 1000 - age)
        )  # the clock went backwards meanwhile
    assert play.newest_world() == os.path.join("runs", "new", "dynamics")
    checkpoint.put_last(tmp_path / "runs" / "old" / "dynamics")
    assert play.newest_world() == os.path.join("runs", "old", "dynamics")


def test_the_bundled_pretrained_world_is_complete():
    loaded = bundle.load(play.PRETRAINED)
    assert {"LEFT", "RIGHT"} <= bundle.recorded_actions(loaded).keys(), "it has no arrow keys"
    assert len(loaded.start_frames) >= 8 and "licence MIT" in loaded.describe()


def test_a_video_shows_the_real_game_beside_the_world(playable, tmp_path):
    path, output = tmp_path / "world.safetensors", tmp_path / "out.png"
    bundle.save(path, playable)
    flags = {"world": str(path), "output": str(output), "scale": 1, "device": "cpu"}
    play.main(play.Config(level=1009, actions="7x3,4", **flags))
    shown = np.array(Image.open(output))
    both = [shown[:, i * 130 : i * 130 + 129] for i in range(5)]
    game = games.open_game(1009, playable.dataset.meta, stride=playable.dataset.stride)
    expected = [game.frame(), *(game.step(action).frame for action in (7, 7, 7, 4))]
    assert np.array_equal([frame[:, :64] for frame in both], expected)
    game.close()
    Image.fromarray(expected[0]).save(tmp_path / "start.png")
    latent = ",".join(str(bundle.world_actions(playable)[action]) for action in (7, 7, 7, 4))
    play.main(play.Config(image=str(tmp_path / "start.png"), actions=latent, **flags))
    alone = np.array(Image.open(output))
    assert np.array_equal(
        [frame[:, 65:] for frame in both], [alone[:, i * 65 : i * 65 + 64] for i in range(5)]
    )


def test_a_video_beside_the_game_ends_with_the_episode(playable, monkeypatch, capsys):
    frame = np.zeros((64, 64, 3), np.uint8)
    steps = [Step(frame + 1, False, 0.0), Step(frame + 2, True, 10.0), Step(frame + 3, False, 0.0)]
    game = SimpleNamespace(frame=lambda: frame, step=lambda _: steps.pop(0), close=lambda: None)
    monkeypatch.setattr(games, "open_game", lambda *_: game)
    shown = play.play_game(play.Config(level=3, actions="1"), playable, [7, 7, 7])
    assert shown[:, 0, 0, 0].tolist() == [0, 1]
    assert "ends after 2 actions" in " ".join(capsys.readouterr().err.split())


def test_latent_actions_that_were_never_compared_have_no_game_beside_them(playable):
    with pytest.raises(UserError, match="run evaluate.py once"):
        bundle.world_actions(playable._replace(action_map=None))


def test_actions_may_be_repeated():
    assert play.parse_actions("3x2, 1,0x1", 4) == [3, 3, 1, 0]
    for wrong in ("", "4", "x2", "3x", "3xx2", "-1", "2x1.5", "0x0"):
        with pytest.raises(UserError, match="numbers from 0 to 3"):
            play.parse_actions(wrong, 4)
    with pytest.raises(UserError, match="fewer"):
        play.parse_actions("1x999999", 4)


def test_wrong_flags_are_a_sentence():
    level = {"level": 3}
    for flags in ({"port": 70_000}, {"visitors": 0}, {"fps": 0}, level, level | {"image": "a.png"}):
        with pytest.raises(UserError, match="--cfg"):
            play.Config(**flags)
