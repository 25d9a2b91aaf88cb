"""The ``vadcalibrate`` command."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from vadrun.console import CODES, ProgressLine, run_command, tell, version
from vadrun.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="vadcalibrate",
        description="Calibrate a bundle on footage of your own.",
        epilog=CODES,
    )
    p.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    a = commands.add_parser(
        "alarms",
        help="normal footage -> thresholds for a wanted rate of false alarms",
        description="Set thresholds for a wanted rate of false alarms, from footage of one camera in which nothing "
        "happened. Long footage is scored once with vadrun --out, and its results are given here.",
    )
    a.add_argument("--engine", required=True, type=Path, metavar="DIR", help="the bundle that will run")
    a.add_argument(
        "--normal",
        required=True,
        nargs="+",
        type=Path,
        metavar="PATH",
        help="footage in which nothing happened: videos, folders of them, or folders of vadrun's results",
    )
    a.add_argument(
        "--false-alarms-per-day", required=True, type=float, metavar="X", help="wanted, of all classes together"
    )
    a.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="the calibration file to write; a gate that it holds is kept",
    )
    a.add_argument("--camera", metavar="NAME", help="which camera it is for")
    a.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="that the rate is no higher (default 0.95)"
    )
    a.add_argument(
        "--merge-gap", type=float, default=10.0, metavar="SEC", help="nearer alarms of a class are one (default 10)"
    )
    a.add_argument(
        "--allow-short", action="store_true", help="where the footage is too short, take the rate that it can show"
    )
    e = a.add_argument_group("events that were seen (optional)")
    e.add_argument(
        "--labelled",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="clips with events: they give minimum lengths, release levels and probabilities, and show what is found",
    )
    e.add_argument("--annotations", type=Path, metavar="CSV", help="their events: video,label,start,end in frames")
    _add_running(a)

    g = commands.add_parser(
        "gate",
        help="footage -> the gate's threshold for one camera",
        description="Find the gate's threshold that holds as many snippets of a camera as a bound on the score error "
        "allows. Everything is encoded once, so an hour of footage takes about as long as vadrun takes without the "
        "gate. Give footage of all hours, as it comes; events may be in it, and none of them may be missed.",
    )
    g.add_argument("--engine", required=True, type=Path, metavar="DIR", help="the bundle that will run")
    g.add_argument(
        "--videos", required=True, nargs="+", type=Path, metavar="PATH", help="videos of the camera, or folders of them"
    )
    g.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="the calibration file to write; alarms that it holds are kept, and say what an event is",
    )
    g.add_argument("--camera", metavar="NAME", help="which camera it is for")
    g.add_argument(
        "--error", type=float, default=0.02, metavar="E", help="mean score error that is allowed (default 0.02)"
    )
    g.add_argument("--confidence", type=float, default=0.95, metavar="P", help="that it is no larger (default 0.95)")
    g.add_argument(
        "--heartbeat", type=float, default=10.0, metavar="SEC", help="encode at least this often (default 10)"
    )
    g.add_argument(
        "--allow-short", action="store_true", help="where the footage is too short to show it, go by its mean error"
    )
    _add_running(g)

    i = commands.add_parser(
        "ranges",
        help="footage -> activation ranges for vadexport build --precision int8",
        description="Take the ranges that INT8 needs from frames of your own footage, chosen to differ.",
    )
    i.add_argument("--engine", required=True, type=Path, metavar="DIR", help="a float32 bundle of the checkpoint")
    i.add_argument("--videos", required=True, nargs="+", type=Path, metavar="PATH", help="videos, or folders of them")
    i.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file of ranges to write (.npz)")
    i.add_argument("--frames", type=int, default=128, metavar="N", help="to choose (default 128)")
    i.add_argument("--quiet", action="store_true", help="no progress on stderr")

    r = commands.add_parser(
        "report",
        help="draw a calibration file",
        description="Draw a calibration: scores of normal footage, thresholds against alarms a day, labelled events; "
        "what the gate holds at each threshold, and the score error that this makes.",
    )
    r.add_argument("calibration", type=Path, metavar="FILE")
    r.add_argument("--out", required=True, type=Path, metavar="DIR", help="where index.html and its pictures go")
    r.add_argument("--force", action="store_true", help="replace a folder that is already there")
    return p


def _add_running(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print the result as JSON")
    p.add_argument("--quiet", action="store_true", help="no progress on stderr")
    run = p.add_argument_group("how to run")
    run.add_argument("--backend", default="auto", metavar="NAME", help="as for vadrun")
    run.add_argument("--precision", default="auto", metavar="P", help="as for vadrun")
    run.add_argument("--threads", type=int, metavar="N", help="inference threads")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    commands = {"alarms": _alarms, "gate": _gate, "ranges": _ranges, "report": _report}

    def body() -> int:
        try:
            return commands[arguments.command](arguments)
        except ModuleNotFoundError as error:
            raise UserError(
                f"this needs {error.name}, which is not installed: pip install 'vadclip-edge[calibrate]'"
            ) from error

    return run_command("vadcalibrate", body, keeps=True)


def _alarms(arguments: argparse.Namespace) -> int:
    from vadcalibrate import document, labelled, probability
    from vadcalibrate.alarms import set_thresholds
    from vadcalibrate.footage import read_footage, repeated
    from vadrun.calibration import Calibration
    from vadrun.engine import Engine
    from vadrun.files import json_text, write_json

    _check(arguments)
    with Engine.load(
        arguments.engine, arguments.backend, precision=arguments.precision, threads=arguments.threads
    ) as engine:
        labels, names = engine.bundle.model.labels, engine.bundle.model.annotation_names
        document.kept(arguments.out, engine.bundle, arguments.camera, mine="alarms")  # refused before the long work
        with _Progress(arguments.quiet) as progress:
            clips = read_footage(arguments.labelled, engine, progress, progress.remark) if arguments.labelled else []
            events = labelled.read_events(arguments.annotations, clips, labels, names) if clips else []
            normal = read_footage(arguments.normal, engine, progress, progress.remark)
        with_events = [clips[index] for index in sorted({event.clip for event in events})]
        if both := repeated([*normal, *with_events]):
            raise UserError(f"{both[0].source} is given as normal, but has labelled events: take it out of --normal")
        rules = labelled.shaped_rules(labels, clips, events, arguments.merge_gap)
        thresholds = set_thresholds(
            normal, rules, arguments.false_alarms_per_day, arguments.confidence, arguments.allow_short
        )
        fitted = None
        if clips:
            fitted = probability.fit(clips, labelled.true_classes(clips, events, labels), labels)
        value = document.document(
            engine, arguments.camera, normal, thresholds, labelled.outcomes(clips, events, thresholds), fitted
        )
        value |= document.kept(arguments.out, engine.bundle, arguments.camera, mine="alarms")
    write_json(arguments.out, value)
    Calibration.read(arguments.out)
    print(json_text(value) if arguments.json else document.summary(value))
    if clips and fitted is None and not arguments.quiet:
        print(
            f"no probabilities: they need {probability.LEAST_CLIPS} labelled clips, and there are {len(clips)}",
            file=sys.stderr,
        )
    if not arguments.json:
        out = arguments.out
        print(f"calibration in {out}; next: vadrun VIDEO --engine {arguments.engine} --calibration {out}")
    return 0


def _gate(arguments: argparse.Namespace) -> int:
    from vadcalibrate import document
    from vadcalibrate.gate import choose, measure
    from vadrun.calibration import Calibration
    from vadrun.engine import Engine
    from vadrun.events import EventRule
    from vadrun.files import json_text, write_json
    from vadrun.gate import GateRule

    if not 0 < arguments.error < 1:
        raise UserError(f"--error is {arguments.error:g}: give a share of the score's range above 0 and less than 1")
    _check_common(arguments)
    rule = GateRule(heartbeat=arguments.heartbeat)
    with Engine.load(
        arguments.engine, arguments.backend, precision=arguments.precision, threads=arguments.threads
    ) as engine:
        events: EventRule | Calibration = EventRule()
        if document.kept(arguments.out, engine.bundle, arguments.camera, mine=document.GATE):
            events = Calibration.read(arguments.out)
        with _Progress(arguments.quiet) as progress:
            measured = measure(engine, arguments.videos, rule, events, progress, progress.remark)
        chosen = choose(measured, arguments.error, arguments.confidence, arguments.allow_short)
        value = document.gate_document(engine, arguments.camera, measured, chosen, events)
        value |= document.kept(arguments.out, engine.bundle, arguments.camera, mine=document.GATE)
    write_json(arguments.out, value)
    Calibration.read(arguments.out)
    if arguments.json:
        print(json_text(value))
        return 0
    print(document.gate_summary(value[document.GATE]))
    out = arguments.out
    print(f"gate in {out}; next: vadrun VIDEO --engine {arguments.engine} --calibration {out} --gate")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.false_alarms_per_day < float("inf"):
        raise UserError(f"--false-alarms-per-day is {arguments.false_alarms_per_day:g}: give a number above 0")
    if bool(arguments.labelled) != (arguments.annotations is not None):
        raise UserError("--labelled and --annotations go together: give the clips and the file of their events")
    _check_common(arguments)


def _check_common(arguments: argparse.Namespace) -> None:
    if not 0.5 <= arguments.confidence < 1:
        raise UserError(f"--confidence is {arguments.confidence:g}: give 0.5 or more and less than 1")
    if not arguments.out.parent.is_dir() or arguments.out.is_dir():
        raise UserError(f"--out is {arguments.out}: give a file in a folder that is there")


def _ranges(arguments: argparse.Namespace) -> int:
    from vadcalibrate.diverse import LEAST, choose_frames
    from vadcalibrate.footage import plural
    from vadcalibrate.ranges import collect
    from vadrun.engine import Engine

    if arguments.frames < LEAST:
        raise UserError(f"--frames is {arguments.frames}: give {LEAST} or more")
    if arguments.out.suffix != ".npz" or not arguments.out.parent.is_dir() or arguments.out.is_dir():
        raise UserError(f"--out is {arguments.out}: give a file that ends in .npz, in a folder that is there")
    with Engine.load(arguments.engine, precision="fp32") as engine:
        reading = ProgressLine("reading", not arguments.quiet)
        remarks: list[str] = []
        chosen = choose_frames(
            engine, arguments.videos, arguments.frames, partial(reading.count, what="videos"), remarks.append
        )
        reading.clear()
        for text in [] if arguments.quiet else remarks:
            tell(f"vadcalibrate: {text}")
        bundle = engine.bundle
    running = ProgressLine("running", not arguments.quiet)
    made = collect(bundle, chosen, partial(running.count, what="frames"))
    running.clear()
    made.save(arguments.out)
    print(
        f"ranges of {len(made.linears)} linears from {made.origin['frames']} frames of "
        f"{plural(chosen.videos, 'video')}, chosen from {chosen.candidates} "
        f"(none is further from them than {chosen.reach:.3f} in cosine distance); "
        f"{len(made.frames)} more to check with"
    )
    print(f"next: vadexport build --checkpoint FILE --precision int8 --ranges {arguments.out} --out DIR")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from vadcalibrate.report import OTHERS, write_report
    from vadrun.calibration import Calibration
    from vadrun.files import check_place, whole_directory

    calibration = Calibration.read(arguments.calibration)
    check_place(
        arguments.out, replace=arguments.force, marks=["alarms.png", "gate.png"], others=OTHERS, kind="a report"
    )
    with whole_directory(arguments.out, replace=True) as folder:
        write_report(calibration, folder)
    print(f"report in {arguments.out}: open its index.html")
    return 0


class _Progress:
    """A progress line for each video in turn, and what is to be said of the videos at the end."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._name = ""
        self._line: ProgressLine | None = None
        self._remarks: list[str] = []

    def remark(self, text: str) -> None:
        """Keep a remark until the lines are done."""
        self._remarks.append(text)

    def __call__(self, name: str, done: float, total: float | None) -> None:
        if name != self._name or self._line is None:
            self._name, self._line = name, ProgressLine(name, not self._quiet)
        self._line.update(done, total)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._line is not None:
            self._line.clear()
        for text in [] if self._quiet else self._remarks:
            tell(f"vadcalibrate: {text}")


if __name__ == "__main__":
    sys.exit(main())
