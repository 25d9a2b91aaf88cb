"""Measurements of speed, memory and size; see README.md beside this file."""

import vadrun.silence  # noqa: F401  # before any library that would report
