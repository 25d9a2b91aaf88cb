"""Files that were damaged at random: groups and the gate give what a full decode gives, or say that they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import clips
from tests.vadrun.reading import SMALL
from vadrun.errors import UserError
from vadrun.gate import GateRule
from vadrun.video import Snippet, Video

FRAMES = 110
FILES = {
    "b.ts": ("libx264", "x264", "bframes=2:keyint=25"),
    "b.mp4": ("libx264", "x264", "bframes=2:keyint=25"),
    "p.mkv": ("libx264", "x264", "bframes=0:keyint=20"),
    "hevc.ts": ("libx265", "x265", "bframes=2:keyint=25:open-gop=0"),
    "hevc.mp4": ("libx265", "x265", "bframes=0:keyint=25:open-gop=0"),
}
WAYS = ("groups", "gate")


def mutated(data: bytes, rng: np.random.Generator, transport: bool) -> bytes:
    """Bytes that are overwritten, zeroed, missing, twice there; of transport streams also whole packets."""
    way = rng.integers(6 if transport else 4)
    at = int(rng.integers(len(data) // 20, len(data)))
    end = at + int(rng.choice([1, 40, 400, 3000]))
    if way >= 4:
        at, end = at // 188 * 188, (at // 188 + int(rng.choice([1, 2, 16, 32, 64]))) * 188
    if way == 0:
        return data[:at] + rng.bytes(len(data[at:end])) + data[end:]
    if way == 1:
        return data[:at] + bytes(len(data[at:end])) + data[end:]
    if way in (2, 4):
        return data[:at] + data[end:]
    return data[:end] + data[at:end] + data[end:]


def read(path: Path, way: str) -> tuple[list[Snippet], str | None]:
    with Video(path, threads=1) as video:
        if way == "every":
            video.looks_ahead, video._reader.skipper = False, None
        gate = GateRule(shadow=True, audit=1e-9) if way == "gate" else None
        return list(video.snippets(None, SMALL, gate=gate)), video.damage


@pytest.mark.parametrize("name", FILES)
def test_what_is_read_otherwise_is_said(tmp_path: Path, name: str) -> None:
    codec, prefix, params = FILES[name]
    options = {f"{prefix}-params": f"log-level=none:{params}"}
    container = {"movflags": "faststart"} if name.endswith("mp4") else None
    whole = clips.write_clip(
        tmp_path / name, FRAMES, size=(96, 72), codec=codec, options=options, container_options=container, draw=noisy
    ).read_bytes()
    path = tmp_path / f"mutated-{name}"
    rng = np.random.default_rng(20)
    differ = 0
    for number in range(12):
        path.write_bytes(mutated(whole, rng, name.endswith("ts")))
        try:
            plain, damage = read(path, "every")
        except UserError:
            continue
        differ += damage is not None
        for way in WAYS:
            quick, said = read(path, way)
            if said is None:
                assert [(s.start, s.end) for s in quick] == [(s.start, s.end) for s in plain], (number, way)
            if said is None and damage is None:
                for a, b in zip(quick, plain, strict=True):
                    assert (a.images == b.images).all(), (number, way)
    assert differ >= 3


def noisy(number: int, width: int, height: int) -> clips.Image:
    noise = np.random.default_rng(number).integers(-25, 26, (height, width, 1))
    return np.asarray(np.clip(clips.numbered(number, width, height) + noise, 0, 255), np.uint8)
