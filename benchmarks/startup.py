"""How long ``vadrun --help`` takes, against an interpreter that does nothing, and what it imports.

With ``--bundle`` and ``--clip`` also how long it takes from the start of the command to the scores of a clip (take one
of a snippet or two), when nothing is in OpenVINO's cache and when it is, and how much memory that needs. The files are
read from memory either way, if there is enough of it to keep them. They take turns.

Exit code 1 if ``--help`` imports anything large: torch, onnx, numpy, PyAV or a backend's library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from vadrun.console import table

LARGE = ("torch", "onnx", "numpy", "av", "onnxruntime", "openvino")
LIST_MODULES = """
import contextlib, io, sys
from vadrun.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
print(" ".join(sys.modules))
"""


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    p.add_argument("--rounds", type=int, default=10, metavar="N", help="default 10")
    p.add_argument("--bundle", type=Path, metavar="DIR", help="time the first score of this bundle too")
    p.add_argument("--clip", type=Path, metavar="VIDEO", help="a short clip for that")
    a = p.parse_args()
    print(measure.machine("vadclip-edge"))
    others = measure.Others()
    installed = shutil.which("vadrun", path=os.path.dirname(sys.executable))
    commands = {
        "vadrun --help": [installed, "--help"] if installed else [sys.executable, "-m", "vadrun.cli", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    with tempfile.TemporaryDirectory(prefix="vadclip-startup-") as cache:
        # Compiled once, as after an installation, wherever this environment keeps compiled modules, or if it does not.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache

        def start(command: list[str]) -> float:
            return measure.timed(lambda: subprocess.run(command, env=environment, check=True, capture_output=True))

        for command in commands.values():
            start(command)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(a.rounds):
            for name, command in commands.items():
                seconds[name].append(1000 * start(command))
    rows = [[name, measure.spread(values)] for name, values in seconds.items()]
    print(table(["command", "ms"], rows, right=(1,)))
    own = [b - a for a, b in zip(seconds["python -c pass"], seconds["vadrun --help"], strict=True)]
    print(f"vadrun's own share: {measure.spread(own)} ms" + ("" if installed else " (run as python -m vadrun.cli)"))

    modules = measure.run([sys.executable, "-c", LIST_MODULES]).output.split()
    large = [name for name in LARGE if name in modules]
    print(f"{len(modules)} modules are imported, {', '.join(large) if large else 'none'} of {', '.join(LARGE)}")
    if a.bundle is not None and a.clip is not None:
        first_score(a.bundle, a.clip, a.rounds)
    print(others)
    return 1 if large else 0


def first_score(bundle: Path, clip: Path, rounds: int) -> None:
    """Print seconds and peak memory from the start of ``vadrun`` to a clip's scores, without and with the cache."""
    command = [sys.executable, "-m", "vadrun.cli", str(clip), "--engine", str(bundle), "--quiet"]
    runs: dict[str, list[measure.Run]] = {"first start": [], "second start": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="vadclip-cache-") as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            for found in runs.values():
                found.append(measure.run(command))
            size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    rows = [
        [name, measure.spread([run.seconds for run in found], 2), measure.spread([run.peak for run in found], 0)]
        for name, found in runs.items()
    ]
    print(table([f"to the scores of {clip.name}", "s", "peak MiB"], rows, right=(1, 2)))
    faster = measure.ratios([r.seconds for r in runs["first start"]], [r.seconds for r in runs["second start"]])
    print(f"the second is {measure.spread(faster, 2)} times as fast; the cache takes {size / 1e6:.0f} MB")


if __name__ == "__main__":
    measure.main("startup", main)
