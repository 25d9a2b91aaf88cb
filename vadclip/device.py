"""Where torch computes."""

from __future__ import annotations

import torch
from torch import nn

from vadrun.errors import UserError


def find_device(name: str = "auto", model: nn.Module | None = None) -> torch.device:
    """The device of this name, seen to work; "auto" is a GPU where there is one. ``model`` is moved there.

    Raises:
        UserError: there is no such device here, or it has no room for the model.
    """
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=place)
        if model is not None:
            model.to(place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the device {name!r} cannot be used ({reason}): name another, such as cpu") from error
    return place
