"""The ``vadclip`` command."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vadclip import evaluate, evaluate_command, features_command
from vadrun.console import BAD_INPUT, CODES, DAMAGED, ProgressLine, clock, run_command, version
from vadrun.errors import UserError

if TYPE_CHECKING:
    from vadclip.config import Design
    from vadclip.evaluation import Evaluation
    from vadclip.testset import TestSet
    from vadclip.train import Result


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
        description="Write one feature file per video and crop; run again to go on where it stopped.",
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
    t = commands.add_parser("train", help="feature files -> checkpoint", description=TRAIN)
    _add_train(t)
    t.add_argument("--seed", type=int, default=234, metavar="N", help="of weights and order (default 234)")
    _add_test_list(t, "for --select test", required=False)
    a = commands.add_parser("ablate", help="the paper's ablations", description=ABLATE)
    _add_train(a)
    _add_ablate(a)
    _add_test_list(a, "on which every row is evaluated", required=True)
    v = commands.add_parser("evaluate", help="a model on a test list", description="Evaluate a checkpoint or a bundle.")
    evaluate_command.add_arguments(v)
    return p


TRAIN = """Train VadCLIP on feature files with video-level labels; run again to go on where it stopped. On several GPUs:
torchrun --nproc-per-node N -m vadclip.cli train ..."""
ABLATE = """Train and evaluate the rows of the paper's Tables 5 to 7 and write their tables; run again to go on."""


def _add_train(t: argparse.ArgumentParser) -> None:
    t.add_argument("--list", required=True, type=Path, metavar="CSV", help="training list: path,label of feature files")
    t.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    t.add_argument(
        "--clip",
        default="openai",
        metavar="WHAT",
        help="CLIP that made the features, as for extract --encoder (default openai)",
    )
    t.add_argument(
        "--clip-model",
        metavar="NAME",
        help="which CLIP a file of weights is, where nothing else tells: openai, ViT-B-16 or another of open_clip's "
        "model names, or its configuration (.json)",
    )
    t.add_argument("--dataset", metavar="NAME", help="ucf or xd; or give --classes")
    t.add_argument("--classes", type=Path, metavar="FILE", help="your own classes and their prompts (YAML or JSON)")
    t.add_argument("--root", type=Path, metavar="DIR", help="where the feature files of the lists lie now")
    t.add_argument("--recipe", default="reference", metavar="NAME", help="reference (default) or paper")
    t.add_argument("--epochs", type=int, metavar="N", help="other than the recipe's")
    t.add_argument("--batch", type=int, metavar="N", help="other than the recipe's")
    t.add_argument("--lr", type=float, metavar="X", help="learning rate other than the recipe's")
    t.add_argument(
        "--select",
        default="validation",
        choices=("validation", "test", "last"),
        help="keep the weights that are best on a part of the list set aside (default), those that are best on the "
        "test list, as the released code does, or the last ones",
    )
    t.add_argument("--validation", type=float, metavar="SHARE", help="of the videos that are set aside (default 0.1)")
    t.add_argument(
        "--mask-padding", action="store_true", help="exclude padded positions, which the released models do not"
    )
    t.add_argument("--allow-missing", action="store_true", help="go on without listed files that are not there")
    t.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto)")
    t.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "mixed"),
        help="mixed computes in bfloat16 where that is safe; auto (default) does so on CUDA",
    )
    t.add_argument("--tensorboard", action="store_true", help="write event files for TensorBoard beside log.csv")
    t.add_argument("--quiet", action="store_true", help="no log lines and no progress; log.csv is written all the same")


def _add_test_list(t: argparse.ArgumentParser, why: str, required: bool) -> None:
    g = t.add_argument_group(f"the test list, {why}")
    g.add_argument("--test-list", type=Path, required=required, metavar="CSV", help="path,label of feature files")
    g.add_argument(
        "--annotations", type=Path, required=required, metavar="FILE", help="anomalous frames, as the data set has them"
    )
    g.add_argument("--events", type=Path, metavar="FILE", help="events with their classes, if not in --annotations")


def _add_ablate(t: argparse.ArgumentParser) -> None:
    t.add_argument("--table", type=int, nargs="+", default=[], metavar="N", help="tables 5, 6, 7 (default: all)")
    t.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="single rows, such as only-gcn")
    t.add_argument("--seeds", type=int, nargs="+", default=[234], metavar="N", help="one training each (default 234)")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    commands = {
        "extract": _extract,
        "features": features_command.run,
        "train": _train,
        "ablate": _ablate,
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
    for sentence in (*report.remarks, *report.damaged, *report.failed):
        print(f"vadclip: {sentence}", file=sys.stderr)
    if report.failed and not report.written + report.kept:
        return BAD_INPUT
    return DAMAGED if report.failed or report.damaged else 0


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


class _Training:
    """What ``train`` and ``ablate`` have in common: inputs that are checked, and runs."""

    def __init__(self, arguments: argparse.Namespace, designs: Sequence[Design] = ()) -> None:
        from vadclip.device import find_device
        from vadclip.extract import clip_name, open_clip_model
        from vadclip.lists import load_classes, load_list
        from vadclip.presets import get_preset
        from vadclip.recipes import get_recipe
        from vadclip.sidecar import check_clip
        from vadclip.train import new_config

        if (arguments.dataset is None) == (arguments.classes is None):
            raise UserError("the classes are not clear: give either --dataset (ucf or xd) or --classes FILE")
        if arguments.validation is not None and arguments.select != "validation":
            raise UserError(f"--select {arguments.select} sets no videos aside: leave --validation out")
        self.arguments = arguments
        self.preset = load_classes(arguments.classes) if arguments.classes else get_preset(arguments.dataset)
        given = {name: getattr(arguments, name) for name in ("epochs", "batch", "lr")}
        changed = {name: value for name, value in given.items() if value is not None}
        self.recipe = replace(get_recipe(arguments.recipe, self.preset.name), **changed)
        self.listed = load_list(arguments.list, self.preset, arguments.root)
        self.clip = open_clip_model(arguments.clip, arguments.clip_model)
        check_clip(self.listed.paths, clip_name(arguments.clip, self.clip))
        for design in designs or (None,):
            new_config(self.preset, self.clip, design)  # a label that is too long is found now
        self.device = str(find_device(arguments.device))
        self.test = self._test_set() if arguments.test_list else None
        if arguments.select == "test" and self.test is None:
            raise UserError("--select test needs the test list: give --test-list and --annotations")

    def _test_set(self) -> TestSet:
        """The test list, checked before hours of training and not after."""
        from vadclip.clip import clip_config
        from vadclip.groundtruth import read_annotations
        from vadclip.lists import check_apart, crop_remark, load_list, one_crop, without_missing
        from vadclip.sidecar import check_test_features, common_settings
        from vadclip.testset import read_test_set

        arguments = self.arguments
        if arguments.annotations is None:
            raise UserError("a test list says nothing without its truth: give --annotations")
        listed, _ = without_missing(load_list(arguments.test_list, self.preset, arguments.root))
        check_apart(self.listed, listed)
        annotations = read_annotations(arguments.annotations)
        events = None if arguments.events is None else read_annotations(arguments.events)
        width = clip_config(self.clip)[1]
        listed = one_crop(listed, self.preset.centre_crop)
        if (remark := crop_remark(listed, self.preset.centre_crop)) is not None:
            print(f"vadclip: {remark}", file=sys.stderr)
        test = read_test_set(listed, self.preset, width, annotations, events)
        check_test_features(test.settings, common_settings(self.listed.paths), "the training list")
        for index in range(len(listed)):
            listed.read(index, width)  # NaN too is found now
        return test

    def run(self, design: Design | None, seed: int, out: Path, cache: bool | Path = True) -> Result:
        from vadclip.selection import snippet_scorer
        from vadclip.train import new_model, train

        arguments = self.arguments
        model = new_model(self.preset, self.clip, seed, design, mask_padding=arguments.mask_padding)
        bar = ProgressLine(f"training {out.name}", not arguments.quiet)
        scorer = None
        if arguments.select == "test":
            assert self.test is not None
            masks = [truth.mask for truth in self.test.truths]
            scorer = snippet_scorer(self.test.listed, masks, model.config)

        def say(line: str) -> None:
            bar.clear()
            if not arguments.quiet:
                print(line, flush=True)

        result = train(
            model,
            self.listed,
            out,
            replace(self.recipe, seed=seed),
            select=arguments.select,
            scorer=scorer,
            test_set=None if scorer is None or self.test is None else self.test.fingerprint,
            validation=0.1 if arguments.validation is None else arguments.validation,
            crop=self.preset.centre_crop,
            allow_missing=arguments.allow_missing,
            cache=cache,
            device=self.device,
            precision=arguments.precision,
            tensorboard=arguments.tensorboard,
            say=say,
            progress=lambda done, total: bar.count(done, total, "batches"),
        )
        bar.clear()
        return result

    def origin(self) -> dict[str, Any]:
        """What the figures of all ablations in one table have in common, as plain data."""
        assert self.test is not None
        return {
            "recipe": asdict(self.recipe),
            "training list": self.listed.fingerprint(),
            "test list": self.test.fingerprint,
            "selection": [self.arguments.select, self.arguments.validation],
            "mask_padding": self.arguments.mask_padding,
        }

    def evaluated(self, design: Design, seed: int, out: Path) -> Evaluation:
        from vadclip.checkpoint import load_checkpoint
        from vadclip.scorers import ModelScorer

        assert self.test is not None
        # Of every design the same features; what is set aside goes by the seed.
        packed = self.arguments.out / "features"
        packed = packed / f"seed-{seed}" if self.arguments.select == "validation" else packed
        checkpoint = self.run(design, seed, out, packed).checkpoint
        scorer = ModelScorer(load_checkpoint(checkpoint), self.device)
        found = evaluate.evaluate(scorer, self.test)
        evaluate.write_evaluation(found, out / "evaluation", {"model": str(checkpoint)}, force=True)
        return found


def _train(arguments: argparse.Namespace) -> int:
    result = _Training(arguments).run(None, arguments.seed, arguments.out)
    if os.environ.get("RANK", "0") != "0":  # torchrun's; one process speaks for all
        return 0
    score = "" if result.score is None else f", score {result.score:.4f} in epoch {result.epoch + 1}"
    print(f"checkpoint in {result.checkpoint}{score}; next: vadexport build --checkpoint {result.checkpoint} --out DIR")
    return 0


def _ablate(arguments: argparse.Namespace) -> int:
    from vadclip.ablation import ablate, chosen_rows, report

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("ablations run in one process: start vadclip ablate without torchrun")
    rows = chosen_rows(arguments.table, arguments.rows)
    training = _Training(arguments, [design for _, _, design in rows])
    print(report(ablate(rows, arguments.seeds, training.evaluated, arguments.out, training.origin())))
    print(f"\ntables in {arguments.out / 'ablation.md'}, runs in {arguments.out / 'runs'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
