from __future__ import annotations

import json
from pathlib import Path

import pytest

from vadrun.errors import UserError
from vadrun.files import whole_directory, write_json


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
