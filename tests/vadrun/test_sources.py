from __future__ import annotations

from pathlib import Path

import pytest

from vadrun.errors import UserError
from vadrun.sources import find_videos


def test_find_videos_looks_into_all_folders(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.mkv", "x/c.avi", "x/y/d.ts", "notes.txt", "._b.mp4", ".trash/e.mp4", "x/f.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["a.mkv", "b.MP4", "x/c.avi", "x/y/d.ts"]
    with pytest.raises(UserError, match="not a folder"):
        find_videos(tmp_path / "a.mkv")
