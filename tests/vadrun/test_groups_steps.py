"""Splitting into groups, decoding and ordering them, one step at a time: packets and decoders are stand-ins here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import av
import pytest

from vadrun import groups as module
from vadrun.bitstream import Unit
from vadrun.errors import NoMemory
from vadrun.groups import Crew, Group, Groups, Splitter, Taken, Worker
from vadrun.numbering import Number
from vadrun.skipping import Irregular, Ranks, Skipped


class Piece:
    """A packet, and what its headers say."""

    def __init__(
        self,
        pts: int | None,
        *,
        closed: bool = False,
        referred: bool = True,
        order: int | None = None,
        news: bool = False,
        gap: bool = False,
        readable: bool = True,
        dts: int | None = None,
        size: int = 100,
    ) -> None:
        self.pts, self.dts, self.duration, self.size = pts, dts, 3, size
        self.is_discard = self.is_corrupt = False
        self.unit = Unit(1, closed, news, referred, Number(order, gap)) if readable else None

    def __repr__(self) -> str:
        return f"Piece({self.pts})"


class Headers:
    def read(self, packet: Any) -> Unit | None:
        unit: Unit | None = packet.unit
        return unit


def splitter(wanted: Callable[[int], bool] = lambda rank: True, ranks: Ranks | None = None) -> Splitter:
    headers: Any = Headers()
    return Splitter(headers, wanted, ranks)


def split(pieces: list[Piece], wanted: Callable[[int], bool] = lambda rank: True, **rest: Any) -> list[Group]:
    by = splitter(wanted, **rest)
    found = [by.push(piece) for piece in pieces]  # type: ignore[arg-type]
    return [group for group in [*found, by.finish()] if group is not None]


def plain(first: int, count: int, **rest: Any) -> list[Piece]:
    """A group of pictures that are shown in the order of decoding."""
    return [Piece(first + at, closed=at == 0, **rest) for at in range(count)]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures are decoded to see whether they come out in order."""
    monkeypatch.setattr(module, "_TRIED", 3)


# -- splitting


def test_a_group_ends_before_the_next_closed_key_picture() -> None:
    pieces = [*plain(0, 4), *plain(4, 3), *plain(7, 1)]
    found = split(pieces)
    assert [group.packets for group in found] == [pieces[:4], pieces[4:7], pieces[7:]]
    assert [group.last for group in found] == [pieces[3], pieces[6], pieces[7]]
    assert found[1].shown == [(pts, None, 3) for pts in (4, 5, 6)]
    assert [group.wanted for group in found] == [{0, 1, 2, 3}, {4, 5, 6}, {7}]
    assert all(group.spare == set() and group.news == [] for group in found)
    assert splitter().finish() is None


def test_decoding_ends_with_the_last_that_is_wanted() -> None:
    """But for the first three pictures, and where nothing is wanted at all."""
    pieces = [*plain(0, 2), *plain(2, 4), *plain(6, 4), *plain(10, 4)]
    found = split(pieces, lambda rank: rank in (0, 7))
    assert [[p.pts for p in group.packets] for group in found] == [[0, 1], [], [6, 7], []]
    assert [group.wanted for group in found] == [{0}, set(), {7}, set()]
    assert [len(group.shown) for group in found] == [2, 4, 4, 4]
    found = split(pieces, lambda rank: rank in (0, 2, 10))  # one of the second group is tried
    assert [[p.pts for p in group.packets] for group in found] == [[0, 1], [2], [], [10]]
    found = split(plain(0, 9), lambda rank: rank == 0)
    assert [p.pts for p in found[0].packets] == [0, 1, 2]


def test_the_last_that_is_wanted_is_the_last_in_the_order_of_decoding() -> None:
    """Shown 0 to 4, decoded 0 4 2 1 3."""
    pieces = [Piece(pts, closed=pts == 0, referred=pts in (0, 4, 2)) for pts in (0, 4, 2, 1, 3)]
    head = plain(-3, 3)
    (_, group) = split([*head, *pieces], lambda rank: rank - 3 in (1, 4))
    assert [p.pts for p in group.packets] == [0, 4, 2, 1] and group.wanted == {1, 4}
    assert group.last is pieces[-1] and [pts for pts, _, _ in group.shown] == [0, 1, 2, 3, 4]
    assert group.spare == {3}
    (_, group) = split([*head, *pieces], lambda rank: rank - 3 == 3)
    assert group.packets == pieces and group.spare == {1}
    # The first three are decoded in any case, and are none to spare.
    (group,) = split(pieces, lambda rank: rank == 0)
    assert [p.pts for p in group.packets] == [0, 4, 2] and group.spare == {1, 3}
    pieces = [Piece(pts, closed=pts == 0, referred=pts in (0, 2)) for pts in (0, 2, 1, 3)]
    (group,) = split(pieces, lambda rank: rank == 3)
    assert group.spare == set() and group.packets == pieces


def test_what_is_said_of_one_group_does_not_reach_the_next() -> None:
    first = [Piece(pts, closed=pts == 0, referred=False, order=pts) for pts in range(5)]
    second = [Piece(pts, closed=pts == 5, order=pts - 5) for pts in range(5, 8)]
    found = split([*first, *second, *plain(8, 1)], lambda rank: rank in (4, 7))
    assert found[0].spare == {3} and found[1].spare == set()
    assert [len(group.shown) for group in found] == [5, 3, 1]


def test_parameter_sets_are_news_to_all_groups_from_theirs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = [Piece(at, closed=True, news=at in (1, 3)) for at in range(5)]
    found = split(heads)
    assert [group.news for group in found] == [[], [heads[1]], [heads[1]], [heads[1], heads[3]], [heads[1], heads[3]]]
    assert split([Piece(0, closed=True), Piece(1, news=True)])[0].news == []  # those of other pictures are none
    monkeypatch.setattr(module, "_MOST_NEWS", 2)
    heads = [Piece(at, closed=True, news=True) for at in range(3)]
    assert len(split(heads[:2])) == 2
    with pytest.raises(Irregular):
        split(heads)


@pytest.mark.parametrize(
    "odd",
    [
        Piece(2, readable=False),
        Piece(None),
        Piece(2, gap=True),
        Piece(2, dts=3),  # shown before it is decoded
        Piece(1),  # the time of another
    ],
)
def test_a_packet_that_does_not_fit(odd: Piece) -> None:
    assert len(split([*plain(0, 2), Piece(2)])) == 1
    with pytest.raises(Irregular):
        split([*plain(0, 2), odd])


@pytest.mark.parametrize("flag", ["is_discard", "is_corrupt"])
def test_a_packet_that_is_not_shown_or_not_whole(flag: str) -> None:
    pieces = plain(0, 3)
    setattr(pieces[2], flag, True)
    with pytest.raises(Irregular):
        split(pieces)


def test_the_first_packet_has_to_begin_a_group() -> None:
    with pytest.raises(Irregular):
        split([Piece(0), *plain(1, 2)])


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 4)
    assert len(split([*plain(0, 4), *plain(4, 4)])) == 2
    with pytest.raises(Irregular):
        split(plain(0, 5))
    monkeypatch.setattr(module, "_LARGEST", 300)
    assert len(split([*plain(0, 4), *plain(4, 4)])) == 2  # the fourth comes where there are 300 bytes
    monkeypatch.setattr(module, "_LARGEST", 299)
    assert len(split([*plain(0, 3), *plain(3, 3)])) == 2
    with pytest.raises(Irregular):
        split(plain(0, 4))


def test_groups_are_shown_one_after_the_other() -> None:
    assert len(split([*plain(0, 3), *plain(3, 3)])) == 2
    for first in (2, 1):  # a group that begins with, or before, the last of the one before
        with pytest.raises(Irregular):
            split([*plain(0, 3), *plain(first, 3)])


@pytest.mark.parametrize(("away", "regular"), [(17, True), (18, False)])
def test_no_decoder_waits_for_more_than_seventeen_pictures(away: int, regular: bool) -> None:
    for order in ([*range(1, away + 1), 0], [away, *range(away)]):
        pieces = [Piece(-1, closed=True), *(Piece(pts) for pts in order)]
        if regular:
            assert len(split(pieces)) == 1
        else:
            with pytest.raises(Irregular):
                split(pieces)


def test_the_clock_may_be_set_between_groups_alone() -> None:
    """A pause is one from two seconds on; here of 25 ticks each."""
    pause = [*plain(0, 30), *plain(30 + 250, 3)]
    found = split(pause, lambda rank: rank == 1, ranks=Ranks(0.04))
    assert [group.wanted for group in found] == [{1}, {281}]
    joined = Ranks(0.04)
    joined.joins = True
    assert [group.wanted for group in split(pause, lambda rank: rank == 31, ranks=joined)] == [set(), {281}]
    with pytest.raises(Irregular):
        split([*plain(0, 30), *(Piece(pts) for pts in range(280, 283))], ranks=Ranks(0.04))
    with pytest.raises(Irregular):  # a group's first picture, and the pause behind it
        split([*plain(0, 30), Piece(30, closed=True), *(Piece(pts) for pts in range(281, 284))], ranks=Ranks(0.04))


def test_order_counts_that_leave_one_out_have_the_whole_group_decoded() -> None:
    whole = [Piece(pts, closed=pts == 0, referred=pts == 0, order=2 * pts) for pts in range(8)]
    (group,) = split(whole, lambda rank: rank == 4)
    assert [p.pts for p in group.packets] == [0, 1, 2, 3, 4] and group.spare == {3, 5, 6, 7}
    holed = [piece for piece in whole if piece.pts != 6]
    (group,) = split(holed, lambda rank: rank == 4)
    assert group.packets == holed and group.spare == set()
    # The step between pictures is that of the groups before; a picture may lack its count.
    later = [Piece(8 + at, closed=at == 0, order=4 * at) for at in range(3)]
    found = split([*whole, *later], lambda rank: rank == 8)
    assert found[1].packets == later
    whole[6].unit = Unit(1, False, False, False, Number(None))
    (group,) = split(whole, lambda rank: rank == 4)
    assert len(group.packets) == 5


def test_times_and_durations_are_those_of_the_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece(pts, closed=pts == 0, dts=dts) for pts, dts in ((0, -2), (2, -1), (1, 0))]
    duration = 3 if module.DURATIONS else None
    assert split(pieces)[0].shown == [(0, -2, duration), (1, 0, duration), (2, -1, duration)]
    monkeypatch.setattr(module, "DURATIONS", not module.DURATIONS)  # PyAV 14 knows none of a frame's
    duration = 3 if duration is None else None
    assert split(pieces)[0].shown[0] == (0, -2, duration)


# -- decoding


class Decoder:
    """Gives a frame for each packet, one packet late; leaves out spare ones."""

    def __init__(self, name: str = "h264") -> None:
        self.name, self.options, self.thread_count, self.skip_frame = name, {}, 0, "DEFAULT"
        self.calls: list[Any] = []
        self.waiting: list[Any] = []
        self.fails: BaseException | None = None
        self.loses: int | None = None

    def decode(self, packet: Any) -> list[Any]:
        if self.fails is not None:
            raise self.fails
        self.calls.append("end" if packet is None else (packet.pts, self.skip_frame))
        out, self.waiting = self.waiting, []
        if packet is not None and self.skip_frame == "DEFAULT" and packet.pts != self.loses:
            self.waiting = [SimpleNamespace(pts=packet.pts, is_corrupt=False)]
        return out

    def flush_buffers(self) -> None:
        self.calls.append("flush")
        self.waiting = []


def worker(decoder: Any) -> Worker[int]:
    return Worker(decoder, lambda frame: 10 * (frame.pts or 0))


def group_of(pieces: list[Piece], wanted: set[int], spare: set[int] | None = None, news: Any = ()) -> Group:
    packets: Any = pieces
    shown = sorted((piece.pts or 0, None, None) for piece in pieces)
    return Group(packets, packets[-1], shown, wanted, spare or set(), list(news))


def test_a_worker_decodes_in_one_thread_and_gives_what_is_wanted() -> None:
    decoder, stop = Decoder(), threading.Event()
    at_work = worker(decoder)
    assert decoder.thread_count == 1 and decoder.options == {}
    found = at_work.decode(group_of(plain(0, 4), {1, 2}, {3}), stop)
    assert found == {1: 10, 2: 20}
    assert decoder.calls == [(0, "DEFAULT"), (1, "DEFAULT"), (2, "DEFAULT"), (3, "NONREF"), "end", "flush"]
    assert at_work.decode(group_of(plain(0, 2), {0}), stop) == {0: 0}  # an earlier group may come later
    hevc = Decoder("hevc")
    worker(hevc)
    assert hevc.options == {"err_detect": "explode"}


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_picture_that_does_not_come_out(lost: int) -> None:
    decoder, stop = Decoder(), threading.Event()
    decoder.loses = lost
    with pytest.raises(Irregular):
        worker(decoder).decode(group_of(plain(0, 4), {1}), stop)
    stop.set()
    assert worker(Decoder()).decode(group_of(plain(0, 4), {1}), stop) == {}


def test_whoever_is_stopped_feeds_no_more() -> None:
    decoder, stop = Decoder(), threading.Event()

    def make(frame: av.VideoFrame) -> int:
        stop.set()
        return 7

    at_work: Worker[int] = Worker(decoder, make)  # type: ignore[arg-type]
    assert at_work.decode(group_of(plain(0, 9), {0, 5}), stop) == {0: 7}
    assert decoder.calls == [(0, "DEFAULT"), (1, "DEFAULT"), "end", "flush"]


def test_a_picture_that_comes_out_before_its_group() -> None:
    decoder = Decoder()
    decoder.waiting = [SimpleNamespace(pts=4, is_corrupt=False)]
    with pytest.raises(Irregular):
        worker(decoder).decode(group_of(plain(5, 2), {5}), threading.Event())
    decoder.waiting = [SimpleNamespace(pts=None, is_corrupt=False)]
    with pytest.raises(Irregular):
        worker(decoder).decode(group_of(plain(5, 2), {5}), threading.Event())


@pytest.mark.parametrize("error", [av.InvalidDataError(1, "bad"), av.EOFError(1, "end")])
def test_damage_is_irregular(error: Exception) -> None:
    decoder = Decoder()
    decoder.fails = error
    with pytest.raises(Irregular) as raised:
        worker(decoder).decode(group_of(plain(0, 2), {0}), threading.Event())
    assert raised.value.__cause__ is error


def test_a_lack_of_memory_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(error: Exception) -> None:
        assert isinstance(error, av.FFmpegError)
        raise NoMemory("too little")

    monkeypatch.setattr(module, "of_the_machine", judge)
    decoder = Decoder()
    decoder.fails = av.InvalidDataError(1, "bad")
    with pytest.raises(NoMemory):
        worker(decoder).decode(group_of(plain(0, 2), {0}), threading.Event())


def test_news_of_groups_that_others_decode_are_heard_once_and_in_order() -> None:
    decoder, stop = Decoder(), threading.Event()
    at_work = worker(decoder)
    first, second, third = (plain(10 * at, 1)[0] for at in range(3))
    at_work.decode(group_of([Piece(1, closed=True)], {1}, news=[first, second]), stop)
    heard = [(0, "DEFAULT"), "flush", (10, "DEFAULT"), "flush"]
    assert decoder.calls == [*heard, (1, "DEFAULT"), "end", "flush"]
    decoder.calls.clear()
    # Its own are in its first packet; others are not heard again.
    decoder.skip_frame = "NONREF"
    at_work.decode(group_of([third, Piece(21)], {20}, news=[first, second, third]), stop)
    assert decoder.calls == [(20, "DEFAULT"), (21, "DEFAULT"), "end", "flush"]
    decoder.calls.clear()
    fourth = plain(30, 1)[0]
    decoder.skip_frame = "NONREF"
    at_work.decode(group_of([Piece(41, closed=True)], {41}, news=[first, second, third, fourth]), stop)
    assert decoder.calls == [(30, "DEFAULT"), "flush", (41, "DEFAULT"), "end", "flush"]
    with pytest.raises(Irregular):  # a group of before them: its parameter sets are not in force any more
        at_work.decode(group_of([Piece(5, closed=True)], {5}, news=[first]), stop)


# -- in threads


def test_a_crew_makes_as_many_workers_as_are_at_work_at_once() -> None:
    made: list[Any] = []
    both = threading.Barrier(2)
    names: list[str] = []

    class Busy:
        def __init__(self) -> None:
            made.append(self)
            self.waits = True

        def decode(self, group: Any, stop: threading.Event) -> dict[int, Any]:
            names.append(threading.current_thread().name)
            assert not stop.is_set()
            if self.waits:
                both.wait(timeout=20)
                self.waits = False
            if group == "bad":
                raise Irregular
            return {group: self}

    make: Any = Busy
    crew: Crew[Any] = Crew(make, lambda: 5)
    futures = [crew.start(group) for group in (1, 2)]  # type: ignore[arg-type]
    assert [future.result(timeout=20).keys() for future in futures] == [{1}, {2}] and len(made) == 2
    with pytest.raises(Irregular):
        crew.start("bad").result(timeout=20)  # type: ignore[arg-type]
    for group in (3, 4, 5):
        last = crew.start(group).result(timeout=20)[group]  # type: ignore[arg-type]
    assert len(made) == 2 and last in made  # one that failed is not lost
    assert all(name.startswith("vadrun-decoder") for name in names)
    crew.stop()
    assert crew._stop.is_set()
    with pytest.raises(RuntimeError):
        crew.start(6)  # type: ignore[arg-type]


def test_a_crew_that_stops_leaves_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 1)
    began, ends = threading.Event(), threading.Event()

    class Slow:
        def decode(self, group: Any, stop: threading.Event) -> dict[int, Any]:
            began.set()
            stop.wait(20)
            ends.set()
            return {}

    make: Any = Slow
    crew: Crew[Any] = Crew(make, lambda: 1)
    first, second = crew.start(1), crew.start(2)  # type: ignore[arg-type]
    assert began.wait(20)
    crew.stop()
    assert ends.is_set() and first.done() and second.cancelled()


@pytest.mark.parametrize(("share", "count"), [(1, 1), (7, 7), (8, 8), (9, 8)])
def test_never_more_than_eight_groups_are_under_way(share: int, count: int) -> None:
    make: Any = Decoder
    crew: Crew[Any] = Crew(make, lambda: share)
    assert crew.count == count
    crew.stop()


class Promptly:
    """A crew that decodes at once, and notes in which order groups are begun and asked for."""

    def __init__(self, count: int = 1) -> None:
        self.count, self.log, self.stopped = count, [], 0  # type: ignore[var-annotated]

    def start(self, group: Group) -> Future[dict[int, str]]:
        self.log.append(f"start {group.shown[0][0]}")
        future: Any = SimpleNamespace(result=lambda: self.log.append(f"ask {group.shown[0][0]}") or self.found(group))
        return future  # type: ignore[no-any-return]

    def found(self, group: Group) -> dict[int, str]:
        return {pts: f"made {pts}" for pts in group.wanted}

    def stop(self) -> None:
        self.stopped += 1


def groups(pieces: list[Piece], wanted: Callable[[int], bool], crew: Any, faults: Any = lambda: 0) -> Groups[str]:
    packets: Any = iter(pieces)
    return Groups(packets, splitter(wanted), crew, faults)


def test_pictures_come_in_the_order_of_display() -> None:
    pieces = [Piece(pts, closed=pts == 0) for pts in (0, 2, 1)] + plain(3, 2) + plain(5, 2)
    crew = Promptly()
    found = list(groups(pieces, lambda rank: rank in (1, 2, 6), crew).pictures())
    duration = 3 if module.DURATIONS else None
    assert found == [
        Skipped(0, None, duration),
        Taken(1, None, duration, "made 1"),
        Taken(2, None, duration, "made 2"),
        *(Skipped(pts, None, duration) for pts in (3, 4, 5)),
        Taken(6, None, duration, "made 6"),
    ]
    assert crew.log == ["start 0", "ask 0", "start 5", "ask 5"] and crew.stopped == 1


def test_as_many_groups_are_under_way_as_may_be() -> None:
    """Those that need no decoding are none of them."""
    crew = Promptly(2)
    pieces = [piece for first in range(0, 10, 2) for piece in plain(first, 2)]
    list(groups(pieces, lambda rank: True, crew).pictures())
    log = "start 0, start 2, ask 0, start 4, ask 2, start 6, ask 4, start 8, ask 6, ask 8"
    assert crew.log == log.split(", ")
    crew.log.clear()
    list(groups(pieces, lambda rank: rank in (0, 1, 6, 7), crew).pictures())
    assert crew.log == ["start 0", "start 6", "ask 0", "ask 6"]


def test_an_incomplete_last_packet_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = plain(0, 4)
    pieces[3].is_corrupt = True
    crew = Promptly()
    assert [place.pts for place in groups(pieces, lambda rank: True, crew).pictures()] == [0, 1, 2]
    pieces[3].is_corrupt, pieces[2].is_corrupt = False, True
    with pytest.raises(Irregular):
        list(groups(pieces, lambda rank: True, crew).pictures())
    assert crew.stopped == 2
    assert list(groups([], lambda rank: True, crew).pictures()) == []
    ends_with_a_key = [*plain(0, 2), *plain(2, 1)]
    assert [place.pts for place in groups(ends_with_a_key, lambda rank: True, crew).pictures()] == [0, 1, 2]


def test_a_fault_in_the_container_is_irregular() -> None:
    read: list[Piece] = []

    def pieces() -> Iterator[Piece]:
        for piece in plain(0, 4):
            read.append(piece)
            yield piece

    crew: Any = Promptly()
    given: Any = pieces()
    with pytest.raises(Irregular):
        list(Groups(given, splitter(), crew, lambda: len(read) == 3).pictures())
    assert crew.stopped == 1
