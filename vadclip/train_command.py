"""``vadclip train`` and ``vadclip ablate``: their arguments, what is checked beforehand, and the runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadclip import evaluate, testset
from vadrun.console import DAMAGED, ProgressLine
from vadrun.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from vadclip.config import Design
    from vadclip.evaluation import Evaluation
    from vadclip.recipes import Recipe
    from vadclip.testset import TestSet
    from vadclip.trainer import Result

TRAIN = """Train VadCLIP on feature files with video-level labels; run again to go on where it stopped. On several GPUs:
torchrun --nproc-per-node N -m vadclip.cli train ..."""
ABLATE = """Train and evaluate the rows of the paper's Tables 5 to 7 and write their tables; run again to go on."""


def add_train_arguments(p: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``vadclip train``."""
    _add_common(p, clip="that of --init, or else openai")
    p.add_argument("--seed", type=int, default=234, metavar="N", help="of weights and order (default 234)")
    p.add_argument(
        "--init",
        type=Path,
        metavar="CHECKPOINT",
        help="start from the weights of this VadCLIP checkpoint; the classes may be others",
    )
    _add_test_list(p, "for --select test", required=False)


def add_ablate_arguments(p: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``vadclip ablate``."""
    _add_common(p, clip="openai")
    p.add_argument("--table", type=int, nargs="+", default=[], metavar="N", help="tables 5, 6, 7 (default: all)")
    p.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="single rows, such as only-gcn")
    p.add_argument("--seeds", type=int, nargs="+", default=[234], metavar="N", help="one training each (default 234)")
    _add_test_list(p, "on which every row is evaluated", required=True)


def _add_common(p: argparse.ArgumentParser, clip: str) -> None:
    p.add_argument("--list", required=True, type=Path, metavar="CSV", help="training list: path,label of feature files")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    p.add_argument(
        "--clip",
        metavar="WHAT",
        help=f"CLIP that made the features, as for extract --encoder (default: {clip})",
    )
    p.add_argument(
        "--clip-model",
        metavar="NAME",
        help="which CLIP a file of weights is, where nothing else tells: openai, ViT-B-16 or another of open_clip's "
        "model names, or its configuration (.json)",
    )
    p.add_argument("--dataset", metavar="NAME", help="ucf or xd; or give --classes")
    p.add_argument("--classes", type=Path, metavar="FILE", help="your own classes and their prompts (YAML or JSON)")
    p.add_argument("--root", type=Path, metavar="DIR", help="where the feature files of the lists lie now")
    p.add_argument(
        "--preset", choices=("small",), help="small: for tens of videos; the same as --recipe small --select last"
    )
    p.add_argument("--recipe", metavar="NAME", help="reference (default), paper or small")
    p.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="other than the recipe's; the steps of its learning rate stay at their share of the training",
    )
    p.add_argument("--batch", type=int, metavar="N", help="other than the recipe's")
    p.add_argument("--lr", type=float, metavar="X", help="learning rate other than the recipe's")
    p.add_argument(
        "--select",
        choices=("validation", "test", "last"),
        help="keep the weights that are best on a part of the list set aside (default), those that are best on the "
        "test list, as the released code does, or the last ones",
    )
    p.add_argument("--validation", type=float, metavar="SHARE", help="of the videos that are set aside (default 0.1)")
    p.add_argument(
        "--mask-padding", action="store_true", help="exclude padded positions, which the released models do not"
    )
    p.add_argument("--allow-missing", action="store_true", help="go on without listed files that are not there")
    p.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto)")
    p.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "mixed"),
        help="mixed computes in bfloat16 where that is safe; auto (default) does so on CUDA with --recipe paper",
    )
    p.add_argument("--tensorboard", action="store_true", help="write event files for TensorBoard beside log.csv")
    p.add_argument("--quiet", action="store_true", help="no log lines and no progress; log.csv is written all the same")


def _add_test_list(p: argparse.ArgumentParser, why: str, required: bool) -> None:
    g = p.add_argument_group(f"the test list, {why}")
    g.add_argument("--test-list", type=Path, required=required, metavar="CSV", help="path,label of feature files")
    g.add_argument(
        "--annotations", type=Path, required=required, metavar="FILE", help="anomalous frames, as the data set has them"
    )
    g.add_argument("--events", type=Path, metavar="FILE", help="events with their classes, if not in --annotations")


def train(arguments: argparse.Namespace) -> int:
    """Do what the arguments of :func:`add_train_arguments` say; returns the exit code.

    Raises:
        UserError: an input cannot be used.
    """
    training = _Training(arguments)
    result = training.run(None, arguments.seed, arguments.out)
    if os.environ.get("RANK", "0") != "0":  # torchrun's; one process speaks for all
        return 0
    score = "" if result.score is None else f", {result.score_name} {result.score:.4f} in epoch {result.epoch + 1}"
    print(f"checkpoint in {result.checkpoint}{score}; next: vadexport build --checkpoint {result.checkpoint} --out DIR")
    return DAMAGED if result.doubts else 0


def ablate(arguments: argparse.Namespace) -> int:
    """Do what the arguments of :func:`add_ablate_arguments` say; returns the exit code.

    Raises:
        UserError: an input cannot be used.
    """
    from vadclip.ablation import ablate, chosen_rows, report

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("ablations run in one process: start vadclip ablate without torchrun")
    rows = chosen_rows(arguments.table, arguments.rows)
    training = _Training(arguments, [design for _, _, design in rows])
    print(report(ablate(rows, arguments.seeds, training.evaluated, arguments.out, training.origin())))
    print(f"\ntables in {arguments.out / 'ablation.md'}, runs in {arguments.out / 'runs'}")
    return DAMAGED if training.doubtful else 0


def _warn(sentence: str) -> None:
    print(f"vadclip: {sentence}", file=sys.stderr)


class _Training:
    """What ``train`` and ``ablate`` have in common: inputs that are checked, and runs."""

    def __init__(self, arguments: argparse.Namespace, designs: Sequence[Design] = ()) -> None:
        from vadclip.data import check_kinds
        from vadclip.device import find_device
        from vadclip.initial import new_config
        from vadclip.lists import load_classes, load_list
        from vadclip.presets import get_preset

        if (arguments.dataset is None) == (arguments.classes is None):
            raise UserError("the classes are not clear: give either --dataset (ucf or xd) or --classes FILE")
        if arguments.preset is not None and arguments.recipe is not None:
            raise UserError("--preset has a recipe of its own: leave --recipe out, or --preset")
        self.select: Any = arguments.select or ("validation" if arguments.preset is None else "last")
        if arguments.validation is not None and self.select != "validation":
            raise UserError(f"--select {self.select} sets no videos aside: leave --validation out")
        self.arguments = arguments
        self.doubtful = 0
        self._warned: set[str] = set()
        self.preset = load_classes(arguments.classes) if arguments.classes else get_preset(arguments.dataset)
        self.recipe = _recipe(arguments, self.preset.name)
        self.listed = load_list(arguments.list, self.preset, arguments.root)
        check_kinds(self.listed)
        self.clip = self._clip()
        for design in designs or (None,):
            new_config(self.preset, self.clip, design)  # a label that is too long is found now
        self.device = str(find_device(arguments.device))
        self.test = self._test_set() if arguments.test_list else None
        if self.select == "test" and self.test is None:
            raise UserError("--select test needs the test list: give --test-list and --annotations")

    def _clip(self) -> nn.Module:
        from vadclip.checkpoint import holds_clip, load_clip
        from vadclip.extract import clip_name, open_clip_model
        from vadclip.initial import same_clip
        from vadclip.sidecar import check_clip

        init, name, kind = getattr(self.arguments, "init", None), self.arguments.clip, self.arguments.clip_model
        inside = load_clip(init, kind if name is None else None) if init is not None and holds_clip(init) else None
        if name is None and inside is not None:
            return inside  # of which a sidecar cannot tell whether it made the features
        name = name or "openai"
        clip: nn.Module = open_clip_model(name, kind)
        check_clip(self.listed.paths, clip_name(name, clip))
        if inside is not None and not same_clip(inside, clip):
            _warn(f"{init} was trained with another CLIP than {name}: its weights may be of little use here")
        return clip

    def _test_set(self) -> TestSet:
        """The test list, checked before hours of training and not after."""
        from vadclip.clip import clip_config
        from vadclip.groundtruth import read_annotations
        from vadclip.lists import check_apart, crop_remark, load_list, one_crop, without_missing
        from vadclip.sidecar import check_test_features, common_settings

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
            _warn(remark)
        test = testset.read_test_set(listed, self.preset, width, annotations, events)
        check_test_features(test.settings, common_settings(self.listed.paths), "the training list")
        for index in range(len(listed)):
            listed.read(index, width)  # NaN too is found now
        return test

    def run(self, design: Design | None, seed: int, out: Path, cache: bool | Path = True) -> Result:
        from vadclip.initial import new_model, start_from
        from vadclip.selection import snippet_scorer
        from vadclip.train import train

        arguments = self.arguments
        model = new_model(self.preset, self.clip, seed, design, mask_padding=arguments.mask_padding)
        bar = ProgressLine(f"training {out.name}", not arguments.quiet)
        scorer = None
        if self.select == "test":
            assert self.test is not None
            masks = [truth.mask for truth in self.test.truths]
            scorer = snippet_scorer(self.test.listed, masks, model.config)

        def say(line: str) -> None:
            bar.clear()
            if not arguments.quiet:
                print(line, flush=True)

        def warn(sentence: str) -> None:
            bar.clear()
            if sentence not in self._warned:  # of all ablations, once
                self._warned.add(sentence)
                _warn(sentence)

        if getattr(arguments, "init", None) is not None:
            start_from(model, arguments.init)
            say(f"starting from the weights of {arguments.init}")
        result = train(
            model,
            self.listed,
            out,
            replace(self.recipe, seed=seed),
            select=self.select,
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
            warn=warn,
            progress=lambda done, total: bar.count(done, total, "batches"),
        )
        bar.clear()
        if result.doubts and os.environ.get("RANK", "0") == "0":
            self.doubtful += 1
            for sentence in result.doubts:
                warn(f"{out}: {sentence}")
        return result

    def origin(self) -> dict[str, Any]:
        """What the figures of all ablations in one table have in common, as plain data."""
        assert self.test is not None
        return {
            "recipe": asdict(self.recipe),
            "training list": self.listed.fingerprint(),
            "test list": self.test.fingerprint,
            "selection": [self.select, self.arguments.validation],
            "mask_padding": self.arguments.mask_padding,
        }

    def evaluated(self, design: Design, seed: int, out: Path) -> Evaluation:
        from vadclip.checkpoint import load_checkpoint
        from vadclip.scorers import ModelScorer

        assert self.test is not None
        # Of every design the same features; what is set aside goes by the seed.
        packed = self.arguments.out / "features"
        packed = packed / f"seed-{seed}" if self.select == "validation" else packed
        checkpoint = self.run(design, seed, out, packed).checkpoint
        scorer = ModelScorer(load_checkpoint(checkpoint), self.device)
        found = evaluate.evaluate(scorer, self.test)
        evaluate.write_evaluation(found, out / "evaluation", {"model": str(checkpoint)}, force=True)
        return found


def _recipe(arguments: argparse.Namespace, dataset: str) -> Recipe:
    from vadclip.recipes import get_recipe

    recipe = get_recipe(arguments.preset or arguments.recipe or "reference", dataset)
    if arguments.epochs is not None:
        recipe = recipe.of_epochs(arguments.epochs)
    given = {name: getattr(arguments, name) for name in ("batch", "lr")}
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})
