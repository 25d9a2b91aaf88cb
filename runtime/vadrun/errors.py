"""The one exception that a user is meant to see."""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot be used.

    One sentence that says what is wrong with which input and what to do.
    """
