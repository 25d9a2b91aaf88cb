"""The synthetic world: deterministic, labelled right, unseen scenes in the test part, and readable by the runtime."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from vadclip.checkpoint import save_clip
from vadclip.clip import build_clip
from vadclip.extract import open_encoder
from vadclip.images import normalise
from vadclip.prompt import tokenizer
from vadclip.world import KINDS, LABELS, Clip, Size, make_clip, write_dataset
from vadclip.world import __main__ as command
from vadclip.world import clip as clip_command
from vadclip.world import stills as stills_command
from vadclip.world.body import Joint
from vadclip.world.clip import (
    WORLD_CLIP,
    _chances,
    _compact_vocabulary,
    _encoded_texts,
    _telling,
    _whole_vocabulary,
    caption_tokens,
    train_clip,
)
from vadclip.world.clips import SCENES
from vadclip.world.crops import cut_squares, patches_shown
from vadclip.world.dataset import SIZES
from vadclip.world.regions import PHRASES, regions
from vadclip.world.scenes import make_scene
from vadclip.world.stills import read_stills
from vadrun.errors import UserError
from vadrun.video import Video

SHORT = (6.0, 7.0)
TINY = Size(train=(1, 0), test=(1, 1), seconds=(1.0, 1.2))


def clip(label: str, number: int = 0, split: str = "train", seed: int = 3) -> Clip:
    return make_clip(seed, split, label, number, seconds=SHORT)


@pytest.mark.parametrize("label", LABELS)
def test_equal_arguments_give_equal_pictures(label: str) -> None:
    first, second = clip(label), clip(label)
    assert (first.intervals, first.captions, first.scene) == (second.intervals, second.captions, second.scene)
    for one, other in zip(islice(first.frames, 3), islice(second.frames, 3), strict=True):
        assert one.shape == (240, 320, 3) and one.dtype == np.uint8
        assert np.array_equal(one, other)


def test_frames_can_be_asked_for_again() -> None:
    one = clip("explosion")
    assert all(np.array_equal(a, b) for a, b in zip(islice(one.frames, 2), islice(one.frames, 2), strict=True))


def test_another_seed_is_another_world() -> None:
    pictures = [next(make_clip(seed, "train", "normal", kind="square", night=False).frames) for seed in (0, 1)]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("number", range(2))
def test_intervals_lie_within_the_clip(label: str, number: int) -> None:
    one = clip(label, number)
    assert len(one.intervals) == (label != "normal")
    for (first, end), (begin, stop) in zip(one.intervals, one.seconds, strict=True):
        assert 0 <= first < end <= one.frame_count
        assert (begin, stop) == (first / one.fps, end / one.fps)


@pytest.mark.parametrize("label", LABELS)
def test_captions_name_what_is_going_on(label: str) -> None:
    one = clip(label, 1)
    for frame, caption in one.captions:
        during = any(first <= frame < end for first, end in one.intervals)
        named = [name for name in LABELS if name in caption]
        assert named == [label if during else "normal"], caption
        assert ("night" in caption) == one.night
        assert one.kind in caption


def test_pictures_of_an_event_differ_from_those_before_it() -> None:
    """An explosion's first frames are brighter than all before: the interval begins where it is drawn."""
    one = clip("explosion", 2)
    (first, _), pictures = one.intervals[0], list(one.frames)
    assert len(pictures) == one.frame_count
    before = np.array([picture.mean() for picture in pictures[:first]])
    assert np.mean([picture.mean() for picture in pictures[first : first + 4]]) > before.mean() + 10
    assert pictures[first].mean() > before.max() + 5


@pytest.mark.parametrize("label", ["fighting", "riot"])
def test_people_move_more_during_an_event(label: str) -> None:
    """The fastest hand in view is faster within the interval than before it."""
    within, before = [], []
    for number in range(16):
        one = make_clip(5, "train", label, number, seconds=(12.0, 14.0))
        first, end = one.intervals[0]
        fastest = np.zeros(one.frame_count - 1)
        for person in one.stage.people:
            hands = person.pixels[:, [Joint.HAND_L, Joint.HAND_R]] - person.pixels[:, [Joint.NECK]]
            speed = np.abs(np.diff(hands, axis=0)).max((1, 2)) / person.size[1:]
            fastest = np.maximum(fastest, speed * one.stage.in_view(person)[1:])
        within.append(fastest[first : end - 1].mean())
        before.append(fastest[: max(first - 1, 1)].mean())
    assert np.mean(within) > 1.4 * np.mean(before)


@pytest.mark.parametrize("number", range(4))
def test_accidents_are_in_view(number: int) -> None:
    one = make_clip(0, "test", "accident", number)
    first, end = one.intervals[0]
    cars = np.any([one.stage.in_view(car) for car in one.stage.vehicles], axis=0)
    assert cars[first:end].mean() > 0.9


def test_an_accident_leaves_something_behind() -> None:
    """The scene after an impact is not the scene before it."""
    one = clip("accident", 1)
    first, end = one.intervals[0]
    pictures = list(one.frames)
    quiet = np.median(np.stack(pictures[: max(first - 15, 3)]), axis=0)
    after = np.median(np.stack(pictures[min(first + 45, end - 10) : end]), axis=0)
    changed = (np.abs(after - quiet).max(-1) > 25).mean()
    assert changed > 0.01


def test_riots_are_crowds() -> None:
    one = clip("riot")
    first, end = one.intervals[0]
    people = sum(one.stage.in_view(person).astype(int) for person in one.stage.people)
    assert np.median(people[first:end]) >= 5


@pytest.mark.parametrize(
    ("label", "phrase"), [("fighting", "fighting"), ("riot", "rioting"), ("explosion", "flames"), ("accident", "car")]
)
def test_regions_tell_where_the_event_is(label: str, phrase: str) -> None:
    """They are told within the interval, most of the time, and not before it."""
    one = make_clip(0, "train", label, 3, seconds=SHORT)
    first, end = one.intervals[0]
    told = [[r for r in regions(one.stage, f) if phrase in PHRASES[r.phrase]] for f in range(one.frame_count)]
    assert np.mean([bool(found) for found in told[first + 10 : end]]) > 0.9
    if label != "riot":  # its first people come before it is one
        assert not any(told[:first])
    for region in told[(first + end) // 2]:
        left, top, right, bottom = region.box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def test_regions_are_where_people_are_drawn() -> None:
    """Without the people the picture differs inside every region, and hardly outside them."""
    one = make_clip(1, "train", "normal", 7, seconds=SHORT, kind="square", night=False)
    found = regions(one.stage, 90)
    (shown,) = one.pictures([90])
    one.stage.people.clear()
    (empty,) = one.pictures([90])
    changed = np.abs(shown.astype(int) - empty).max(-1) > 40
    inside = np.zeros_like(changed)
    for region in found:
        left, top, right, bottom = (round(share * side) for share, side in zip(region.box, (320, 240) * 2, strict=True))
        assert changed[top:bottom, left:right].mean() > 0.2
        inside[top:bottom, left:right] = True
    assert len(found) == 3 and changed[inside].sum() > 0.8 * changed.sum()  # the rest are shadows


def test_patches_that_show_a_region() -> None:
    """Of 4 x 4 patches of 16 pixels: those whose middle is in the box or near it, and only for its phrase."""
    sizes = replace(WORLD_CLIP, image_size=64, patch=16)
    shown = patches_shown(np.array([[2.0, 30.0, 10.0, 40.0, 50.0]]), np.array([2.0, 10.0]), sizes, 64.0)
    expected = np.zeros((4, 4))
    expected[0:3, 1] = 1  # columns: 30 to 40 less 10 are 20 to 30; rows: 10 to 50 less 2 are 8 to 48
    assert np.array_equal(shown[..., 2], expected) and shown.sum() == expected.sum()


def test_dark_scenes_are_made_brighter() -> None:
    """A camera's gain brings a dark picture nearer to its level, and leaves a bright one alone."""
    night, day = (make_clip(0, "test", "normal", 0, kind="road", night=dark) for dark in (True, False))
    for one, brighter in ((night, True), (day, False)):
        scene = np.asarray(one.stage.scene.background(one.stage.light)).mean()
        seen = next(one.frames).mean()
        assert (seen > 1.2 * scene) == brighter


def test_test_scenes_are_not_those_of_training() -> None:
    scenes = {"train": max(SCENES["train"], *(size.scenes for size in SIZES.values())), "test": SCENES["test"]}
    cameras = {
        split: {make_scene(split, kind, number, 0).camera for kind in KINDS for number in range(count)}
        for split, count in scenes.items()
    }
    assert not cameras["train"] & cameras["test"]
    assert len(cameras["train"]) == len(KINDS) * scenes["train"]
    names = {split: {clip(label, n, split).scene for label in LABELS[:2] for n in range(3)} for split in SCENES}
    assert not names["train"] & names["test"]
    assert all(name.startswith(split) for split, found in names.items() for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_day_and_night_look_different(kind: str) -> None:
    scene, rng = make_scene("test", kind, 0, 0), np.random.default_rng(0)
    day, night = (
        np.mean([np.asarray(scene.background(scene.lighting(rng, dark))).mean() for _ in range(4)])
        for dark in (False, True)
    )
    assert night < 0.75 * day


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "flood"), "unknown label 'flood'"),
        (("validation", "normal"), "unknown split 'validation'"),
        (("train", "accident", 0, "shop"), "no accidents in a shop"),
        (("train", "normal", 0, "beach"), "unknown scene 'beach'"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: tuple[str, str, int, str], said: str) -> None:
    kind = arguments[3] if len(arguments) > 3 else None
    with pytest.raises(UserError, match=said):
        make_clip(0, *arguments[:2], kind=kind)


def test_a_dataset_is_whole_and_readable(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "world", TINY, seed=1, jobs=1)
    rows = {}
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(encoding="utf-8") as stream:
            rows[split] = list(csv.DictReader(stream))
        assert all(row["label"] in LABELS and (folder / row["path"]).exists() for row in rows[split])
    assert (len(rows["train"]), len(rows["test"])) == (1, 5)
    truth = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))["videos"]
    assert sorted(Path(row["path"]).stem for row in rows["test"]) == sorted(truth)
    for name, record in truth.items():
        with Video(folder / record["path"], threads=1) as video:
            times = [time for _, time, _ in video.frames()]
            assert video.damage is None, name
        assert (video.info.codec, video.info.rate, len(times)) == ("h264", record["fps"], record["frames"])
        for interval in record["intervals"]:
            first, end = interval["frames"]
            assert interval["seconds"] == pytest.approx([times[first], end / record["fps"]], abs=1e-3)
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["video"] for line in lines} == {row["path"] for part in rows.values() for row in part}
    assert all(line["label"] in line["caption"] for line in lines)


def test_a_dataset_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    size = Size(train=(2, 0), test=(0, 0), seconds=(0.5, 0.6))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, size, jobs=1, progress=stop)
    (made,) = (tmp_path / "videos").iterdir()
    assert not (tmp_path / "train.csv").exists()
    stamp, content = made.stat().st_mtime_ns, made.read_bytes()
    write_dataset(tmp_path, size, jobs=2)
    assert made.stat().st_mtime_ns == stamp and len(list((tmp_path / "videos").iterdir())) == 2
    made.unlink()
    write_dataset(tmp_path, size, jobs=1)
    assert made.read_bytes() == content, "the same encoder gives the same bytes"
    with pytest.raises(UserError, match="another size or seed"):
        write_dataset(tmp_path, size, seed=9)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "mine.mp4").write_bytes(b"x")
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "holds videos already" in capsys.readouterr().err
    assert command.main(["--out", str(tmp_path), "--seed", "-1"]) == 2


def test_a_clip_learns_the_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps of a tiny model, from nothing to a file that features are made with."""
    assert stills_command.main(["--out", str(tmp_path), "--count", "46", "--jobs", "1"]) == 0
    stills = read_stills(tmp_path)
    assert stills.pictures.shape == (48, 146, 194, 3) and 0.2 < stills.event.mean() < 0.8
    assert all(label in caption for caption, label in zip(stills.captions, stills.labels, strict=True))
    assert list(stills.event) == [label != "normal" for label in stills.labels]
    scenes = stills.pictures.reshape(12, 4, -1).astype(np.float32)
    assert np.abs(scenes[0, 0] - scenes[0, 1]).mean() < np.abs(scenes[0, 0] - scenes[1, 0]).mean()

    sizes = replace(WORLD_CLIP, image_size=32, patch=16, vision_width=64, vision_heads=1, text_width=64, text_heads=1)
    lines: list[str] = []
    clip = train_clip(stills, sizes, 16, epochs=6, batch=16, say=lines.append)
    losses = [float(line.split()[3]) for line in lines]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    assert not clip.visual.output_tokens, "the model encodes pictures as any CLIP does"
    with torch.no_grad():
        features = clip.encode_image(normalise(stills.pictures[:, 57:89, 81:113]))
    assert features.norm(dim=1).mean() == pytest.approx(10, rel=0.1)

    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("epoch 5"):
            raise Stopped

    state = tmp_path / "state"
    with pytest.raises(Stopped):
        train_clip(stills, sizes, 16, epochs=6, batch=16, state=state, say=stop)
    again = train_clip(stills, sizes, 16, epochs=6, batch=16, state=state, say=lines.append)
    assert lines[6] == "going on after epoch 4/6" and lines[-1] == lines[5]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in clip.state_dict().items())
    with pytest.raises(UserError, match="of a training on other pictures or with other options"):
        train_clip(stills, sizes, 16, epochs=7, batch=16, state=state)
    with pytest.raises(UserError, match="of a training on other pictures or with other options"):
        train_clip(replace(stills, captions=stills.captions[::-1]), sizes, 16, epochs=6, batch=16, state=state)
    state.write_bytes(b"PK")
    with pytest.raises(UserError, match="is damaged"):
        train_clip(stills, sizes, 16, epochs=6, batch=16, state=state)
    words = clip.token_embedding.weight
    assert not words[tokenizer().encode("zebra")].any() and words[tokenizer().encode("normal")].any()
    save_clip(clip, tmp_path / "clip.safetensors")
    assert open_encoder(str(tmp_path / "clip.safetensors")).size == 32


def test_what_a_clip_cannot_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clip_command.main(["--stills", str(tmp_path), "--out", str(tmp_path / "c.safetensors")]) == 2
    assert "python -m vadclip.world.stills makes them" in capsys.readouterr().err
    assert clip_command.main(["--stills", str(tmp_path), "--out", str(tmp_path / "no" / "c")]) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="has 6 tokens, more than CLIP's 5"):
        caption_tokens(["a riot at night"], 5)


def test_enlarged_crops_show_what_their_corner_and_side_say() -> None:
    """A picture whose grey level is its column: a crop of half its side, enlarged, has levels in between."""
    whole = np.repeat(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, 48, axis=1).repeat(3, axis=3)
    corners, same = np.array([[8.0, 16.0]]), np.array([False])
    plain = cut_squares(whole, corners, np.array([32.0]), same, 32)
    assert np.array_equal(plain, whole[:, 8:40, 16:48])
    large = cut_squares(whole, corners, np.array([16.0]), same, 32)
    assert large.shape == (1, 32, 32, 3)
    expected = (16.0 + (np.arange(32) + 0.5) / 2 - 0.5) * 4
    assert np.abs(large[0, 5, 1:-1, 0] - expected[1:-1]).max() <= 1
    assert np.array_equal(cut_squares(whole, corners, np.array([16.0]), ~same, 32), large[:, :, ::-1])


def test_patches_that_show_something_are_kept_before_others() -> None:
    shown = torch.zeros(2, 16, 3)
    shown[0, [3, 7], 1] = 1
    shown[1, 2:, 0] = 1
    chosen = _telling(shown, 8, np.random.default_rng(0))
    assert chosen.shape == (2, 8) and {3, 7} <= set(chosen[0].tolist()) and chosen[1].min() >= 2
    assert all(len(set(row.tolist())) == 8 and row.tolist() == sorted(row.tolist()) for row in chosen)
    assert torch.equal(_telling(shown, 16, np.random.default_rng(0))[0], torch.arange(16))


def test_texts_without_their_padding_are_what_clip_makes_of_them() -> None:
    model = build_clip(16, replace(WORLD_CLIP, image_size=32, text_width=64, text_heads=1)).eval()
    tokens = caption_tokens(["a riot at night", "people fighting on a square by day"], WORLD_CLIP.context)
    with torch.no_grad():
        assert torch.allclose(_encoded_texts(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-6)


def test_the_hardest_class_is_drawn_twice_as_often() -> None:
    """However many pictures each class has."""
    labels = np.repeat([1, 2, 3, 4], [10, 20, 30, 40])
    chances = np.bincount(labels, weights=_chances(labels))[1:]
    expected = np.where(np.array(LABELS[1:]) == "fighting", 0.4, 0.2)
    assert chances == pytest.approx(expected)


def test_words_that_no_caption_has_know_nothing() -> None:
    """Training with the rows of the words that occur gives a whole table, its other rows zero."""
    clip = build_clip(WORLD_CLIP.text_width, WORLD_CLIP)
    before = clip.token_embedding.weight.detach().clone()
    tokens = caption_tokens(["a street at night", "two people fight"], WORLD_CLIP.context)
    seen = _compact_vocabulary(clip, tokens)
    assert len(clip.token_embedding.weight) == len(seen) < 12
    answers = clip.encode_text(torch.searchsorted(seen, tokens))
    _whole_vocabulary(clip, seen)
    assert clip.token_embedding.weight.shape == before.shape
    assert torch.equal(clip.encode_text(tokens), answers)
    others = torch.ones(len(before), dtype=torch.bool)
    others[seen] = False
    assert not clip.token_embedding.weight[others].any()
    assert torch.equal(clip.token_embedding.weight[seen], before[seen])


def test_a_size_says_how_many_scenes_there_are_to_train_on(tmp_path: Path) -> None:
    """The test part has the same clips however many scenes the training part has."""
    found = {}
    for scenes in (1, 40):
        write_dataset(tmp_path / str(scenes), replace(TINY, train=(4, 0), scenes=scenes), seed=3, jobs=1)
        videos = tmp_path / str(scenes) / "videos"
        found[scenes] = {path.name: path.read_bytes() for path in videos.iterdir()}
    assert found[1].keys() == found[40].keys()
    changed = {name for name in found[1] if found[1][name] != found[40][name]}
    assert changed and all("train" in name for name in changed)
