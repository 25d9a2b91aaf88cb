"""The command ``vadclip evaluate``: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from vadclip.evaluate import classes_of, evaluate, read_test_set, write_evaluation
from vadclip.groundtruth import COUNTS_COLUMN, read_annotations, read_counts
from vadclip.lists import crop_remark, load_classes, load_list, one_crop, without_missing
from vadclip.scorers import ModelScorer, open_scorer
from vadrun.console import version
from vadrun.errors import UserError
from vadrun.files import check_place


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``vadclip evaluate``."""
    p.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint file, or the folder of a bundle")
    p.add_argument("--list", required=True, type=Path, metavar="CSV", help="test list: path,label of feature files")
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
    p.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="your own classes (YAML or JSON), if the model does not hold how annotations name them",
    )
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
    m.add_argument("--clip", metavar="TAG", help="CLIP for a checkpoint without it: an open_clip tag such as openai")


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments of :func:`add_arguments` say; returns the exit code.

    Raises:
        UserError: an input cannot be used.
    """
    if arguments.out is not None:
        check_place(arguments.out, replace=arguments.force, marks=["evaluation.json"], kind="an evaluation")
    if arguments.pictures:
        if arguments.out is None:
            raise UserError("there is no place for pictures: give a folder to --out")
        if find_spec("matplotlib") is None:
            raise UserError("pictures need matplotlib, which is not installed: pip install 'vadclip-edge[train]'")
    own = None if arguments.classes is None else load_classes(arguments.classes)
    annotations = read_annotations(arguments.annotations)
    events = None if arguments.events is None else read_annotations(arguments.events)
    counts = None if arguments.counts is None else read_counts(arguments.counts, arguments.counts_column)
    scorer = open_scorer(
        arguments.model,
        backend=arguments.backend,
        threads=arguments.threads,
        device=arguments.device,
        # A bundle has the model's settings; classes of one's own then only say how annotations name them.
        dataset=arguments.dataset or (None if arguments.model.is_dir() else own),
        window=arguments.window,
        heads=arguments.heads,
        anomaly=arguments.anomaly,
        mask_padding=arguments.mask_padding,
        clip=arguments.clip,
    )
    preset = classes_of(scorer.labels, own, scorer.annotation_names)
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
    evaluation = evaluate(scorer, test, progress)
    origin = {
        "toolkit": version(),
        "model": str(arguments.model),
        "sha256": scorer.sha256,
        "runs_on": scorer.description,
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
        print(json.dumps({"origin": origin, **evaluation.to_json()}, indent=2, ensure_ascii=False))
        return 0
    print(evaluation.table())
    if arguments.out is not None:
        print(f"\nresults in {arguments.out}")
    return 0


def _print_progress(done: int, total: int) -> None:
    sys.stderr.write("\r\x1b[K" if done == total else f"\r\x1b[Kscored {done} of {total} videos")
    sys.stderr.flush()
