"""The certificate: how far a bundle's artifacts are from PyTorch on this machine, and whether that is allowed.

Needs the runtime and a bundle, not PyTorch: its answers are in the bundle's probe.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadexport.probe import SNIPPET_SECONDS, Probe
from vadrun import backends
from vadrun.bundle import CERTIFICATE, Bundle
from vadrun.console import table, version
from vadrun.engine import Engine
from vadrun.errors import UserError
from vadrun.events import Event, EventRule, find_events
from vadrun.files import write_json
from vadrun.scoring import Scores, scores_from_logits

SCHEMA = 1


@dataclass(frozen=True)
class Limits:
    """What a check may differ from PyTorch float32."""

    cosine: float  # of every feature, at least
    score: float  # of every probability, at most


# By the coarsest arithmetic that the encoder's numbers went through, its stored weights included.
LIMITS = {
    "fp32": Limits(cosine=0.99999, score=1e-4),
    "fp16": Limits(cosine=0.999, score=5e-3),
    "bf16": Limits(cosine=0.998, score=2e-2),
}


@dataclass(frozen=True)
class Check:
    """One artifact against PyTorch; a value that does not apply is None."""

    artifact: str  # "encoder", "head" or "chain" (frames to scores)
    backend: str
    precision: str
    cosine_min: float | None
    cosine_median: float | None
    score_max: float | None
    score_mean: float | None
    events_gained: int | None
    events_lost: int | None
    limits: Limits
    passed: bool


@dataclass(frozen=True)
class Verification:
    """All checks of one run on one machine."""

    date: str
    toolkit: str
    machine: dict[str, str]
    libraries: list[str]
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether every check is within its limits."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """For certificate.json."""
        return asdict(self) | {"passed": self.passed}

    def table(self) -> str:
        """For people."""
        return checks_table(self.checks)


def checks_table(checks: Sequence[Check]) -> str:
    """Checks as a table for people."""
    header = ["artifact", "backend", "precision", "cosine min", "score max", "events +/-", "allowed", ""]
    rows = []
    for c in checks:
        events = "-" if c.events_gained is None else f"{c.events_gained}/{c.events_lost}"
        allowed = []
        if c.cosine_min is not None:
            allowed.append(f"cosine >= {c.limits.cosine:g}")
        if c.score_max is not None:
            allowed.append(f"score <= {c.limits.score:g}")
        rows.append(
            [
                c.artifact,
                c.backend,
                c.precision,
                "-" if c.cosine_min is None else f"{c.cosine_min:.7f}",
                "-" if c.score_max is None else f"{c.score_max:.1e}",
                events,
                ", ".join(allowed),
                "pass" if c.passed else "FAIL",
            ]
        )
    return table(header, rows)


def verify(root: Path, say: Callable[[str], None] = lambda text: None) -> Verification:
    """Run every artifact of the bundle on every backend that is there.

    Args:
        root: the bundle.
        say: told what is being checked.

    Raises:
        UserError: not a bundle, or no backend is installed.
    """
    bundle = Bundle.open(root)
    probe = Probe.load(bundle.path("probe"))
    found = backends.available()
    if not found:
        raise UserError("no backend is installed here to check the bundle with: pip install 'vadclip-edge[cpu]'")
    checks: list[Check] = []
    libraries: list[str] = []
    tried: set[tuple[str, str]] = set()
    for name, device in found:
        # "auto" may take a lower precision than float32; both can be chosen, so both are checked.
        for precision in ("auto", "fp32"):
            label = f"{name}:{device}"
            try:
                engine = Engine.load(root, label, precision=precision)
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
                checks += check_engine(engine, probe)
    if not checks:
        raise UserError(f"none of the backends here ({', '.join(n for n, _ in found)}) can run {root}")
    return Verification(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        toolkit=version(),
        machine=machine(),
        libraries=list(dict.fromkeys(libraries)),
        checks=checks,
    )


def check_engine(engine: Engine, probe: Probe) -> list[Check]:
    """Encoder, head and chain of a loaded engine against the probe's answers."""
    backend = engine.backend
    label = f"{backend.name}:{backend.device}"
    graph_precision = next(f.precision for f in engine.bundle.files if f.name == backend.encoder_file)
    precision = backend.precision if backend.precision != "fp32" else graph_precision or "fp32"
    shown = backend.precision if backend.precision == precision else f"{backend.precision} ({precision} weights)"
    limits = LIMITS[precision]
    branch = engine.bundle.model.anomaly

    features = engine.encode(probe.frames)
    cosine = _cosine(features, probe.features)
    encoder = _check("encoder", label, shown, limits, cosine=cosine)

    reference = scores_from_logits(probe.track_logits, probe.track_alignment, branch)
    measured = _score(engine, probe.track, probe.text)
    labels = [str(number) for number in range(len(probe.text))]  # names do not matter here
    head = _check("head", label, "fp32", LIMITS["fp32"], scores=(measured, reference), labels=labels)

    reference = scores_from_logits(probe.logits, probe.alignment, branch)
    measured = _score(engine, features, probe.text)
    chain = _check("chain", label, shown, limits, cosine=cosine, scores=(measured, reference), labels=labels)
    return [encoder, head, chain]


def write(root: Path, verification: Verification, bundle_sha256: str) -> None:
    """Put a verification into ``certificate.json``, in place of an older one of the same machine."""
    runs: list[dict[str, Any]] = []
    try:
        old = Bundle.open(root).certificate()
        if old is not None and old.get("bundle") == bundle_sha256:
            runs = [run for run in old["runs"] if run["machine"] != verification.machine]
    except UserError:
        runs = []  # an unreadable certificate is worth nothing; this one replaces it
    write_json(
        root / CERTIFICATE,
        {"schema": SCHEMA, "bundle": bundle_sha256, "runs": [*runs, verification.to_json()]},
    )


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


def _score(engine: Engine, features: NDArray[np.float32], text: NDArray[np.float32]) -> Scores | None:
    # A broken encoder can give NaN; that is a failed check, not an error of the user's.
    if not np.isfinite(features).all():
        return None
    return scores_from_logits(*engine.logits(features, text), engine.bundle.model.anomaly)


def _check(
    artifact: str,
    backend: str,
    precision: str,
    limits: Limits,
    *,
    cosine: NDArray[np.float64] | None = None,
    scores: tuple[Scores | None, Scores] | None = None,
    labels: Sequence[str] = (),
) -> Check:
    passed = True
    low = middle = largest = mean = None
    gained = lost = None
    if cosine is not None:
        low, middle = float(cosine.min()), float(np.median(cosine))
        passed &= low >= limits.cosine
    if scores is not None:
        measured, reference = scores
        if measured is None:
            largest = mean = 1.0  # as wrong as a probability can be
        else:
            parts = [
                np.abs(getattr(measured, part).astype(np.float64) - getattr(reference, part)).ravel()
                for part in ("confidence", "alignment", "anomaly")
            ]
            differences = np.nan_to_num(np.concatenate(parts), nan=1.0)
            largest, mean = float(differences.max()), float(differences.mean())
            gained, lost = _events_gained_lost(measured, reference, list(labels))
        passed &= largest <= limits.score
    return Check(artifact, backend, precision, low, middle, largest, mean, gained, lost, limits, bool(passed))


def _events_gained_lost(measured: Scores, reference: Scores, labels: list[str]) -> tuple[int, int]:
    """Events under the default rule that only the one or only the other has; equal means they overlap."""
    n = len(reference)
    edges = np.arange(n + 1) * SNIPPET_SECONDS
    spans = np.stack([edges[:-1], edges[1:]], axis=1)

    def events(scores: Scores) -> list[Event]:
        return find_events(scores.anomaly, scores.alignment, spans, EventRule(), labels)

    def without_match(some: list[Event], others: list[Event]) -> int:
        return sum(not any(e.start < o.end and o.start < e.end for o in others) for e in some)

    mine, theirs = events(measured), events(reference)
    return without_match(mine, theirs), without_match(theirs, mine)


def _cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of each row with its counterpart; -1 where it is not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray(np.nan_to_num(value, nan=-1.0), np.float64)
