"""The ``vadrun`` command."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vadrun.console import CODES, FilesProgress, run_command, tell, version
from vadrun.errors import UserError

if TYPE_CHECKING:
    from vadrun.calibration import Calibration
    from vadrun.engine import Engine
    from vadrun.events import EventRule
    from vadrun.gate import GateRule
    from vadrun.places import Place

GATE_MODES = ("off", "on", "shadow")

EPILOG = f"""\
{CODES}
example: vadrun cam1.mp4 recordings/ --engine engines/ucf --out results

`vadrun devices` tells what this machine has (GPUs, libraries, decoders) and what --backend auto would take;
with --engine DIR for that bundle, with --json for machines. (A video folder of that name: ./devices)
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="vadrun",
        description="Find anomalous events in video with a VadCLIP bundle.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("source", nargs="+", type=Path, metavar="SOURCE", help="video files, or folders of them")
    p.add_argument("--engine", required=True, type=Path, metavar="DIR", help="the bundle to run")
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write scores.csv, events.jsonl and result.json here, one folder per video",
    )
    p.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    p.add_argument("--quiet", action="store_true", help="no progress and no remarks on stderr")
    p.add_argument("--version", action="version", version=f"%(prog)s {version()}")

    run = p.add_argument_group("how to run")
    run.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto (default), tensorrt, onnxruntime, openvino, or with a device: onnxruntime:cuda, onnxruntime:cpu",
    )
    run.add_argument(
        "--precision",
        default="auto",
        metavar="P",
        help="arithmetic of the encoder: auto (default: the fastest here), fp32, bf16, fp16, int8",
    )
    run.add_argument("--batch", type=int, default=8, metavar="N", help="frames per encoder call (default 8)")
    run.add_argument(
        "--decoder",
        default="auto",
        metavar="NAME",
        help="auto (default: hardware where it gives what software does), software, cuda, gstreamer",
    )
    run.add_argument(
        "--stream",
        type=int,
        metavar="N",
        help="score the video stream with this number, as ffprobe counts them (default: the file's main one)",
    )
    run.add_argument("--threads", type=int, metavar="N", help="inference threads (default: the library's choice)")

    gate = p.add_argument_group("the gate: encode only where something happens")
    gate.add_argument(
        "--gate",
        nargs="?",
        choices=GATE_MODES,
        const="on",
        default="off",
        help="hold the last feature while the picture stands still, and leave undecoded what H.264 and H.265 allow; "
        "shadow: only count what that would change",
    )
    gate.add_argument(
        "--gate-threshold",
        type=float,
        metavar="SHARE",
        help="share of the picture that must change to open it (default 0.01, or that of --calibration)",
    )
    gate.add_argument(
        "--gate-heartbeat",
        type=float,
        metavar="SEC",
        help="encode at least this often (default 10, or that of --calibration)",
    )
    gate.add_argument(
        "--gate-audit",
        type=float,
        metavar="SHARE",
        help="share of held snippets to encode anyway, to tell what holding costs (default 0.05)",
    )

    rule = p.add_argument_group("what is an event")
    rule.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="thresholds of this camera, made by vadcalibrate alarms, and its gate, made by vadcalibrate gate",
    )
    rule.add_argument(
        "--threshold",
        type=float,
        metavar="S",
        help="anomaly score that makes an event (default 0.5)",
    )
    rule.add_argument(
        "--release", type=float, metavar="S", help="score at which it ends (default: 0.8 of the threshold)"
    )
    rule.add_argument("--min-length", type=float, metavar="SEC", help="shorter ones are none (default 1)")
    rule.add_argument("--merge-gap", type=float, metavar="SEC", help="nearer ones are one (default 2)")
    return p


def _with_gate_mode(given: list[str]) -> list[str]:
    """``--gate VIDEO`` as ``--gate on VIDEO``: argparse would take the video for the mode."""
    found = list(given)
    for at in reversed([at for at, word in enumerate(given) if word == "--gate"]):
        if given[at + 1 : at + 2] and given[at + 1] not in GATE_MODES:
            found.insert(at + 1, "on")
    return found


def devices_parser() -> argparse.ArgumentParser:
    """The arguments of ``vadrun devices``."""
    p = argparse.ArgumentParser(prog="vadrun devices", description="Tell what this machine has for the runtime.")
    p.add_argument("--engine", type=Path, metavar="DIR", help="say what auto takes for this bundle")
    p.add_argument("--json", action="store_true", help="for machines")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["devices"]:
        asked = devices_parser().parse_args(given[1:])
        return run_command("vadrun", lambda: _devices(asked))
    arguments = parser().parse_args(_with_gate_mode(given))
    return run_command("vadrun", lambda: _run(arguments), keeps=arguments.out is not None)


def _devices(arguments: argparse.Namespace) -> int:
    from vadrun.devices import describe, report
    from vadrun.files import json_text

    found = describe(arguments.engine)
    print(json_text(found) if arguments.json else report(found))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from vadrun import decoders
    from vadrun.calibration import Calibration
    from vadrun.engine import Engine
    from vadrun.inputs import named_videos

    decoders.wanted(arguments.decoder)  # a wrong name is refused before anything is loaded
    calibration = None if arguments.calibration is None else Calibration.read(arguments.calibration)
    gate = _gate(arguments, calibration)
    rule = _rule(arguments, calibration)
    refused: list[UserError] = []
    sources = named_videos(arguments.source, refused)
    if not sources:
        for error in refused[:-1]:
            tell(f"vadrun: {error}")
        raise refused[-1]
    engine = Engine.load(
        arguments.engine,
        arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        batch=arguments.batch,
    )
    with engine:
        if calibration is not None:
            calibration.check(engine.bundle)
            _tell(arguments, calibration, gate, engine)
        # Makes --out, so only once the engine is known to work.
        targets = _places(sources, arguments.source, arguments.out)
        _remark(arguments, f"{arguments.engine} on {engine.description}: {engine.why}")
        if engine.remark is not None:
            _remark(arguments, engine.remark)
        jobs = list(zip(sources, targets, strict=True))
        return _run_all(arguments, engine, rule, jobs, refused, gate, calibration)


def _gate(arguments: argparse.Namespace, calibration: Calibration | None) -> GateRule | None:
    from vadrun.gate import GateRule

    values = {name: getattr(arguments, f"gate_{name}") for name in ("threshold", "heartbeat", "audit")}
    given = {name: value for name, value in values.items() if value is not None}
    if arguments.gate == "off":
        if given:
            raise UserError(f"{', '.join(f'--gate-{name}' for name in given)} without --gate does nothing: add --gate")
        return None
    rule = GateRule() if calibration is None or calibration.gate is None else calibration.gate
    fixed = [f"--gate-{name}" for name in given if name != "audit"]
    if rule.calibration is not None and fixed:
        raise UserError(f"--calibration has a gate of its own: leave out {', '.join(fixed)}, or leave it out")
    return replace(rule, **given, shadow=arguments.gate == "shadow")


def _tell(arguments: argparse.Namespace, calibration: Calibration, gate: GateRule | None, engine: Engine) -> None:
    """Say what the calibration promises, and what of it does not fit."""
    path = calibration.path
    said = [f"camera {calibration.camera or 'not named'}"]
    if calibration.rules:
        said.append(calibration.promise())
    if gate is not None and gate.calibration is not None:
        said.append(f"gate at {gate.threshold:g}, {calibration.gate_promise()}")
    _remark(arguments, f"{path}: {', '.join(said)}")
    if gate is not None and gate.calibration is None:
        _remark(
            arguments, f"{path} holds no gate, so its threshold is {gate.threshold:g}: add one with vadcalibrate gate"
        )
    made_on = calibration.document.get("precision")
    if made_on not in (None, engine.backend.precision):
        _remark(arguments, f"{path} was made in {made_on}, and this runs in {engine.backend.precision}")


def _rule(arguments: argparse.Namespace, calibration: Calibration | None) -> EventRule | Calibration:
    from vadrun.events import EventRule

    names = ("threshold", "release", "min_length", "merge_gap")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if calibration is None or not calibration.rules:
        if calibration is not None and arguments.gate == "off":
            raise UserError(
                f"{calibration.path} holds a gate and no alarms: add --gate, or add alarms with vadcalibrate alarms"
            )
        return EventRule(**given)
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UserError(f"--calibration has thresholds of its own: leave out {options}, or leave it out")
    return calibration


def _run_all(
    arguments: argparse.Namespace,
    engine: Engine,
    rule: EventRule | Calibration,
    jobs: list[tuple[Path, Place | None]],
    refused: list[UserError],
    gate: GateRule | None,
    calibration: Calibration | None,
) -> int:
    from vadrun.pipeline import run_videos
    from vadrun.report import Report
    from vadrun.sinks import ResultFolders

    sources = [source for source, _ in jobs]
    report = Report(sources, refused, calibration, arguments.out, as_json=arguments.json, quiet=arguments.quiet)
    versions = _versions(engine)
    progress = FilesProgress([source.name for source in sources], enabled=not arguments.quiet)
    with ExitStack() as stack:
        folders = stack.enter_context(ResultFolders([target for _, target in jobs], engine.labels))
        outcomes = run_videos(
            engine,
            sources,
            rule,
            folders.begin,
            progress.update,
            gate=gate,
            decoder=arguments.decoder,
            stream=arguments.stream,
        )
        for number, outcome in stack.enter_context(closing(outcomes)):
            progress.done(number)
            document = {} if isinstance(outcome, UserError) else outcome.to_json(engine, rule, versions)
            where = None
            if not isinstance(outcome, UserError):
                try:
                    where = folders.keep(number, document)
                except UserError as error:
                    outcome = error
            folders.drop(number)  # where it was not kept
            report.add(number, outcome, document, where)
    return report.finish()


def _places(sources: list[Path], named: list[Path], out: Path | None) -> list[Place | None]:
    """A place below ``out`` for each video; None for each if there is no ``out``."""
    from vadrun.places import places
    from vadrun.temporary import temporary_file

    if out is None:
        return [None] * len(sources)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder to --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with temporary_file(out / "vadrun"):
            pass  # it can be written to
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give a writable folder to --out") from error
    return list(places(out, sources, named))


def _versions(engine: Engine) -> dict[str, str]:
    return {
        "vadclip-edge": version(),
        "numpy": version("numpy"),
        "av": version("av"),
        engine.backend.library.split()[0]: engine.backend.library.split()[-1],
    }


def _remark(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        tell(text)


if __name__ == "__main__":
    sys.exit(main())
