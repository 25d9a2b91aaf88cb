from __future__ import annotations

import numpy as np

from vadrun.stillness import Stillness

RNG = np.random.default_rng(7)
USUAL = {"P": 2000, "B": 300}


def span(factor: float = 1.0, spread: float = 0.05, pictures: int = 16, more: float = 0.0) -> list[tuple[str, int]]:
    """Kinds and sizes of pictures; ``more`` bytes in each."""
    kinds = ["P" if at % 2 else "B" for at in range(pictures)]
    return [(kind, max(round(USUAL[kind] * factor * RNG.normal(1, spread) + more), 1)) for kind in kinds]


def judged(stillness: Stillness, pictures: list[tuple[str, int]], *, unchanged: bool = False) -> bool:
    for kind, size in pictures:
        stillness.add(kind, size)
    still = stillness.still()
    stillness.begin(unchanged=unchanged)
    return still


def taught(spans: int = 40, **how: float) -> Stillness:
    stillness = Stillness(640, 360)  # 900 macroblocks
    for _ in range(spans):
        judged(stillness, span(**how), unchanged=True)
    return stillness


def test_nothing_is_still_before_enough_is_known() -> None:
    stillness = Stillness(640, 360)
    found = [judged(stillness, span(), unchanged=True) for _ in range(40)]
    assert not any(found[:12]) and sum(found[16:]) >= 20


def test_nothing_is_learnt_from_what_was_not_looked_at() -> None:
    stillness = Stillness(640, 360)
    assert not any(judged(stillness, span()) for _ in range(100))


def test_usual_sizes_are_still_and_others_are_not() -> None:
    stillness = taught()
    assert sum(judged(stillness, span()) for _ in range(200)) >= 180
    # A walker far away, who touches two macroblocks in a hundred at 10 bytes each.
    assert not any(judged(stillness, span(more=180)) for _ in range(200))
    # Fewer bytes than usual are as strange: with a rate control, that is what a busy scene may come to.
    assert not any(judged(stillness, span(0.6)) for _ in range(200))


def test_what_begins_late_in_a_span_is_seen() -> None:
    stillness = taught()
    assert not any(judged(stillness, span(pictures=10) + span(pictures=6, more=600)) for _ in range(100))


def test_kinds_are_told_apart() -> None:
    """The same pictures in another mixture are no change; P-pictures of the size of B's are."""
    stillness = taught()
    assert sum(judged(stillness, span(pictures=16)[::-1][:9]) for _ in range(100)) >= 60
    assert not judged(stillness, [("P", 300)] * 16)
    assert not judged(stillness, [("I", 2000)] * 16)


def test_more_noise_means_fewer_still_spans_and_no_blindness() -> None:
    noisy = taught(spread=0.6)
    held = sum(judged(noisy, span(spread=0.6)) for _ in range(200))
    assert held < 190
    assert not any(judged(noisy, span(spread=0.6, more=1500)) for _ in range(200))


def test_what_is_usual_may_drift() -> None:
    stillness = taught()
    assert not judged(stillness, span(1.5))
    for _ in range(60):
        judged(stillness, span(1.5), unchanged=True)
    assert sum(judged(stillness, span(1.5)) for _ in range(100)) >= 85
    assert not judged(stillness, span())


def test_pictures_of_unknown_size_are_not_still() -> None:
    stillness = taught()
    stillness.unknown()
    assert not judged(stillness, span())
    assert any(judged(stillness, span()) for _ in range(10))
    assert judged(stillness, [])  # nothing has passed
