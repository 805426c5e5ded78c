"""Sources become frames, actions and episodes, read in order by threads."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from genie_fn.data.importing import pipeline
from genie_fn.data.importing.action_labels import ActionTrack
from genie_fn.data.importing.pipeline import End
from genie_fn.data.importing.resampling import FrameFormat
from genie_fn.data.importing.sources import Source
from tests import films


def track(by, at, ids):
    return ActionTrack(Path("a.csv"), by, np.array(at, float), np.array(ids, np.uint8))


@pytest.fixture
def film(tmp_path):
    """A video of 12 frames at 30 frames per second, which changes its scene at frame 6."""
    frames = np.concatenate([films.squares(6, colour=1), films.squares(6, colour=2)])
    return Source("a.mkv", "video", (films.write(tmp_path / "a.mkv", frames),))


def imported(source, labels=None, **options):
    """The frames, actions and episode starts of a source, and its end."""
    frame_format = FrameFormat(**{"size": 16, "fit": "crop", "fps": 0, "cuts": 0.4} | options)
    *parts, end = pipeline.read_parts(source, frame_format, labels, threading.Event())
    return joined(parts), end


def joined(parts):
    """The frames, actions and episode starts of all parts."""
    arrays = [(part.frames, part.actions, part.episode_starts) for part in parts]
    return [np.concatenate(columns) for columns in zip(*arrays, strict=True)]


def test_a_source_becomes_frames_actions_and_episodes(film):
    (frames, actions, starts), end = imported(film, track("row", range(12), range(12)))
    assert frames.shape == (12, 16, 16, 3) and end == End()
    assert actions.tolist() == [*range(12)] and np.flatnonzero(starts).tolist() == [0, 6]
    assert np.flatnonzero(imported(film, cuts=0)[0][2]).tolist() == [0]


def test_actions_are_resampled_with_the_frames(film):
    rows = [0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 7]
    # At 10 frames per second: the longest of three, and the first of equally long ones.
    assert imported(film, track("row", range(12), rows), fps=10)[0][1].tolist() == [0, 3, 3, 6]
    assert imported(film, track("frame", [0, 4, 7], [1, 2, 3]), fps=15)[0][1].tolist() == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert (
        imported(film, track("time", [0, 0.1334, 0.21], [1, 2, 3]))[0][1].tolist()
        == [1] * 4 + [2] * 3 + [3] * 5
    )
    assert imported(film, track("row", range(12), range(12)), fps=60)[0][1].tolist()[:4] == [
        0,
        0,
        1,
        1,
    ]


def test_actions_that_do_not_fit_the_video_are_refused(film):
    for labels, words in (
        (track("row", range(10), [0] * 10), "has 10 rows, and the video 12 frames"),
        (track("frame", [0, 12], [0, 1]), "has a row for frame 12"),
    ):
        end = imported(film, labels)[1]
        assert end.refused and words in end.note
    assert not imported(film, track("row", range(11), [0] * 11))[
        1
    ].refused  # the last frame's action leads nowhere


def test_a_long_video_becomes_several_parts(film, monkeypatch):
    whole = imported(film, track("row", range(12), range(12)))[0]
    monkeypatch.setattr(pipeline, "PART_BYTES", 5 * 16 * 16 * 3)
    labels = track("row", range(12), range(12))
    frame_format = FrameFormat(16, "crop", 0, 0.4)
    *parts, _ = pipeline.read_parts(film, frame_format, labels, threading.Event())
    assert [len(part.frames) for part in parts] == [5, 5, 2]
    for values, complete in zip(joined(parts), whole, strict=True):
        assert (values == complete).all()


def pieces(source, **options):
    """The lengths of the parts of each piece of a source."""
    frame_format = FrameFormat(16, "crop", 0, 0)._replace(**options)
    *parts, end = pipeline.read_parts(source, frame_format, None, threading.Event())
    lengths = {}
    for part in parts:
        assert part.episode_starts[0] or part.piece in lengths
        lengths.setdefault(part.piece, []).append(len(part.frames))
    return [*lengths.values()], end


def test_a_long_recording_is_divided_by_time(tmp_path, film, monkeypatch):
    assert pieces(film) == ([[12]], End())
    assert pieces(film, split_seconds=0.2) == ([[6], [6]], End())
    assert pieces(film, split_seconds=0.17) == ([[6], [6]], End())
    assert pieces(film, split_seconds=0.15) == ([[5], [5], [2]], End())
    assert pieces(film, split_seconds=0.2, fps=10) == ([[2], [2]], End())
    monkeypatch.setattr(pipeline, "PART_BYTES", 5 * 16 * 16 * 3)
    assert pieces(film, split_seconds=0.2) == ([[5, 1], [5, 1]], End())
    np.save(tmp_path / "a.npy", films.squares(9))
    untimed = Source("a.npy", "npy", (tmp_path / "a.npy",))
    assert pieces(untimed, split_seconds=2, fps=2)[0] == [[4], [4], [1]]
    assert "needs --cfg.fps" in pieces(untimed, split_seconds=2)[1].note


def test_streams_are_read_in_order_whatever_their_speed():
    def stream(name, count, pause):
        def run():
            for i in range(count):
                time.sleep(pause)
                yield name, i

        return run

    streams = [
        stream("slow", 3, 0.02),
        stream("empty", 0, 0),
        stream("long", 9, 0),
        stream("short", 1, 0.01),
    ]
    for workers in (1, 3):
        results = [list(items) for items in pipeline.in_order(streams, workers)]
        assert results == [
            [("slow", i) for i in range(3)],
            [],
            [("long", i) for i in range(9)],
            [("short", 0)],
        ]


def test_streams_close_their_threads_and_pass_errors_on():
    def broken():
        yield 1
        raise ValueError("no")

    results = pipeline.in_order([broken], 2)
    with pytest.raises(ValueError, match="no"):
        list(next(results))
    results.close()
    assert not any(thread.name.startswith("import") for thread in threading.enumerate())
