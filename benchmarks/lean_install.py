"""What the runtime costs on a box that has TensorRT: megabytes of packages, import time, resident memory.

``python -m benchmarks.lean_install`` installs the project without extras, and cuda-bindings, in an environment of its
own and measures there. The sizes are this machine's wheels.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from vadrun.console import table

ROOT = Path(__file__).parents[1]
MEASURE = """
import time, resource
began = time.perf_counter()
import vadrun.engine, vadrun.pipeline, vadrun.backends.tensorrt, vadrun.video, cuda.bindings.runtime
took, busy = time.perf_counter() - began, time.process_time()
print(took, busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def size(path: Path) -> float:
    """Megabytes of a file or of everything in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> int:
    """Install, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        python = str(home / "bin" / "python")
        site = Path(
            subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
        )
        before = {path.name for path in site.iterdir()}
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--no-compile", str(ROOT), "cuda-bindings"], check=True, cwd=folder
        )
        sizes = {path.name: size(path) for path in site.iterdir() if path.name not in before}
        bare = subprocess.run([python, "-c", MEASURE], capture_output=True, text=True, cwd=folder)  # compiles to .pyc
        runs = [
            subprocess.run(
                [python, "-c", MEASURE], check=True, capture_output=True, text=True, cwd=folder
            ).stdout.split()
            for _ in range(5)
        ]
    if bare.returncode:
        print(bare.stderr, file=sys.stderr)
        return 1
    rows = [[name, f"{value:.1f}"] for name, value in sorted(sizes.items(), key=lambda item: -item[1]) if value >= 0.05]
    print(table(["package", "MB"], [*rows, ["in all", f"{sum(sizes.values()):.1f}"]], right=(1,)))
    best = [min(float(run[index]) for run in runs) for index in range(3)]
    print(f"import of the runtime: {best[0]:.2f} s, {best[1]:.2f} s of them on a processor, best of {len(runs)}")
    print(f"resident memory after it: {best[2]:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
