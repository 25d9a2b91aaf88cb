"""Training in several processes gives what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vadclip.test_train import RECIPE, quiet, rows_of, run, toy_set
from vadclip import load_checkpoint
from vadclip.ranks import Ranks

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.vadclip.test_train import RECIPE, run, toy_set
import torch
torch.set_num_threads(1)
listed, _ = toy_set(Path(sys.argv[1]) / "toy", 30, seed=0)
run(listed, Path(sys.argv[1]) / "several", replace(RECIPE, epochs=2), say=print)
"""


def test_a_batch_is_shared_out() -> None:
    rows = np.arange(7)
    ranks = [Ranks(rank, 3) for rank in range(3)]
    assert sorted(np.concatenate([r.share(rows) for r in ranks]).tolist()) == rows.tolist()
    assert sum(r.weight(7) for r in ranks) == pytest.approx(1)
    assert [r.weight(2) for r in ranks] == [0.5, 0.5, 0] and len(ranks[2].share(rows[:2])) == 1


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    listed, _ = toy_set(tmp_path / "toy", 30, seed=0)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [str(part) for part in command], cwd=root, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("epoch 2/2") == 1  # one process speaks
    run(listed, tmp_path / "one", replace(RECIPE, epochs=2), say=quiet)
    one, several = (load_checkpoint(tmp_path / name / "last.safetensors").state_dict() for name in ("one", "several"))
    for key, value in one.items():
        assert torch.allclose(value, several[key], atol=2e-5), key
    assert (tmp_path / "several" / "state.pt").exists()
    logs = [rows_of(tmp_path / name) for name in ("one", "several")]
    for expected, found in zip(*logs, strict=True):
        for name in ("rows", "loss_bce", "loss_nce", "loss_cts", "score"):
            assert float(found[name]) == pytest.approx(float(expected[name]), abs=1e-4), name
