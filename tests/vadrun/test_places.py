from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from vadrun.errors import UserError
from vadrun.places import EVENTS, RESULT, SCORES, Place, belongs, folder_name, identity, places, put


def touched(*paths: Path) -> list[Path]:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(paths)


def finished(folder: Path, source: Path, text: str = "") -> Path:
    """A folder as a run leaves it."""
    folder.mkdir(parents=True)
    (folder / SCORES).write_text(text)
    (folder / EVENTS).write_text(text)
    (folder / RESULT).write_text(json.dumps({"path": identity(source), "bundle": {}, "text": text}))
    return folder


def names(out: Path, sources: list[Path], named: list[Path] | None = None) -> list[str]:
    return [str(place.folder.relative_to(out)) for place in places(out, sources, named or sources)]


def test_a_file_goes_by_its_name_and_one_of_a_folder_by_its_path_below_it(tmp_path: Path) -> None:
    sources = touched(tmp_path / "rec" / "2024" / "cam.mp4", tmp_path / "rec" / "door.mp4", tmp_path / "yard.mp4")
    out = tmp_path / "out"
    assert names(out, sources) == ["cam", "door", "yard"]
    assert names(out, sources, [tmp_path / "rec", sources[2]]) == ["2024/cam", "door", "yard"]
    # The outermost folder that was named counts, whatever the order.
    for named in permutations([tmp_path / "rec", tmp_path / "rec" / "2024", sources[2]]):
        assert names(out, sources, list(named)) == ["2024/cam", "door", "yard"]


def test_names_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path / "here" / "a" / "cam.mp4", tmp_path / "beside.mp4")
    monkeypatch.chdir(tmp_path / "here")
    assert names(Path("out"), [Path("a/cam.mp4")], [Path(".")]) == ["a/cam"]
    # A file above it is never put outside of --out.
    assert names(Path("out"), [Path("../beside.mp4")], [Path("."), Path("../beside.mp4")]) == ["beside"]


def test_names_do_not_depend_on_the_run_or_its_order(tmp_path: Path) -> None:
    one, other, third = touched(tmp_path / "a" / "cam.mp4", tmp_path / "b" / "cam.mp4", tmp_path / "b" / "Cam.mp4")
    found = set()
    for order in permutations([one, other, third]):
        found.add(tuple(sorted(zip(map(str, order), names(tmp_path / "out", list(order)), strict=True))))
    ((alone, *_),) = found
    assert alone == (str(one), "cam")
    assert names(tmp_path / "out", [one]) == ["cam"]
    (only,) = found
    assert len({name.casefold() for _, name in only}) == 3  # on a disk that ignores case, too


def test_another_ending_beside_it_keeps_both_endings(tmp_path: Path) -> None:
    mp4, mkv, notes = touched(tmp_path / "door.mp4", tmp_path / "door.mkv", tmp_path / "yard.txt")
    assert names(tmp_path / "out", [mp4]) == ["door.mp4"]
    assert names(tmp_path / "out", [mkv, mp4]) == ["door.mkv", "door.mp4"]
    assert names(tmp_path / "out", touched(tmp_path / "yard.mp4")) == ["yard"]
    assert notes.exists()


def test_a_folder_beside_it_is_not_taken_for_its_results(tmp_path: Path) -> None:
    sources = touched(tmp_path / "rec" / "2024.mp4", tmp_path / "rec" / "2024" / "cam.mp4")
    assert names(tmp_path / "out", sources, [tmp_path / "rec"]) == ["2024.mp4", "2024/cam"]


def test_slashes_are_not_replaced_by_what_names_may_hold(tmp_path: Path) -> None:
    sources = touched(tmp_path / "rec" / "a" / "b.mp4", tmp_path / "rec" / "a_b.mp4")
    assert names(tmp_path / "out", sources, [tmp_path / "rec"]) == ["a/b", "a_b"]


@pytest.mark.parametrize(
    "name",
    ["..mp4", "...mp4", ".mp4", ".door.mp4", "door .mp4", "door..mp4", " .mp4", "result.json.mp4", "Scores.csv.ts"],
)
def test_names_that_are_none_for_a_folder(tmp_path: Path, name: str) -> None:
    found = folder_name(tmp_path / name)
    assert found == found.strip(". ") and found.casefold() not in (SCORES, EVENTS, RESULT)
    assert (tmp_path / "out" / found).resolve().parent == tmp_path / "out"
    assert found != folder_name(tmp_path / f"x{name}")


@pytest.mark.parametrize("name", ["con.mp4", "NUL.mkv", "com1.backup.mp4", "aux .mp4"])
def test_names_of_devices(tmp_path: Path, name: str) -> None:
    found = folder_name(tmp_path / name)
    assert found != Path(name).stem and found.casefold().split(".")[0].split("-")[0].strip() in name.casefold()


def test_long_names_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    long = touched(tmp_path / ("监" * 82 + ".mp4"))[0]
    strange = touched(tmp_path / os.fsdecode(b"b\xe9.mp4"))[0]
    out = tmp_path / "out"
    for source, kept in ((long, "监" * 82), (strange, os.fsdecode(b"b\xe9"))):
        (place,) = places(out, [source], [source])
        assert place.folder.name == kept
        assert len(os.fsencode(place.spare.name)) <= 255
        place.spare.mkdir(parents=True)
        place.source.encode("utf-8")
    (place,) = places(out, [long], [long])
    place.spare.name.encode("utf-8")  # no character is cut in two


def test_what_is_taken_is_left_alone(tmp_path: Path) -> None:
    one, other = touched(tmp_path / "a" / "cam.mp4", tmp_path / "b" / "cam.mp4")
    out = tmp_path / "out"
    finished(out / "cam", one)
    assert names(out, [one]) == ["cam"]
    (name,) = names(out, [other])
    assert name.startswith("cam-")
    assert names(out, [other, one]) == [*names(out, [other]), "cam"]
    # A video keeps its folder, when the other has gone, too.
    finished(out / name, other)
    for path in (out / "cam").iterdir():
        path.unlink()
    (out / "cam").rmdir()
    assert names(out, [other]) == [name]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "result"])
def test_other_things_of_that_name_are_left_alone(tmp_path: Path, kind: str) -> None:
    (source,) = touched(tmp_path / "cam.mp4")
    out = tmp_path / "out"
    out.mkdir()
    if kind == "file":
        (out / "CAM").touch()
    elif kind == "link":
        (out / "cam").symlink_to(tmp_path / "nowhere")
    else:
        (out / "cam").mkdir()
        (out / "cam" / (RESULT if kind == "result" else "photo.jpg")).write_text('{"bundle": 1}')
    (name,) = names(out, [source])
    assert name.startswith("cam-")


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (source,) = touched(tmp_path / "cam.mp4")
    (tmp_path / "out" / "cam").mkdir(parents=True)
    (place,) = places(tmp_path / "out", [source], [source])
    assert place.folder == put(finished(tmp_path / "out" / "new", source), place) == tmp_path / "out" / "cam"


def test_a_source_replaces_its_own_files_and_no_others(tmp_path: Path) -> None:
    (source,) = touched(tmp_path / "cam.mp4")
    out = tmp_path / "out"
    old = finished(out / "cam", source, "old")
    (old / "notes.txt").write_text("mine")
    (old / "more").mkdir()
    (old / "more" / RESULT).write_text("mine")
    (place,) = places(out, [source], [source])
    assert put(finished(out / "new", source, "new"), place) == old
    assert [(old / name).read_text() for name in (SCORES, EVENTS, "notes.txt")] == ["new", "new", "mine"]
    assert json.loads((old / RESULT).read_text())["text"] == "new"
    assert (old / "more" / RESULT).read_text() == "mine"
    assert sorted(path.name for path in old.iterdir()) == [EVENTS, "more", "notes.txt", RESULT, SCORES]


def test_results_behind_a_link_are_replaced_at_its_target(tmp_path: Path) -> None:
    (source,) = touched(tmp_path / "cam.mp4")
    out = tmp_path / "out"
    real = finished(tmp_path / "disk", source, "old")
    out.mkdir()
    (out / "cam").symlink_to(real)
    (place,) = places(out, [source], [source])
    put(finished(out / "new", source, "new"), place)
    assert (out / "cam").is_symlink() and (real / SCORES).read_text() == "new"


def test_a_place_that_another_run_takes_meanwhile(tmp_path: Path) -> None:
    one, other = touched(tmp_path / "a" / "cam.mp4", tmp_path / "b" / "cam.mp4")
    out = tmp_path / "out"
    (place,) = places(out, [other], [other])
    finished(out / "cam", one, "one")
    assert put(finished(out / "new", other, "other"), place) == place.spare
    assert (out / "cam" / SCORES).read_text() == "one" and (place.spare / SCORES).read_text() == "other"
    (place.spare / RESULT).write_text("no more")
    with pytest.raises(UserError, match="are taken by something else: give another --out"):
        put(finished(out / "new", other, "other"), place)
    assert (place.spare / RESULT).read_text() == "no more"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"path": %s, "path": %s, "bundle": 0}', "7", "\ud800"])
def test_what_is_no_result_belongs_to_nobody(tmp_path: Path, text: str) -> None:
    source = identity(tmp_path / "a.mp4")
    raw = text.replace("%s", json.dumps(source)).encode("utf-8", "surrogatepass")
    (tmp_path / RESULT).write_bytes(raw)
    assert not belongs(tmp_path, source)
    (tmp_path / RESULT).unlink()
    os.mkfifo(tmp_path / RESULT)
    assert not belongs(tmp_path, source)
    (tmp_path / RESULT).unlink()
    (tmp_path / RESULT).write_text(json.dumps({"path": source, "bundle": {}}))
    assert belongs(tmp_path, source)


def test_an_interrupted_replacement_still_belongs_to_its_video(tmp_path: Path) -> None:
    (source,) = touched(tmp_path / "cam.mp4")
    folder = finished(tmp_path / "out" / "cam", source)
    (folder / RESULT).rename(folder / f".{RESULT}.before")
    assert belongs(folder, identity(source))
    (place,) = places(tmp_path / "out", [source], [source])
    put(finished(tmp_path / "out" / "new", source, "new"), place)
    assert sorted(path.name for path in folder.iterdir()) == [EVENTS, RESULT, SCORES]


def test_a_folder_in_the_place_of_one_of_our_files_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    (source,) = touched(tmp_path / "cam.mp4")
    folder = finished(tmp_path / "out" / "cam", source, "old")
    (folder / SCORES).unlink()
    (folder / SCORES).mkdir()
    place = Place(identity(source), folder, folder.with_name("cam-0"))
    with pytest.raises(UserError, match=r"scores.csv is a folder: move it away"):
        put(finished(tmp_path / "out" / "new", source, "new"), place)
    assert (folder / EVENTS).read_text() == "old" and (folder / RESULT).exists()


def test_the_same_video_by_another_name(tmp_path: Path) -> None:
    (source,) = touched(tmp_path / "disk" / "cam.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    finished(tmp_path / "out" / "cam", source)
    assert names(tmp_path / "out", [tmp_path / "link" / "cam.mp4"]) == ["cam"]
    # What a link named like another's video leads to is another video.
    touched(tmp_path / "disk2" / "cam.mp4")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "disk2")
    assert names(tmp_path / "out", [tmp_path / "link" / "cam.mp4"]) != ["cam"]


def test_a_place_that_may_not_be_looked_at_costs_its_own_video_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = touched(tmp_path / "rec" / "closed" / "a.mp4", tmp_path / "rec" / "open" / "b.mp4")
    closed = tmp_path / "out" / "closed"
    closed.mkdir(parents=True)
    listing = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert names(tmp_path / "out", sources, [tmp_path / "rec"]) == ["closed/a", "open/b"]
