"""Calibration of a bundle on the user's own footage: INT8 ranges, and alarm thresholds in false alarms per day."""

import vadrun.silence  # noqa: F401  # before any library that would report
