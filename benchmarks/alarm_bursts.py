"""Whether the promise of ``vadcalibrate alarms`` holds where false alarms come in bursts: made-up scores, no model.

Each trial makes days of scores in which bursts start at random; a burst has a class, a height in log-odds and a
geometric number of alarms some time apart. Thresholds are set on it, and their true rate is known in closed form.
Counted are the trials that promise something, by what they promise: alarms a day, or bursts a day where bursts could
not be judged.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from benchmarks import measure
from vadcalibrate.alarms import DAY, Thresholds, set_thresholds
from vadcalibrate.footage import Footage
from vadrun.console import table
from vadrun.errors import UserError
from vadrun.events import EventRule

SNIPPET = 10.0  # seconds
HEIGHTS = (-2.0, 11.0)  # log-odds between which heights are uniform
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scenario:
    """A kind of false alarms, and what is asked for.

    Attributes:
        bursts: a day, of all classes together, at any level.
        size: mean number of alarms in a burst.
        gap: least and most seconds from one alarm of a burst to the next.
        together: whether every alarm is one of all classes at once.
        wanted: false alarms a day.
    """

    name: str
    days: float
    bursts: float
    size: float
    gap: tuple[float, float]
    classes: int
    wanted: float
    together: bool = False

    def footage(self, rng: np.random.Generator) -> Footage:
        """Scored footage of the scenario's days."""
        snippets = round(self.days * DAY / SNIPPET)
        odds = np.full((snippets, self.classes + 1), -5.0)
        for begin in rng.uniform(0, self.days * DAY, rng.poisson(self.bursts * self.days)):
            count = rng.geometric(1 / self.size)
            times = begin + np.concatenate([[0.0], np.cumsum(rng.uniform(*self.gap, count - 1))])
            at = (times / SNIPPET).astype(int)
            at = at[at < snippets]
            one = int(rng.integers(1, self.classes + 1))
            column = slice(1, None) if self.together else slice(one, one + 1)
            odds[at, column] = np.maximum(odds[at, column], rng.uniform(*HEIGHTS))
        edges = np.arange(snippets + 1) * SNIPPET
        return Footage("made", "made", np.stack([edges[:-1], edges[1:]], axis=1), 1 / (1 + np.exp(-odds)), 30.0, (1, 1))

    def true_rate(self, thresholds: Thresholds) -> tuple[float, float]:
        """Alarms and bursts a day at the thresholds; alarms that all classes raise at once are one burst."""
        reached = []
        for entry in thresholds.classes.values():
            odds = np.log(entry.rule.threshold / (1 - entry.rule.threshold))
            reached.append(float(np.clip((HEIGHTS[1] - odds) / (HEIGHTS[1] - HEIGHTS[0]), 0, 1)))
        bursts = self.bursts * (max(reached) if self.together else float(np.mean(reached)))
        alarms = self.bursts * self.size * (sum(reached) if self.together else float(np.mean(reached)))
        return alarms, bursts


NEAR, RAIN = (30.0, 120.0), (600.0, 2400.0)
SCENARIOS = (
    Scenario("independent", 1, 40, 1, NEAR, 3, 6),
    Scenario("independent", 1, 40, 1, NEAR, 3, 8),
    Scenario("independent, many", 1, 100, 1, NEAR, 3, 20),
    Scenario("bursts of 3", 1, 15, 3, NEAR, 3, 10),
    Scenario("bursts of 3", 1, 15, 3, NEAR, 3, 20),
    Scenario("bursts of 3", 7, 15, 3, NEAR, 3, 20),
    Scenario("bursts of 3, four a day", 1, 4, 3, NEAR, 1, 8),
    Scenario("bursts of 3, four a day", 14, 4, 3, NEAR, 1, 3),
    Scenario("bursts of 2, four a day", 2, 4, 2, NEAR, 2, 4),
    Scenario("bursts of 2, four a day", 14, 4, 2, NEAR, 2, 2),
    Scenario("groups of 5, 10 to 40 min apart", 3, 6, 5, RAIN, 1, 20),
    Scenario("groups of 5, 10 to 40 min apart", 14, 6, 5, RAIN, 1, 8),
    Scenario("four classes at once", 1, 15, 1, NEAR, 4, 8, True),
    Scenario("four classes at once", 1, 15, 1, NEAR, 4, 20, True),
    Scenario("four classes at once", 7, 15, 1, NEAR, 4, 20, True),
    Scenario("twelve classes at once", 1, 6, 1, NEAR, 12, 20, True),
)


def trials(scenario: Scenario, count: int, rng: np.random.Generator) -> list[str]:
    """A row of the table."""
    rules = {f"class {i}": EventRule(0.5, 0.4, 1.0, 10.0) for i in range(scenario.classes)}
    judged: list[bool] = []
    not_judged: list[bool] = []
    indices = []
    for _ in range(count):
        try:
            found = set_thresholds([scenario.footage(rng)], rules, scenario.wanted, CONFIDENCE)
        except UserError:  # too short for the rate: nothing is promised
            continue
        alarms, bursts = scenario.true_rate(found)
        if found.bursts is None:
            not_judged.append(bursts <= scenario.wanted)
        else:
            judged.append(alarms <= scenario.wanted)
            indices.append(found.index)
    promised = judged + not_judged
    return [
        scenario.name,
        f"{scenario.days:g}",
        f"{scenario.wanted:g}",
        str(count - len(promised)),
        f"{100 * (len(promised) - sum(promised)) / count:.1f} %",
        f"{np.median(indices):.1f}" if indices else "-",
        _share(judged),
        _share(not_judged),
    ]


def _share(held: list[bool]) -> str:
    return f"{100 * np.mean(held):.1f} % of {len(held)}" if held else "-"


def main() -> int:
    """Make up, set, compare, print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.alarm_bursts", description=__doc__)
    p.add_argument("--trials", type=int, default=100, metavar="N", help="of each row (default 100)")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    a = p.parse_args()
    print(measure.machine("numpy", "scipy"))
    rng = np.random.default_rng(a.seed)
    rows = [trials(scenario, a.trials, rng) for scenario in SCENARIOS]
    header = [
        "false alarms",
        "days",
        "wanted a day",
        "refused",
        "wrong",
        "widened by",
        "alarms a day held",
        "bursts a day held",
    ]
    print(table(header, rows, right=range(1, len(header))))
    print(
        f"{a.trials} trials a row, {CONFIDENCE:.0%} confidence; refused: the footage is too short for the wanted rate; "
        "wrong: trials whose promise does not hold; "
        "held: the true rate is no more than the wanted one; bursts: where there are too few alarms to judge bursts, "
        "which is all that is promised then"
    )
    return 0


if __name__ == "__main__":
    measure.main("alarm_bursts", main)
