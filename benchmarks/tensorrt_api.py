"""Hold every TensorRT name that the code uses against the published bindings of several releases, without running them.

``python -m benchmarks.tensorrt_api`` fetches the bindings' wheels from the package index and looks for the names there.
A name that is missing somewhere must be one that the code asks for before using it (``ASKED_FIRST``). A name of a few
letters is not always found, because compilers put it into instructions (CAST and SHAPE, of LayerType); one that is
found may be another's. 10.16.1 is the newest 10.16 on the index; JetPack 7.2 has 10.16.2.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from vadrun.console import table

RELEASES = (
    "tensorrt-cu12-bindings==10.3.0",
    "tensorrt-cu12-bindings==10.13.3.9.post1",
    "tensorrt-cu12-bindings==10.16.1.11",
    "tensorrt-cu13-bindings==11.4.0.106",
)
ROOT = Path(__file__).parents[1]
SOURCES = (
    "export/vadexport/plan_builder.py",
    "export/vadexport/precision.py",
    "runtime/vadrun/backends/tensorrt.py",
    "runtime/vadrun/backends/tensorrt_engine.py",
    "runtime/vadrun/trt.py",
)
# What TensorRT's objects are called in those sources.
OBJECTS = {
    "trt",
    "_trt",
    "module",
    "runtime",
    "engine",
    "inspector",
    "_engine",
    "_context",
    "context",
    "_builder",
    "network",
    "parser",
    "config",
}
OBJECTS |= {"profile", "cache", "layer", "tensor", "source", "get_error", "get_layer", "get_output", "get_input"}
ENUMERATIONS = {"BuilderFlag", "NetworkDefinitionCreationFlag", "HardwareCompatibilityLevel", "MemoryPoolType"}
ENUMERATIONS |= {"ProfilingVerbosity", "ExecutionContextAllocationStrategy", "LayerInformationFormat", "DataType"}
AS_TEXT = {"FP16", "CONSTANT"}  # names that stand in the sources as text
# Through hasattr, on the route by flags, or for TensorRT-RTX only: their absence takes another path.
ASKED_FIRST = {
    "FP16": "the route by flags, gone in 11: strongly typed only",
    "OBEY_PRECISION_CONSTRAINTS": "the route by flags",
    "precision": "the route by flags",
    "set_output_type": "the route by flags",
    "ComputeCapability": "--for, TensorRT-RTX only",
    "num_compute_capabilities": "--for, TensorRT-RTX only",
    "set_compute_capability": "--for, TensorRT-RTX only",
    "IProgressMonitor": "progress",
    "progress_monitor": "progress",
    "device_memory_size": "where device_memory_size_v2 is not",
    "device_memory_size_v2": "or device_memory_size",
    "set_device_memory": "or device_memory",
    "device_memory": "where set_device_memory is not",
}


def used_names() -> set[str]:
    """Attributes of TensorRT's objects in the sources."""
    found = set(AS_TEXT)
    owners = OBJECTS | ENUMERATIONS
    for source in SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and not node.attr.startswith("_") and _owner(node.value) in owners:
                found.add(node.attr)
    return found


def names_in(wheel: Path) -> set[str]:
    """Identifiers in a wheel: words of its Python files and its bindings' strings."""
    found: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith((".py", ".so")):
                found |= {word.decode() for word in re.findall(rb"[A-Za-z_][A-Za-z_0-9]{2,}", archive.read(name))}
    return found


def main() -> int:
    """Print a table of the names that are not everywhere; 1 where one is missing that the code does not ask for."""
    used = sorted(used_names())
    have: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for release in RELEASES:
            place = Path(folder) / release.replace("==", "-")
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), release]
            subprocess.run(command, check=True)
            have[release] = names_in(next(place.glob("*.whl")))
    rows, wrong = [], []
    for name in used:
        missing = [release for release in RELEASES if name not in have[release]]
        if missing:
            rows.append(
                [name, ", ".join(release.partition("==")[2] for release in missing), ASKED_FIRST.get(name, "-")]
            )
            wrong += [name] if name not in ASKED_FIRST else []
    print(f"{len(used)} names: {', '.join(used)}")
    print(table(["name", "not in", "asked for first"], rows) if rows else "all are in every release")
    if wrong:
        print(f"the code uses what some releases have not: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _owner(node: ast.expr) -> str:
    """The name that an attribute is taken of: ``a`` in ``a.b``, ``x.a.b`` and ``x.a(y).b``."""
    if isinstance(node, ast.Call):
        return _owner(node.func)
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


if __name__ == "__main__":
    sys.exit(main())
