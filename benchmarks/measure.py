"""What the benchmarks share: the machine in words, child processes that are measured, and ratios of rounds.

Imports nothing large: a child's peak memory includes that of the process that started it (see :func:`run`).
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NoReturn

from vadrun.console import run_command, version
from vadrun.errors import UserError

# Flags in /proc/cpuinfo of processors that multiply in bfloat16: x86 with AVX-512 or AMX, and Arm.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def cpu_flags() -> set[str]:
    """The processor's instruction sets by their Linux names; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def has_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16."""
    return bool(_BFLOAT16 & cpu_flags())


def machine(*libraries: str) -> str:
    """Two or three lines: date, processor, cores, what it computes in, load, versions of ``libraries``."""
    flags = cpu_flags()
    sets = [name for name in ("avx2", "avx512f", "amx_tile", "asimd", "sve") if name in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    lines = [
        f"{date.today()}  {cpu_model()}, {cores} cores{load}",
        f"instructions: {', '.join(sets) or 'unknown'}; bfloat16: {'yes' if has_bfloat16() else 'no'}",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Run:
    """A finished child process."""

    seconds: float
    peak: float  # MiB, largest resident set
    output: str  # its standard output


def run(command: Sequence[str]) -> Run:
    """Run a command to its end and measure it.

    The peak is the kernel's own count. It starts at what this process had in memory when it started the child,
    so call this from processes without large imports.

    Raises:
        UserError: it ended with an error.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        output = child.stdout.read()
        # wait4 tells the memory of this child alone; getrusage would give the largest of all so far.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise UserError(f"{' '.join(command)} ended with code {child.returncode}: see what it says above")
    return Run(seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), output)


class Others:
    """How busy other processes keep the processor from here on; they make times longer and wider spread."""

    def __init__(self) -> None:
        self._began = self._now()

    def __str__(self) -> str:
        """One sentence; empty where the system does not tell."""
        if self._began is None or (now := self._now()) is None:
            return ""
        whole, all_busy, own = (b - a for a, b in zip(self._began, now, strict=True))
        share = max(0.0, all_busy - own) / max(whole, 1e-9)
        return f"other processes took {share:.0%} of the processor meanwhile"

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds of all cores so far: in all, busy, and busy with this process and its finished children."""
        try:
            numbers = [int(n) for n in Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]]
        except OSError:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        idle = numbers[3] + numbers[4]
        return sum(numbers) / ticks, (sum(numbers) - idle) / ticks, sum(os.times()[:4])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """``median (smallest to largest)``; of one value that value."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times faster ``other`` was than ``base`` in each round that both took part in."""
    return [a / b for a, b in zip(base, other, strict=False)]


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(name: str, body: Callable[[], int]) -> NoReturn:
    """Run a script's body and exit; what is wrong with an input becomes one sentence."""
    sys.exit(run_command(name, body))
