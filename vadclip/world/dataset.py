"""Data sets of synthetic clips: videos, lists, annotations and captions in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vadclip.world.camera import HEIGHT, WIDTH
from vadclip.world.clips import LABELS, SCENES, SPLITS, Clip, make_clip
from vadrun.errors import UserError
from vadrun.files import whole_file, write_csv, write_json, write_text

_VERSION = 4  # of what clips look like; a folder that was begun with another one is not continued
_PLAN = "world.json"
X264 = "log-level=none:keyint=60:cpu-independent=1"
"""x264's fastest kernels give other bytes now and then, on one machine with one thread."""
_RATE_FACTORS = (24, 27, 30)  # x264's, as recorders might have them


@dataclass(frozen=True)
class Size:
    """How large a data set is.

    Attributes:
        train, test: (normal clips, clips of each event) of a split.
        seconds: least and greatest length of a clip.
        scenes: of each kind, to train on.
    """

    train: tuple[int, int]
    test: tuple[int, int]
    seconds: tuple[float, float]
    scenes: int = SCENES["train"]

    def clips(self) -> list[tuple[str, str, int]]:
        """All clips as (split, label, number), in the order of the lists."""
        wanted = {"train": self.train, "test": self.test}
        return [
            (split, label, number)
            for split in SPLITS
            for label in LABELS
            for number in range(wanted[split][0 if label == "normal" else 1])
        ]


SIZES = {
    "small": Size(train=(16, 6), test=(8, 3), seconds=(8.0, 12.0)),
    "standard": Size(train=(160, 40), test=(60, 15), seconds=(16.0, 32.0), scenes=40),
}
"""``small`` has 60 clips of 10 s for tests; ``standard`` 440 of 24 s, 320 of them to train on, in 200 scenes."""


def get_size(size: str | Size) -> Size:
    """The size of a name.

    Raises:
        UserError: there is none of that name.
    """
    if isinstance(size, Size):
        return size
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    return SIZES[size]


def write_dataset(
    folder: str | Path,
    size: str | Size = "small",
    seed: int = 0,
    jobs: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Make a data set; a second call goes on where the first was stopped.

    The folder holds ``videos/NAME.mp4``, ``train.csv`` and ``test.csv`` (``path,label``, paths from the folder),
    ``annotations.csv`` (``video,label,start,end``: the events of the test videos in frames), ``annotations.json``
    (the same with rate, seconds and scene), ``captions.jsonl`` (video, frame, caption, split, label of the frame) and
    ``world.json`` (what was asked for). Lists are written when every video is there.
    Decoded pictures depend on the seed, and on the version of x264 in PyAV; they have been compressed.

    Args:
        folder: where to.
        size: a name out of ``SIZES``, or a size.
        seed: of the world.
        jobs: processes; 0 for one to each core.
        progress: is called with the videos that are done and all of them.

    Returns:
        The folder.

    Raises:
        UserError: an unknown size, or the folder holds something else, or cannot be written.
    """
    folder, size = Path(folder), get_size(size)
    plan = {"version": _VERSION, "seed": seed, **json.loads(json.dumps(asdict(size)))}
    _begin(folder, plan)
    names = size.clips()
    jobs = min(jobs or os.cpu_count() or 1, len(names))
    records: dict[tuple[str, str, int], dict[str, Any]] = {}
    work = [(folder, seed, key, size) for key in names]
    if jobs == 1:
        for done, task in enumerate(work, 1):
            records[task[2]] = _make(*task)
            progress(done, len(work))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            futures = {pool.submit(_make, *task): task[2] for task in work}
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    records[futures[future]] = future.result()
                    progress(done, len(work))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    _write_lists(folder, [records[key] for key in names])
    return folder


def encode(clip: Clip, path: Path) -> None:
    """Write a clip as H.264 in MP4, whole or not at all; the bytes do not depend on the processor and its cores."""
    factor = _RATE_FACTORS[hashlib.sha256(clip.name.encode()).digest()[0] % len(_RATE_FACTORS)]
    with whole_file(path) as temporary, av.open(str(temporary), "w") as container:
        stream: Any = container.add_stream("libx264", rate=clip.fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": str(factor), "x264-params": X264}
        for index, picture in enumerate(clip.frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, clip.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    try:
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        path = folder / _PLAN
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) != plan:
                raise UserError(f"{folder} holds a world of another size or seed: name another folder or remove it")
        elif any((folder / "videos").iterdir()):
            raise UserError(f"{folder} holds videos already, without a {_PLAN}: name another folder")
        else:
            write_json(path, plan)
    except ValueError as error:
        raise UserError(f"{folder / _PLAN} is not JSON ({error}): remove the folder and make it again") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name a writable folder") from error


def _make(folder: Path, seed: int, key: tuple[str, str, int], size: Size) -> dict[str, Any]:
    """Make a video if it is not there, and say what is in it."""
    split, label, number = key
    scenes = size.scenes if split == "train" else None
    clip = make_clip(seed, split, label, number, seconds=size.seconds, scenes=scenes)
    path = folder / "videos" / f"{clip.name}.mp4"
    if not path.exists():
        encode(clip, path)
    return {
        "video": clip.name,
        "path": f"videos/{path.name}",
        "split": split,
        "label": label,
        "scene": clip.scene,
        "night": clip.night,
        "fps": clip.fps,
        "frames": clip.frame_count,
        "intervals": [
            {"label": label, "frames": list(frames), "seconds": [round(value, 4) for value in times]}
            for frames, times in zip(clip.intervals, clip.seconds, strict=True)
        ],
        "captions": clip.captions,
    }


def _write_lists(folder: Path, records: list[dict[str, Any]]) -> None:
    for split in SPLITS:
        rows = [(record["path"], record["label"]) for record in records if record["split"] == split]
        write_csv(folder / f"{split}.csv", [("path", "label"), *rows])
    tested = [record for record in records if record["split"] == "test"]
    events = [(record["video"], span["label"], *span["frames"]) for record in tested for span in record["intervals"]]
    write_csv(folder / "annotations.csv", [("video", "label", "start", "end"), *events])
    lines = []
    for record in records:
        for frame, caption in record.pop("captions"):
            during = any(span["frames"][0] <= frame < span["frames"][1] for span in record["intervals"])
            line = {"video": record["path"], "frame": frame, "caption": caption, "split": record["split"]}
            lines.append(json.dumps({**line, "label": record["label"] if during else "normal"}))
    write_text(folder / "captions.jsonl", "\n".join(lines) + "\n")
    write_json(
        folder / "annotations.json",
        {
            "labels": list(LABELS),
            "intervals": "frames and seconds are [first, one after the last)",
            "videos": {record["video"]: record for record in tested},
        },
    )
