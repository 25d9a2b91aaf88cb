"""The ``vadclip`` command."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from vadclip import evaluate_command, features_command, train_command
from vadrun.console import CODES, DAMAGED, ProgressLine, clock, failure, run_command, tell, version
from vadrun.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="vadclip",
        description="Make features for VadCLIP, train it on them, and evaluate it.",
        epilog=CODES,
    )
    p.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    e = commands.add_parser(
        "extract",
        help="videos -> feature files",
        description="Write one feature file per video and crop; run again to go on where it stopped. A video that "
        "cannot be read does not stop the others; the exit code is 2 then.",
    )
    e.add_argument(
        "source",
        nargs="+",
        type=Path,
        metavar="VIDEO",
        help="video files, folders of them, folders of frames (with --rate), or a CSV list (path,label), for which one "
        "of the features is written too",
    )
    e.add_argument("--out", required=True, type=Path, metavar="DIR", help="where NAME__0.npy ... go")
    e.add_argument(
        "--encoder",
        required=True,
        metavar="WHAT",
        help="a bundle (fast), a checkpoint, a file of CLIP's weights (OpenAI's ViT-B-16.pt, open_clip's), openai, or "
        "MODEL/TAG of open_clip's pretrained weights",
    )
    e.add_argument(
        "--clip-model",
        metavar="NAME",
        help="which CLIP a file of weights is, where nothing else tells: openai, ViT-B-16 or another of open_clip's "
        "model names, or its configuration (.json)",
    )
    e.add_argument("--root", type=Path, metavar="DIR", help="where the videos of a list lie now")
    e.add_argument(
        "--rate", type=float, metavar="FPS", help="read folders of numbered images as videos of so many frames a second"
    )
    e.add_argument("--crops", type=int, default=1, metavar="N", help="1 (default: the centre) or 10")
    e.add_argument("--sample", default="middle", metavar="WHICH", help="frame of a snippet: first, middle or mean")
    e.add_argument("--snippet-seconds", type=float, metavar="SEC", help="cut snippets by time, not every 16 frames")
    e.add_argument(
        "--preprocessing",
        metavar="STYLE",
        help="default, or reference: pixels as OpenCV makes them, as for the authors' features (default: the bundle's)",
    )
    e.add_argument("--dtype", default="float16", metavar="T", help="float16 (default) or float32")
    e.add_argument("--stream", type=int, metavar="N", help="number of the video stream (default: each file's main one)")
    e.add_argument("--batch", type=int, default=8, metavar="N", help="frames per encoder call (default 8)")
    e.add_argument("--backend", default="auto", metavar="NAME", help="of a bundle; see vadrun --help")
    e.add_argument("--precision", default="auto", metavar="P", help="of a bundle; see vadrun --help")
    f = commands.add_parser("features", help="how features were made", description="Look at features that are there.")
    features_command.add_arguments(f)
    t = commands.add_parser("train", help="feature files -> checkpoint", description=train_command.TRAIN)
    train_command.add_train_arguments(t)
    a = commands.add_parser("ablate", help="the paper's ablations", description=train_command.ABLATE)
    train_command.add_ablate_arguments(a)
    v = commands.add_parser("evaluate", help="a model on a test list", description="Evaluate a checkpoint or a bundle.")
    evaluate_command.add_arguments(v)
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    commands = {
        "extract": _extract,
        "features": features_command.run,
        "train": train_command.train,
        "ablate": train_command.ablate,
        "evaluate": evaluate_command.run,
    }
    keeps = getattr(arguments, "out", None) is not None
    return run_command("vadclip", lambda: commands[arguments.command](arguments), keeps=keeps)


def _extract(arguments: argparse.Namespace) -> int:
    from vadclip.extract import ExtractOptions, check_list, extract, open_encoder, write_list
    from vadclip.frames import named_footage
    from vadclip.lists import read_video_list
    from vadrun.sampling import Sampling

    frames = arguments.rate is not None
    lists = {
        path: read_video_list(path, arguments.root, folders=frames)
        for path in arguments.source
        if path.suffix.lower() == ".csv"
    }
    if len({path.name for path in lists}) < len(lists):
        raise UserError("two lists have one name, and so would the lists of their features: rename one")
    for path in lists:
        check_list(arguments.out / path.name, path)
    listed = [video for rows in lists.values() for video, _ in rows]
    others = named_footage([path for path in arguments.source if path not in lists], arguments.rate)
    videos = list(dict.fromkeys([*others, *listed]))
    sampling = Sampling(
        pick=arguments.sample,
        by="frames" if arguments.snippet_seconds is None else "time",
        seconds=arguments.snippet_seconds,
    )
    options = ExtractOptions(
        arguments.crops, sampling, arguments.dtype, arguments.stream, arguments.rate, arguments.preprocessing
    )
    encoder = open_encoder(
        arguments.encoder,
        batch=arguments.batch,
        backend=arguments.backend,
        precision=arguments.precision,
        clip_model=arguments.clip_model,
    )
    print(f"{len(videos)} videos, encoder {encoder.name}", file=sys.stderr)
    began = time.monotonic()
    progress = _ExtractProgress(videos)
    report = extract(videos, arguments.out, encoder, options, progress)
    progress.clear()
    print(
        f"{report.written} videos written, {report.kept} were there already, in {clock(time.monotonic() - began)}; "
        f"features in {arguments.out}"
    )
    for path, rows in lists.items():
        named = write_list(arguments.out / path.name, rows, options.crops)
        print(f"list of {named} of {len(rows)} videos in {arguments.out / path.name}")
    for sentence in (*report.remarks, *report.damaged):
        tell(f"vadclip: {sentence}")
    code = DAMAGED if report.damaged else 0
    for video, error in report.failed.items():
        sentence, its = failure(video, error)
        tell(f"vadclip: {sentence}")
        code = max(code, its)
    if report.failed:
        tell(f"vadclip: {len(report.failed)} of {len(videos)} videos have no features")
    return code


class _ExtractProgress:
    """One line for all videos: which one is at work, how far it is, and the time left of them all."""

    def __init__(self, videos: Sequence[Path], stream: TextIO | None = None) -> None:
        self._number = {video: number for number, video in enumerate(videos)}
        self._done: set[Path] = set()  # encoded now, not those that were there already
        self._line = ProgressLine("features", stream=stream)

    def __call__(self, video: Path, done: float, total: float | None) -> None:
        number, count = self._number[video], len(self._number)
        share = min(done / total, 1.0) if total else 0.0
        before = len(self._done - {video})
        self._done.add(video)
        text = f"video {number + 1} of {count}, {video.name}: {clock(done)}"
        if total:
            text += f" of {clock(total)}"
        self._line.part(text, before + share, before + count - number)

    def clear(self) -> None:
        self._line.clear()


if __name__ == "__main__":
    sys.exit(main())
