from __future__ import annotations

import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import (
    Image,
    add_cover,
    cut,
    mark_matrix,
    number_of,
    numbered,
    set_clock,
    spoil,
    write_clip,
    write_sound,
)
from vadrun import reader as module
from vadrun.errors import UserError
from vadrun.gate import GateRule, LumaGrid
from vadrun.preprocessing import Preprocessing, Preprocessor
from vadrun.sampling import Sampling
from vadrun.video import Snippet, Video

SMALL = Preprocessing.for_size(64)
INDEX_FIRST = {"movflags": "faststart"}
EACH = Sampling(frames=1, pick="first")  # every frame a snippet of its own
AV1 = next((name for name in ("libsvtav1", "libaom-av1") if name in av.codecs_available), None)


def read_snippets(path: Path, sampling: Sampling, preprocessing: Preprocessing | None = None) -> Iterator[Snippet]:
    with Video(path) as video:
        yield from video.snippets(sampling, preprocessing)


CLIPS = [
    ("h264.mp4", "libx264"),
    ("h264.mkv", "libx264"),
    ("h264.ts", "libx264"),
    ("h264.flv", "libx264"),
    ("h264.avi", "libx264"),
    ("bare.h264", "libx264"),
    ("hevc.mp4", "libx265"),
    ("hevc.mkv", "libx265"),
    ("vp9.webm", "libvpx-vp9"),
    pytest.param("av1.mkv", AV1, marks=pytest.mark.skipif(AV1 is None, reason="no AV1 encoder")),
    ("mpeg4.avi", "mpeg4"),
    ("msmpeg4v2.avi", "msmpeg4v2"),
    ("msmpeg4v3.avi", "msmpeg4"),
    ("mpeg2.mpg", "mpeg2video"),
]


def numbers(path: Path, **arguments: Any) -> list[int]:
    """The number on every frame."""
    with Video(path, **arguments) as video:
        return [number_of(snippet.images[0]) for snippet in video.snippets(EACH, SMALL)]


def damage(path: Path) -> str | None:
    with Video(path) as video:
        for _ in video.frames():
            pass
        return video.damage


# -- what is read


@pytest.mark.parametrize(("name", "codec"), CLIPS)
def test_every_codec_gives_all_frames_in_order_and_no_damage(tmp_path: Path, name: str, codec: str) -> None:
    path = write_clip(tmp_path / name, 40, codec=codec)
    with Video(path) as video:
        snippets = list(video.snippets(EACH, SMALL))
        assert [number_of(snippet.images[0]) for snippet in snippets] == list(range(40))
        assert [snippet.start for snippet in snippets] == pytest.approx([index / 25 for index in range(40)], abs=1e-3)
        assert video.damage is None
        assert video.note is None
        assert video.decoded == 40
        assert video.info.codec == name.split(".")[0] or not name.startswith(("h264", "hevc", "vp9", "av1"))


@pytest.mark.parametrize(("name", "codec"), [("b.mp4", "libx264"), ("b.avi", "libx264"), ("b.avi", "mpeg4")])
def test_b_frames_keep_their_order_and_times(tmp_path: Path, name: str, codec: str) -> None:
    path = write_clip(tmp_path / name, 33, codec=codec, options={"bf": "2", "g": "12"})
    with Video(path) as video:
        times = [time for _, time, _ in video.frames()]
    assert times == pytest.approx([index / 25 for index in range(33)], abs=1e-6)
    assert numbers(path) == list(range(33))


@pytest.mark.parametrize(
    ("pick", "expected"),
    [("first", [[0], [16], [32]]), ("middle", [[8], [24], [40]]), ("mean", [[*range(k, k + 16)] for k in (0, 16, 32)])],
)
def test_the_sampled_frames_are_exactly_the_right_ones(tmp_path: Path, pick: Any, expected: list[list[int]]) -> None:
    path = write_clip(tmp_path / "clip.mp4", 55)
    sampling = Sampling(pick=pick)
    snippets = list(read_snippets(path, sampling, SMALL))
    assert [[number_of(image) for image in snippet.images] for snippet in snippets] == expected
    for index, snippet in enumerate(snippets):
        assert snippet.images.shape == (sampling.images_per_snippet, 64, 64, 3)
        assert snippet.images.dtype == np.uint8
        assert (snippet.index, snippet.short) == (index, False)
        assert (snippet.start, snippet.end) == pytest.approx((index * 0.64, (index + 1) * 0.64))


def test_by_time_frames_follow_the_clock(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mp4", 30, rate=10)
    snippets = list(read_snippets(path, Sampling(by="time", seconds=0.5), SMALL))
    assert [number_of(snippet.images[0]) for snippet in snippets] == [2, 7, 12, 17, 22, 27]
    assert [snippet.start for snippet in snippets] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])


def test_only_sampled_frames_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", 50)
    convert, converted = Preprocessor.__call__, []

    def count(self: Preprocessor, frame: av.VideoFrame) -> Image:
        converted.append(frame.pts)
        return convert(self, frame)

    monkeypatch.setattr(Preprocessor, "__call__", count)
    assert len(list(read_snippets(path, Sampling(), SMALL))) == 3
    assert len(converted) == 3
    converted.clear()
    assert len(list(read_snippets(path, Sampling(pick="mean"), SMALL))) == 3
    assert len(converted) == len(set(converted)) == 50


def test_variable_rates_have_the_streams_own_times(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.08, 0.5, 0.9, 1.0, 1.3, 1.31, 2.0, 2.04]
    for name in ("vfr.mp4", "vfr.mkv"):
        path = write_clip(tmp_path / name, 10, times=times)
        with Video(path) as video:
            assert [time for _, time, _ in video.frames()] == pytest.approx(times, abs=1e-3)
            assert video.damage is None
        snippets = list(read_snippets(path, Sampling(frames=4, pick="first"), SMALL))
        assert [(s.start, s.end) for s in snippets] == [pytest.approx((0.0, 0.9)), pytest.approx((0.9, 2.0))]


def test_times_count_from_the_first_frame_and_the_absolute_start_is_kept(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "late.mkv", 10, times=[5.0 + index / 25 for index in range(10)])
    with Video(path) as video:
        assert video.info.start == pytest.approx(5.0)
        assert next(iter(video)).time == 0.0


def test_streams_without_timestamps_get_the_nominal_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "bare.h264", 20)
    with Video(path) as video:
        assert next(iter(video)).frame.pts is None
        assert video.info.duration is None
    snippets = list(read_snippets(path, Sampling(frames=10), SMALL))
    assert [s.start for s in snippets] == pytest.approx([0.0, 10 / 25])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_videos_stand_upright(tmp_path: Path, degrees: int) -> None:
    path = write_clip(tmp_path / "turned.mp4", 17, size=(200, 150), rotation=degrees)
    with Video(path) as video:
        assert video.info.rotation == degrees
        assert (video.info.width, video.info.height) == ((200, 150) if degrees == 180 else (150, 200))
        (snippet,) = video.snippets(Sampling(), SMALL)
    (upright,) = read_snippets(write_clip(tmp_path / "upright.mp4", 17, size=(200, 150)), Sampling(), SMALL)
    assert number_of(snippet.images[0]) == 8
    assert np.abs(snippet.images.astype(int) - upright.images).mean() < 3


def grown(path: Path, first: int) -> Path:
    """An MJPEG clip whose pictures claim 6400x6400 from the one with number ``first`` on (SOF0; ITU-T T.81, B.2.2)."""
    clip = write_clip(path, 20, codec="mjpeg", pixel_format="yuvj420p", size=(320, 300))
    data = bytearray(clip.read_bytes())
    at = -1
    for number in range(20):
        at = data.index(b"\xff\xc0\x00\x11", at + 1)
        if number >= first:
            data[at + 5 : at + 9] = (6400).to_bytes(2, "big") * 2
    if first == 0:  # Matroska's PixelWidth and PixelHeight claim it, too
        sizes = b"\xb0\x82" + (320).to_bytes(2, "big") + b"\xba\x82" + (300).to_bytes(2, "big")
        assert sizes in data
        data = data.replace(sizes, b"\xb0\x82\x19\x00\xba\x82\x19\x00")
    path.write_bytes(data)
    return path


def test_a_huge_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has a picture of 6400x6400, and more than 40 million pixels are not decoded"):
        Video(grown(tmp_path / "huge.mkv", 0))


def test_a_picture_that_becomes_huge_is_damage(tmp_path: Path) -> None:
    with Video(grown(tmp_path / "grows.avi", 10)) as video:
        sizes = {frame.width for frame, _, _ in video.frames()}
        assert sizes == {320}
        assert "10 packets could not be decoded" in str(video.damage)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("order", [(6, 1), (1, 6)])
def test_a_colour_description_that_changes_within_a_file_is_followed(
    tmp_path: Path, order: tuple[int, int], gated: bool
) -> None:
    """Another camera, or another mode, after the first: its parameter sets name another matrix."""

    def colour(number: int, width: int, height: int) -> Image:
        return np.full((height, width, 3), (180, 60, 90), np.uint8)

    def part(matrix: int) -> bytes:
        def tagged(stream: Any) -> None:
            stream.codec_context.colorspace = matrix

        return write_clip(tmp_path / f"{matrix}.h264", 32, draw=colour, prepare=tagged).read_bytes()

    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(map(part, order)))
    # Made YUV by BT.601, so what names BT.709 comes out as other colours.
    expected = {}
    for matrix in order:
        with Video(tmp_path / f"{matrix}.h264") as video:
            expected[matrix] = next(video.snippets(Sampling(), SMALL)).images[0].mean(axis=(0, 1))
    assert np.abs(expected[6] - (180, 60, 90)).max() <= 3
    assert np.abs(expected[1] - expected[6]).max() > 5
    with Video(path) as video:
        snippets = list(video.snippets(Sampling(), SMALL, gate=GateRule(audit=1.0) if gated else None))
    found = [snippet.images[0].mean(axis=(0, 1)) for snippet in snippets]
    np.testing.assert_allclose(found, [expected[order[0]]] * 2 + [expected[order[1]]] * 2, atol=1)


# A display matrix (a, b, c, d), and what it does to the stored picture: as cameras that hang upside down or look
# into a mirror write it.
MATRICES: dict[tuple[int, int, int, int], Callable[[Image], Image]] = {
    (1, 0, 0, 1): lambda image: image,
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): lambda image: np.rot90(image),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda image: np.swapaxes(image, 0, 1),
    (0, -1, -1, 0): lambda image: np.rot90(np.swapaxes(image, 0, 1), 2),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_display_matrices_turn_and_mirror(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    show = MATRICES[matrix]

    def stored(number: int, width: int, height: int) -> Image:
        y, x = np.mgrid[0:height, 0:width]
        return np.stack([240 * x / width, 240 * y / height, 128 + 0 * x], axis=-1).astype(np.uint8)

    def shown(number: int, width: int, height: int) -> Image:
        swapped = show(np.zeros((2, 3, 3), np.uint8)).shape[0] == 3
        return np.ascontiguousarray(show(stored(number, *((height, width) if swapped else (width, height)))))

    width, height = show(np.zeros((160, 200, 3), np.uint8)).shape[1::-1]
    path = mark_matrix(write_clip(tmp_path / "stored.mp4", 20, size=(200, 160), draw=stored), *matrix)
    upright = write_clip(tmp_path / "upright.mp4", 20, size=(width, height), draw=shown)
    corner = Preprocessing.for_size(64, crop="top-right")
    (expected,) = read_snippets(upright, Sampling(), corner)
    for gate in (None, GateRule()):
        with Video(path) as video:
            assert (video.info.mirrored, video.info.width) == (matrix[0] * matrix[3] < matrix[1] * matrix[2], 200)
            (snippet,) = video.snippets(Sampling(), corner, gate=gate)
        assert np.abs(snippet.images.astype(int) - expected.images).mean() < 3
    with Video(path) as turned, Video(upright) as plain:  # what the gate looks at
        grids = [LumaGrid(corner)(next(iter(video)).frame) for video in (turned, plain)]
    assert np.abs(grids[0] - grids[1]).mean() < 3


def test_the_pixel_aspect_ratio_is_ignored(tmp_path: Path) -> None:
    def anamorphic(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    path = write_clip(tmp_path / "wide.mkv", 16, size=(352, 288), prepare=anamorphic)
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
    (found,) = read_snippets(path, Sampling(), SMALL)
    (plain,) = read_snippets(write_clip(tmp_path / "plain.mkv", 16, size=(352, 288)), Sampling(), SMALL)
    np.testing.assert_array_equal(found.images, plain.images)


def test_full_range_is_honoured(tmp_path: Path) -> None:
    def grey(number: int, width: int, height: int) -> Image:
        return np.full((height, width, 3), 250, np.uint8)

    path = write_clip(tmp_path / "full.mkv", 16, pixel_format="yuvj420p", draw=grey)
    with Video(path) as video:
        assert (video.info.pixel_format, video.info.full_range) == ("yuvj420p", True)
        (snippet,) = video.snippets(Sampling(), SMALL)
    assert np.abs(snippet.images.astype(int) - 250).max() <= 2
    with Video(write_clip(tmp_path / "limited.mkv", 16, draw=grey)) as video:
        assert not video.info.full_range
        (snippet,) = video.snippets(Sampling(), SMALL)
    assert np.abs(snippet.images.astype(int) - 250).max() <= 2


@pytest.mark.parametrize(("tag", "matrix"), [("bt709", "bt709"), ("smpte170m", "bt601")])
def test_the_matrix_tag_is_honoured(tmp_path: Path, tag: str, matrix: str) -> None:
    def green(number: int, width: int, height: int) -> Image:
        return np.zeros((height, width, 3), np.uint8) + np.array([30, 180, 60], np.uint8)

    options = {"x264-params": f"log-level=none:colormatrix={tag}", "qp": "10"}
    path = write_clip(tmp_path / "tagged.mp4", 1, draw=green, options=options)
    with Video(path) as video:
        assert video.info.matrix == matrix
        (snippet,) = video.snippets(Sampling(), SMALL)
    # The clip's levels are BT.601 whatever its tag says, so BT.709 must give other colours.
    error = np.abs(snippet.images.astype(int) - [30, 180, 60]).max()
    assert error <= 3 if matrix == "bt601" else error > 8


def test_interlaced_frames_are_scaled_whole(tmp_path: Path) -> None:
    def combed(number: int, width: int, height: int) -> Image:
        image = numbered(number, width, height)
        image[::2] = np.roll(image, 6, axis=1)[::2]
        return image

    options = {"flags": "+ildct+ilme", "x264-params": "log-level=none:tff=1:qp=5"}
    interlaced = write_clip(tmp_path / "i.mkv", 8, size=(320, 240), draw=combed, options=options)
    options = {"x264-params": "log-level=none:qp=5"}
    progressive = write_clip(tmp_path / "p.mkv", 8, size=(320, 240), draw=combed, options=options)
    with Video(interlaced) as video:
        assert next(iter(video)).frame.interlaced_frame
    pairs = zip(read_snippets(interlaced, EACH), read_snippets(progressive, EACH), strict=True)
    for one, other in pairs:
        assert np.abs(one.images.astype(int) - other.images).mean() < 2


def test_odd_sizes_work(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "odd.mkv", 20, size=(101, 77), codec="ffv1", pixel_format="yuv444p")
    assert numbers(path) == list(range(20))
    path = write_clip(tmp_path / "odd.webm", 20, size=(101, 77), codec="libvpx-vp9")
    assert numbers(path) == list(range(20))


def test_a_video_of_8_frames_gives_one_short_snippet_and_a_note(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "brief.mp4", 8, rate=3)
    with Video(path) as video:
        assert video.note is None
        (snippet,) = video.snippets(Sampling(), SMALL)
        assert snippet.short
        assert number_of(snippet.images[0]) == 7
        assert (snippet.start, snippet.end) == pytest.approx((0.0, 8 / 3), abs=1e-3)
        assert video.note is not None
        assert "8 frames" in video.note
        assert video.damage is None
    (snippet,) = read_snippets(path, Sampling(pick="mean"), SMALL)
    assert [number_of(image) for image in snippet.images] == [*range(8), *[7] * 8]


def test_sound_beside_the_picture_does_no_harm(tmp_path: Path) -> None:
    for name in ("sound.mp4", "sound.mkv"):
        path = write_clip(tmp_path / name, 10, audio=True)  # a second of sound, 0.4 s of picture
        assert numbers(path) == list(range(10))
        assert damage(path) is None


def test_cover_pictures_are_not_taken_for_the_video(tmp_path: Path) -> None:
    path = tmp_path / "covered.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        add_cover(container)
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(numbered(index, 160, 120), format="rgb24").reformat(format="yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with Video(path) as video:
        assert (video.info.codec, video.info.width) == ("h264", 160)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_the_number_of_threads_changes_no_pixel(tmp_path: Path, codec: str) -> None:
    path = write_clip(tmp_path / "clip.mp4", 30, codec=codec)
    results = []
    for threads in (1, 2, 5):
        with Video(path, threads=threads) as video:
            results.append([snippet.images for snippet in video.snippets(EACH, SMALL)])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_number_of_threads_can_be_set(tmp_path: Path) -> None:
    with Video(write_clip(tmp_path / "clip.mp4", 5), threads=7) as video:
        assert video._reader.stream.thread_count == 7


@pytest.mark.parametrize("frames", [0, 4])
def test_a_closed_video_is_freed_at_once(tmp_path: Path, frames: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", 40)
    gc.collect()
    gc.disable()
    try:
        with Video(path) as video:
            for _ in itertools.islice(video.frames(), frames):
                pass
        trace = weakref.ref(video)
        del video
        assert trace() is None
    finally:
        gc.enable()


def test_what_is_known_of_a_video(tmp_path: Path) -> None:
    with Video(write_clip(tmp_path / "clip.mp4", 50, rate=20, size=(320, 180))) as video:
        info = video.info
    assert info.to_json() == {
        "codec": "h264",
        "width": 320,
        "height": 180,
        "rate": 20.0,
        "duration": 2.5,
        "frames": 50,
        "rotation": 0,
        "mirrored": False,
        "pixel_format": "yuv420p",
        "matrix": "bt601",
        "full_range": False,
        "hdr": None,
        "start": 0.0,
        "stream": 0,
        "remarks": [],
        "decoder": "software",
        "decoder_why": None,
    }
    assert json.loads(json.dumps(info.to_json())) == info.to_json()


def test_a_snippet_can_drop_its_images() -> None:
    snippet = Snippet(3, 1.0, 2.0, np.zeros((16, 8, 8, 3), np.uint8))
    bare = snippet.without_images()
    assert (bare.index, bare.start, bare.end, bare.images.shape) == (3, 1.0, 2.0, (0, 8, 8, 3))


def test_a_video_is_read_once(tmp_path: Path) -> None:
    with Video(write_clip(tmp_path / "clip.mp4", 5)) as video:
        assert len(list(video)) == 5
        with pytest.raises(RuntimeError, match="open it again"):
            next(video.frames())
    video.close()


def test_leaving_early_closes_the_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 100)
    with Video(path) as video:
        for taken, _ in enumerate(video.snippets(Sampling(frames=4), SMALL)):
            if taken == 3:
                break
    open_files = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    assert str(path.resolve()) not in open_files


# -- damage


@pytest.mark.parametrize("share", [0.4, 0.8])
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("h264.mp4", "libx264"),
        ("hevc.mp4", "libx265"),
        ("h264.mkv", "libx264"),
        ("vp9.webm", "libvpx-vp9"),
        ("h264.flv", "libx264"),
        ("mpeg4.avi", "mpeg4"),
        ("h264.ts", "libx264"),
    ],
)
def test_a_file_that_is_cut_short_gives_what_it_has_and_says_so(
    tmp_path: Path, name: str, codec: str, share: float
) -> None:
    path = write_clip(tmp_path / name, 100, codec=codec, container_options=INDEX_FIRST if "mp4" in name else None)
    whole = path.stat().st_size
    cut(path, share)
    if name.endswith(".ts") and path.stat().st_size % 188 == 0:  # no one can tell then
        path.write_bytes(path.read_bytes()[:-50])
    found = numbers(path)
    # With B-frames the last pictures may lack some that are displayed before them and stored after.
    assert found == sorted(set(found))
    assert found[:-8] == list(range(len(found) - 8))
    assert 10 < len(found) < 100
    text = damage(path)
    assert text is not None
    assert str(path) in text
    assert "it ends" in text
    if name.endswith(("mkv", "webm", "avi")):
        assert f"{path.stat().st_size:,} of {whole:,} bytes" in text


def test_every_whole_frame_before_the_cut_is_read(tmp_path: Path) -> None:
    # With B-frames and threads, the frames that are still in the decoder must not go with the incomplete packet.
    path = write_clip(tmp_path / "clip.mp4", 100, container_options=INDEX_FIRST)
    cut(path, 0.6)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert packets[-1].is_corrupt
    for threads in (1, 4):
        assert len(numbers(path, threads=threads)) == len(packets) - 1


@pytest.mark.parametrize("times", [3, 10**9])
def test_a_container_that_cannot_be_followed_is_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    class Broken:
        """A container that fails so many times in a row after its 20th packet."""

        def __init__(self, container: Any) -> None:
            self.container, self.packets, self.left = container, 0, times

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def demux(self, stream: Any) -> Any:
            for packet in self.container.demux(stream) if self.packets < 20 or not self.left else ():
                self.packets += 1
                yield packet
                if self.packets == 20:
                    break
            if self.packets == 20 and self.left:
                self.left -= 1
                raise av.error.InvalidDataError(1094995529, "Invalid data")

    really = module.open_container
    monkeypatch.setattr(module, "open_container", lambda path: Broken(really(path)))
    with Video(write_clip(tmp_path / "clip.mp4", 60, options={"bf": "0"})) as video:
        found = [number_of(snippet.images[0]) for snippet in video.snippets(EACH, SMALL)]
        assert found == list(range(60 if times == 3 else 20))
        assert video.damage is not None
        assert f"{min(times, 100)} places of its container could not be read" in video.damage


def test_damage_in_the_middle_does_not_end_the_reading(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 200, options={"g": "20"}, draw=_noisy)
    spoil(path, 0.5, 400)
    with Video(path) as video:
        times = [time for _, time, _ in video.frames()]
        assert times[-1] == pytest.approx(199 / 25)
        assert 150 < len(times) <= 200
        assert video.damage is not None
        assert "from about 3." in video.damage or "from about 4." in video.damage


class Tripping:
    """A container whose demuxer trips now and then, as PyAV's may over a stream that was not there at the beginning."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, *streams: Any) -> Any:
        for count, packet in enumerate(self._container.demux(*streams)):
            yield packet
            if count == 6:
                raise IndexError("list index out of range")


def test_a_stream_that_shows_up_late_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "late.ts", 40)
    opened = module.open_container
    monkeypatch.setattr(module, "open_container", lambda path: Tripping(opened(path)))
    monkeypatch.setattr(module, "pick_stream", lambda container, path, number: container.streams.video[0])
    assert numbers(path) == list(range(40))
    assert damage(path) is None


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi", "x.ts", "x.m2ts", "x.flv"])
def test_whatever_is_wrong_with_a_file_is_said_in_a_sentence(tmp_path: Path, name: str) -> None:
    """Cut, spoilt, emptied and shuffled files: they are read as far as they go, or refused."""
    random = np.random.default_rng(7)
    whole = write_clip(tmp_path / name, 40, size=(64, 48), options={"g": "10"}, audio=True).read_bytes()
    path = tmp_path / f"spoilt-{name}"
    read = 0
    for _ in range(60):
        data = bytearray(whole)
        at, length = (int(number) for number in random.integers(0, [len(data), len(data) // 4]))
        way = random.integers(5)
        if way == 0:
            del data[at:]
        elif way == 1:
            data[at : at + length] = random.bytes(length)
        elif way == 2:
            data[at : at + length] = bytes(length)
        elif way == 3:
            del data[at : at + length]
        else:
            data[at % 400] = int(random.integers(256))
        path.write_bytes(data)
        try:
            with Video(path, threads=1) as video:
                read += sum(1 for _ in video.snippets(EACH, SMALL))
                assert video.damage is None or str(path) in video.damage
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert read > 300


@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts", "clip.avi"])
def test_a_broken_stretch_is_told(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write_clip(tmp_path / name, 200, codec=codec, options={"g": "20"}, draw=_noisy)
    spoil(path, 0.5, 5000)
    with Video(path) as video:
        times = [time for _, time, _ in video.frames()]
        # AVI has no times: what comes after lost frames moves up.
        assert len(times) > 150 if name.endswith("avi") else times[-1] > 7.5
        assert video.damage is not None


def test_frames_that_matroska_loses_in_silence_are_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.webm", 200, codec="libvpx-vp9", options={"g": "20"}, draw=_noisy)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 9000] = bytes(9000)
    path.write_bytes(data)
    text = damage(path)
    assert text is not None
    assert "its structure is broken" in text


def test_a_fragmented_mp4_that_breaks_off_is_told(tmp_path: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    path = write_clip(tmp_path / "clip.mp4", 100, options={"g": "20"}, container_options=options)
    assert damage(path) is None
    data = bytearray(path.read_bytes())
    third = [at for at in range(len(data)) if data[at : at + 4] == b"moof"][2]
    data[third - 4 : third + 60] = np.random.default_rng(1).bytes(64)
    path.write_bytes(data)
    text = damage(path)
    assert text is not None
    assert "breaks off" in text


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "log-level=none:scenecut=0"}),
        ("libx264", {"x264-params": "log-level=none:scenecut=0:open-gop=1:bframes=3"}),
        ("libx265", {"x265-params": "log-level=none:open-gop=1:bframes=4"}),
        ("mpeg2video", {"bf": "2"}),
    ],
    ids=["h264", "h264 open", "hevc open", "mpeg2"],
)
@pytest.mark.parametrize("share", [0.3, 0.41])
def test_a_recording_that_is_joined_in_the_middle_is_not_damaged(
    tmp_path: Path, codec: str, options: dict[str, str], share: float
) -> None:
    path = write_clip(tmp_path / "clip.ts", 150, codec=codec, options={"g": "25", **options}, draw=_noisy)
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * share) // 188 * 188 :])
    with Video(path) as video:
        times = [time for _, time, _ in video.frames()]
        assert 50 < len(times) < 130
        assert times == pytest.approx([index / 25 for index in range(len(times))], abs=0.05)
        assert video.damage is None


def test_what_cameras_append_to_a_file_is_not_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 20)
    data = path.read_bytes()
    for extra in (bytes(5000), b"\xff\x07\x00\x01cam!" * 100, b"\x00\x00\x40\x00free" + bytes(100)):
        path.write_bytes(data + extra)
        assert damage(path) is None
        assert numbers(path) == list(range(20))


def test_live_recordings_of_unknown_length_are_not_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "live.mkv", 60, container_options={"live": "1"})
    assert damage(path) is None


# -- time


def timed(path: Path, way: str, sampling: Sampling | None = None) -> tuple[list[Snippet], Video]:
    """The snippets of a video: with ``every`` picture decoded, by ``groups``, with a ``gate``, or by ``shadows``."""
    with Video(path, threads=1) as video:
        if way == "every":
            video.looks_ahead, video._reader.skipper = False, None
        if way == "shadows":
            return [snippet for snippet, _ in video.shadows(sampling or Sampling(), SMALL, [GateRule()])], video
        gate = GateRule(shadow=True) if way == "gate" else None
        return list(video.snippets(sampling, SMALL, gate=gate)), video


def place(snippet: Snippet) -> tuple[float, ...]:
    return snippet.index, snippet.start, snippet.end, snippet.first_frame, snippet.frames


def same_in_all_ways(path: Path, sampling: Sampling | None = None) -> tuple[list[Snippet], Video]:
    plain, one = timed(path, "every", sampling)
    for way in ("groups", "gate", "shadows"):
        found, other = timed(path, way, sampling)
        assert [place(s) for s in found] == [place(s) for s in plain], way
        for a, b in zip(found, plain, strict=True):
            np.testing.assert_array_equal(a.images, b.images)
        assert (other.note, other.damage, other.decoded, other.seen) == (one.note, one.damage, one.decoded, one.seen)
    return plain, one


@pytest.mark.parametrize("sampling", [None, Sampling(by="time", seconds=0.64)], ids=["frames", "time"])
@pytest.mark.parametrize("options", [{"bf": "0", "g": "25"}, {"bf": "3", "g": "30"}], ids=["plain", "b-frames"])
@pytest.mark.parametrize(("picture", "seconds"), [(103, -4900.0), (150, -3.0), (103, -1.0)])
def test_a_clock_that_is_set_back_loses_nothing(
    tmp_path: Path, options: dict[str, str], picture: int, seconds: float, sampling: Sampling | None
) -> None:
    """Within a group and at its beginning."""
    path = write_clip(tmp_path / "clip.ts", 240, options=options, container_options={"output_ts_offset": "5000"})
    snippets, video = same_in_all_ways(set_clock(path, picture, seconds), sampling)
    assert len(snippets) == 15 and video.decoded == 240
    assert snippets[-1].end == pytest.approx(240 / 25, abs=0.08)
    assert max(s.end - s.start for s in snippets) < 0.75
    assert video.seen.set_back == 1 and video.seen.count == 0 and "set back once" in str(video.note)


@pytest.mark.parametrize("options", [{"bf": "0", "g": "25"}, {"bf": "3", "g": "30"}], ids=["plain", "b-frames"])
@pytest.mark.parametrize(("picture", "sampling"), [(103, None), (150, None), (103, Sampling(by="time", seconds=0.64))])
def test_a_pause_in_a_transport_stream(
    tmp_path: Path, options: dict[str, str], picture: int, sampling: Sampling | None
) -> None:
    path = write_clip(tmp_path / "clip.ts", 240, options=options)
    snippets, video = same_in_all_ways(set_clock(path, picture, 2400.0), sampling)
    assert sum(s.end - s.start for s in snippets) <= video.seen.seconds < 9.8
    assert max(s.end - s.start for s in snippets) < 0.75
    assert video.seen.count == 1 and "pauses once (from" in str(video.note)
    assert len(snippets) >= 13 and snippets[-1].end > 2400
    # Frames of the second piece lie where the first one's would, but for the pause.
    (gap,) = video.seen.gaps
    assert video.seen.frames == video.decoded and gap.frames in (picture, picture + 1)
    behind = [s for s in snippets if s.start > 2000]
    for snippet in behind:
        assert gap.end + (snippet.first_frame - gap.frames) / 25 == pytest.approx(snippet.start, abs=0.09)
    if sampling is None:
        assert behind[0].first_frame == gap.frames and {s.frames for s in snippets} == {16}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv"])
@pytest.mark.parametrize("g", ["8", "40"])
def test_a_pause_in_other_containers(tmp_path: Path, name: str, g: str) -> None:
    """Twenty seconds that are recorded in two pieces; the second begins within a snippet."""
    times = [index / 25 for index in range(200)] + [2400 + index / 25 for index in range(200)]
    path = write_clip(tmp_path / name, 400, times=times, options={"g": g, "bf": "2"})
    snippets, video = same_in_all_ways(path)
    assert len(snippets) == 24
    assert [number_of(s.images[0]) for s in snippets] == [
        *range(8, 200, 16),
        *range(208, 400, 16),
    ]
    assert max(s.end - s.start for s in snippets) < 0.65
    assert video.seen.seconds == pytest.approx(16.0, abs=0.1)
    assert video.damage is None
    joined = list(read_joined(path))
    assert [number_of(s.images[0]) for s in joined] == list(range(8, 400, 16))


def read_joined(path: Path) -> list[Snippet]:
    """Snippets of 16 frames whatever lies between them."""
    with Video(path) as video:
        return list(video.snippets(None, SMALL, joins=True))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
@pytest.mark.parametrize("interval", [1.0, 3.0])
def test_slow_cameras_do_not_pause(tmp_path: Path, name: str, interval: float) -> None:
    times = [index * interval for index in range(40)]
    snippets, video = same_in_all_ways(write_clip(tmp_path / name, 40, times=times, options={"g": "5"}))
    assert [number_of(s.images[0]) for s in snippets] == [8, 24]
    assert video.seen.count == 0 and video.note is None


def test_a_frame_that_lasts_a_day(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", 3, times=[0.0, 86400.0, 172800.0])
    with Video(path) as video:
        assert len(list(video.snippets(Sampling(by="time", seconds=0.64), SMALL))) < 300


# -- what is refused


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Video(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.mp4")
    assert "is a folder" in refusal(tmp_path)


def test_files_that_are_no_videos_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("this is not a video\n" * 100)
    assert "cannot be opened as a video" in refusal(path)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    path.write_bytes(b"\0\0\0\x20ftypisom")
    assert "cannot be opened as a video" in refusal(path)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    for cover in (False, True):
        text = refusal(write_sound(tmp_path / "sound.mp4", cover=cover))
        assert "no video stream" in text
        assert "audio" in text


def test_an_mp4_without_its_index_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = cut(write_clip(tmp_path / "clip.mp4", 50), 0.5)  # the index comes last
    assert "index is missing" in refusal(path)


def test_a_video_without_a_picture_that_can_be_decoded_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 10, container_options=INDEX_FIRST)
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + b"\x11" * (len(data) - start))
    assert "no picture in it can be decoded" in refusal(path)


def test_files_that_may_not_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5)

    def deny(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", deny)  # modes do not bind root, who may run the tests
    assert "permissions" in refusal(path)


def test_names_that_look_like_addresses_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5)
    monkeypatch.chdir(tmp_path)
    for name in ("cam:1.mp4", "Überwachung %d ä.mp4", "concat:a|b.mp4", "http:c.mp4"):
        path.rename(name)
        path = Path(name)
        assert numbers(path) == list(range(5))


def test_a_playlist_in_disguise_reaches_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for name, text in (
            ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}\n#EXT-X-ENDLIST\n"),
            ("list.mp4", f"ffconcat version 1.0\nfile {address}\n"),
        ):
            path = tmp_path / name
            path.write_text(text)
            refusal(path)
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_tags_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", 5)
    data = path.read_bytes()
    assert data.count(b"Lavf") >= 1
    path.write_bytes(data.replace(b"Lavf", b"\xe9\xfc\xdf\xff"))
    assert numbers(path) == list(range(5))


# -- the rest


def test_ffmpeg_writes_nothing_to_the_terminal(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 60, container_options=INDEX_FIRST, draw=_noisy)
    cut(spoil(path, 0.3, 2000), 0.8)
    code = (
        "import sys; from vadrun.video import Video\n"
        "with Video(sys.argv[1]) as video:\n    n = len(list(video.snippets()))\n    assert n and video.damage\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(by="time", seconds=0.5)], ids=["frames", "time"])
def test_memory_does_not_grow_with_the_video(tmp_path: Path, sampling: Sampling) -> None:
    still = numbered(0, 320, 240)
    path = write_clip(
        tmp_path / "long.mp4",
        1500,
        size=(320, 240),
        options={"preset": "ultrafast"},
        draw=lambda number, width, height: still,
    )
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    gc.collect()
    gc.disable()  # frames in reference cycles would wait for it
    try:
        with Video(path) as video:
            sizes = [resident() for _ in video.snippets(sampling, SMALL)]
    finally:
        gc.enable()
    growth = sizes[-1] - sizes[len(sizes) // 4]
    assert growth < 15e6, f"{growth / 1e6:.0f} MB; the frames on the way have {1100 * 0.115:.0f} MB"


def _noisy(number: int, width: int, height: int) -> Image:
    """A numbered picture that takes many bytes, so damage hits pictures."""
    noise = np.random.default_rng(number).integers(-18, 19, (height, width, 1))
    return np.asarray(np.clip(numbered(number, width, height) + noise, 0, 255), np.uint8)
