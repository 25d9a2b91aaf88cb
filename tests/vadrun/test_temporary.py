from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vadrun import temporary
from vadrun.files import whole_directory, whole_file
from vadrun.temporary import followed, remove_stale, shortened, temporary_directory, temporary_file


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A place to which a process was writing a folder and a file, ``x``, when it was killed."""
    code = """
import os, sys
from pathlib import Path
from vadrun.files import whole_directory, whole_file
with whole_directory(Path("x"), replace=True) as folder, whole_file(Path("x.json")) as file:
    (folder / "half").write_text("1")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 9
    assert len(list(tmp_path.iterdir())) == 2
    return tmp_path


def test_what_a_killed_process_left_is_removed_when_the_target_is_written_again(killed: Path) -> None:
    with whole_directory(killed / "x", replace=False) as folder:
        assert [path for path in killed.iterdir() if path.is_dir()] == [folder]
    with whole_file(killed / "x.json"):
        pass
    assert sorted(path.name for path in killed.iterdir()) == ["x", "x.json"]


def test_nothing_else_is_removed(killed: Path) -> None:
    others = [".x.tmp-mine", ".x.tmp-0123456789", ".xy.tmp-01234567", "x.tmp-01234567", ".x.tmp-01234567.bak"]
    for name in others:
        (killed / name).mkdir()
    target = killed / "elsewhere"
    target.touch()
    (killed / ".x.tmp-01234567").symlink_to(target)
    remove_stale(killed / "x")
    assert {path.name for path in killed.iterdir() if path.is_dir()} == set(others)
    assert (killed / ".x.tmp-01234567").is_symlink() and target.exists()


def test_what_a_living_run_writes_stays(tmp_path: Path) -> None:
    with temporary_directory(tmp_path / "x") as one, temporary_directory(tmp_path / "x") as other:
        assert one.is_dir() and other.is_dir()
        with temporary_file(tmp_path / "x.json") as first, temporary_file(tmp_path / "x.json") as second:
            assert first.is_file() and second.is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_was_cut_short_is_undone_or_finished(tmp_path: Path) -> None:
    target, new, old = tmp_path / "x", tmp_path / ".x.tmp-01234567", tmp_path / ".x.tmp-01234567.old"
    old.mkdir()
    (old / "data").write_text("old")
    new.mkdir()  # the power went between the two renames
    remove_stale(target)
    assert (target / "data").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["x"]
    old.mkdir()  # or behind the second
    remove_stale(target)
    assert (target / "data").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_old_folder_is_kept_where_nobody_knows(tmp_path: Path) -> None:
    """Somebody has made a new target after the power went between the two renames."""
    for name in ("x", ".x.tmp-01234567", ".x.tmp-01234567.old"):
        (tmp_path / name).mkdir()
    remove_stale(tmp_path / "x")
    assert (tmp_path / ".x.tmp-01234567.old").exists()


@pytest.mark.parametrize("name", ["监" * 82 + ".mp4", "x" * 255, os.fsdecode(b"\xe9" * 250)])
def test_long_names_have_temporary_ones(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with whole_file(target) as file:
        file.write_text("1")
    assert target.read_text() == "1"
    target.unlink()
    with whole_directory(target, replace=False) as folder:
        assert len(os.fsencode(folder.name)) < 140  # some file systems have less than 255
        (folder / "x").touch()
    with whole_directory(target, replace=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    with (
        temporary_directory(tmp_path / ("x" * 200 + "a")) as one,
        temporary_directory(tmp_path / ("x" * 200 + "b")) as two,
    ):
        assert one.name.partition(".tmp-")[0] != two.name.partition(".tmp-")[0]


def test_no_character_is_cut_in_two() -> None:
    for most in range(20, 30):
        short = shortened("监" * 20, most, "~mark")
        short.encode("utf-8")
        assert most - 2 <= len(short.encode("utf-8")) <= most and short.endswith("~mark")


def test_links_are_followed_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("three")
    assert followed(tmp_path / "one") == tmp_path / "three"
    assert followed(tmp_path / "three") == tmp_path / "three"


def test_what_is_renamed_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename
    monkeypatch.setattr(
        temporary.os,
        "fsync",
        lambda fd: (done.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}"), fsync(fd)),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("in place"), replace(a, b)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("in place"), rename(a, b)))
    with whole_file(tmp_path / "x.json") as file:
        file.write_text("1")
    assert done == [f"sync {file.name}", "in place", f"sync {tmp_path.name}"]
    done.clear()
    with whole_directory(tmp_path / "x", replace=False) as folder:
        (folder / "data").write_text("1")
    assert done == ["sync data", f"sync {folder.name}", "in place", f"sync {tmp_path.name}"]
