"""What can be evaluated: a checkpoint in PyTorch, or a bundle in one of the runtime's backends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vadclip.sidecar import FeatureSettings, image_settings
from vadrun.errors import UserError
from vadrun.scoring import Scores, scores_from_logits

if TYPE_CHECKING:
    from vadclip.model import VadCLIP
    from vadrun.engine import Engine


class Scorer(Protocol):
    """What is evaluated: a model that turns the features of one video into scores.

    Attributes:
        labels: the m labels, normal first.
        annotation_names: what annotation files call them; None where nothing says.
        width: d, the width of the features that it takes.
        anomaly: the branch that gives its anomaly score.
        description: what it is and on what it runs, in one line.
        sha256: of the checkpoint file, or of the bundle's manifest; None for a model that is no file.
        feature_settings: how its features are to be made (:mod:`vadclip.sidecar`); None where nothing says.
        mirrored: whether it runs on the mirrored centre of frames; None where nothing says.
    """

    labels: Sequence[str]
    annotation_names: Sequence[str] | None
    width: int
    anomaly: str
    description: str
    sha256: str | None
    feature_settings: FeatureSettings | None
    mirrored: bool | None

    def score(self, features: NDArray[np.float32]) -> Scores:
        """Scores of one video's features [n,d]."""


class ModelScorer:
    """A PyTorch model.

    Args:
        model: in evaluation mode; moved to ``device``.
        device: of torch, such as "cpu" or "cuda:0"; "auto" is a GPU where there is one.

    Raises:
        UserError: no such device, or a label has no tokens or too many.
    """

    def __init__(self, model: VadCLIP, device: str = "auto", sha256: str | None = None) -> None:
        import torch

        from vadclip.device import find_device

        place = find_device(device, model)
        self._model = model.eval()
        with torch.no_grad():
            self._text = self._model.encode_text(model.config.labels)
        self.labels: Sequence[str] = model.config.labels
        self.annotation_names: Sequence[str] | None = model.annotation_names
        self.width = model.config.embed_dim
        self.anomaly: str = model.config.anomaly
        self.description = f"PyTorch {torch.__version__} on {place}"
        self.sha256 = sha256
        self.feature_settings: FeatureSettings | None = model.feature_settings
        self.mirrored: bool | None = model.mirrored

    def score(self, features: NDArray[np.float32]) -> Scores:
        """Scores of one video's features [n,d]."""
        import torch

        logits, alignment = self._model.score(torch.from_numpy(features), self._text)
        return scores_from_logits(logits.cpu().numpy(), alignment.cpu().numpy(), self.anomaly)

    def adapt(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """X (Eq. 1) [k,d]: at most one chunk of a video's features [n,d] after the LGT-Adapter, k = min(n, T)."""
        import torch

        positions = self._model.config.positions
        part = torch.from_numpy(features[:positions]).to(self._text)
        padded = torch.nn.functional.pad(part, (0, 0, 0, positions - len(part)))[None]
        with torch.no_grad():
            after = self._model.video_features(padded, torch.tensor([len(part)]))[0, : len(part)]
        found: NDArray[np.float32] = after.cpu().numpy()
        return found


class EngineScorer:
    """A bundle in one of the runtime's backends."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.labels: Sequence[str] = engine.labels
        self.annotation_names: Sequence[str] | None = engine.bundle.model.annotation_names or None
        self.width = engine.bundle.model.features
        self.anomaly = engine.bundle.model.anomaly
        self.description = engine.description
        self.sha256: str | None = engine.bundle.sha256
        self.feature_settings: FeatureSettings | None = {
            "sampling": engine.bundle.sampling.to_manifest(),
            "preprocessing": image_settings(engine.bundle.preprocessing),
        }
        self.mirrored: bool | None = engine.bundle.preprocessing.mirror

    def score(self, features: NDArray[np.float32]) -> Scores:
        """Scores of one video's features [n,d]."""
        return self._engine.score(features)


def open_scorer(
    path: str | Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "auto",
    **settings: Any,
) -> Scorer:
    """A bundle (a folder) or a checkpoint (a file), ready to score.

    Args:
        path: the bundle or the checkpoint.
        backend: of the runtime, for a bundle.
        threads: inference threads, for a bundle.
        device: of torch, for a checkpoint.
        settings: what :func:`vadclip.checkpoint.load_checkpoint` takes besides, for a checkpoint.

    Raises:
        UserError: it cannot be opened, or settings of a checkpoint are given for a bundle, which has its own.
    """
    path = Path(path)
    given = {name: value for name, value in settings.items() if value}
    if path.is_dir():
        if given:
            raise UserError(f"{path} is a bundle, which holds its {', '.join(given)} itself: leave these options out")
        from vadrun.engine import Engine

        return EngineScorer(Engine.load(path, backend, threads=threads))
    try:
        from vadclip.checkpoint import checkpoint_sha256, load_checkpoint
    except ModuleNotFoundError as error:
        raise UserError(
            f"evaluating a checkpoint needs {error.name}, which is not installed: pip install 'vadclip-edge[train]'"
        ) from error
    if backend != "auto":
        raise UserError(f"{path} is no bundle, and only bundles run in the backend {backend!r}: leave it out")
    return ModelScorer(load_checkpoint(path, **given), device, checkpoint_sha256(path))
