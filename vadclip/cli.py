"""The ``vadclip`` command."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vadrun.console import BAD_INPUT, DAMAGED, ProgressLine, clock, run_command, version


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="vadclip",
        description="Prepare the training of VadCLIP.",
        epilog="exit codes: 0 done; 1 done, but a video was damaged or could not be read; 2 an input cannot be used.",
    )
    p.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    e = commands.add_parser(
        "extract",
        help="videos -> feature files",
        description="Write one feature file per video and crop; run again to go on where it stopped.",
    )
    e.add_argument("source", nargs="+", type=Path, metavar="VIDEO", help="video files, or folders of them")
    e.add_argument("--out", required=True, type=Path, metavar="DIR", help="where NAME__0.npy ... go")
    e.add_argument(
        "--encoder",
        required=True,
        metavar="WHAT",
        help="a bundle (fast), a checkpoint, or an open_clip tag such as openai",
    )
    e.add_argument("--crops", type=int, default=1, metavar="N", help="1 (default: the centre) or 10")
    e.add_argument("--sample", default="middle", metavar="WHICH", help="frame of a snippet: first, middle or mean")
    e.add_argument("--snippet-seconds", type=float, metavar="SEC", help="cut snippets by time, not every 16 frames")
    e.add_argument("--dtype", default="float16", metavar="T", help="float16 (default) or float32")
    e.add_argument("--batch", type=int, default=8, metavar="N", help="frames per encoder call (default 8)")
    e.add_argument("--backend", default="auto", metavar="NAME", help="of a bundle; see vadrun --help")
    e.add_argument("--precision", default="auto", metavar="P", help="of a bundle; see vadrun --help")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run_command("vadclip", lambda: _extract(arguments))


def _extract(arguments: argparse.Namespace) -> int:
    from vadclip.extract import ExtractOptions, extract, open_encoder
    from vadrun.sampling import Sampling
    from vadrun.video import named_videos

    videos = named_videos(arguments.source)
    sampling = Sampling(
        pick=arguments.sample,
        by="frames" if arguments.snippet_seconds is None else "time",
        seconds=arguments.snippet_seconds,
    )
    options = ExtractOptions(arguments.crops, sampling, arguments.dtype)
    encoder = open_encoder(
        arguments.encoder, batch=arguments.batch, backend=arguments.backend, precision=arguments.precision
    )
    print(f"{len(videos)} videos, encoder {encoder.name}", file=sys.stderr)
    lines: dict[Path, ProgressLine] = {}
    began = time.monotonic()

    def progress(video: Path, done: float, total: float | None) -> None:
        if video not in lines:
            number = videos.index(video) + 1
            lines.clear()  # one at a time
            lines[video] = ProgressLine(f"[{number}/{len(videos)}] {video.name}")
        lines[video].update(done, total)

    report = extract(videos, arguments.out, encoder, options, progress)
    for line in lines.values():
        line.clear()
    print(
        f"{report.written} videos written, {report.kept} were there already, in {clock(time.monotonic() - began)}; "
        f"features in {arguments.out}"
    )
    for sentence in (*report.damaged, *report.failed):
        print(f"vadclip: {sentence}", file=sys.stderr)
    if report.failed and not report.written + report.kept:
        return BAD_INPUT
    return DAMAGED if report.failed or report.damaged else 0


if __name__ == "__main__":
    sys.exit(main())
