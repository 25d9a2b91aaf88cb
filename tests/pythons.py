"""Does the wheel work elsewhere: on other Pythons, and with the lowest versions that pyproject.toml names?

    make pythons
    python -m tests.pythons --pythons 3.10 3.12 3.13

The wheel is built once. For each Python it is installed with ``[cpu]`` into a new environment, and the demo video is
scored there on each backend. Scores and events have to be those of the environment that runs this. The oldest Python is
then tried again with the lowest versions; they are read from the wheel, so that they are what pyproject.toml says.

A Python is taken from pyenv or from PATH; one that is missing is said to be, and counts as skipped.
Exit code 0: nothing failed; 1: something did. Environments lie in a temporary folder that is removed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
BACKENDS = ("openvino", "onnxruntime:cpu")
TOLERANCE = 1e-4  # of a score
# PyAV up to 16 does not tell the scaler where colour samples lie: edges of colours move by a part of a pixel.
TOLERANCE_BEFORE_PYAV_17 = 0.02
_PATIENCE = 1800  # seconds for one step


class Failed(Exception):
    """A step that did not do what it should; its text says which."""


@dataclass(frozen=True)
class Scored:
    """A video's results: its table of scores, and (label, start, end, peak) of its events."""

    rows: list[list[str]]
    events: list[tuple[str, float, float, float]]


# For this checkout's own commands, wherever their environment's editable install points to.
CHECKOUT = {"PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("runtime", "export", "calibration", "."))}


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; Failed with the end of it where the command fails."""
    # The checkout's own packages may not stand in for the wheel's.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-15:])
        raise Failed(f"{' '.join(map(str, command[:6]))} ... ended with {done.returncode}:\n{end}")
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel, from a copy: setuptools leaves a build folder behind, and would take old files from it."""
    source = folder / "source"
    for name in ("runtime", "export", "calibration", "vadclip"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    (wheel,) = folder.glob("vadclip_edge-*.whl")
    return wheel


def requirements(wheel: Path) -> Iterator[tuple[str, str, str]]:
    """What a wheel depends on: (name, version specifiers, marker), as its metadata has them."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    for line in metadata.get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        found = re.fullmatch(r"([\w.-]+)\s*\(?([^)]*)\)?", requirement.strip())
        if found is None:
            raise Failed(f"the wheel's requirement {line!r} is of no form that is known here")
        yield found[1], found[2].strip(), marker.strip()


def lowest(wheel: Path) -> list[str]:
    """Constraints that pin every dependency of a wheel, of its extras too, to the lowest version that it allows.

    Raises:
        Failed: a dependency has no lower or no upper bound.
    """
    pins: dict[str, str] = {}
    for name, specifiers, _ in requirements(wheel):
        low = re.search(r">=\s*([\w.]+)", specifiers)
        if low is None or not re.search(r"<\s*[\w.]+", specifiers):
            raise Failed(f"{name} needs a lower and an upper bound in pyproject.toml: it has {specifiers or 'none'}")
        # Extras may differ; together they allow what the highest of them allows.
        pins[name] = max(pins.get(name, "0"), low[1], key=_numbers)
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def find_python(version: str) -> Path | None:
    """An interpreter of a version such as 3.12 that works and can make environments; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = sorted(pyenv.glob(f"{version}.*/bin/python"), key=_numbers, reverse=True)
    on_path = shutil.which(f"python{version}")
    candidates += [Path(on_path)] if on_path else []
    candidates += [Path(sys.executable)]
    for candidate in candidates:
        asked = [str(candidate), "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"]
        try:
            said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        except OSError:
            continue
        if said.returncode == 0 and said.stdout.strip() == version:
            return candidate
    return None


def make_environment(python: Path, folder: Path, wheel: Path, constraints: Sequence[str] = ()) -> Path:
    """A new environment with the wheel and its extra ``cpu``; the folder of its commands."""
    run(python, "-m", "venv", folder)
    command: list[object] = [folder / "bin/python", "-m", "pip", "install", "-q", f"{wheel}[cpu]"]
    if constraints:
        file = folder / "constraints.txt"
        file.write_text("".join(f"{line}\n" for line in constraints))
        command += ["-c", file]
    run(*command)
    return folder / "bin"


def score(bin_folder: Path, video: Path, bundle: Path, backend: str, out: Path, **environment: str) -> Scored:
    """Score a video in float32: the fastest precision is another one on other processors."""
    options = ["--backend", backend, "--precision", "fp32", "--decoder", "software", "--quiet"]
    run(bin_folder / "vadrun", video, "--engine", bundle, "--out", out, *options, cwd=out.parent, **environment)
    (result,) = out.rglob("result.json")
    with (result.parent / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    events = json.loads(result.read_text(encoding="utf-8"))["events"]
    return Scored(rows, [(e["label"], e["start"], e["end"], e["peak"]) for e in events])


def compare(found: Scored, expected: Scored, tolerance: float = TOLERANCE) -> float:
    """The largest difference of two tables' scores.

    Raises:
        Failed: it is above the tolerance, or snippets or events are others.
    """
    if found.rows[0] != expected.rows[0] or len(found.rows) != len(expected.rows):
        raise Failed(f"{len(found.rows) - 1} snippets, {len(expected.rows) - 1} were expected, or other columns")
    largest = 0.0
    for mine, theirs in zip(found.rows[1:], expected.rows[1:], strict=True):
        for column, a, b in zip(expected.rows[0], mine, theirs, strict=True):
            difference = 0.0 if a == b else abs(_number(a) - _number(b))
            largest = max(largest, difference)
            if not difference <= tolerance:
                raise Failed(f"snippet {theirs[0]}: {column} is {a}, {b} was expected")
    same = len(found.events) == len(expected.events) and all(
        one[0] == two[0] and all(abs(a - b) <= tolerance for a, b in zip(one[1:], two[1:], strict=True))
        for one, two in zip(found.events, expected.events, strict=True)
    )
    if not same:
        raise Failed(f"events {found.events}, {expected.events} were expected")
    return largest


def tolerance(bin_folder: Path) -> float:
    """How much scores may differ there."""
    return TOLERANCE if int(installed(bin_folder)["av"].partition(".")[0]) >= 17 else TOLERANCE_BEFORE_PYAV_17


def installed(bin_folder: Path) -> dict[str, str]:
    """Versions of the installed packages, by their names in lower case."""
    listed = json.loads(run(bin_folder / "python", "-m", "pip", "list", "--format=json"))
    return {entry["name"].lower(): entry["version"] for entry in listed}


def versions(bin_folder: Path) -> str:
    """What was installed, in words."""
    known = installed(bin_folder)
    return ", ".join(f"{name} {known[name]}" for name in ("av", "numpy", "onnxruntime", "openvino") if name in known)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, install, score, compare; print a line for each environment and a summary."""
    p = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__.partition("\n")[0])
    p.add_argument("--pythons", nargs="+", default=list(PYTHONS), metavar="V", help="default " + " ".join(PYTHONS))
    p.add_argument("--bundle", type=Path, metavar="DIR", help="of the demo; default: it is built")
    p.add_argument("--no-lowest", action="store_true", help="leave out the lowest versions")
    a = p.parse_args(arguments)
    passed = failed = skipped = 0
    with tempfile.TemporaryDirectory(prefix="vadclip-pythons-") as name:
        folder = Path(name)
        here, bundle = Path(sys.executable).parent, a.bundle
        try:
            wheel = build_wheel(folder / "wheel")
            pins = lowest(wheel)
            video = Path(shutil.copy(ROOT / "demo" / "demo.mp4", folder))
            if bundle is None:
                bundle = folder / "bundle"
                checkpoint = ROOT / "demo" / "checkpoint.safetensors"
                run(here / "vadexport", "build", "--checkpoint", checkpoint, "--out", bundle, **CHECKOUT)
            # What the wheel's results are held against is this checkout's.
            bundle = bundle.resolve()
            expected = {
                each: score(here, video, bundle, each, folder / f"expected-{number}", **CHECKOUT)
                for number, each in enumerate(BACKENDS)
            }
        except Failed as error:
            print(f"FAILED before anything was compared: {error}")
            return 1
        print(f"expected: {versions(here)}", flush=True)
        tries: list[tuple[str, str, Sequence[str]]] = [(version, f"Python {version}", ()) for version in a.pythons]
        if not a.no_lowest:
            oldest = min(a.pythons, key=_numbers)
            tries.append((oldest, f"Python {oldest}, lowest versions", pins))
        for version, title, constraints in tries:
            python = find_python(version)
            if python is None:
                print(f"{title}: MISSING: neither pyenv nor PATH has a python{version} that works", flush=True)
                skipped += 1
                continue
            began = time.monotonic()
            environment = folder / "environment"
            try:
                made = make_environment(python, environment, wheel, constraints)
                largest = 0.0
                for backend in BACKENDS:
                    out = folder / "found"
                    try:
                        found = score(made, video, bundle, backend, out)
                        largest = max(largest, compare(found, expected[backend], tolerance(made)))
                    except Failed as error:
                        raise Failed(f"{versions(made)}, {backend}: {error}") from None
                    shutil.rmtree(out)
                words = f"the same within {largest:.0e} on {' and '.join(BACKENDS)}"
                print(f"{title}: {words} ({versions(made)}; {time.monotonic() - began:.0f} s)", flush=True)
                passed += 1
            except (Failed, subprocess.TimeoutExpired) as error:
                print(f"{title}: FAILED: {error}", flush=True)
                failed += 1
            shutil.rmtree(environment, ignore_errors=True)
            shutil.rmtree(folder / "found", ignore_errors=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")  # differs from everything


def _numbers(text: object) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", str(text))]


if __name__ == "__main__":
    sys.exit(main())
