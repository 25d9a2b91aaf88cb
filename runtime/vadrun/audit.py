"""What the gate costs: score errors and missed events, estimated from audits.

Every held snippet has the same chance to be audited: encoded after all, and scored with its own feature as well as
with the held one. The held snippets that were audited are therefore a random sample of all of them, and bounds on a
mean follow without assumptions on how errors are distributed. The neighbours' features are those of the run.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadrun.events import Event
from vadrun.gate import GateRule, Verdict

CONFIDENCE = 0.95
_BIN = 1e-5  # width of a bin of score errors


class GateAudit:
    """Counts verdicts and compares scores over one video.

    Args:
        rule: the gate's.
    """

    def __init__(self, rule: GateRule) -> None:
        self._rule = rule
        self._counts = dict.fromkeys(Verdict, 0)
        # Of the audited snippets, in the shadow of all. A camera runs for years: bins, each with its upper edge.
        self._errors: Counter[int] = Counter()
        self._sum = self._largest = 0.0
        self._unseen = 0
        self._missed = 0  # audited snippets that only their own feature takes over the threshold
        self._shadow_events: list[Event] = []

    def push(self, verdict: Verdict, own: float, held: float, *, lost: bool, unseen: bool = False) -> None:
        """Take the next snippet.

        Args:
            verdict: the gate's.
            own: its score with its own feature.
            held: its score with the feature that the gate held for it.
            lost: whether only its own feature takes a score over an event's threshold.
            unseen: whether the verdict fell without a look at the picture.
        """
        self._counts[verdict] += 1
        self._unseen += unseen
        if self._rule.shadow or verdict is Verdict.AUDIT:
            error = abs(own - held)
            self._errors[math.ceil(error / _BIN)] += 1
            self._sum, self._largest = self._sum + error, max(self._largest, error)
            self._missed += lost

    def shadow_events(self, events: list[Event]) -> None:
        """Events that a gated run would have found (in the shadow only)."""
        self._shadow_events += events

    def to_json(self, events: list[Event]) -> dict[str, Any]:
        """What ``result.json`` says of the gate.

        Args:
            events: those of the run.

        Returns:
            Its rule, counts (``unseen``: held or audited by the sizes of packets, without a look), and under
            ``score_error`` and ``events_missed`` what holding changed. In the shadow both are exact. Else
            ``score_error`` is the mean over the audited snippets, with an upper bound on the mean over all gated
            ones; ``events_missed`` is an estimate with an upper bound: an event that is missed as a whole has a
            gated snippet that only its own feature takes over the threshold, so there are at most as many missed
            events as such snippets. None where nothing was audited.
        """
        audited, held = self._counts[Verdict.AUDIT], self._counts[Verdict.HOLD]
        gated = audited + held
        total = gated + self._counts[Verdict.ENCODE]
        seen = self._errors.total()
        found: dict[str, Any] = {
            "mode": "shadow" if self._rule.shadow else "on",
            "rule": {key: value for key, value in self._rule.to_json().items() if key != "shadow"},
            "snippets": total,
            "gated": gated,
            "share_gated": round(gated / total, 4) if total else 0.0,
            "unseen": self._unseen,
            "encoded": total - held,
            "audited": audited,
            "score_error": None,
            "events_missed": None,
        }
        if seen:
            found["score_error"] = {"mean": round(self._sum / seen, 6), "largest": round(self._largest, 6)}
        if self._rule.shadow:
            found["events_missed"] = {"estimate": len(missed(events, self._shadow_events)), "exact": True}
        elif gated == 0:
            found["events_missed"] = {"estimate": 0, "exact": True}
        elif seen:
            edges, counts = np.array(sorted(self._errors.items())).T
            bound = upper_mean(edges * _BIN, counts=counts)
            found["score_error"] |= {"bound": round(bound, 6), "confidence": CONFIDENCE}
            hits = upper_mean(np.array([0.0, 1.0]), counts=np.array([seen - self._missed, self._missed]))
            found["events_missed"] = {
                "estimate": round(held * self._missed / seen, 2),
                "bound": round(held * hits, 2),
                "confidence": CONFIDENCE,
            }
        return found


def missed(events: list[Event], others: list[Event]) -> list[Event]:
    """Events that none of ``others`` overlaps."""
    return [e for e in events if not any(e.start < o.end and o.start < e.end for o in others)]


def upper_mean(
    values: NDArray[np.floating], confidence: float = CONFIDENCE, *, counts: NDArray[np.integer] | None = None
) -> float:
    """An upper confidence bound on the mean of a population in [0, 1], from a random sample of it.

    By betting (Waudby-Smith and Ramdas 2024): if the mean were m, a player who stakes on the sample's being smaller
    would multiply the money by prod(1 + s (m - x_i)), 0 <= s <= 1 / (1 - m), which stays 1 on average; means at which
    that has become 1 / (1 - confidence) are ruled out. The stakes are a fixed mixture. Without any error this is
    1 - (1 - confidence)^(1/n), about 3 / n, but for the mixture's price; no sample gives 1.

    Args:
        values: what was seen, [n].
        confidence: of the bound.
        counts: how often each, [n]; None: once.
    """
    sample = np.clip(np.asarray(values, np.float64), 0.0, 1.0)
    times = np.ones(len(sample)) if counts is None else np.asarray(counts, np.float64)
    sample, times = sample[times > 0], times[times > 0]  # what was never seen may have a logarithm of 0
    if not len(sample):
        return 1.0
    goal = math.log(1.0 / (1.0 - confidence))
    shares = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 1.0])[:, None]

    def money(mean: float) -> float:
        stakes = shares / (1.0 - mean)
        with np.errstate(divide="ignore"):  # a stake of everything may lose everything
            logs = np.log(np.maximum(1.0 + stakes * (mean - sample), 0.0)) @ times
        top = float(logs.max())
        return -math.inf if top == -math.inf else top + math.log(float(np.exp(logs - top).mean()))

    low, high = float(np.average(sample, weights=times)), 1.0 - 1e-9
    if money(high) < goal:
        return 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if money(middle) >= goal else (middle, high)
    return high
