"""The ``vadexport`` command."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vadrun.console import CODES, DAMAGED, run_command, version
from vadrun.errors import UserError
from vadrun.files import json_text

if TYPE_CHECKING:
    from vadexport.compile import CompileOptions

FAILED = DAMAGED  # exit code 1: done, and a check did not pass


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="vadexport",
        description="Turn a VadCLIP checkpoint into a bundle that vadrun runs without PyTorch.",
        epilog=CODES,
    )
    p.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    b = commands.add_parser("build", help="checkpoint -> bundle", description="Build a bundle from a checkpoint.")
    b.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="the authors' .pth, or our .safetensors",
    )
    b.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the bundle goes")
    b.add_argument("--dataset", metavar="NAME", help="ucf or xd: labels, window and scoring branch of that release")
    b.add_argument("--labels", type=Path, metavar="FILE", help="class labels, one a line, the normal class first")
    b.add_argument("--precision", default="fp32", metavar="P", help="of the encoder graph: fp32 (default), fp16, int8")
    b.add_argument(
        "--ranges", type=Path, metavar="FILE", help="for int8: what vadcalibrate ranges made of your footage"
    )
    b.add_argument("--force", action="store_true", help="replace a bundle that is already there")
    b.add_argument(
        "--probe", nargs="+", type=Path, default=[], metavar="VIDEO", help="check with frames of these videos"
    )
    _add_limits(b)
    m = b.add_argument_group("what weights do not tell (default: from --dataset or the checkpoint)")
    m.add_argument("--window", type=int, metavar="N", help="attention window of the local module, in snippets")
    m.add_argument("--heads", type=int, metavar="N", help="attention heads of the local module")
    m.add_argument("--anomaly", metavar="BRANCH", help="confidence or alignment: the branch that scores")
    m.add_argument("--mask-padding", action="store_true", help="the model was trained with padding masked")
    m.add_argument(
        "--clip", metavar="TAG", help="CLIP for a checkpoint without it: openai, or MODEL/TAG of open_clip's weights"
    )
    m.add_argument(
        "--clip-model",
        metavar="NAME",
        help="which CLIP a .pth holds: openai (default), ViT-B-16 or another of open_clip's model names, or its .json",
    )
    v = b.add_argument_group("how video becomes frames (kept in the bundle)")
    v.add_argument(
        "--sample",
        metavar="WHICH",
        help="frame of a snippet: first, middle or mean (default: as the model was trained, else middle)",
    )
    v.add_argument(
        "--snippet-seconds",
        type=float,
        metavar="SEC",
        help="cut snippets by time, for cameras of any rate (default: as the model was trained, else every 16 frames)",
    )
    v.add_argument(
        "--preprocessing",
        metavar="STYLE",
        help="default, or reference: pixels as OpenCV makes them (no antialiasing, BT.601), for models trained on the "
        "authors' features (default: as the model was trained, else default)",
    )
    v.add_argument("--crop", default="center", metavar="WHERE", help="center, top-left, ... (default center)")
    v.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="mirror frames (default: as the model was trained, else as the dataset's test features)",
    )

    k = commands.add_parser(
        "compile",
        help="bundle -> TensorRT engines, on the box that runs them",
        description="Build TensorRT engines of a bundle for this GPU and check them on it. An fp16 encoder that misses "
        "its limits is built again with the fewest parts in float32 that mend it; the next compile here knows them.",
    )
    k.add_argument("bundle", type=Path, metavar="DIR")
    k.add_argument(
        "--batch",
        metavar="MIN,OPT,MAX",
        help="frames in one call of the encoder (default 1,8,32; with --low-memory 1,4,8)",
    )
    k.add_argument(
        "--for",
        dest="targets",
        default="",
        metavar="CC,...",
        help="compute capabilities of GPUs that are not here, such as 8.6,8.9 (TensorRT-RTX only); compile or verify "
        "there checks them",
    )
    k.add_argument("--hardware-compatible", action="store_true", help="for every GPU from Ampere on (slower)")
    k.add_argument("--version-compatible", action="store_true", help="for later TensorRT of the same major version too")
    k.add_argument("--memory", type=int, metavar="MIB", help="scratch memory that the builder may take")
    k.add_argument(
        "--low-memory",
        action="store_true",
        help="256 MiB of scratch, smaller batches, a quicker search: for 8 GB boxes",
    )
    k.add_argument("--keep-failed", action="store_true", help="keep an engine that is wrong, to look at")
    _add_limits(k)

    t = commands.add_parser(
        "relabel",
        help="other classes for a bundle, no engine touched",
        description="Give a bundle other classes: added, renamed, dropped, or with prompts of your own. Graphs and "
        "engines stay as they are.",
    )
    t.add_argument("bundle", type=Path, metavar="DIR")
    t.add_argument(
        "--labels",
        required=True,
        type=Path,
        metavar="FILE",
        help="the new classes, one a line, the normal class first: label, or label: words of its prompt",
    )
    source = t.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="what the bundle was built from")
    source.add_argument(
        "--text", type=Path, metavar="FILE", help="embeddings of these labels as .npy, made elsewhere; needs no PyTorch"
    )

    i = commands.add_parser("inspect", help="print what a bundle holds", description="Print what a bundle holds.")
    i.add_argument("bundle", type=Path, metavar="DIR")
    i.add_argument("--json", action="store_true", help="for machines")

    c = commands.add_parser(
        "verify",
        help="run the certificate on this machine, and add the result to the bundle",
        description="Run every artifact against PyTorch's stored answers, with each backend that is there; with "
        "--videos also on footage of your own, against float32. The result is added to the bundle's certificate.json, "
        "which inspect prints. Engines of compile --for that pass here are marked as checked; nothing else changes.",
    )
    c.add_argument("bundle", type=Path, metavar="DIR")
    c.add_argument("--json", action="store_true", help="for machines")
    _add_limits(c)
    f = c.add_argument_group("on footage")
    f.add_argument("--videos", nargs="+", type=Path, default=[], metavar="PATH", help="videos, or folders of them")
    f.add_argument(
        "--annotations", type=Path, metavar="FILE", help="their events, for AUC and AP: as for vadclip evaluate"
    )
    float32 = f.add_mutually_exclusive_group()
    float32.add_argument("--checkpoint", type=Path, metavar="FILE", help="compare with PyTorch and this checkpoint")
    float32.add_argument(
        "--reference", type=Path, metavar="DIR", help="compare with this float32 bundle (default: the bundle's own)"
    )
    return p


def _add_limits(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--limits",
        default="",
        metavar="NAME=X,...",
        help="limits of your own: cosine, score, lost, shifted (seconds), auc (points; on labelled footage); the "
        "head's only become tighter",
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    commands = {"build": _build, "compile": _compile, "relabel": _relabel, "inspect": _inspect, "verify": _verify}
    keeps = arguments.command != "inspect"
    return run_command("vadexport", lambda: commands[arguments.command](arguments), keeps=keeps)


def _build(arguments: argparse.Namespace) -> int:
    try:
        from vadclip.presets import load_labels
        from vadexport.build import BuildOptions, ParityError, build
    except ModuleNotFoundError as error:
        raise UserError(
            f"building needs {error.name}, which is not installed: pip install 'vadclip-edge[export]'"
        ) from error
    from vadexport.checks import parse_limits
    from vadrun.sampling import Sampling

    sampling = None
    if arguments.sample is not None or arguments.snippet_seconds is not None:
        by_time = arguments.snippet_seconds is not None
        sampling = Sampling(
            pick=arguments.sample or "middle", by="time" if by_time else "frames", seconds=arguments.snippet_seconds
        )
    options = BuildOptions(
        checkpoint=arguments.checkpoint,
        out=arguments.out,
        dataset=arguments.dataset,
        labels=load_labels(arguments.labels) if arguments.labels else None,
        precision=arguments.precision,
        window=arguments.window,
        heads=arguments.heads,
        anomaly=arguments.anomaly,
        mask_padding=arguments.mask_padding,
        clip=arguments.clip,
        clip_model=arguments.clip_model,
        mirror=arguments.mirror,
        crop=arguments.crop,
        preprocessing=arguments.preprocessing,
        sampling=sampling,
        probe=arguments.probe,
        force=arguments.force,
        limits=parse_limits(arguments.limits, labelled=False),
        ranges=arguments.ranges,
    )
    try:
        verification = build(options, _Steps())
    except ParityError as error:
        print(error)
        print(
            f"vadexport: the graphs are further from PyTorch than allowed (table above), so {arguments.out} was "
            "not written: try --precision fp32, or report this with the table",
            file=sys.stderr,
        )
        return FAILED
    print(verification.table())
    code = _compile_here(arguments.out) if arguments.precision == "fp16" else 0
    print(f"bundle in {arguments.out}; next: vadrun VIDEO --engine {arguments.out}")
    return code


def _compile_here(bundle: Path) -> int:
    """Engines for this machine's own GPU, where it has one and TensorRT."""
    from vadexport.compile import CompileOptions, can_compile

    if not can_compile():
        return 0
    try:
        return _compile_with(CompileOptions(bundle))
    except UserError as error:  # the bundle is whole, and runs on other backends
        print(f"vadexport: no engines for this machine: {error}", file=sys.stderr)
        return 0


def _compile(arguments: argparse.Namespace) -> int:
    from vadexport.checks import parse_limits
    from vadexport.compile import CompileOptions
    from vadexport.plan_builder import BuilderOptions

    if arguments.memory is not None and arguments.memory < 1:
        raise UserError(f"--memory is {arguments.memory}: give MiB, 1 or more")
    builder = BuilderOptions(
        targets=_capabilities(arguments.targets),
        hardware_compatible=arguments.hardware_compatible,
        version_compatible=arguments.version_compatible,
        memory_mib=arguments.memory,
        low_memory=arguments.low_memory,
    )
    batch = _batch(arguments.batch) if arguments.batch else None
    limits = parse_limits(arguments.limits, labelled=False)
    options = CompileOptions(arguments.bundle, batch, builder, arguments.keep_failed, limits)
    return _compile_with(options)


def _compile_with(options: CompileOptions) -> int:
    from vadexport.checks import checks_table
    from vadexport.compile import CompileError, compile_bundle, report

    try:
        compiled = compile_bundle(options, _Steps())
    except CompileError as error:
        print(checks_table(error.checks))
        print(f"vadexport: {error}", file=sys.stderr)
        return FAILED
    print(report(compiled))
    if compiled.checks:
        print(checks_table(compiled.checks))
        print(f"engines in {compiled.folder}; next: vadrun VIDEO --engine {options.bundle}")
    else:
        print(
            f"engines in {compiled.folder}, not checked: vadrun takes them once vadexport compile or verify has passed "
            "on such a GPU"
        )
    return 0


def _batch(text: str) -> tuple[int, int, int]:
    try:
        smallest, best, largest = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--batch is {text!r}: give MIN,OPT,MAX such as 1,8,32") from error
    return smallest, best, largest


def _capabilities(text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for part in filter(None, text.split(",")):
        major, dot, minor = part.strip().partition(".")
        if not (dot and major.isdigit() and minor.isdigit()):
            raise UserError(f"--for is {text!r}: give compute capabilities such as 8.6,8.9")
        found.append((int(major), int(minor)))
    return tuple(found)


def _relabel(arguments: argparse.Namespace) -> int:
    from vadexport.relabel import read_classes, relabel

    classes = read_classes(arguments.labels)
    done = relabel(arguments.bundle, classes, checkpoint=arguments.checkpoint, text=arguments.text, say=_Steps())
    print(done.report(arguments.bundle))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from vadexport.inspect import describe, report

    description = describe(arguments.bundle)
    print(json_text(description) if arguments.json else report(description))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from vadexport import certificate
    from vadexport.checks import parse_limits
    from vadexport.footage import FootageCertificate, footage_table, open_reference
    from vadrun.bundle import CERTIFICATE, Bundle

    labelled = bool(arguments.videos and arguments.annotations)
    changes, steps = parse_limits(arguments.limits, labelled=labelled), _Steps()
    if not arguments.videos and (arguments.annotations or arguments.checkpoint or arguments.reference):
        raise UserError("--annotations, --checkpoint and --reference are of footage: give --videos too")
    further = None
    bundle = Bundle.open(arguments.bundle)
    if arguments.videos:
        reference = open_reference(bundle, arguments.checkpoint, arguments.reference)
        further = FootageCertificate(bundle, arguments.videos, reference, arguments.annotations, say=steps)
    verification = certificate.verify(arguments.bundle, steps, changes, further)
    print(json_text(verification.to_json()) if arguments.json else verification.table())
    if verification.footage and not arguments.json:
        print()
        print(footage_table(verification.footage))
    runs = certificate.write(arguments.bundle, verification, bundle.sha256)
    place = arguments.bundle / CERTIFICATE
    steps(f"added to {place}, which holds {runs} run{'s' if runs > 1 else ''} now")
    if not verification.passed:
        print("vadexport: a check failed on this machine (table above)", file=sys.stderr)
        return FAILED
    return 0


class _Steps:
    """Prints each step on stderr with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
