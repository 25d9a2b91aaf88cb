"""Run VadCLIP bundles on video: anomaly scores and events, without PyTorch.

>>> from vadrun import Engine, EventRule, run_video
>>> with Engine.load("engines/ucf") as engine:                     # doctest: +SKIP
...     result = run_video(engine, "video.mp4", EventRule())
...     for event in result.events:
...         print(event.start, event.end, event.label, event.peak)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import vadrun.silence  # noqa: F401  # before any library that would report

if TYPE_CHECKING:
    from vadrun.bundle import Bundle
    from vadrun.calibration import Calibration
    from vadrun.engine import Engine
    from vadrun.errors import UserError
    from vadrun.events import Event, EventRule
    from vadrun.pipeline import VideoResult, run_video, run_videos
    from vadrun.scoring import Scores
    from vadrun.video import Video

_HOME = {
    "Bundle": "vadrun.bundle",
    "Calibration": "vadrun.calibration",
    "Engine": "vadrun.engine",
    "Event": "vadrun.events",
    "EventRule": "vadrun.events",
    "Scores": "vadrun.scoring",
    "UserError": "vadrun.errors",
    "Video": "vadrun.video",
    "VideoResult": "vadrun.pipeline",
    "run_video": "vadrun.pipeline",
    "run_videos": "vadrun.pipeline",
}

__all__ = [
    "Bundle",
    "Calibration",
    "Engine",
    "Event",
    "EventRule",
    "Scores",
    "UserError",
    "Video",
    "VideoResult",
    "run_video",
    "run_videos",
]


def __getattr__(name: str) -> object:
    # Loaded when asked for: `import vadrun` and `vadrun --help` stay instant.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vadrun' has no attribute {name!r}")
