"""The command ``vadclip evaluate``: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from vadclip.evaluate import classes_of, evaluate, evaluate_predictions, write_evaluation
from vadclip.evaluation import Evaluation
from vadclip.groundtruth import COUNTS_COLUMN, Annotations, read_annotations, read_counts, video_name
from vadclip.lists import crop_remark, load_classes, load_list, one_crop, without_missing
from vadclip.predictions import read_predictions
from vadclip.presets import Preset, get_preset
from vadclip.scorers import ModelScorer, Scorer, open_scorer
from vadclip.testset import check_counts, checked, read_test_set
from vadrun.console import version
from vadrun.errors import UserError
from vadrun.files import check_place, json_text

# What the folder of an evaluation may hold beside its figures: the same as text, and pictures.
_OTHERS = ("evaluation.txt", "index.html", "curves.png", "confusion.png", "features.png", "videos")

_OF_MODELS = ("backend", "threads", "device", "window", "heads", "anomaly", "mask-padding", "clip", "crop")


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``vadclip evaluate``."""
    p.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="a checkpoint file, or the folder of a bundle")
    p.add_argument(
        "--scores",
        type=Path,
        metavar="DIR",
        help="instead of a model: NAME.npy for each video, anomaly scores [n] or class probabilities [n,m] of its "
        "snippets, or the folders that vadrun writes",
    )
    p.add_argument(
        "--list",
        required=True,
        type=Path,
        metavar="CSV",
        help="test list: path,label of feature files (with --scores of anything: only names and labels are read)",
    )
    p.add_argument(
        "--annotations", required=True, type=Path, metavar="FILE", help="anomalous frames, as the data set has them"
    )
    p.add_argument(
        "--events",
        type=Path,
        metavar="FILE",
        help="events with their classes, if not in --annotations (XD-Violence: the multi-class file)",
    )
    p.add_argument("--root", type=Path, metavar="DIR", help="where the feature files of the list lie now")
    p.add_argument("--classes", type=Path, metavar="FILE", help="your own classes, as in training (YAML or JSON)")
    p.add_argument(
        "--crop",
        type=int,
        metavar="N",
        help="of several crops in the list (default: the centre as the model runs on it, 0 plain or 5 mirrored)",
    )
    p.add_argument("--counts", type=Path, metavar="CSV", help="snippets of each video, to check the features against")
    p.add_argument(
        "--counts-column", default=COUNTS_COLUMN, metavar="NAME", help=f"its column (default {COUNTS_COLUMN})"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="write evaluation.json and evaluation.txt here")
    p.add_argument("--pictures", action="store_true", help="draw pictures there too: open its index.html")
    p.add_argument("--force", action="store_true", help="replace an evaluation that is already there")
    p.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    p.add_argument("--quiet", action="store_true", help="no progress on stderr")
    b = p.add_argument_group("how to run")
    b.add_argument("--backend", default="auto", metavar="NAME", help="of a bundle: onnxruntime, openvino, ...")
    b.add_argument("--threads", type=int, metavar="N", help="inference threads of a bundle")
    b.add_argument("--device", default="auto", metavar="NAME", help="of a checkpoint: cpu, cuda, ... (default auto)")
    m = p.add_argument_group("what a checkpoint's weights do not tell")
    m.add_argument("--dataset", metavar="NAME", help="ucf or xd: labels, window and scoring branch of that release")
    m.add_argument("--window", type=int, metavar="N", help="attention window of the local module, in snippets")
    m.add_argument("--heads", type=int, metavar="N", help="attention heads of the local module")
    m.add_argument("--anomaly", metavar="BRANCH", help="confidence or alignment: the branch that is reported")
    m.add_argument("--mask-padding", action="store_true", help="the model was trained with padding masked")
    m.add_argument(
        "--clip", metavar="TAG", help="CLIP for a checkpoint without it: openai, or MODEL/TAG of open_clip's weights"
    )
    m.add_argument(
        "--clip-model",
        metavar="NAME",
        help="which CLIP a .pth holds: openai (default), ViT-B-16 or another of open_clip's model names, or its .json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments of :func:`add_arguments` say; returns the exit code.

    Raises:
        UserError: an input cannot be used.
    """
    if arguments.out is not None:
        check_place(
            arguments.out, replace=arguments.force, marks=["evaluation.json"], others=_OTHERS, kind="an evaluation"
        )
    if arguments.pictures:
        if arguments.out is None:
            raise UserError("there is no place for pictures: give a folder to --out")
        if find_spec("matplotlib") is None:
            raise UserError("pictures need matplotlib, which is not installed: pip install 'vadclip-edge[train]'")
    annotations = read_annotations(arguments.annotations)
    events = None if arguments.events is None else read_annotations(arguments.events)
    counts = None if arguments.counts is None else read_counts(arguments.counts, arguments.counts_column)
    if (arguments.model is None) == (arguments.scores is None):
        raise UserError("what is to be evaluated is not clear: name either a model or --scores DIR")
    own = None if arguments.classes is None else load_classes(arguments.classes)
    scorer: Scorer | None = None
    if arguments.scores is not None:
        evaluation = _of_scores(arguments, own, annotations, events, counts)
    else:
        scorer, evaluation = _of_model(arguments, own, annotations, events, counts)
    origin = {
        "toolkit": version(),
        "model": None if arguments.model is None else str(arguments.model),
        "sha256": None if scorer is None else scorer.sha256,
        "runs_on": None if scorer is None else scorer.description,
        "scores": None if arguments.scores is None else str(arguments.scores),
        "list": str(arguments.list),
        "annotations": str(arguments.annotations),
        "events": None if arguments.events is None else str(arguments.events),
    }
    if arguments.out is not None:
        draw = None
        if arguments.pictures:
            from vadclip.report import write_pictures

            adapt = scorer.adapt if isinstance(scorer, ModelScorer) else None
            draw = partial(write_pictures, evaluation, adapt=adapt)
        write_evaluation(evaluation, arguments.out, origin, force=arguments.force, pictures=draw)
    if arguments.json:
        print(json_text({"origin": origin, **evaluation.to_json()}))
        return 0
    print(evaluation.table())
    if arguments.out is not None:
        print(f"\nresults in {arguments.out}")
    return 0


def _of_model(
    arguments: argparse.Namespace,
    own: Preset | None,
    annotations: Annotations,
    events: Annotations | None,
    counts: dict[str, int] | None,
) -> tuple[Scorer, Evaluation]:
    scorer = open_scorer(
        arguments.model,
        backend=arguments.backend,
        threads=arguments.threads,
        device=arguments.device,
        dataset=arguments.dataset or own,
        window=arguments.window,
        heads=arguments.heads,
        anomaly=arguments.anomaly,
        mask_padding=arguments.mask_padding,
        clip=arguments.clip,
        clip_model=arguments.clip_model,
    )
    preset = classes_of(scorer.labels, own)
    listed, _ = without_missing(load_list(arguments.list, preset, arguments.root))
    if scorer.mirrored is not None:
        preset = replace(preset, mirrored=scorer.mirrored)
    crop = arguments.crop if arguments.crop is not None else preset.centre_crop
    listed = one_crop(listed, crop)
    if (remark := crop_remark(listed, crop)) is not None:
        if arguments.crop is not None:
            raise UserError(f"{remark}: give another --crop, or extract with --crops 10")
        print(f"vadclip: {remark}", file=sys.stderr)
    progress = None if arguments.quiet or not sys.stderr.isatty() else _print_progress
    test = read_test_set(listed, preset, scorer.width, annotations, events, counts)
    return scorer, evaluate(scorer, test, progress)


def _of_scores(
    arguments: argparse.Namespace,
    own: Preset | None,
    annotations: Annotations,
    events: Annotations | None,
    counts: dict[str, int] | None,
) -> Evaluation:
    given = [
        f"--{name}" for name in _OF_MODELS if getattr(arguments, name.replace("-", "_")) not in (None, False, "auto")
    ]
    if given:
        raise UserError(f"--scores are of no model, and {given[0]} is for one: leave it out")
    if (own is None) == (arguments.dataset is None):
        raise UserError("the classes of the scores are not clear: give either --dataset (ucf or xd) or --classes FILE")
    preset = own or get_preset(arguments.dataset)
    listed = one_crop(load_list(arguments.list, preset, arguments.root, videos=True), preset.centre_crop)
    names = [video_name(str(path)) for path in listed.paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{arguments.list} lists the video {twice!r} twice: keep one of the lines")
    predictions = read_predictions(arguments.scores, names, preset.labels)
    snippets = {name: len(one.anomaly) for name, one in zip(names, predictions, strict=True)}
    if counts is None and all(path.is_file() and path.suffix == ".npy" for path in listed.paths):
        listed, _ = without_missing(listed)
        listed = one_crop(listed, preset.centre_crop)
        counts = {name: listed.count(index, None) for index, name in enumerate(names)}
    if counts is not None:
        check_counts(snippets, counts, "score files", "give a score for each snippet of 16 frames")
    test = checked(listed, preset, snippets, annotations, events)
    return evaluate_predictions(predictions, test)


def _print_progress(done: int, total: int) -> None:
    sys.stderr.write("\r\x1b[K" if done == total else f"\r\x1b[Kscored {done} of {total} videos")
    sys.stderr.flush()
