"""The start-up test: a loaded backend must reproduce the bundle's probe.

Every bundle holds probe frames and a track of features with PyTorch's answers. The certificate says how near a backend
comes to all of them. This test looks at a part, at every start, within the same limits. It finds what is wrong before
a camera relies on it: a damaged cache of compiled models, a processor that a library miscompiles for, one of two
streams that came up wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vadrun.arrays import Array, load_npz
from vadrun.errors import UserError
from vadrun.scoring import score_differences, score_features, scores_from_logits

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vadrun.backends import Backend
    from vadrun.bundle import Bundle

FRAMES = 8
"""As many as a batch has by default: kernels are chosen for the shape, so another shape would test others."""

COSINE = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.998, "int8": 0.99}
"""The least cosine of a feature with PyTorch's, by the coarsest arithmetic that the encoder's numbers go through."""

SCORE = 1e-4
"""The most that a probability of the head may be off. The head computes in float32, whatever the encoder does."""

PROBE = {
    "frames": Array("u", ("n", "size", "size", 3), itemsize=1, least=1),
    "features": Array("f", ("n", "width"), least=1),
    "logits": Array("f", ("n",)),
    "alignment": Array("f", ("n", "classes")),
    "track": Array("f", ("t", "width"), least=1),
    "track_logits": Array("f", ("t",)),
    "track_alignment": Array("f", ("t", "classes")),
    "text": Array("f", ("classes", "width"), least=1),
}
"""The arrays of a probe; :class:`vadexport.probe.Probe` says what they are."""

_LOWEST = 0.9
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Found:
    """How far a backend is from PyTorch's answers.

    Attributes:
        cosine: the least of a feature; -1 where one is not finite.
        score: the largest difference of a probability of the head; 1 where one is not finite.
    """

    cosine: float
    score: float

    def fault(self, least: float) -> str | None:
        """What is wrong, as a clause, if the cosine may be ``least``; None: nothing."""
        if self.cosine < least:
            return f"wrong features of the bundle's probe (cosine {self.cosine:.7g}, at least {least:g} is allowed)"
        if self.score > SCORE:
            return f"wrong scores of the bundle's probe (off by {self.score:.2g}, at most {SCORE:g} is allowed)"
        return None


def load_probe(path: Path, *, size: int | None = None, width: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a probe, by name.

    Args:
        path: of ``probe.npz``.
        size: side of the model's frames, if it is known.
        width: of its features, if it is known.

    Raises:
        UserError: it does not read, or is not a probe of such a model.
    """
    sizes = {name: value for name, value in (("size", size), ("width", width)) if value is not None}
    found = load_npz(path, PROBE, "build the bundle again", sizes=sizes, most=_MOST_BYTES)
    return {name: value if name == "frames" else value.astype(np.float32) for name, value in found.items()}


def measure(bundle: Bundle, backend: Backend) -> Found:
    """Run a part of the probe: frames through the encoder, and the first chunk of the track through the head.

    Raises:
        UserError: the probe does not read, or is of no such model.
    """
    model = bundle.model
    probe = load_probe(bundle.path("probe"), size=model.image_size, width=model.features)
    frames, expected, text = probe["frames"], probe["features"], probe["text"]
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames), backend.batch_limit or FRAMES)).astype(int)
    cosine = cosines(backend.encode(np.ascontiguousarray(frames[chosen])), expected[chosen])

    chunk = slice(0, model.positions)  # chunks do not depend on each other
    logits, alignment = score_features(
        probe["track"][chunk],
        model.positions,
        len(text),
        lambda features, lengths: backend.head(features, lengths, text),
    )
    with np.errstate(invalid="ignore", over="ignore"):
        measured = scores_from_logits(logits, alignment, model.anomaly)
    reference = scores_from_logits(probe["track_logits"][chunk], probe["track_alignment"][chunk], model.anomaly)
    return Found(float(cosine.min()), float(score_differences(measured, reference).max()))


def least_cosine(bundle: Bundle, backend: Backend) -> float:
    """The limit of a backend's features: of its arithmetic, or a lower one that the user gave for this bundle.

    A user's ``--limits`` are in the last run of the certificate, or in the checks of a TensorRT plan. What lies below
    :data:`_LOWEST` is wrong, whatever was allowed.
    """
    limit = COSINE[arithmetic(bundle, backend)]
    if backend.least_cosine is not None:
        limit = max(min(limit, backend.least_cosine), _LOWEST)
    try:
        found = bundle.certificate()
    except UserError:
        return limit
    if found is None or (found["bundle"] != bundle.sha256 and "stale" not in found):
        return limit
    last = found["runs"][-1] if found["runs"] else {}
    asked = last.get("changes", {}).get("cosine", limit) if last.get("passed") else limit
    return max(min(limit, asked), _LOWEST)


def arithmetic(bundle: Bundle, backend: Backend) -> str:
    """The coarsest arithmetic that the encoder's numbers go through, its stored weights included."""
    graph = next(entry.precision for entry in bundle.files if entry.name == backend.encoder_file)
    return backend.precision if backend.precision != "fp32" else graph or "fp32"


def cosines(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Cosine of each row with its counterpart; -1 where it is not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        value = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray(np.nan_to_num(value, nan=-1.0), np.float64)
