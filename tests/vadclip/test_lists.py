"""Training lists: the authors' forms, moved files, classes of one's own, and what is wrong said at once."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vadclip.lists import (
    FeatureList,
    check_apart,
    crop_remark,
    load_classes,
    load_list,
    one_crop,
    read_video_list,
    split_by_video,
    without_missing,
)
from vadclip.presets import PRESETS, Preset
from vadrun.errors import UserError

UCF, XD = PRESETS["ucf"], PRESETS["xd"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_ucf_list(tmp_path: Path) -> None:
    source = write(tmp_path / "ucf.csv", "path,label\n/a/Abuse001__0.npy,Abuse\n/a/Normal1__0.npy,Normal\n\n")
    listed = load_list(source, UCF)
    assert [str(path) for path in listed.paths] == ["/a/Abuse001__0.npy", "/a/Normal1__0.npy"]
    assert listed.labels == ("Abuse", "Normal")
    assert listed.targets.argmax(axis=1).tolist() == [1, 0]
    assert listed.targets.sum(axis=1).tolist() == [1, 1]
    assert listed.normal.tolist() == [False, True]


@pytest.mark.parametrize(
    ("label", "classes"),
    [("A", [0]), ("B1-B2-0", [1, 2]), ("B6-0-0", [5]), ("G-B4-B5", [3, 4, 6]), ("B2-0-B2", [2]), ("riot", [3])],
)
def test_xd_videos_have_several_labels(tmp_path: Path, label: str, classes: list[int]) -> None:
    listed = load_list(write(tmp_path / "xd.csv", f"path,label\na__0.npy,{label}\n"), XD)
    assert np.flatnonzero(listed.targets[0]).tolist() == classes
    assert set(listed.targets[0].tolist()) == {0, 1}


def test_columns_may_be_in_another_order(tmp_path: Path) -> None:
    listed = load_list(write(tmp_path / "l.csv", "\ufeffLabel,Path\r\nArson,b.npy\r\n"), UCF)
    assert listed.paths == (tmp_path / "b.npy",)


def test_moved_files_are_found_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "moved"
    first, second = touched(root / "Abuse" / "Abuse001__0.npy"), touched(root / "Normal1__0.npy")
    source = write(
        tmp_path / "l.csv",
        "path,label\n/home/x/Desktop/UCF/Abuse/Abuse001__0.npy,Abuse\n/home/x/Desktop/UCF/Normal1__0.npy,Normal\n"
        "/home/x/Desktop/UCF/gone.npy,Normal\n",
    )
    listed = load_list(source, UCF, root)
    assert listed.paths[:2] == (first, second)
    with pytest.raises(UserError, match=rf"1 of 3 feature files are missing, the first is {root}/.*gone\.npy: name"):
        without_missing(listed)
    with pytest.raises(UserError, match=r"or take them off the list$"):
        without_missing(listed)
    with pytest.raises(UserError, match=r"or allow missing files to go on without them$"):
        without_missing(listed, allow_missing=False)
    kept, missing = without_missing(listed, allow_missing=True)
    assert (kept.paths, missing) == ((first, second), 1)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_as_spreadsheets_save_them(tmp_path: Path, separator: str) -> None:
    text = 'Label,"Path",note\r\nArson,"a b.npy",x\r\n,,\r\nAbuse,\u2028c.npy,y\r\n'
    listed = load_list(write(tmp_path / "l.csv", "\ufeff" + text.replace(",", separator)), UCF)
    assert [path.name for path in listed.paths] == ["a b.npy", "\u2028c.npy".strip()]
    assert listed.labels == ("Arson", "Abuse")


@pytest.mark.skipif(os.sep != "/", reason="Windows reads its own paths")
@pytest.mark.parametrize("base", ["D:\\UCF\\", "\\\\server\\share\\UCF\\", "D:/UCF/", "UCF\\"])
def test_lists_from_windows(tmp_path: Path, base: str) -> None:
    first, second = touched(tmp_path / "v" / "Abuse" / "a.mp4"), touched(tmp_path / "v" / "b.mp4")
    nested = "/" if base.endswith("/") else "\\"
    source = write(tmp_path / "l.csv", f"path,label\r\n{base}Abuse{nested}a.mp4,Abuse\r\n{base}b.mp4,Normal\r\n")
    assert read_video_list(source, tmp_path / "v") == [(first, "Abuse"), (second, "Normal")]
    if base == "UCF\\":
        with pytest.raises(UserError, match=r"videos are missing, the first is .*/UCF/Abuse/a.mp4"):
            read_video_list(source)
    else:
        with pytest.raises(UserError, match=r"names the Windows path .*, which does not exist.* with --root$"):
            read_video_list(source)


@pytest.mark.skipif(os.sep != "/", reason="a backslash is no part of a name on Windows")
def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    odd = touched(tmp_path / "a\\b.mp4")
    assert read_video_list(write(tmp_path / "l.csv", "path,label\na\\b.mp4,x\n")) == [(odd, "x")]


def test_a_list_of_features_is_no_list_of_videos(tmp_path: Path) -> None:
    touched(tmp_path / "a__0.npy")
    with pytest.raises(UserError, match=r"lists feature files \(such as a__0.npy\) where videos are wanted"):
        read_video_list(write(tmp_path / "l.csv", "path,label\na__0.npy,Abuse\n"))


def test_no_file_at_all_is_never_allowed(tmp_path: Path) -> None:
    listed = load_list(write(tmp_path / "l.csv", "path,label\na.npy,Normal\nb.npy,Abuse\n"), UCF)
    with pytest.raises(UserError, match=r"2 of 2 feature files are missing, .*: name the folder"):
        without_missing(listed, allow_missing=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty: begin it with the header path,label"),
        ("path,label\n", "lists no feature file: add rows"),
        ("a.npy,Abuse\n", "does not begin with the header path,label: add it"),
        ("path,label\na.npy\n", "line 2: expected path,label, found 'a.npy'"),
        ("path,label\na.npy,\n", "line 2: the column 'label' is empty"),
        ("path,class\na.npy,Normal\n", "has no column 'label', its header is path,class: name the columns path,label"),
        ("path,label,label\na.npy,Normal,Abuse\n", "has two columns 'label'"),
        (
            "path,label\na.npy,Normal\nv/b.MP4,Abuse\n",
            r"lists videos \(such as v/b.MP4\) where feature files are wanted",
        ),
        ("path,label\na.npy,Normal\nb.npy,Juggling\n", "line 3: the label 'Juggling' is unknown to 'ucf': use one of"),
        ("path,label\na.npy,0-0\n", "line 2: the label '0-0' is unknown"),
        ("path,label\na.npy,Normal-Abuse\n", "line 2: the label 'Normal-Abuse' is normal and abnormal at once"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_list(write(tmp_path / "l.csv", text), UCF)


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it does not exist: name a CSV file of path,label"):
        load_list(tmp_path / "none.csv", UCF)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="it is not a regular file: name a CSV file of path,label"):
        load_list(tmp_path / "pipe.csv", UCF)
    (tmp_path / "l.csv").write_bytes(b"path,label\n\xff\xfe.npy,Abuse\n")
    with pytest.raises(UserError, match=r"is not UTF-8 text: name a CSV file of path,label, saved as"):
        load_list(tmp_path / "l.csv", UCF)


def made(videos: dict[str, str], crops: int = 2) -> FeatureList:
    rows = [(Path(f"/f/{video}__{crop}.npy"), label) for video, label in videos.items() for crop in range(crops)]
    targets = np.zeros((len(rows), 14), dtype=np.float32)
    for index, (_, label) in enumerate(rows):
        targets[index, list(UCF.classes).index(label)] = 1
    return FeatureList("made", tuple(path for path, _ in rows), tuple(label for _, label in rows), targets)


def test_the_validation_part_takes_whole_videos_of_each_label() -> None:
    listed = made({f"{label}{i}": label for label in ("Normal", "Abuse", "Arson") for i in range(20)})
    train, held = split_by_video(listed, 0.1, seed=3)
    assert not set(train.videos) & set(held.videos)
    assert len(train) + len(held) == len(listed)
    assert {label: held.labels.count(label) for label in ("Normal", "Abuse", "Arson")} == {
        "Normal": 4,
        "Abuse": 4,
        "Arson": 4,
    }
    assert split_by_video(listed, 0.1, seed=3)[1].paths == held.paths
    assert split_by_video(listed, 0.1, seed=4)[1].paths != held.paths


def test_too_few_videos_to_set_some_aside() -> None:
    with pytest.raises(UserError, match=r"made has 1 normal video\(s\), too few"):
        split_by_video(made({"n": "Normal", "a": "Abuse", "b": "Abuse"}), 0.1, seed=0)


def test_one_crop_of_each_video() -> None:
    listed = made({"n": "Normal", "a": "Abuse"}, crops=6).subset([0, 1, 5, 6, 7])
    assert [path.name for path in one_crop(listed, 5).paths] == ["n__5.npy", "a__0.npy"]


def test_a_crop_that_is_not_there_is_said() -> None:
    listed = made({"n": "Normal", "a": "Abuse"}, crops=6).subset([0, 1, 5, 6, 7])
    assert crop_remark(one_crop(listed, 0), 0) is None
    said = crop_remark(one_crop(listed, 5), 5)
    assert said == "made has no crop 5 of 1 of 2 videos (in place of the first: a__0.npy)"
    plain = replace(listed, paths=tuple(Path(f"/f/v{i}.npy") for i in range(5)))
    assert crop_remark(plain, 0) is None and "no crop 5 of 5" in str(crop_remark(plain, 5))


def test_videos_that_are_trained_on_are_not_tested_on(tmp_path: Path) -> None:
    def listed(folder: str, names: str, content: str) -> FeatureList:
        one = made({name: "Abuse" for name in names}, crops=1)
        one = replace(one, source=folder, paths=tuple(tmp_path / folder / path.name for path in one.paths))
        for path in one.paths:
            touched(path).write_text(content)
        return one

    training = listed("train", "abc", "one")
    check_apart(training, listed("test", "bcd", "other"))  # of the same names, but other videos
    with pytest.raises(
        UserError, match=r"copy tests on 2 of 3 videos that train trains on, the first is .*copy/b: take"
    ):
        check_apart(training, listed("copy", "bcd", "one"))
    crop = replace(
        training, source="crops", paths=tuple(path.with_name(f"{path.name[0]}__5.npy") for path in training.paths)
    )
    with pytest.raises(UserError, match=r"crops tests on 3 of 3 videos"):
        check_apart(training, crop)


def test_own_classes(tmp_path: Path) -> None:
    text = "name: shop\nclasses:\n  Normal: normal\n  Theft: a person hiding goods\nwindow: 16\nanomaly: alignment\n"
    preset = load_classes(write(tmp_path / "shop.yaml", text))
    assert preset == Preset(
        name="shop",
        window=16,
        layers=2,
        heads=1,
        classes={"Normal": "normal", "Theft": "a person hiding goods"},
        anomaly="alignment",
        mirrored=False,
    )
    assert dict(preset.classes) == {"Normal": "normal", "Theft": "a person hiding goods"}
    plain = load_classes(write(tmp_path / "yard.json", '{"classes": ["normal", "fire", "break-in"]}'))
    assert (plain.name, plain.labels) == ("yard", ("normal", "fire", "break-in"))
    listed = load_list(write(tmp_path / "l.csv", "path,label\na.npy,break-in\n"), plain)
    assert listed.targets.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.yaml", "labels: [a, b]", "has no entry 'classes'"),
        ("c.yaml", "classes: [normal]", r"found 1 label\(s\)"),
        ("c.yaml", "classes: [normal, fire]\nwindows: 8", "has the unknown entry 'windows'"),
        ("c.yaml", "classes: [normal, fire]\nwindow: many", "window is 'many': use a whole number"),
        ("c.yaml", "classes: [normal, fire]\nanomaly: best", "anomaly is 'best': use one of"),
        ("c.yaml", "classes: [normal, fire]\nmirrored: 5", "mirrored is 5: use true or false"),
        ("c.yaml", "classes: {'0': normal, b: fire}", "'0' cannot be the name of a class"),
        ("c.yaml", "classes: [normal, fire]\nname: ucf", "the name 'ucf' is a built-in dataset's"),
        ("c.yaml", "classes: [normal", "is not YAML"),
        ("c.json", "{", "is not JSON"),
    ],
)
def test_own_classes_that_cannot_be_used(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_classes(write(tmp_path / name, text))
