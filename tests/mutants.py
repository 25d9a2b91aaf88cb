"""How many small mutations of a module its tests notice: ``python -m tests.mutants [MODULE...]``, or ``make mutants``.

mutmut changes one operator, number, name or argument at a time and runs the tests that reach it. A mutant that no test
notices survives: either a test is missing, or the mutant does the same as the code (it is equivalent). Texts are not
mutated, because a message in other words is no fault of logic.

Every module gets a working tree of its own under ``build/mutants``, in which the packages lie side by side, as mutmut
expects them. A second run goes on where the first was stopped and tries survivors again, for there may be new tests;
``--fresh`` begins anew, as it must where the module itself has changed. Survivors are written as diffs to
``build/mutants/MODULE.diff``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutants"
PACKAGES = {
    "vadrun": ROOT / "runtime" / "vadrun",
    "vadclip": ROOT / "vadclip",
    "vadcalibrate": ROOT / "calibration" / "vadcalibrate",
    "vadexport": ROOT / "export" / "vadexport",
}
FOLDERS = ("tests", "demo", "benchmarks")  # what tests read beside the packages
KILLED = {1, 3, 24, 36, 152, 255, -24, -11, -9}  # mutmut's exit codes: failed, timed out, crashed
SURVIVED = 0
NO_TESTS = {5, 33}


class Target(NamedTuple):
    """A module, and the tests that are meant to notice its mutants."""

    module: str
    tests: tuple[str, ...]


TARGETS = {
    "events": Target("vadrun/events.py", ("tests/vadrun/test_events.py",)),
    "gate": Target("vadrun/gate.py", ("tests/vadrun/test_gate.py", "tests/vadrun/test_gate_arithmetic.py")),
    "groups": Target("vadrun/groups.py", ("tests/vadrun/test_groups_steps.py",)),
    "pipeline": Target("vadrun/pipeline.py", ("tests/vadrun/test_pipeline_steps.py",)),
    "preprocessing": Target("vadrun/preprocessing.py", ("tests/vadrun/test_preprocessing.py",)),
    "calibration": Target("vadrun/calibration.py", ("tests/vadrun/test_calibration.py",)),
    "certificate": Target("vadexport/certificate.py", ("tests/vadexport/test_certificate.py",)),
    "checks": Target("vadexport/checks.py", ("tests/vadexport/test_checks.py",)),
    "metrics": Target("vadclip/metrics.py", ("tests/vadclip/test_metrics.py",)),
    "losses": Target("vadclip/losses.py", ("tests/vadclip/test_losses.py",)),
}

CONFIGURATION = """
[tool.mutmut]
source_paths = ["vadrun/", "vadclip/", "vadcalibrate/", "vadexport/"]
only_mutate = ["{module}"]
also_copy = ["demo/", "benchmarks/"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:randomly"]
pytest_add_cli_args_test_selection = [{tests}]
process_isolation = "forkserver"
timeout_multiplier = 5.0
timeout_constant = 2.0
track_dependencies = false
use_git_change_detection = false
do_not_mutate_patterns = ['[A-Z]\\w*Error\\(']
"""


def prepare(name: str, target: Target) -> Path:
    """A working tree for this module; what an earlier run found in it stays."""
    work = WORK / name
    # Python remembers that a folder of its path was not there when it started.
    (work / "mutants").mkdir(parents=True, exist_ok=True)
    for package, source in PACKAGES.items():
        shutil.copytree(source, work / package, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, work / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tests = ", ".join(f'"{test}"' for test in target.tests)
    settings = CONFIGURATION.format(module=target.module, tests=tests)
    (work / "pyproject.toml").write_text(text + settings, encoding="utf-8")
    return work


def outcomes(work: Path, target: Target) -> dict[str, int | None]:
    """mutmut's exit code for each mutant."""
    meta = work / "mutants" / f"{target.module}.meta"
    if not meta.exists():
        return {}
    codes: dict[str, int | None] = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    return codes


def try_again(work: Path, target: Target) -> None:
    """Forget what survived, and which tests reach what: there may be new tests."""
    meta = work / "mutants" / f"{target.module}.meta"
    if not meta.exists():
        return
    known = json.loads(meta.read_text(encoding="utf-8"))
    codes = known["exit_code_by_key"]
    known["exit_code_by_key"] = {key: code if code in KILLED else None for key, code in codes.items()}
    meta.write_text(json.dumps(known, indent=4), encoding="utf-8")
    (work / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)


def mutmut(work: Path, *arguments: str) -> str:
    """Run mutmut in a working tree; returns what it printed."""
    # The working tree comes before the installed packages.
    paths = [str(work / "mutants"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads of OpenMP do not outlive a fork.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("module", nargs="*", choices=[*TARGETS, []], help="modules to mutate (default: all)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants that are tried at once")
    parser.add_argument("--least", type=float, default=0.0, metavar="SHARE", help="exit with 1 if fewer are killed")
    args = parser.parse_args()
    rows = []
    for name in args.module or TARGETS:
        target = TARGETS[name]
        if args.fresh:
            shutil.rmtree(WORK / name, ignore_errors=True)
        work = prepare(name, target)
        try_again(work, target)
        mutmut(work, "run", "--max-children", str(args.jobs))
        codes = outcomes(work, target)
        survivors = [key for key, code in codes.items() if code == SURVIVED or code in NO_TESTS]
        diffs = [mutmut(work, "show", key) for key in survivors]
        (WORK / f"{name}.diff").write_text("\n".join(diffs), encoding="utf-8")
        killed = sum(code in KILLED for code in codes.values())
        rows.append((name, len(codes), killed, len(survivors)))
    print(f"\n{'module':<16}{'mutants':>8}{'killed':>8}{'survived':>10}{'share':>8}")
    for name, count, killed, survived in rows:
        print(f"{name:<16}{count:>8}{killed:>8}{survived:>10}{killed / max(count, 1):>8.1%}")
    return int(any(killed < args.least * count or not count for _, count, killed, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
