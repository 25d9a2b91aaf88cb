"""A synthetic world of CCTV clips with events whose times are known, for tests and for the demo model.

Fixed cameras over roads, car parks, corridors, shops and squares, by day and at night. Needs numpy, PyAV and Pillow.
"""

from vadclip.world.clips import FPS, LABELS, SPLITS, Clip, make_clip
from vadclip.world.dataset import SIZES, Size, write_dataset
from vadclip.world.scenes import KINDS

__all__ = ["FPS", "KINDS", "LABELS", "SIZES", "SPLITS", "Clip", "Size", "make_clip", "write_dataset"]
