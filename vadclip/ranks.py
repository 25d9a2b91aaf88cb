"""Several processes that train one model: what ``torchrun`` starts, over ``torch.distributed``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from vadclip.device import find_device
from vadrun.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among ``count``; rank 0 writes the files and selects the models."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def share(self, rows: NDArray[np.integer]) -> NDArray[np.integer]:
        """The rows of a batch that this process computes; where there is none for it, the first, which weighs 0."""
        mine = rows[self.rank :: self.count]
        return mine if len(mine) else rows[:1]

    def weight(self, rows: int) -> float:
        """This process's share of a batch of so many rows."""
        return len(range(self.rank, rows, self.count)) / rows

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes."""
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agree(self, value: float | None, device: torch.device) -> float | None:
        """Rank 0's value, which the others need not have; None only where all have None."""
        if self.count == 1:
            return value
        shared = torch.tensor([torch.nan if value is None else value], dtype=torch.float64, device=device)
        dist.broadcast(shared, src=0)
        found = float(shared)
        return None if np.isnan(found) else found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def join(device: str) -> tuple[Ranks, torch.device]:
    """This process's place among those of ``torchrun``, alone without it, and the device that is its own.

    Raises:
        UserError: no such device, the processes do not find each other, or there are fewer GPUs than processes.
    """
    place = find_device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(), place
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if place.type == "cuda":
        if local >= torch.cuda.device_count():
            here = torch.cuda.device_count()
            raise UserError(f"torchrun started more processes than there are GPUs ({here}): lower --nproc-per-node")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the training processes do not find each other ({error}): start them with torchrun"
            ) from error
    return Ranks(dist.get_rank(), dist.get_world_size()), place


def leave() -> None:
    """Undo :func:`join`."""
    if dist.is_initialized():
        dist.destroy_process_group()
