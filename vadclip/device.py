"""Where torch computes."""

from __future__ import annotations

import torch
from torch import nn

from vadrun.errors import UserError


def find_device(name: str = "auto", model: nn.Module | None = None) -> torch.device:
    """The device of this name, seen to work; "auto" is a GPU where there is one. ``model`` is moved there.

    On CUDA, PyTorch computes convolutions in TF32 unless it is told otherwise. It is told otherwise here, for the whole
    process: float32 means float32, as on the CPU.

    Raises:
        UserError: there is no such device here, or it has no room for the model.
    """
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=place)
        if place.type == "cuda":
            forbid_tf32()
        if model is not None:
            model.to(place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the device {name!r} cannot be used ({reason}): name another, such as cpu") from error
    return place


def forbid_tf32() -> None:
    """Let this process compute float32 products and convolutions on CUDA in float32, not in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
