"""The certificate: what the checks of a bundle found on each machine that ran them.

:mod:`vadexport.checks` compares one backend with PyTorch's answers in the bundle's probe; this module runs those checks
on every backend that is installed here, and adds the results to ``certificate.json``. What the differences change on
the user's own footage is in :mod:`vadexport.footage`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vadexport.checks import Changes, Check, Limits, arithmetic, check_engine, checks_table, limits_for
from vadexport.plan_check import check_carried, wanting_a_check
from vadexport.probe import Probe
from vadrun import backends
from vadrun.bundle import CERTIFICATE, MANIFEST, Bundle, read_certificate
from vadrun.console import version
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.files import sha256, write_json, writing

SCHEMA = 1
MOST_RUNS = 50  # in a certificate


@dataclass(frozen=True)
class Verification:
    """All checks of one run on one machine."""

    date: str
    toolkit: str
    machine: dict[str, str]
    libraries: list[str]
    checks: list[Check]
    footage: list[Any] = field(default_factory=list)  # of vadexport.footage, where videos were given
    changes: dict[str, float] = field(default_factory=dict)  # limits of the user's own

    @property
    def passed(self) -> bool:
        """Whether every check is within its limits."""
        return all(check.passed for check in (*self.checks, *self.footage))

    def to_json(self) -> dict[str, Any]:
        """For certificate.json."""
        return asdict(self) | {"passed": self.passed}

    def table(self) -> str:
        """For people."""
        return checks_table(self.checks)


Further = Callable[[Engine, Limits], Any]
"""A check of more than the probe: of an engine, with its limits; the result has ``passed``."""


def verify(
    root: Path,
    say: Callable[[str], None] = lambda text: None,
    changes: Changes | None = None,
    further: Further | None = None,
) -> Verification:
    """Run every artifact of the bundle on every backend that is there.

    Args:
        root: the bundle.
        say: told what is being checked.
        changes: limits of the user's own.
        further: called with each engine after its checks.

    Raises:
        UserError: not a bundle, or no backend is installed.
    """
    bundle = Bundle.open(root)
    probe = Probe.load(bundle.path("probe"), bundle.model)
    found = backends.available()
    if not found:
        raise UserError("no backend is installed here to check the bundle with: pip install 'vadclip-edge[cpu]'")
    checks: list[Check] = []
    footage: list[Any] = []
    libraries: list[str] = []
    checks += _check_carried(bundle, say, changes)
    tried: set[tuple[str, str]] = set()
    for name, device in found:
        # "auto" may take a lower precision than float32; both can be chosen, so both are checked.
        for precision in ("auto", "fp32"):
            label = f"{name}:{device}"
            try:
                engine = Engine.load(root, label, precision=precision, refuse_wrong=False)
            except UserError as error:
                # Only a bundle without a graph for this device and precision comes here by design.
                if precision == "fp32" and any(backend == label for backend, _ in tried):
                    continue
                say(f"{label}: {error}")
                continue
            with engine:
                key = (label, engine.backend.precision)
                if key in tried:
                    continue
                tried.add(key)
                say(f"checking {engine.description}")
                libraries.append(engine.backend.library)
                checks += check_engine(engine, probe, changes)
                if further is not None:
                    footage.append(further(engine, limits_for(arithmetic(engine)[0], changes)))
    if not tried:
        raise UserError(f"none of the backends here ({', '.join(n for n, _ in found)}) can run {root}")
    return Verification(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        toolkit=version(),
        machine=machine(),
        libraries=list(dict.fromkeys(libraries)),
        checks=checks,
        footage=footage,
        changes=dict(changes or {}),
    )


def _check_carried(bundle: Bundle, say: Callable[[str], None], changes: Changes | None) -> list[Check]:
    """Check plans that were built for a GPU like this one elsewhere; the checks where they fail, or none.

    What passes is marked, so that it is found and checked among the other backends.
    """
    found = wanting_a_check(bundle)
    if found is None:
        return []
    gpu, folder, plans = found
    say(f"checking the engines in {folder}, which were built elsewhere, on {gpu.name}")
    try:
        _, checks = check_carried(bundle, gpu, folder, plans, changes)
    except UserError as error:
        say(str(error))
        return []
    return [] if all(check.passed for check in checks) else checks


def write(root: Path, verification: Verification, bundle_sha256: str) -> int:
    """Add a verification to ``certificate.json``; the latest :data:`MOST_RUNS` of this bundle stay.

    Another process may be adding one of its own: neither costs the other its entry.

    Args:
        root: the bundle.
        verification: what was found.
        bundle_sha256: of the bundle that was verified.

    Returns:
        How many runs the certificate holds now.

    Raises:
        UserError: the bundle has been changed since it was verified, or cannot be written to.
    """
    path = root / CERTIFICATE
    with _locked(root):
        if sha256(root / MANIFEST) != bundle_sha256:
            raise UserError(f"{root} was changed while it was being verified: run vadexport verify again")
        try:
            old = read_certificate(root)
        except UserError:
            old = None  # an unreadable certificate is worth nothing; this one replaces it
        kept = old["runs"] if old is not None and old["bundle"] == bundle_sha256 and "stale" not in old else []
        runs = [*kept, verification.to_json()][-MOST_RUNS:]
        with writing(path):
            if path.exists() and not path.is_file() and not path.is_dir():
                path.unlink()  # a pipe would be waited for, and a device would keep nothing
            write_json(path, {"schema": SCHEMA, "bundle": bundle_sha256, "runs": runs})
    return len(runs)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Only one process at a time is in the block, where the file system can do that."""
    with (root / MANIFEST).open("rb") as stream:
        with suppress(ImportError, OSError):
            import fcntl  # not on Windows

            fcntl.flock(stream, fcntl.LOCK_EX)  # until the file is closed
        yield


def machine() -> dict[str, str]:
    """What this machine is, as far as results depend on it."""
    cpu = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {"system": platform.system(), "architecture": platform.machine(), "cpu": cpu}
