"""The gate where most pictures are never decoded: a fixed camera, a little noise, a key picture every two seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import clips
from vadrun.errors import UserError
from vadrun.gate import Gate, GateRule, Verdict
from vadrun.groups import Group, Worker
from vadrun.preprocessing import Preprocessing, Preprocessor
from vadrun.reader import Reader
from vadrun.sampling import Sampling
from vadrun.video import Snippet, Video

SMALL = Preprocessing.for_size(224)
SIZE = (160, 120)
GROUP = 50  # pictures, at 25 a second
NOISE = np.random.default_rng(4).normal(0, 1.5, (16, 120, 160, 1))
RULE = GateRule(audit=1e-9, heartbeat=1e6)

Change = Callable[[int, np.ndarray], None]


def scene(change: Change | None = None) -> Callable[[int, int, int], clips.Image]:
    y, x = np.mgrid[0:120, 0:160]
    still = np.repeat((90 + 40 * np.sin(x / 25) + 30 * np.cos(y / 18))[..., None], 3, 2)

    def draw(number: int, width: int, height: int) -> clips.Image:
        picture = still + NOISE[number * 7 % 16]
        if change is not None:
            change(number, picture)
        return np.asarray(np.clip(picture, 0, 255), np.uint8)

    return draw


def film(path: Path, frames: int = 1200, change: Change | None = None, codec: str = "libx264", **options: str) -> Path:
    params = f"log-level=none:keyint={GROUP}:min-keyint={GROUP}:scenecut=0:open-gop=0"
    options = {"crf": "24", **options, ("x264" if codec == "libx264" else "x265") + "-params": params}
    path = clips.skippable(path)
    return clips.write_clip(path, frames, size=SIZE, draw=scene(change), codec=codec, options=options)


def gated(path: Path, rule: GateRule = RULE, **rest: Any) -> tuple[list[Snippet], Video]:
    with Video(path, threads=1) as video:
        return list(video.snippets(rest.pop("sampling", None), SMALL, gate=rule, **rest)), video


def walker(first: int, end: int) -> Change:
    """Somebody who is in the picture from the first frame to before the end, and never in a key picture's."""

    def change(number: int, picture: np.ndarray) -> None:
        if first <= number < end and number % GROUP:
            left = 20 + 2 * (number - first) % 100
            picture[40:80, left : left + 12] = 230

    return change


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("quiet") / "quiet.mp4")


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_most_of_a_quiet_video_is_never_decoded(tmp_path: Path, codec: str) -> None:
    path = film(tmp_path / "quiet.mp4", codec=codec)
    snippets, video = gated(path)
    assert video.decoded == 1200 and len(snippets) == 75
    assert video.undecoded > 500
    assert [s.verdict for s in snippets].count(Verdict.ENCODE) == 1
    assert sum(s.unseen for s in snippets) > 40
    with Video(path) as plain:
        expected = [(s.index, s.start, s.end) for s in plain.snippets(None, SMALL)]
    assert [(s.index, s.start, s.end) for s in snippets] == expected


def test_what_is_encoded_is_what_a_full_decode_gives(quiet: Path) -> None:
    with Video(quiet) as plain:
        images = [s.images for s in plain.snippets(None, SMALL)]
    snippets, _ = gated(quiet, GateRule(audit=0.3, heartbeat=5.0))
    seen = 0
    for snippet in snippets:
        if len(snippet.images):
            np.testing.assert_array_equal(snippet.images, images[snippet.index])
            seen += snippet.unseen
    assert seen > 5  # audits of what was held by the sizes of packets


def test_an_event_between_key_pictures_that_look_alike_is_found(tmp_path: Path) -> None:
    path = film(tmp_path / "event.mp4", change=walker(1001, 1050))
    snippets, video = gated(path)
    found = [s.index for s in snippets if s.verdict is Verdict.ENCODE]
    assert found[0] == 0 and set(found[1:]) >= {63, 64} and found[1] >= 62
    assert video.undecoded > 400


def test_what_changes_slowly_is_found_at_a_key_picture(tmp_path: Path) -> None:
    """A shadow that deepens by a grey level in ten seconds costs no bytes to speak of."""

    def change(number: int, picture: np.ndarray) -> None:
        picture[30:90, 40:80] -= number / 50

    snippets, video = gated(film(tmp_path / "shadow.mp4", change=change))
    encoded = [s.start for s in snippets if s.verdict is Verdict.ENCODE]
    assert 2 <= len(encoded) <= 8
    with_luma, _ = ungrouped(video.path)
    others = [s.start for s in with_luma if s.verdict is Verdict.ENCODE]
    # A look at every key picture, and the sampled frame behind it: two seconds and a snippet later at most.
    assert abs(encoded[1] - others[1]) <= 2.0 + 0.64 + 0.01


def test_of_key_pictures_that_come_often_not_all_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one where they come each second: sizes are trusted for two and a half."""
    looks: list[tuple[float, bool]] = []
    look = Gate._look

    def watched(self: Gate, grid: Any, held: Any) -> bool:
        looks.append((self.now, self._calm >= 4))
        return look(self, grid, held)

    monkeypatch.setattr(Gate, "_look", watched)
    monkeypatch.setattr("tests.vadrun.test_gate_undecoded.GROUP", 25)
    snippets, _ = gated(film(tmp_path / "often.mp4", change=walker(1001, 1050)))
    assert {s.index for s in snippets if s.verdict is Verdict.ENCODE} & {62, 63, 64}
    times = [time for time, calm in looks if 20 < time < 40 and calm]
    waits = np.diff(times)
    assert waits.max() <= 2.5 and 8 <= len(times) <= 14


def ungrouped(path: Path, rule: GateRule = RULE) -> tuple[list[Snippet], Video]:
    """With every picture decoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "can_hold_back", False)
        return gated(path, rule)


def test_the_heart_beats(quiet: Path) -> None:
    snippets, video = gated(quiet, GateRule(audit=1e-9, heartbeat=4.0))
    encoded = [s.start for s in snippets if s.verdict is Verdict.ENCODE]
    assert max(np.diff([*encoded, 48.0])) <= 4.0 + 0.01
    assert video.undecoded > 300


def test_every_held_snippet_has_the_same_chance_of_an_audit(quiet: Path) -> None:
    unseen, audits = 0, 0
    for seed in range(6):
        snippets, _ = gated(quiet, GateRule(audit=0.25, heartbeat=1e6, seed=seed))
        unseen += sum(s.unseen for s in snippets)
        audits += sum(s.unseen and s.verdict is Verdict.AUDIT for s in snippets)
    assert unseen > 200 and 0.16 < audits / unseen < 0.34


def test_the_shadow_judges_alike_and_encodes_all(tmp_path: Path) -> None:
    path = film(tmp_path / "event.mp4", 900, change=walker(701, 740))
    on, _ = gated(path, GateRule(audit=0.1, heartbeat=5.0))
    shadow, _ = gated(path, GateRule(audit=0.1, heartbeat=5.0, shadow=True))
    assert [(s.verdict, s.unseen) for s in shadow] == [(s.verdict, s.unseen) for s in on]
    assert all(len(s.images) == 1 for s in shadow)
    assert [(s.verdict, s.unseen) for s in gated(path, GateRule(audit=0.1, heartbeat=5.0))[0]] == [
        (s.verdict, s.unseen) for s in on
    ]


@pytest.mark.parametrize(
    "sampling", [Sampling(pick="first"), Sampling(by="time", seconds=0.64), Sampling(by="time", seconds=0.5)]
)
def test_other_samplings(quiet: Path, sampling: Sampling) -> None:
    snippets, video = gated(quiet, sampling=sampling)
    with Video(quiet) as plain:
        expected = [(s.index, s.start, s.end) for s in plain.snippets(sampling, SMALL)]
    assert [(s.index, s.start, s.end) for s in snippets] == expected
    assert video.undecoded > 400 and sum(s.unseen for s in snippets) > 30


def test_ten_crops(quiet: Path) -> None:
    crops = [("centre", False), ("centre", True)]
    snippets, video = gated(quiet, crops=crops)
    assert video.undecoded > 400
    assert snippets[0].images.shape == (1, 2, 224, 224, 3)


def test_a_camera_that_fills_up_its_rate_is_not_trusted_blindly(tmp_path: Path) -> None:
    """Noise at a constant rate: whoever walks is found all the same."""
    path = tmp_path / "rate.mp4"
    params = f"log-level=none:keyint={GROUP}:scenecut=0:nal-hrd=cbr"
    options = {"b": "400000", "maxrate": "400000", "bufsize": "200000", "x264-params": params}
    clips.write_clip(path, 1200, size=SIZE, draw=scene(walker(1001, 1150)), options=options)
    snippets, _ = gated(path)
    assert any(s.verdict is Verdict.ENCODE for s in snippets if 1001 / 25 - 0.64 <= s.start <= 1150 / 25)


@pytest.mark.parametrize("name", ["event.mp4", "event.avi"])
def test_one_pass_tells_what_each_of_several_gates_would_do(tmp_path: Path, name: str) -> None:
    """Those that hold pictures back included, and where nothing can be held back."""
    path = film(tmp_path / name, change=walker(1001, 1050))
    rules = [GateRule(threshold, heartbeat=8.0, audit=0.1) for threshold in (0.0, 0.01, 0.2)]
    with Video(path) as video:
        found = list(video.shadows(Sampling(), SMALL, rules))
    assert all(len(snippet.images) == 1 and snippet.verdict is Verdict.ENCODE for snippet, _ in found)
    for number, rule in enumerate(rules):
        snippets, gated_video = gated(path, rule)
        assert [s.verdict for s in snippets] == [verdicts[number] for _, verdicts in found]
        assert (gated_video.undecoded > 0) == (name == "event.mp4")
    with pytest.raises(UserError, match="one image of each snippet"), Video(path) as video:
        next(video.shadows(Sampling(pick="mean"), SMALL, rules))


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Display times of what threads decode ahead of the gate."""
    found: list[int] = []
    decode = Worker.decode

    def watch(self: Worker[Any], group: Group, stop: Any) -> dict[int, Any]:
        found.extend(packet.pts for packet in group.packets if packet.pts is not None)
        return decode(self, group, stop)

    monkeypatch.setattr(Worker, "decode", watch)
    return found


def pictures(path: Path, threads: int, rule: GateRule = RULE) -> tuple[list[Any], list[Any], Video]:
    with Video(path, threads=threads) as video:
        snippets = list(video.snippets(None, SMALL, gate=rule))
    places = [(s.index, s.start, s.end, s.verdict, s.unseen) for s in snippets]
    return places, [s.images for s in snippets], video


def same_ahead(path: Path, rule: GateRule = RULE) -> Video:
    """What the gate does and sees is the same with threads that decode ahead."""
    places, images, one = pictures(path, 1, rule)
    for threads in (2, 4):
        others, seen, video = pictures(path, threads, rule)
        assert others == places
        for a, b in zip(images, seen, strict=True):
            np.testing.assert_array_equal(a, b)
        assert (video.damage, video.note, video.decoded) == (one.damage, one.note, one.decoded)
    return video


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("ending", ["mp4", "ts"])
def test_what_moves_is_decoded_ahead(tmp_path: Path, ahead: list[int], codec: str, ending: str) -> None:
    path = film(tmp_path / f"walk.{ending}", 600, walker(200, 500), codec=codec)
    video = same_ahead(path, replace(RULE, audit=0.1))
    assert len(ahead) >= 2 * 2 * GROUP  # two groups or more, for 2 and for 4 threads
    assert video.undecoded > 50


def test_what_is_quiet_is_not(quiet: Path, ahead: list[int]) -> None:
    same_ahead(quiet)
    # The first groups are looked at until the gate trusts in sizes; 24 there are.
    assert len(ahead) <= 2 * 8 * GROUP


@pytest.mark.parametrize("options", [{"g": "7"}, {"g": "1"}, {"g": "300"}, {"bf": "3", "g": "40"}])
def test_ahead_of_other_groups(tmp_path: Path, options: dict[str, str]) -> None:
    same_ahead(clips.write_clip(tmp_path / "clip.mp4", 16 * 14 + 3, options=options))


@pytest.mark.parametrize("ending", ["ts", "mkv", "mp4"])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_damage_ahead(tmp_path: Path, ending: str, share: float) -> None:
    """Images are of pictures of the damaged file or, where damage was not decoded, of the whole one.

    But for one that FFmpeg patches with what its decoder has decoded before.
    """
    whole = clips.write_clip(tmp_path / f"clip.{ending}", 16 * 14 + 3, options={"bf": "3", "g": "20"})
    path = clips.spoil(whole, share, 900)
    known = set()
    for each in (whole, path):
        with Video(each) as video:
            convert = Preprocessor(SMALL)
            known |= {convert(decoded.frame).tobytes() for decoded in video.frames()}
    _, alone, one = pictures(path, 1)
    for threads in (2, 4):
        _, images, video = pictures(path, threads)
        assert len(images) >= len(alone) and video.decoded >= one.decoded
        assert sum(image.tobytes() not in known for some in images for image in some) <= 1
        assert (video.damage is None) <= (one.damage is None)


def test_several_rules_at_once_are_decoded_ahead(tmp_path: Path, ahead: list[int]) -> None:
    path = clips.write_clip(clips.skippable(tmp_path / "clip.mp4"), 16 * 14, options={"g": "20"})
    found = []
    for threads in (1, 3):
        with Video(path, threads=threads) as video:
            found.append(
                [(s.index, v) for s, v in video.shadows(Sampling(), SMALL, [RULE, replace(RULE, threshold=0.5)])]
            )
        assert bool(ahead) == (threads == 3)
    assert found[0] == found[1]


def test_memory_ahead_is_bounded(quiet: Path) -> None:
    """Groups that nobody asks for are let go."""
    with Video(quiet, threads=2) as video:
        for snippet in video.snippets(None, SMALL, gate=RULE):
            one = video._reader._ahead
            assert one is not None
            assert len(one._entries) <= 2 + 2 + 2 and len(one._of) <= 6 * (GROUP // 16 + 3), snippet.index
            assert len(one.decoded) <= 3 * GROUP
