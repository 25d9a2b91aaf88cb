from __future__ import annotations

import numpy as np
import pytest

from vadrun.scoring import CHUNKS_PER_CALL, score_features, scores_from_logits, sigmoid, softmax

T, D, M = 256, 4, 3


def test_sigmoid_and_softmax_do_not_overflow() -> None:
    assert sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]
    assert softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]])).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_each_branch_can_give_the_anomaly_score() -> None:
    logits = np.array([0.0, 2.0], np.float32)
    alignment = np.array([[3.0, 1.0, 1.0], [0.0, 5.0, 0.0]], np.float32)
    by_confidence = scores_from_logits(logits, alignment, "confidence")
    by_alignment = scores_from_logits(logits, alignment, "alignment")
    np.testing.assert_array_equal(by_confidence.anomaly, by_confidence.confidence)
    np.testing.assert_allclose(by_alignment.anomaly, 1 - by_alignment.alignment[:, 0], atol=1e-6)
    assert by_alignment.anomaly[1] > by_alignment.anomaly[0]
    with pytest.raises(ValueError, match="unknown branch"):
        scores_from_logits(logits, alignment, "both")


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 512, T * CHUNKS_PER_CALL + 5])
def test_chunks_are_disjoint_zero_padded_and_in_order(n: int) -> None:
    features = np.arange(1, n * D + 1, dtype=np.float32).reshape(n, D)
    calls: list[int] = []

    def head(chunk: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert chunk.shape[1:] == (T, D)
        for row, length in zip(chunk, lengths, strict=True):
            assert (row[length:] == 0).all()
            assert (row[:length] != 0).all()
        calls.extend(lengths.tolist())
        return chunk.sum(-1), np.repeat(chunk[:, :, :1], M, axis=2)

    logits, alignment = score_features(features, T, M, head)
    np.testing.assert_array_equal(logits, features.sum(1))
    np.testing.assert_array_equal(alignment, np.repeat(features[:, :1], M, axis=1))
    # No needless chunk where n is a multiple of T, and none at all for n = 0.
    assert calls == [T] * (n // T) + ([n % T] if n % T else [])
