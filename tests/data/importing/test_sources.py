"""Finding sources in a folder: their names and their splits."""

import hashlib
import os

import pytest
from PIL import Image

from genie_fn import data
from genie_fn.data import Segment
from genie_fn.data.importing import sources
from genie_fn.errors import UserError
from tests import films


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def find(root, src=None):
    return [
        (source.name, source.kind)
        for source in sources.find(str(src or root), root / "store").sources
    ]


def test_a_folder_holds_videos_images_and_arrays_in_natural_order(tmp_path):
    fill(
        tmp_path,
        "b_10.mp4",
        "b_9.MKV",
        "a/run 2/frame_10.png",
        "a/run 2/frame_9.PNG",
        "a/run 10/1.jpg",
        "e.npy",
        "f.gif",
    )
    fill(tmp_path, ".hidden.mp4", ".git/x.mp4", "store/frames/c/0", "b_9.csv", "a/run 2.jsonl")
    kinds = {"a/run 2": "images", "a/run 10": "images", "b_9.MKV": "video", "b_10.mp4": "video"}
    assert find(tmp_path) == [*kinds.items(), ("e.npy", "npy"), ("f.gif", "video")]
    every = {
        source.name: source for source in sources.find(str(tmp_path), tmp_path / "store").sources
    }
    assert [path.name for path in every["a/run 2"].files] == ["frame_9.PNG", "frame_10.png"]
    assert (
        every["b_9.MKV"].labels.name == "b_9.csv" and every["a/run 2"].labels.name == "run 2.jsonl"
    )
    assert every["b_10.mp4"].labels is None
    assert every["a/run 2"].size() == len("a/run 2/frame_10.png") + len("a/run 2/frame_9.PNG")


def test_pictures_with_the_name_of_a_video_are_no_frames(tmp_path):
    names = ("a.jpg", "A_thumb.png", "a.mkv.webp", "b-poster.avif", "frame_1.png", "frame_2.png")
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    films.write(tmp_path / "a.mkv", films.squares(2))
    first, *others = map(Image.fromarray, films.squares(3))
    first.save(tmp_path / "b.gif", save_all=True, append_images=others)
    fill(tmp_path, "frame_1.txt", "frame_2.json")  # labels of the frames, and no video
    found = sources.find(str(tmp_path), tmp_path / "store")
    kinds = {source.name: source.kind for source in found.sources}
    assert kinds.pop(tmp_path.name) == "images"
    assert kinds.pop("a.mkv") == "video" and kinds.pop("b.gif") == "animation"
    (images,) = (source for source in found.sources if source.kind == "images")
    assert [path.name for path in images.files] == ["frame_1.png", "frame_2.png"]
    assert found.left_out.keys() == {*names[:4]}
    assert "thumbnail of b.gif" in found.left_out["b-poster.avif"]


def test_globs_and_files_are_named_from_where_they_begin(tmp_path):
    fill(tmp_path, "x/a.mp4", "x/deep/b.mp4", "x/c.txt", "y/d.mp4", "x/i/0.png")
    assert [name for name, _ in find(tmp_path, tmp_path / "x" / "*.mp4")] == ["a.mp4"]
    assert [name for name, _ in find(tmp_path, tmp_path / "*" / "*.mp4")] == ["x/a.mp4", "y/d.mp4"]
    assert [name for name, _ in find(tmp_path, f"{tmp_path}/x/**/*.mp4")] == [
        "a.mp4",
        "deep/b.mp4",
    ]
    assert [name for name, _ in find(tmp_path, tmp_path / "*")] == [
        "x/a.mp4",
        "x/c.txt",
        "x/deep/b.mp4",
        "x/i",
        "y/d.mp4",
    ]
    assert find(tmp_path, tmp_path / "x" / "a.mp4") == [("a.mp4", "video")]
    assert find(tmp_path, tmp_path / "x" / "i") == [("i", "images")]


def test_a_name_that_is_not_unicode_can_be_printed(tmp_path):
    with open(os.fsencode(tmp_path) + b"/a\xff.mp4", "wb"):
        pass
    (source,) = sources.find(str(tmp_path), tmp_path / "store").sources
    assert source.name == "a\ufffd.mp4" and sources.split_of(source.name) and source.size() == 0


def test_nothing_to_import_is_an_error(tmp_path):
    for src in (tmp_path, tmp_path / "*.mp4"):
        with pytest.raises(UserError, match="there are no videos"):
            sources.find(str(src), tmp_path / "store")
    with pytest.raises(UserError, match="there is no "):
        sources.find(str(tmp_path / "nowhere"), tmp_path / "store")
    fill(tmp_path, "a.mp4", "a.csv", "a.jsonl")
    with pytest.raises(UserError, match="keep one of them"):
        sources.find(str(tmp_path), tmp_path / "store")


def test_content_is_recognised_under_another_name(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4", "i/0.png", "i/1.png", "i/2.png")
    a, b, images = sources.find(str(tmp_path), tmp_path / "store").sources
    assert sources.digest(a) != sources.digest(b)
    (tmp_path / "b.mp4").write_text("a.mp4")
    assert sources.digest(a) == sources.digest(b) != sources.digest(images)
    before = sources.digest(images)
    (tmp_path / "i/1.png").write_text("i/9.png")
    assert sources.digest(images) != before


def test_the_split_depends_on_the_folder_or_on_the_name_alone():
    assert (
        sources.split_of("train/a.mp4") == "train" and sources.split_of("val/deep/a.mp4") == "val"
    )
    assert sources.split_of("test/a.mp4") == "test"
    names = [f"videos/{i}.mp4" for i in range(1000)]
    splits = [sources.split_of(name) for name in names]
    assert all(60 < splits.count(split) < 140 for split in ("val", "test"))
    expected = {8: "val", 9: "test"}
    for name, split in zip(names, splits, strict=True):
        last = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
        assert split == expected.get(last, "train")


def segments(*splits, names=None):
    names = names or [f"{i}.mp4" for i in range(len(splits))]
    return [
        Segment(i, split, 0, 1, 0, {"file": name})
        for i, (split, name) in enumerate(zip(splits, names, strict=True))
    ]


@pytest.mark.parametrize(
    "before, after",
    [
        ("train train train", "train test val"),
        ("train train train train val", "train train train test val"),
        ("val val val", "val test train"),
        ("train val train", "train val test"),
        ("train val val", "train val test"),
        ("train val test train", "train val test train"),
    ],
)  # fmt: skip
def test_three_videos_fill_three_splits_with_the_newest(before, after):
    filled = [segment.split for segment in sources.fill_splits(segments(*before.split()))]
    assert sorted(filled) == sorted(after.split()) and set(filled) == set(data.SPLITS)
    assert filled == after.split()


def test_parts_of_a_video_move_together():
    parts = [Segment(level, "train", 0, 1, 0, {"file": f"{level}.mp4"}) for level in (0, 1, 1, 2)]
    filled = [segment.split for segment in sources.fill_splits(parts)]
    assert filled[1] == filled[2] and set(filled) == set(data.SPLITS)


def test_folders_decide_the_split_and_missing_videos_are_counted():
    in_folders = segments("train", "train", "test", names=["train/a", "train/b", "test/c"])
    assert [segment.split for segment in sources.fill_splits(in_folders)] == [
        "train",
        "train",
        "test",
    ]
    sentence = sources.missing_splits(in_folders)
    assert "1 more video is needed, in folders" in sentence and " val" in sentence
    two = sources.fill_splits(segments("train", "train"))
    assert "1 more video is needed" in sources.missing_splits(two)
    assert "2 more videos are needed" in sources.missing_splits(
        sources.fill_splits(segments("train"))
    )
    assert sources.missing_splits(segments("train", "val", "test")) == ""
