"""What ``vadrun`` says of the videos that it has scored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadrun.console import BAD_INPUT, DAMAGED, clock, failure, table, tell
from vadrun.errors import UserError
from vadrun.files import json_text

if TYPE_CHECKING:
    from vadrun.calibration import Calibration
    from vadrun.pipeline import VideoResult


class Report:
    """Prints what became of each video, in the order in which they were named.

    Args:
        sources: the videos.
        refused: why other names are no videos; said at once.
        calibration: what they were judged by, if it was one.
        out: the folder of all results, if they are kept.
        as_json: one document of all of them at the end.
        quiet: no remarks.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        refused: Sequence[UserError],
        calibration: Calibration | None,
        out: Path | None,
        *,
        as_json: bool,
        quiet: bool,
    ) -> None:
        self._sources, self._calibration, self._as_json, self._quiet = sources, calibration, as_json, quiet
        self._out = out
        self._waiting: dict[int, tuple[VideoResult | UserError, dict[str, Any], Path | None]] = {}
        self._next = 0
        self._documents: list[dict[str, Any]] = []
        self._failed = [str(error) for error in refused]
        self._named = len(sources) + len(refused)
        self._code = BAD_INPUT if refused else 0
        for text in self._failed:
            tell(f"vadrun: {text}")

    def add(
        self, number: int, outcome: VideoResult | UserError, document: dict[str, Any], where: Path | None = None
    ) -> None:
        """A video is done; ``where`` are its results."""
        self._waiting[number] = outcome, document, where
        while self._next in self._waiting:
            outcome, document, where = self._waiting.pop(self._next)
            if isinstance(outcome, UserError):
                # One bad file in a folder must not cost the others.
                text, code = failure(self._sources[self._next], outcome)
                tell(f"vadrun: {text}")
                self._failed.append(str(outcome))
                self._code = max(self._code, code)
            else:
                self._documents.append(document if where is None else document | {"results": str(where)})
                self._tell(self._sources[self._next], outcome, where)
            self._next += 1

    def _tell(self, source: Path, result: VideoResult, where: Path | None) -> None:
        calibration, name = self._calibration, source.name
        if result.again is not None:
            self._remark(f"{result.again}, which has been done")
        if result.damage is not None:
            tell(f"vadrun: warning: {result.damage}")
            self._code = max(self._code, DAMAGED)
        for remark in result.info.remarks:
            self._remark(f"{name}: {remark}")
        if result.note is not None:
            self._remark(f"{name}: {result.note}")
        if calibration is not None and not calibration.knows_picture(result.info.width, result.info.height):
            size = f"{result.info.width}x{result.info.height}"
            self._remark(f"{name}: {calibration.path} has seen no footage of {size}; is it of this camera?")
        if not self._as_json:
            _print_result(result)
            if where is not None and where.name not in (source.stem, source.name):
                print(f"  results in {where}: the place named after the file is taken, or no folder can have its name")
            sys.stdout.flush()

    def finish(self) -> int:
        """Print what is said of all of them; returns the exit code."""
        if self._as_json:
            print(json_text({"videos": self._documents, "errors": self._failed}))
        elif self._out is not None and self._documents:
            print(f"results in {self._out}")
        if self._failed and self._named > 1:
            tell(f"vadrun: {len(self._failed)} of {self._named} videos have no results")
        return self._code

    def _remark(self, text: str) -> None:
        if not self._quiet:
            tell(text)


def _print_result(result: VideoResult) -> None:
    events = f"{len(result.events)} event{'' if len(result.events) == 1 else 's'}"
    snippets = f"{result.snippets} snippet{'' if result.snippets == 1 else 's'}"
    peak = "" if result.peak is None else f", peak score {result.peak:.3f}"
    print(f"{result.source}: {clock(result.seconds)} scored in {snippets}, {events}{peak}")
    if result.gate is not None:
        print(f"  {_gate_line(result.gate)}")
    if result.events:
        rows = [[clock(e.start), clock(e.end), e.label, f"{e.peak:.3f}"] for e in result.events]
        text = table(["start", "end", "class", "peak"], rows, right=(0, 1, 3))
        print("\n".join(f"  {line}" for line in text.splitlines()))


def _gate_line(gate: dict[str, Any]) -> str:
    """What the gate did, in one line."""
    held = "would have been held" if gate["mode"] == "shadow" else "held"
    text = f"gate: {gate['share_gated']:.0%} of the snippets {held}"
    if gate["pictures_undecoded"]:
        text += f", {gate['pictures_undecoded']} pictures never decoded"
    error, missed = gate["score_error"], gate["events_missed"]
    if error is None or missed is None:
        return text + ("; none of them was audited, so what that cost is not known" if gate["gated"] else "")
    if gate["mode"] == "shadow":
        return f"{text}; scores would differ by {error['mean']:.4f} on average, {missed['estimate']} events be missed"
    if "bound" not in error:
        return text
    return (
        f"{text}; by {gate['audited']} audits their scores are off by {error['mean']:.4f} on average (at most "
        f"{error['bound']:.3f}), and {missed['estimate']:g} events missed (at most {missed['bound']:.1f}), with "
        f"{error['confidence']:.0%} confidence"
    )
