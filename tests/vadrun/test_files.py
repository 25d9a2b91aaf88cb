from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vadrun.errors import UserError
from vadrun.files import check_place, json_text, printable, whole_directory, whole_file, write_csv, write_json


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with whole_directory(target, replace=False) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert sorted(p.name for p in target.parent.iterdir()) == ["b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_directory_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(error), whole_directory(target, replace=True) as folder:
        (folder / "new").write_text("2")
        raise error
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_file_is_never_taken_for_a_directory(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.write_text("mine")
    with pytest.raises(UserError, match="is a file"), whole_directory(target, replace=True):
        pytest.fail("too late")
    assert target.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_replacing_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "old").write_text("1")
    with whole_directory(target, replace=True) as folder:
        (folder / "new").write_text("2")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"), whole_directory(tmp_path, replace=False):
        raise AssertionError("not reached")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"), whole_directory(tmp_path / "file" / "x", replace=False):
        raise AssertionError("not reached")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    sentence = r"cannot write .*b: No space left on device; free some space"
    with pytest.raises(UserError, match=sentence), whole_directory(tmp_path / "b", replace=False) as folder:
        (folder / "x").write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_through_another_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ä": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_behind_a_link_is_replaced_at_its_target(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "v1"
    real.mkdir(parents=True)
    (real / "old").touch()
    (tmp_path / "current").symlink_to("disk/v1")
    with whole_directory(tmp_path / "current", replace=True) as folder:
        assert folder.parent == real.parent  # no rename from one disk to another
        (folder / "new").touch()
    assert (tmp_path / "current").is_symlink() and [path.name for path in real.iterdir()] == ["new"]
    assert [path.name for path in real.parent.iterdir()] == ["v1"]


def test_a_link_that_leads_nowhere_is_filled(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("disk/v1")
    with whole_directory(tmp_path / "current", replace=False) as folder:
        (folder / "new").touch()
    assert (tmp_path / "current").is_symlink() and (tmp_path / "disk" / "v1" / "new").exists()


def test_a_file_behind_a_link_is_replaced_at_its_target(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.json").symlink_to("disk/y.json")
    write_json(tmp_path / "x.json", 1)
    assert (tmp_path / "x.json").is_symlink() and (tmp_path / "disk" / "y.json").read_text() == "1\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "x.json", "y.json"]


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    write_json(Path(os.devnull), 1)
    assert not Path(os.devnull).is_file()


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        write_json(tmp_path / "nowhere" / "x.json", 1)
    assert missing.value.filename == str(tmp_path / "nowhere" / "x.json")
    with pytest.raises(OSError) as full, whole_file(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")
    assert full.value.errno == 28 and full.value.filename == str(tmp_path / "x.json")
    with pytest.raises(OSError) as other, whole_file(tmp_path / "x.json"):
        raise OSError(5, "Input/output error", "input.bin")
    assert other.value.filename == "input.bin"
    assert list(tmp_path.iterdir()) == []


def test_json_holds_only_what_json_can_say() -> None:
    value = {
        "name": os.fsdecode(b"b\xe9.mp4"),
        "half": "\ud83d",
        "peak": float("nan"),
        "all": [float("inf"), 1.5, (2,)],
    }
    text = json_text(value)
    text.encode("utf-8")
    assert json.loads(text) == {"name": r"b\xe9.mp4", "half": r"\ud83d", "peak": None, "all": [None, 1.5, [2]]}
    assert printable(value["name"]) == r"b\xe9.mp4" and printable("监") == "监"


def test_text_keeps_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A list of files has to name them."""
    write_csv(tmp_path / "x.csv", [["path"], [os.fsdecode(b"b\xe9.npy")]])
    assert (tmp_path / "x.csv").read_bytes() == b"path\nb\xe9.npy\n"


def test_force_replaces_what_is_of_its_kind_and_nothing_else(tmp_path: Path) -> None:
    def check(replace: bool = True) -> None:
        check_place(tmp_path / "x", replace=replace, marks=["m.json"], others=["*.onnx", "more"], kind="a bundle")

    check(replace=False)  # there is nothing
    (tmp_path / "x").mkdir()
    check()
    (tmp_path / "x" / "a.onnx").touch()
    for replace in (True, False):  # without --force nobody is sent to it in vain
        with pytest.raises(UserError, match="is not a bundle and not empty"):
            check(replace)
    (tmp_path / "x" / "m.json").touch()
    (tmp_path / "x" / "more").mkdir()
    (tmp_path / "x" / ".DS_Store").touch()
    check()
    with pytest.raises(UserError, match="exists already: give --force"):
        check(replace=False)
    (tmp_path / "x" / "gate.json").touch()
    with pytest.raises(
        UserError, match=r"holds gate.json, which is no part of a bundle and would be lost: move it away"
    ):
        check()
