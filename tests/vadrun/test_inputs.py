from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from vadrun.errors import UserError
from vadrun.inputs import check_regular, find_videos, named_videos, redacted


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def below(folder: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def locked(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Let nobody list these folders or look at what is in them, not even root."""
    scandir, stat = os.scandir, os.stat

    def guarded(what: Any, really: Any, **more: Any) -> Any:
        if not isinstance(what, int) and any(str(what).startswith(str(path)) for path in paths):
            raise PermissionError(13, "Permission denied", str(what))
        return really(what, **more)

    monkeypatch.setattr(os, "scandir", lambda what=".": guarded(what, scandir))
    inside = [path / "inside" for path in paths]
    monkeypatch.setattr(
        os,
        "stat",
        lambda what, **more: (
            guarded(what, stat, **more) if any(str(what).startswith(str(p)) for p in inside) else stat(what, **more)
        ),
    )


def test_find_videos_looks_into_all_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a.mkv", "x/c.avi", "x/y/d.ts", "notes.txt", "._b.mp4", ".trash/e.mp4", "x/f.jpg")
    (tmp_path / "folder.mp4").mkdir()
    assert below(tmp_path, find_videos(tmp_path)) == ["a.mkv", "b.MP4", "x/c.avi", "x/y/d.ts"]
    with pytest.raises(UserError, match="not a folder"):
        find_videos(tmp_path / "a.mkv")


def test_linked_folders_are_listed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4", "in/deep/b.mp4", "elsewhere/c.mp4", "elsewhere/more/d.mp4")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "deep")  # listed by its own path
    (tmp_path / "in" / "deep" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "twice").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "part").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "in" / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "in" / ".hidden").symlink_to(tmp_path)
    found = find_videos(tmp_path / "in")
    assert len(found) == len({path.resolve() for path in found}) == 4
    assert below(tmp_path / "in", found)[:2] == ["a.mp4", "deep/b.mp4"]
    assert below(tmp_path / "in", found)[2:] == ["out/c.mp4", "out/more/d.mp4"]


def test_a_folder_that_cannot_be_listed_is_an_entry_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.mp4", "in/closed/b.mp4", "vault/inside/c.mp4")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "vault" / "inside")
    locked(monkeypatch, tmp_path / "in" / "closed")
    found = named_videos([tmp_path / "in"])
    assert below(tmp_path / "in", found) == ["a.mp4", "closed", "link/c.mp4"]
    with pytest.raises(UserError, match=r"closed may not be read: change its permissions"):
        check_regular(tmp_path / "in" / "closed")


def test_a_link_to_a_place_that_may_not_be_looked_at_is_an_entry_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.mp4")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "vault" / "inside")
    stat = os.stat

    def guarded(what: Any, **more: Any) -> Any:
        if str(what) == str(tmp_path / "in" / "link") and more.get("follow_symlinks", True):
            raise PermissionError(13, "Permission denied", str(what))
        return stat(what, **more)

    monkeypatch.setattr(os, "stat", guarded)
    assert below(tmp_path / "in", find_videos(tmp_path / "in")) == ["a.mp4", "link"]
    with pytest.raises(UserError, match="link may not be read"):
        check_regular(tmp_path / "in" / "link")


def test_what_a_command_line_names_is_there_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    assert named_videos([tmp_path / "b.mp4", tmp_path]) == [tmp_path / "b.mp4", tmp_path / "a.mp4"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no video files"):
        named_videos([tmp_path / "none"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gone.mp4", "does not exist: check the name"),
        ("a.mp4/b.mp4", "does not exist: check the name"),
        ("x" * 300, "cannot be read .*name too long"),
        ("round", "cannot be read .*symbolic links"),
    ],
)
def test_paths_that_are_not_there_are_refused_in_a_sentence(tmp_path: Path, name: str, says: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for refuse in (check_regular, lambda path: named_videos([path])):
        with pytest.raises(UserError, match=says):
            refuse(tmp_path / name)


def test_what_is_behind_a_closed_folder_is_said_to_be_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"inside.mp4 may not be read"):
        named_videos([tmp_path / "inside.mp4"])


def test_pipes_sockets_and_devices_are_no_regular_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's name has to be short
        server.bind("b.mp4")
        reading, writing = os.pipe()
        try:
            for path, kind in [
                (tmp_path / "a.mp4", "a pipe"),
                (tmp_path / "b.mp4", "a socket"),
                (Path("/dev/zero"), "a device"),
                (Path(f"/dev/fd/{reading}"), "a pipe"),
            ]:
                assert named_videos([path]) == [path]
                with pytest.raises(UserError, match=rf"{path} is {kind}, not a regular file: save the video"):
                    check_regular(path)
        finally:
            os.close(reading)
            os.close(writing)


def test_a_link_to_a_file_is_a_regular_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    check_regular(tmp_path / "link.mp4")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("rtsp://admin:secret@10.0.0.7:554/Streaming/1", "rtsp://...@10.0.0.7:554/..."),
        ("rtsp://admin:sec/ret@10.0.0.7/1", "rtsp://...@10.0.0.7/..."),
        ("rtsp://admin:se@cret@10.0.0.7", "rtsp://...@10.0.0.7"),
        ("http://10.0.0.7/video.cgi?user=admin&pwd=secret", "http://10.0.0.7/..."),
        ("http://10.0.0.7?pwd=secret", "http://10.0.0.7/..."),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
        ("RTSPS://admin:secret@cam", "RTSPS://...@cam"),
        ("list/rtsp://admin:secret@cam/1", "rtsp://...@cam/..."),
    ],
)
def test_addresses_are_refused_for_what_they_are_and_keep_their_secrets(address: str, text: str) -> None:
    path = Path(address)  # which makes one slash of two
    assert redacted(address) == redacted(path) == text
    for refuse in (check_regular, lambda path: named_videos([path]), find_videos):
        with pytest.raises(UserError) as caught:
            refuse(path)
        said = str(caught.value)
        assert said.startswith(text)
        assert "does not exist" not in said
        assert "secret" not in said
        assert "cret" not in said
        assert refuse is find_videos or "is an address, and only files are read" in said


def test_paths_are_shown_as_they_are(tmp_path: Path) -> None:
    for name in ("C:/cam@door.mp4", "/a/b@c.mp4", "cam:1.mp4", "a:b@c/d.mp4"):
        assert redacted(Path(name)) == str(Path(name))
    (tmp_path / "rtsp:").mkdir()
    touch(tmp_path, "rtsp:/a.mp4")
    assert named_videos([tmp_path / "rtsp:" / "a.mp4"])
    check_regular(tmp_path / "rtsp:" / "a.mp4")


def test_standard_input_is_a_pipe() -> None:
    with pytest.raises(UserError, match="standard input is a pipe, not a regular file"):
        named_videos([Path("-")])
