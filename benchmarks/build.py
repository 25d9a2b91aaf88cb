"""Time, peak memory and size of ``vadexport build`` for each precision, each in a process of its own.

The first row is a process that only imports the libraries that a build uses; what is above it is the build's own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from vadrun.console import table

IMPORTS = "import vadrun, torch, open_clip.model, onnx, safetensors, onnxruntime, openvino; openvino.Core()"


def main() -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.build", description=__doc__)
    p.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="the authors' .pth")
    p.add_argument("--dataset", default="ucf", metavar="NAME", help="ucf or xd (default ucf)")
    p.add_argument("--precision", nargs="+", default=["fp32", "fp16"], metavar="P", help="default fp32 fp16")
    p.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    a = p.parse_args()
    print(measure.machine("torch", "open_clip_torch", "onnx", "onnxruntime", "openvino"))
    others = measure.Others()
    print(f"checkpoint of {a.checkpoint.stat().st_size / 2**20:.0f} MiB")
    runs: dict[str, list[measure.Run]] = {name: [] for name in ("imports alone", *a.precision)}
    sizes = {}
    with tempfile.TemporaryDirectory(prefix="vadclip-build-") as name:
        for _ in range(a.rounds):
            runs["imports alone"].append(measure.run([sys.executable, "-c", IMPORTS]))
            for precision in a.precision:
                out = Path(name, precision)
                command = ["build", "--checkpoint", str(a.checkpoint), "--dataset", a.dataset, "--out", str(out)]
                extra = ["--precision", precision, "--force"]
                runs[precision].append(measure.run([sys.executable, "-m", "vadexport.cli", *command, *extra]))
                sizes[precision] = sum(file.stat().st_size for file in out.iterdir()) / 2**20
    rows = [
        [
            label,
            measure.spread([run.seconds for run in found]),
            measure.spread([run.peak for run in found], 0),
            f"{sizes[label]:.0f}" if label in sizes else "-",
        ]
        for label, found in runs.items()
    ]
    print(table(["build", "wall s", "peak MiB", "bundle MiB"], rows, right=(1, 2, 3)))
    print(others)
    return 0


if __name__ == "__main__":
    measure.main("build", main)
