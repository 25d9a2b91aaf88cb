"""Outputs of the authors' released code with small random weights, and checkpoints made of those weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vadclip import VadCLIP, load_checkpoint

DATA = Path(__file__).parent / "data" / "golden"
LENGTHS = (1, 37, 255, 300, 600)


@dataclass(frozen=True)
class Golden:
    """One dataset's golden data; ``arrays`` and ``weights`` are as tests/data/golden's files name them."""

    dataset: str
    config: dict[str, Any]
    arrays: dict[str, Tensor]
    weights: dict[str, Tensor]
    checkpoint: Path

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def load(self, **options: Any) -> VadCLIP:
        """A model of its own, for tests that change it."""
        return load_checkpoint(self.checkpoint, **{"dataset": self.dataset, **options})


def read_golden(dataset: str, folder: Path) -> Golden:
    weights = {key: torch.from_numpy(value) for key, value in _arrays(f"{dataset}-small.weights.npz").items()}
    checkpoint = folder / f"model_{dataset}.pth"
    torch.save(weights, checkpoint)
    arrays = {
        key: torch.from_numpy(np.asarray(value))
        for key, value in _arrays(f"{dataset}-small.npz").items()
        if value.dtype.kind != "U"
    }
    config = json.loads((DATA / f"{dataset}-small.json").read_text(encoding="utf-8"))["config"]
    return Golden(dataset, config, arrays, weights, checkpoint)


def _arrays(name: str) -> dict[str, Any]:
    with np.load(DATA / name) as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="session")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return read_golden("ucf", tmp_path_factory.mktemp("ucf"))


@pytest.fixture(scope="session")
def xd(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return read_golden("xd", tmp_path_factory.mktemp("xd"))


@pytest.fixture(scope="session", params=["ucf", "xd"])
def golden(request: pytest.FixtureRequest) -> Golden:
    found: Golden = request.getfixturevalue(request.param)
    return found
