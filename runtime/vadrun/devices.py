"""What this machine has for the runtime: GPUs, backends, decoders. What a bug report holds."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from vadrun import backends, decoders
from vadrun.console import table, version
from vadrun.cuda import NoCuda, gpus
from vadrun.engine import Engine
from vadrun.errors import UserError


def describe(bundle: Path | None = None) -> dict[str, Any]:
    """What is there, for JSON.

    Args:
        bundle: say what "auto" takes for this bundle; None: what it can try.

    Returns:
        ``machine``, ``gpus`` (or ``no_gpu``, why), ``libraries`` per backend, ``decoders``, ``auto`` (every backend in
        its order, with the reason where it cannot be tried), and with a bundle ``choice`` and ``why``.

    Raises:
        UserError: the folder is not a bundle.
    """
    found: dict[str, Any] = {
        "machine": {
            "vadclip-edge": version(),
            "python": platform.python_version(),
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "gpus": [],
    }
    try:
        found["gpus"] = [
            {
                "name": gpu.name,
                "capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
                "memory": gpu.memory,
                "cuda": gpu.cuda,
            }
            for gpu in gpus()
        ]
    except NoCuda as error:
        found["no_gpu"] = str(error)
    found["libraries"] = backends.about()
    found["decoders"] = {
        "av": version("av"),
        "hardware": [{"decoder": name, "not here": reason} for name, reason in decoders.reasons()],
    }
    found["auto"] = [{"backend": label, "not here": reason} for label, reason in backends.reasons()]
    if bundle is not None:
        try:
            with Engine.load(bundle) as engine:
                found["choice"], found["why"] = engine.description, engine.why
        except UserError as error:
            if not (bundle / "manifest.json").is_file():
                raise
            found["choice"], found["why"] = None, str(error)
    return found


def report(found: dict[str, Any]) -> str:
    """The description as a table for people."""
    rows = [[name, str(value)] for name, value in found["machine"].items()]
    for number, gpu in enumerate(found["gpus"]):
        memory = gpu["memory"] / 2**30
        rows.append(
            [f"GPU {number}", f"{gpu['name']}, compute {gpu['capability']}, {memory:.1f} GiB, CUDA {gpu['cuda']}"]
        )
    if not found["gpus"]:
        rows.append(["GPU", f"none ({found['no_gpu']})"])
    for name, facts in found["libraries"].items():
        if not facts:
            rows.append([name, "not installed"])
        for what, value in facts.items():
            rows.append([name if what == "version" else f"{name} {what}", value])
    rows.append(["PyAV", found["decoders"]["av"]])
    for entry in found["decoders"]["hardware"]:
        rows.append(
            [f"decoder {entry['decoder']}", entry["not here"] or "can be tried; each file shows whether it works"]
        )
    lines = [table(["what", "found"], rows), "", "auto takes the first that works for the bundle:"]
    rows = [[entry["backend"], entry["not here"] or "can be tried"] for entry in found["auto"]]
    lines += [f"  {line}" for line in table(["backend", "here"], rows).splitlines()]
    if "choice" in found:
        taken = found["choice"] or "nothing"
        lines.append(f"for this bundle it takes {taken}: {found['why']}")
    return "\n".join(lines)


def _processor() -> str:
    """The CPU's name; /proc/cpuinfo has it on x86, the device tree names an ARM board."""
    try:
        board = Path("/proc/device-tree/model")
        if board.is_file():
            return board.read_text(encoding="utf-8", errors="replace").strip("\0")
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
