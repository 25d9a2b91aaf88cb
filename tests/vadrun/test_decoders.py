"""Hardware decoders, without any: what the reader does with one that works, one that does not, one that gives up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec import CodecContext

from tests.clips import mark_matrix, number_of, numbered, spoil, write_clip
from vadrun import Calibration, Engine, EventRule, UserError, Video, decoders, run_video
from vadrun.cli import main
from vadrun.decoders import CudaDecoder, DecoderError, DecoderFailed, GstreamerDecoder
from vadrun.events import Event
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling
from vadrun.video import Snippet


class BareDecoder(CudaDecoder):
    """FFmpeg on the CPU, with pictures as bare as PyAV hands over a GPU's: NV12 and a time, no more."""

    name = "cuda"
    fails_at: int | None = None  # the picture before which it gives up
    spoils: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def _opened(self, stream: Any) -> Any:
        context: Any = CodecContext.create(stream.codec_context.codec.canonical_name, "r")
        context.extradata = stream.codec_context.extradata
        owner = self

        class Bare:
            given = 0

            def decode(self, packet: Any) -> list[av.VideoFrame]:
                return [self.stripped(frame) for frame in context.decode(packet)]

            def stripped(self, frame: av.VideoFrame) -> av.VideoFrame:
                if self.given == owner.fails_at:
                    raise av.error.InvalidDataError(1, "the device is lost")
                self.given += 1
                height, width = frame.height, frame.width
                planes = frame.to_ndarray()  # yuv420p: [height * 3/2, width]
                pixels = np.empty_like(planes)
                pixels[:height] = planes[:height]
                u, v = planes[height:].reshape(2, -1)
                pixels[height:] = np.stack([u, v], axis=1).reshape(height // 2, width)
                if owner.spoils is not None:
                    pixels = type(owner).__dict__["spoils"](pixels)
                bare = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "nv12")
                bare.pts = frame.pts
                return bare

        return Bare()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> type[BareDecoder]:
    """The only hardware decoder that there is."""

    class Mine(BareDecoder):
        pass

    monkeypatch.setattr(decoders, "_HARDWARE", (Mine,))
    return Mine


def read(path: Path, decoder: str = "auto", sampling: Sampling | None = None) -> tuple[Video, list[Snippet]]:
    with Video(path, decoder=decoder) as video:
        return video, list(video.snippets(sampling, Preprocessing.for_size(64)))


def same(path: Path, sampling: Sampling | None = None) -> Video:
    """The video as hardware reads it, which is as software does."""
    video, found = read(path, sampling=sampling)
    _, expected = read(path, "software", sampling)
    assert [(s.index, s.short) for s in found] == [(s.index, s.short) for s in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.start, ours.end) == (theirs.start, theirs.end)
        difference = np.abs(ours.images.astype(int) - theirs.images)
        # PyAV does not keep where chroma samples lie, so colours' edges may move by a quarter of a pixel.
        assert difference.mean() < 0.6 and np.median(difference) == 0
    return video


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codec": "libx265"},
        {"options": {"bf": "3", "g": "12"}},
        {"times": [0.0, 0.03, 0.11, *(0.2 + 0.05 * i for i in range(40))], "frames": 43},
        {"size": (1280, 720)},  # BT.709 by its size
    ],
    ids=["h264", "hevc", "b-frames", "variable-rate", "720p"],
)
@pytest.mark.usefixtures("bare")
def test_snippets_are_those_of_software(tmp_path: Path, options: dict[str, Any]) -> None:
    video = same(write_clip(tmp_path / "clip.mp4", **{"frames": 40, **options}))
    assert (video.info.decoder, video.info.decoder_why) == ("cuda", None)
    assert video.damage is None


@pytest.mark.parametrize(("space", "full"), [(1, 1), (5, 1), (1, 2), (5, 2)])
@pytest.mark.usefixtures("bare")
def test_colour_tags_are_kept(tmp_path: Path, space: int, full: int) -> None:
    def tagged(stream: Any) -> None:
        stream.codec_context.colorspace, stream.codec_context.color_range = space, full

    def coloured(number: int, width: int, height: int) -> np.ndarray:
        image = np.zeros((height, width, 3), np.uint8)
        image[:, : width // 2], image[:, width // 2 :] = (200, 40, 20), (30, 60, 220)
        return image

    same(write_clip(tmp_path / "clip.mp4", draw=coloured, prepare=tagged))


@pytest.mark.usefixtures("bare")
def test_by_time_too(tmp_path: Path) -> None:
    same(write_clip(tmp_path / "clip.mkv", 60), Sampling(by="time", seconds=0.5))
    same(write_clip(tmp_path / "short.mp4", 7))


@pytest.mark.usefixtures("bare")
def test_what_bare_pictures_do_not_tell_is_left_to_software(tmp_path: Path) -> None:
    for path in (
        write_clip(tmp_path / "turned.mp4", rotation=90),
        mark_matrix(write_clip(tmp_path / "mirrored.mp4"), -1, 0, 0, 1),
        mark_matrix(write_clip(tmp_path / "flipped.mp4"), 1, 0, 0, -1),
        write_clip(tmp_path / "clip.avi", codec="mpeg4"),
    ):
        video = same(path)
        assert video.info.decoder == "software"
        assert "cuda does not keep the" in str(video.info.decoder_why)
        with pytest.raises(UserError, match=r"cannot be decoded as asked: cuda does not keep .*--decoder auto"):
            Video(path, decoder="cuda")


def test_a_decoder_with_wrong_pictures_is_not_taken(tmp_path: Path, bare: type[BareDecoder]) -> None:
    bare.spoils = staticmethod(lambda pixels: 255 - pixels)
    video = same(write_clip(tmp_path / "clip.mp4"))
    assert video.info.decoder_why == "cuda gives another picture than software"


def test_a_decoder_that_does_not_start_is_not_taken(tmp_path: Path, bare: type[BareDecoder]) -> None:
    bare.fails_at = 0
    path = write_clip(tmp_path / "clip.mp4")
    video = same(path)
    assert video.info.decoder == "software"
    assert "cannot decode a packet" in str(video.info.decoder_why)


def test_one_that_gives_up_later_stops_the_reader(tmp_path: Path, bare: type[BareDecoder]) -> None:
    bare.fails_at = 20
    with pytest.raises(DecoderFailed, match=r"clip\.mp4: the cuda decoder cannot decode a packet .* at 0\.8 s: decode"):
        read(write_clip(tmp_path / "clip.mp4"))


@pytest.mark.usefixtures("bare")
def test_damage_is_left_to_software(tmp_path: Path) -> None:
    path = spoil(write_clip(tmp_path / "clip.ts", 200, options={"g": "10"}), 0.5, 800)
    assert read(path, "software")[0].damage is not None
    with pytest.raises(DecoderFailed, match=r"(meets damage|cannot decode a packet)"):
        read(path)


def test_the_command_begins_again_in_software(
    tmp_path: Path, bundles: dict[str, Path], bare: type[BareDecoder], capsys: pytest.CaptureFixture[str]
) -> None:
    bare.fails_at = 40
    clip = write_clip(tmp_path / "clip.mp4", 64)
    arguments = [str(clip), "--engine", str(bundles["ucf"]), "--backend", "onnxruntime:cpu", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "decode this file in software, which has been done" in printed.err
    (result,) = json.loads(printed.out)["videos"]
    assert (result["video"]["decoder"], result["snippets"]) == ("software", 4)
    assert len((tmp_path / "out" / "clip" / "scores.csv").read_text().splitlines()) == 5
    assert main([*arguments, "--decoder", "cuda"]) == 2
    capsys.readouterr()
    bare.fails_at = None
    assert main(arguments) == 0
    (result,) = json.loads(capsys.readouterr().out)["videos"]
    assert (result["video"]["decoder"], result["snippets"]) == ("cuda", 4)


@pytest.mark.parametrize("classes", [False, True])
def test_the_library_goes_on_in_software(
    tmp_path: Path,
    bundles: dict[str, Path],
    bare: type[BareDecoder],
    monkeypatch: pytest.MonkeyPatch,
    classes: bool,
) -> None:
    """With chunks of 4, two have been given when hardware gives up; a sink takes every row and event once."""
    clip = write_clip(tmp_path / "clip.mp4", 16 * 16, draw=lambda n, w, h: numbered(n // 48 * 37, w, h))
    with Engine.load(bundles["xd"], "onnxruntime:cpu", batch=2) as engine:
        bundle, head = engine.bundle, engine.backend.head

        def short(features: Any, lengths: Any, text: Any) -> Any:
            padded = np.zeros((len(features), bundle.model.positions, features.shape[2]), np.float32)
            padded[:, : features.shape[1]] = features
            logits, alignment = head(padded, lengths, text)
            return logits[:, :4], alignment[:, :4]

        monkeypatch.setattr(engine.backend, "head", short)
        monkeypatch.setattr(engine, "bundle", replace(bundle, model=replace(bundle.model, positions=4)))
        rows: list[Any] = []

        class Keep:
            def snippet(self, index: int, *rest: Any) -> None:
                rows.append(index)

            def event(self, event: Event) -> None:
                rows.append(event.to_json())

        rule: EventRule | Calibration = EventRule(threshold=0.05, min_length=0, merge_gap=0)
        if classes:
            value = {
                "schema": 1,
                "kind": "vadclip-edge calibration",
                "camera": None,
                "bundle": bundle.sha256,
                "labels": list(bundle.model.labels),
                "sampling": bundle.sampling.to_manifest(),
                "classes": {label: rule.to_json() for label in bundle.model.labels[1:]},
                "probabilities": None,
            }
            (tmp_path / "c.json").write_text(json.dumps(value))
            rule = Calibration.read(tmp_path / "c.json")
        run_video(engine, clip, rule, Keep())
        expected = rows.copy()
        rows.clear()
        bare.fails_at = 13 * 16
        result = run_video(engine, clip, rule, Keep(), decoder="auto")
        assert result.snippets == 16 and result.info.decoder == "software"
        assert "decode this file in software" in str(result.info.decoder_why)
        assert [row for row in rows if isinstance(row, int)] == list(range(16))
        found, wanted = ([row for row in some if isinstance(row, dict)] for some in (rows, expected))
        assert len(wanted) > 0 and [e["snippets"] for e in found] == [e["snippets"] for e in wanted]
        assert [e["label"] for e in found] == [e["label"] for e in wanted]
        with pytest.raises(DecoderFailed):
            run_video(engine, clip, rule, decoder="cuda")


def test_unknown_decoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no decoder 'nvdec': take one of auto, software, cuda, gstreamer"):
        Video(write_clip(tmp_path / "clip.mp4"), decoder="nvdec")


def test_without_hardware_software_reads_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (CudaDecoder, GstreamerDecoder):
        monkeypatch.setattr(kind, "unavailable", classmethod(lambda cls: "is not here"))
    video = same(write_clip(tmp_path / "clip.mp4"))
    assert video.info.decoder_why == "cuda is not here; gstreamer is not here"
    with pytest.raises(UserError, match="gstreamer is not here"):
        Video(write_clip(tmp_path / "other.mp4"), decoder="gstreamer")


@pytest.mark.skipif(CudaDecoder.unavailable() is None, reason="a GPU is here")
def test_cuda_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    with av.open(str(write_clip(tmp_path / "clip.mp4"))) as container:
        stream = container.streams.video[0]
        first = next(container.decode(stream))
        with pytest.raises(DecoderError, match="does not start"):
            CudaDecoder(stream, first)


class AvdecDecoder(GstreamerDecoder):
    """The same pipeline on GStreamer's software decoder."""

    elements = "decodebin ! videoconvert"
    _needed = "avdec_h264"


@pytest.fixture
def avdec(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reason = AvdecDecoder.unavailable()
    if reason is not None:
        pytest.skip(f"GStreamer {reason}")
    monkeypatch.setattr(decoders, "_HARDWARE", (AvdecDecoder,))
    yield


@pytest.mark.parametrize(
    "options",
    [{}, {"codec": "libx265"}, {"options": {"bf": "3", "g": "12"}}, {"size": (322, 242)}, {"frames": 200}],
    ids=["h264", "hevc", "b-frames", "odd-size", "long"],
)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
@pytest.mark.usefixtures("avdec")
def test_gstreamer_gives_the_same_snippets(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    video = same(write_clip(tmp_path / name, **{"frames": 40, **options}))
    assert (video.info.decoder, video.info.decoder_why) == ("gstreamer", None)


@pytest.mark.usefixtures("avdec")
def test_gstreamer_says_what_it_cannot(tmp_path: Path) -> None:
    video = same(write_clip(tmp_path / "clip.webm", codec="libvpx-vp9"))
    assert video.info.decoder_why == "gstreamer has nothing for vp9"
    video = same(write_clip(tmp_path / "clip.h264"))
    assert "gstreamer needs packets with display times" in str(video.info.decoder_why)


@pytest.mark.usefixtures("avdec")
def test_a_broken_pipeline_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AvdecDecoder, "elements", "no-such-element")
    assert "does not start" in str(same(write_clip(tmp_path / "clip.mp4")).info.decoder_why)


def test_numbers_survive(tmp_path: Path, bare: Sequence[Any]) -> None:
    _, snippets = read(write_clip(tmp_path / "clip.mp4", 48))
    assert [number_of(snippet.images[0]) for snippet in snippets] == [8, 24, 40]
