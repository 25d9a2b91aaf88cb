"""Scored footage without a model: class scores that are made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vadcalibrate.footage import Footage

Make = Callable[..., Footage]


@pytest.fixture
def make_footage() -> Make:
    """Footage of snippets of equal length, from the scores [n,m-1] of its abnormal classes."""

    def make(scores: np.ndarray, seconds: float = 1.0, name: str = "n") -> Footage:
        edges = np.arange(len(scores) + 1) * seconds
        spans = np.stack([edges[:-1], edges[1:]], axis=1)
        whole = np.concatenate([1 - scores.sum(axis=1, keepdims=True), scores], axis=1)
        return Footage(name, f"{name}.mp4", spans, whole, 30.0, (320, 240))

    return make
