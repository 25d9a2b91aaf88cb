"""What differs between the releases of PyAV that are supported: 14.2 to 19.

Nothing else in the project asks which PyAV is installed. What differs inside swscale is in
:mod:`vadrun.preprocessing`, where it works the same way with every release.
"""

from __future__ import annotations

from fractions import Fraction
from typing import IO, Any

import av
from av.container import InputContainer

# PyAV 15 knows how long a frame is shown. Older ones know it of packets only, and a mixture would make two kinds of
# times.
DURATIONS = hasattr(av.VideoFrame, "duration")

# PyAV 16 shows the side data of a packet, which is where new parameter sets (extradata) may come.
SIDE_DATA = hasattr(av.Packet, "has_sidedata")

# Up to PyAV 18 a tag that is not UTF-8 fails the opening, unless told otherwise. PyAV 19 keeps such bytes as
# surrogates and has no such argument.
_TAGS: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}


def open_input(url: str | IO[bytes], **options: Any) -> InputContainer:
    """Open a file to read, whatever the encoding of its tags, with FFmpeg's log silent.

    FFmpeg's log is turned off, which is how PyAV begins: torchvision turns it on when it is imported (0.18, for one). A
    thread of a decoder that logs then waits for Python's lock, and whoever closes the decoder has it and waits for
    that thread. PyAV up to 16 waits even for messages that it does not show.

    Args:
        url: a path, or one with a protocol: ``file:video.mp4``; or an open file.
        options: further arguments of ``av.open``.

    Raises:
        av.FFmpegError: FFmpeg cannot open it.
    """
    if av.logging.get_level() is not None:
        av.logging.set_level(None)
    container: InputContainer = av.open(url, "r", **options, **_TAGS)
    return container


def fraction(value: Any) -> Fraction | None:
    """A time base or a rate of PyAV's as an exact fraction; None where it is not known.

    Up to PyAV 18 it is a ``Fraction`` already, and None where it is not known. PyAV 19 has a type of its own,
    ``AVRational``, which is 0/1 or has a denominator of 0 where it is not known.
    """
    if value is None or not value.denominator or not value.numerator:
        return None
    return Fraction(value.numerator, value.denominator)
