"""The engine: a bundle, the backend that runs it here, and the calls that users make."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vadrun import backends
from vadrun.bundle import Bundle
from vadrun.errors import UserError
from vadrun.scoring import Scores, score_chunks, score_features, scores_from_logits


class Engine:
    """A bundle that is loaded and ready.

    Example:
        >>> engine = Engine.load("engines/ucf")                   # doctest: +SKIP
        >>> features = engine.encode(frames)  # uint8 [n,S,S,3]    # doctest: +SKIP
        >>> engine.score(features).anomaly    # float32 [n]        # doctest: +SKIP
    """

    def __init__(
        self, bundle: Bundle, backend: backends.Backend, why: str, batch: int, *, refuse_wrong: bool = True
    ) -> None:
        self.bundle = bundle
        self._refuse_wrong = refuse_wrong
        self.backend = backend
        self.why = why  # why this backend was taken
        self.batch = min(batch, backend.batch_limit or batch)  # frames that one call of the encoder takes at most
        self._text = bundle.text()
        self.remark = bundle.certificate_remark()  # what should be said of its certificate; None: nothing

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        *,
        precision: str = "auto",
        threads: int | None = None,
        batch: int = 8,
        refuse_wrong: bool = True,
    ) -> Engine:
        """Open a bundle, check its files, and load it into a backend.

        Args:
            path: the bundle's directory.
            backend: "auto", or a name such as "onnxruntime", "openvino", "onnxruntime:cpu".
            precision: arithmetic of the encoder: "auto", "fp32", "bf16", "fp16" or "int8".
            threads: inference threads; None leaves it to the library.
            batch: how many frames go through the encoder in one call.
            refuse_wrong: pass over a backend that does not reproduce the bundle's probe, and refuse features and scores
                that are not finite; who is to say how wrong a backend is does without.

        Raises:
            UserError: not a whole bundle, or no such backend works here.
        """
        if batch < 1:
            raise UserError(f"the batch is {batch}: it must be at least 1")
        if threads is not None and threads < 1:
            raise UserError(f"the number of threads is {threads}: it must be at least 1")
        bundle = Bundle.open(path)
        chosen, why = backends.load(bundle, backend, backends.Options(precision, threads), refuse_wrong=refuse_wrong)
        return cls(bundle, chosen, why, batch, refuse_wrong=refuse_wrong)

    @property
    def labels(self) -> list[str]:
        """The m class names, normal first."""
        return list(self.bundle.model.labels)

    @property
    def description(self) -> str:
        """Backend, device, precision and library in one line."""
        backend = self.backend
        return f"{backend.name}:{backend.device} {backend.precision} ({backend.library}, {backend.encoder_file})"

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 [n,d] of preprocessed frames, uint8 RGB [n,S,S,3]; n may be 0.

        Raises:
            UserError: another shape or type, or the backend gives features that are not finite.
        """
        return next(self.encode_each([frames]))

    def encode_each(self, arrays: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """:meth:`encode` for one array after the other, in order.

        Where the backend can, the next frames are on their way to it while it computes: an array may be asked for
        before the features of the last one are given.

        Raises:
            UserError: as :meth:`encode`.
        """
        waiting: deque[int] = deque()  # frames of the arrays that are under way

        def parts() -> Iterator[NDArray[np.uint8]]:
            for frames in arrays:
                self._check_frames(frames)
                waiting.append(len(frames))
                for start in range(0, len(frames), self.batch):
                    yield np.ascontiguousarray(frames[start : start + self.batch])

        done: list[NDArray[np.float32]] = []

        def whole() -> Iterator[NDArray[np.float32]]:
            while waiting and sum(map(len, done)) == waiting[0]:
                waiting.popleft()
                yield np.concatenate(done) if done else np.empty((0, self.bundle.model.features), np.float32)
                done.clear()

        for features in self.backend.encode_each(parts()):
            self._check_finite("features", features)
            yield from whole()  # empty ones before it
            done.append(features)
            yield from whole()
        yield from whole()

    def _check_frames(self, frames: NDArray[np.uint8]) -> None:
        size = self.bundle.model.image_size
        if frames.dtype != np.uint8 or frames.shape[1:] != (size, size, 3):
            raise UserError(f"frames are {frames.dtype} {list(frames.shape)}: give uint8 RGB [n,{size},{size},3]")

    def score(self, features: NDArray[np.floating]) -> Scores:
        """Scores of one video's features [n,d], any n >= 0, in the reference's chunks of T snippets.

        Raises:
            UserError: another shape, or a feature or a score that is not finite.
        """
        return self._scores(*self.logits(features))

    def score_chunks(self, chunks: Sequence[NDArray[np.float32]]) -> list[Scores]:
        """Scores of several videos' features [n,d] in one call, 1 <= n <= T: what :meth:`score` gives for each.

        Raises:
            UserError: a score that is not finite.
        """
        model = self.bundle.model
        pairs = score_chunks(
            chunks, model.positions, lambda chunk, lengths: self.backend.head(chunk, lengths, self._text)
        )
        return [self._scores(logits, alignment) for logits, alignment in pairs]

    def _scores(self, logits: NDArray[np.float32], alignment: NDArray[np.float32]) -> Scores:
        self._check_finite("scores", logits, alignment)
        return scores_from_logits(logits, alignment, self.bundle.model.anomaly)

    def _check_finite(self, what: str, *arrays: NDArray[np.float32]) -> None:
        """Refuse NaN and infinity: nothing is above or below them, so they would pass for footage without an event."""
        if self._refuse_wrong and not all(np.isfinite(array).all() for array in arrays):
            raise UserError(
                f"{self.bundle.root} gives {what} that are not finite on {self.backend.name}:{self.backend.device}: "
                f"run vadexport verify {self.bundle.root}"
            )

    def logits(
        self, features: NDArray[np.floating], text: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What :meth:`score` turns into probabilities: logits [n] and alignment logits [n,m].

        With ``text`` [m,d] they are of those classes, not of the bundle's.

        Raises:
            UserError: as :meth:`score`.
        """
        model = self.bundle.model
        if features.ndim != 2 or features.shape[1] != model.features:
            raise UserError(f"features are {list(features.shape)}: this bundle takes [n,{model.features}]")
        features = np.ascontiguousarray(features, dtype=np.float32)
        bad = ~np.isfinite(features).all(axis=1)
        if bad.any():
            raise UserError(
                f"the feature of snippet {int(bad.argmax())} is not finite ({int(bad.sum())} of {len(bad)} are "
                "not): extract it again"
            )
        classes = self._text if text is None else text
        return score_features(
            features,
            model.positions,
            len(classes),
            lambda chunk, lengths: self.backend.head(chunk, lengths, classes),
        )

    def close(self) -> None:
        """Free the backend's memory; the engine cannot be used afterwards."""
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
