"""Folders of frames: natural order, only what is wanted decoded, and broken or missing images said."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from tests import clips
from vadclip import frames
from vadclip.cli import main
from vadclip.frames import FrameFolder, decode_image, frame_folders, named_footage, natural_order
from vadclip.lists import load_list
from vadclip.presets import PRESETS
from vadrun.errors import UserError
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling
from vadrun.video import Snippet

SMALL = Preprocessing.for_size(64)


def write_image(path: Path, number: int, size: tuple[int, int] = (160, 120)) -> Path:
    codec, pixels = ("png", "rgb24") if path.suffix == ".png" else ("mjpeg", "yuvj420p")
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = *size, pixels
    context.time_base = 1
    frame = av.VideoFrame.from_ndarray(clips.numbered(number, *size), format="rgb24")
    if pixels != "rgb24":
        frame = frame.reformat(format=pixels, dst_color_range=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
    return path


def write_folder(path: Path, count: int, pattern: str = "{}.jpg", step: int = 1) -> Path:
    for index in range(count):
        write_image(path / pattern.format(index * step), index)
    return path


def read(folder: FrameFolder, **options: object) -> list[Snippet]:
    return list(folder.snippets(Sampling(**options), SMALL))  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["{}.jpg", "frame_{}.png", "img{:05d}.JPG"])
def test_frames_in_natural_order(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(frames, "decode_image", lambda path: (decoded.append(path.name), decode_image(path))[1])
    folder = FrameFolder(write_folder(tmp_path / "v", 16 * 7 + 5, pattern), 25.0)
    assert folder.frames == 117 and folder.info.duration == pytest.approx(117 / 25)
    found = read(folder)
    assert [clips.number_of(snippet.images[0]) for snippet in found] == [16 * k + 8 for k in range(7)]
    assert [snippet.start for snippet in found] == pytest.approx([0.64 * k for k in range(7)])
    assert found[-1].end == pytest.approx(0.64 * 7) and folder.damage is None
    assert decoded == [pattern.format(16 * k + 8) for k in range(7)]  # only these


def test_sampling_is_the_runtimes(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "v", 40)
    first = read(FrameFolder(path, 25.0), pick="first")
    assert [clips.number_of(snippet.images[0]) for snippet in first] == [0, 16]
    mean = read(FrameFolder(path, 25.0), pick="mean")
    assert [clips.number_of(image) for image in mean[1].images] == list(range(16, 32))
    by_time = read(FrameFolder(path, 10.0), by="time", seconds=1.0)
    assert [clips.number_of(snippet.images[0]) for snippet in by_time] == [5, 15, 25, 35]
    crops = next(FrameFolder(path, 25.0).snippets(Sampling(), SMALL, [("center", False), ("center", True)]))
    assert crops.images.shape == (1, 2, 64, 64, 3)
    np.testing.assert_array_equal(crops.images[0, 0], crops.images[0, 1][:, ::-1])
    short = read(FrameFolder(write_folder(tmp_path / "w", 5), 25.0))
    assert len(short) == 1 and short[0].short


def test_a_broken_image_is_replaced_by_its_neighbour(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "v", 48)
    (path / "8.jpg").write_bytes(b"no image")
    (path / "24.jpg").write_bytes((path / "24.jpg").read_bytes()[:40])
    (path / "23.jpg").write_bytes(b"")
    folder = FrameFolder(path, 25.0)
    assert [clips.number_of(snippet.images[0]) for snippet in read(folder)] == [7, 25, 40]
    assert folder.damage == f"{path} is damaged: 3 of its images cannot be decoded, the first is 8.jpg"
    for image in path.iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"8\.jpg and the images around it cannot be decoded"):
        read(FrameFolder(path, 25.0))


def test_a_huge_image_is_not_decoded(tmp_path: Path) -> None:
    """A file of 40 kB may claim a picture that takes gigabytes."""
    data = bytearray(write_image(tmp_path / "a.png", 1).read_bytes())
    assert decode_image(tmp_path / "a.png") is not None
    at = data.index(b"IHDR")
    data[at + 4 : at + 12] = (7000).to_bytes(4, "big") * 2
    data[at + 17 : at + 21] = zlib.crc32(data[at : at + 17]).to_bytes(4, "big")
    (tmp_path / "b.png").write_bytes(data)
    assert decode_image(tmp_path / "b.png") is None


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png") is None


def test_missing_numbers_are_said(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "v", 40, "f{:03d}.jpg")
    (path / "f020.jpg").unlink()
    assert "numbers are missing after f019.jpg" in str(FrameFolder(path, 25.0).damage)
    assert FrameFolder(write_folder(tmp_path / "w", 20, "f{:03d}.jpg", step=5), 25.0).damage is None
    write_image(path / "cover.jpg", 0)  # no series any more
    assert FrameFolder(path, 25.0).damage is None


def test_natural_order() -> None:
    names = ["f10", "f9", "f1b", "f1", "10", "9", "a", "f" + "1" * 5000]
    assert sorted(names, key=natural_order)[:6] == ["9", "10", "a", "f1", "f1b", "f9"]


def test_folders_that_are_found(tmp_path: Path) -> None:
    write_folder(tmp_path / "frames" / "01_10", 2)
    write_folder(tmp_path / "frames" / "01_9", 2)
    write_folder(tmp_path / "frames" / ".hidden", 2)
    write_image(tmp_path / "frames" / "logo.png", 1)
    (tmp_path / "mixed").mkdir()
    clips.write_clip(tmp_path / "mixed" / "a.mp4", 2)
    write_folder(tmp_path / "mixed", 2)
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / "frames" / "01_9", tmp_path / "frames" / "01_10"]
    assert frame_folders(tmp_path) == folders and frame_folders(folders[0]) == folders[:1]
    assert named_footage([tmp_path], 25.0) == [tmp_path / "mixed" / "a.mp4", *folders]
    assert named_footage([tmp_path], None) == [tmp_path / "mixed" / "a.mp4"]
    with pytest.raises(UserError, match=r"holds images and no video files: .* --rate"):
        named_footage([tmp_path / "frames"], None)
    with pytest.raises(UserError, match="holds no video files"):
        named_footage([tmp_path / "empty"], 25.0)
    with pytest.raises(UserError, match="holds 0 images"):
        FrameFolder(tmp_path / "empty", 25.0)
    with pytest.raises(UserError, match="cannot be listed"):
        FrameFolder(tmp_path / "gone", 25.0)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="the rate of folders of frames"):
            FrameFolder(folders[0], rate)


def test_features_of_folders(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "f" / "01.a", 34, "{:03d}.jpg")
    write_folder(tmp_path / "f" / "02", 20, "{:03d}.png")
    (tmp_path / "f" / "02" / "008.png").write_bytes(b"")
    listed, out = tmp_path / "test.csv", tmp_path / "out"
    listed.write_text("path,label\nf/01.a,Normal\nf\\02,Abuse\n")
    command = ["extract", str(listed), "--encoder", str(bundles["ucf"]), "--out", str(out)]
    assert main(command) == 2
    assert "lists folders (such as" in (said := capsys.readouterr().err) and "--rate" in said
    for _ in range(2):  # the second time they are there, and damaged all the same
        assert main([*command, "--rate", "24"]) == 1
        assert "02 is damaged: 1 of its images cannot be decoded, the first is 008.png" in capsys.readouterr().err
    found = load_list(out / "test.csv", PRESETS["ucf"])
    assert [path.name for path in found.paths] == ["01.a__0.npy", "02__0.npy"]
    assert [np.load(path).shape for path in found.paths] == [(2, 64), (1, 64)]
    assert main(["extract", str(tmp_path / "f"), *command[2:4], "--out", str(out), "--rate", "0"]) == 2
    assert "the rate of folders of frames is 0" in capsys.readouterr().err
