"""How long ``vadrun --help`` takes, against an interpreter that does nothing, and what it imports.

They take turns. Exit code 1 if anything large is imported: torch, onnx, numpy, PyAV or a backend's library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

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
    print(others)
    return 1 if large else 0


if __name__ == "__main__":
    measure.main("startup", main)
