"""The ``vadclip`` command."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from vadclip import evaluate
from vadrun.console import BAD_INPUT, DAMAGED, ProgressLine, clock, run_command, version
from vadrun.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="vadclip",
        description="Make features for VadCLIP, train it on them, and evaluate it.",
        epilog="exit codes: 0 done; 1 done, but a video was damaged or could not be read; 2 an input cannot be used.",
    )
    p.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    e = commands.add_parser(
        "extract",
        help="videos -> feature files",
        description="Write one feature file per video and crop; run again to go on where it stopped.",
    )
    e.add_argument(
        "source",
        nargs="+",
        type=Path,
        metavar="VIDEO",
        help="video files, folders of them, or a CSV list (path,label), for which one of the features is written too",
    )
    e.add_argument("--out", required=True, type=Path, metavar="DIR", help="where NAME__0.npy ... go")
    e.add_argument(
        "--encoder",
        required=True,
        metavar="WHAT",
        help="a bundle (fast), a checkpoint, or an open_clip tag such as openai",
    )
    e.add_argument("--root", type=Path, metavar="DIR", help="where the videos of a list lie now")
    e.add_argument("--crops", type=int, default=1, metavar="N", help="1 (default: the centre) or 10")
    e.add_argument("--sample", default="middle", metavar="WHICH", help="frame of a snippet: first, middle or mean")
    e.add_argument("--snippet-seconds", type=float, metavar="SEC", help="cut snippets by time, not every 16 frames")
    e.add_argument("--dtype", default="float16", metavar="T", help="float16 (default) or float32")
    e.add_argument("--batch", type=int, default=8, metavar="N", help="frames per encoder call (default 8)")
    e.add_argument("--backend", default="auto", metavar="NAME", help="of a bundle; see vadrun --help")
    e.add_argument("--precision", default="auto", metavar="P", help="of a bundle; see vadrun --help")
    _add_train(commands.add_parser("train", help="feature files -> checkpoint", description=TRAIN))
    v = commands.add_parser("evaluate", help="a model on a test list", description="Evaluate a checkpoint or a bundle.")
    evaluate.add_arguments(v)
    return p


TRAIN = """Train VadCLIP on feature files with video-level labels; run again to go on where it stopped."""


def _add_train(t: argparse.ArgumentParser) -> None:
    t.add_argument("--list", required=True, type=Path, metavar="CSV", help="training list: path,label of feature files")
    t.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    t.add_argument(
        "--clip", default="openai", metavar="WHAT", help="CLIP that made the features: an open_clip tag or a checkpoint"
    )
    t.add_argument("--dataset", metavar="NAME", help="ucf or xd; or give --classes")
    t.add_argument("--classes", type=Path, metavar="FILE", help="your own classes and their prompts (YAML or JSON)")
    t.add_argument("--root", type=Path, metavar="DIR", help="where the feature files of the list lie now")
    t.add_argument("--recipe", default="reference", metavar="NAME", help="reference (default) or paper")
    t.add_argument("--epochs", type=int, metavar="N", help="other than the recipe's")
    t.add_argument("--batch", type=int, metavar="N", help="other than the recipe's")
    t.add_argument("--lr", type=float, metavar="X", help="learning rate other than the recipe's")
    t.add_argument("--seed", type=int, default=234, metavar="N", help="of weights and order (default 234)")
    t.add_argument(
        "--select",
        default="validation",
        choices=("validation", "last"),
        help="keep the weights that are best on a part of the list set aside (default), or the last ones",
    )
    t.add_argument("--allow-missing", action="store_true", help="go on without listed files that are not there")
    t.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto)")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    commands = {"extract": _extract, "train": _train, "evaluate": evaluate.run}
    return run_command("vadclip", lambda: commands[arguments.command](arguments))


def _extract(arguments: argparse.Namespace) -> int:
    from vadclip.extract import ExtractOptions, extract, open_encoder, write_list
    from vadclip.lists import read_video_list
    from vadrun.sampling import Sampling
    from vadrun.video import named_videos

    lists = {path: read_video_list(path, arguments.root) for path in arguments.source if path.suffix == ".csv"}
    if len({path.name for path in lists}) < len(lists):
        raise UserError("two lists have one name, and so would the lists of their features: rename one")
    listed = [video for rows in lists.values() for video, _ in rows]
    videos = named_videos([*(path for path in arguments.source if path not in lists), *listed])
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
    for path, rows in lists.items():
        named = write_list(arguments.out / path.name, rows, options.crops)
        print(f"list of {named} of {len(rows)} videos in {arguments.out / path.name}")
    for sentence in (*report.damaged, *report.failed):
        print(f"vadclip: {sentence}", file=sys.stderr)
    if report.failed and not report.written + report.kept:
        return BAD_INPUT
    return DAMAGED if report.failed or report.damaged else 0


def _train(arguments: argparse.Namespace) -> int:
    import torch

    from vadclip.checkpoint import load_clip
    from vadclip.clip import pretrained
    from vadclip.lists import load_classes, load_list
    from vadclip.presets import get_preset
    from vadclip.train import get_recipe, new_model, train

    if (arguments.dataset is None) == (arguments.classes is None):
        raise UserError("the classes are not clear: give either --dataset (ucf or xd) or --classes FILE")
    preset = load_classes(arguments.classes) if arguments.classes else get_preset(arguments.dataset)
    changed = {
        name: getattr(arguments, name) for name in ("epochs", "batch", "lr") if getattr(arguments, name) is not None
    }
    recipe = replace(get_recipe(arguments.recipe, preset.name), seed=arguments.seed, **changed)
    listed = load_list(arguments.list, preset, arguments.root)
    source = Path(arguments.clip)
    clip = load_clip(source) if source.exists() or source.suffix else pretrained(arguments.clip)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    result = train(
        new_model(preset, clip, arguments.seed),
        listed,
        arguments.out,
        recipe,
        select=arguments.select,
        mirrored=preset.mirrored,
        allow_missing=arguments.allow_missing,
        device=device,
    )
    score = "" if result.score is None else f", score {result.score:.4f} in epoch {result.epoch + 1}"
    print(f"checkpoint in {result.checkpoint}{score}; next: vadexport build --checkpoint {result.checkpoint} --out DIR")
    return 0


if __name__ == "__main__":
    sys.exit(main())
