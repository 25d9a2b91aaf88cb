"""Which settings of extraction reproduce features that are there already: frame of a snippet, crop, preprocessing.

Released features do not say how they were made. A few snippets of a few videos are made in every way that there is, and
their cosines with the given features tell the way. Each frame is decoded once, and equal images are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vadclip.extract import Encoder
from vadclip.features import read_features
from vadclip.frames import FrameFolder, open_footage
from vadrun.console import table
from vadrun.errors import UserError
from vadrun.preprocessing import STYLES, TEN_CROPS, Preprocessing, Preprocessor
from vadrun.sampling import Sampler, Sampling

SAME = 0.999
"""Mean cosine from which features are reproduced: other decoders and half precision stay above it."""
NEAR = 0.97
"""Below it not even the footage seems to be the same: neighbouring snippets of one video reach 0.98."""
_NORM = 0.02  # by how much lengths may differ, as a share
_ALIKE = 2e-4  # cosines that are no further apart cannot be told apart
_SHIFTS = (-1, 0, 1)  # snippets by which the given features may be late
_FRAMES = Sampling().frames
_PICKS = {0: "first", _FRAMES // 2: "middle", _FRAMES: "mean"}  # by the place in _ways; the others no option gives
_SHOWN = 8  # combinations in the table

Floats = NDArray[np.float64]
Frames = Sequence[av.VideoFrame]


def preprocessings(size: int) -> dict[str, Preprocessing]:
    """All that are tried for an encoder of ``size`` pixels, by their names; the default comes first."""
    return {style: Preprocessing.for_size(size, style=style) for style in STYLES}


@dataclass(frozen=True)
class Given:
    """Features of one video that somebody has.

    Attributes:
        name: of the video.
        video: its file, or its folder of frames.
        crops: number of the crop, as the file's name or the place in the file has it (None where it has none) -> the
            features [n,d], all of one n.
    """

    name: str
    video: Path
    crops: Mapping[int | None, NDArray[np.floating]]

    @property
    def snippets(self) -> int:
        """n."""
        return len(next(iter(self.crops.values())))


def read_given(
    name: str, video: Path, files: Sequence[tuple[Path, int | None, int | None]], width: int | None = None
) -> Given:
    """The features of one video.

    Args:
        name: of the video.
        video: its file or folder.
        files: path, crop within the file and number of the crop, as :class:`vadclip.lists.FeatureList` has them.
        width: d of the encoder; None for any.

    Raises:
        UserError: a file cannot be used, or crops are not of one length.
    """
    crops = {number: read_features(path, width, within) for path, within, number in files}
    if len({len(one) for one in crops.values()}) > 1:
        raise UserError(f"the crops of {name!r} do not have the same number of snippets: leave the video out")
    return Given(name, video, crops)


@dataclass(frozen=True)
class Combination:
    """One way to make features, and how near it comes to the given ones.

    Attributes:
        sample: "first", "middle" or "mean", or for one that no option gives "frame K", counted from 0.
        crop: 0 to 9.
        preprocessing: of :func:`preprocessings`.
        shift: snippets by which the given features are late: the k-th is ours of k - shift.
        cosine, lowest: mean and least cosine over the snippets.
    """

    sample: str
    crop: int
    preprocessing: str
    shift: int
    cosine: float
    lowest: float


@dataclass
class Findings:
    """What became of the comparison.

    Attributes:
        ranked: crop of the given features -> all combinations, the nearest first.
        norm: median length of the given features by that of ours, at the best combination.
        counts: video -> snippets given, snippets found, frames.
        damaged: sentences.
    """

    ranked: dict[int | None, list[Combination]] = field(default_factory=dict)
    norm: float = 1.0
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def best(self) -> dict[int | None, Combination]:
        """The nearest combination of each crop that is given."""
        return {crop: ranked[0] for crop, ranked in self.ranked.items()}

    @property
    def reproduced(self) -> bool:
        """Whether extraction makes these features, with options that there are."""
        return (
            bool(self.ranked)
            and all(
                one.cosine >= SAME and one.shift == 0 and one.sample in _PICKS.values() for one in self.best.values()
            )
            and len({(one.sample, one.preprocessing) for one in self.best.values()}) == 1
            and abs(self.norm - 1) <= _NORM
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "reproduced": self.reproduced,
            "best": [{"given_crop": crop, **vars(one)} for crop, one in self.best.items()],
            "norm": self.norm,
            "videos": {
                name: {"given": given, "found": found, "frames": frames}
                for name, (given, found, frames) in self.counts.items()
            },
            "remarks": self.remarks(),
        }

    def text(self) -> str:
        """For people: the nearest combinations, the verdict, and what else differs."""
        if not self.ranked:
            return "\n".join([self.verdict(), *self.remarks()])
        crop, ranked = next(iter(self.ranked.items()))
        rows = []
        for one in ranked[:_SHOWN]:
            shift = f"{one.shift:+d}" if one.shift else "0"
            found = [f"{one.cosine:.5f}", f"{one.lowest:.5f}"]
            rows.append([one.sample, str(one.crop), one.preprocessing, shift, *found])
        what = "the given features" if crop is None else f"the given crop {crop}"
        header = ["sample", "crop", "preprocessing", "shift", "cosine mean", "min"]
        parts = [f"Nearest to {what}, of {len(ranked)} combinations", table(header, rows, right=(1, 3, 4, 5)), ""]
        return "\n".join([*parts, self.verdict(), *self.remarks()])

    def verdict(self) -> str:
        """Which combination makes the given features, in a sentence."""
        if not self.ranked:
            return "Not reproduced: the videos have none of the snippets that were to be compared."
        crop, best = next(iter(self.best.items()))
        how = f"--sample {best.sample}" if best.sample in _PICKS.values() else f"{best.sample} of each snippet"
        how += f", crop {best.crop}, --preprocessing {best.preprocessing}"
        if self.reproduced:
            alike = sum(best.cosine - one.cosine <= _ALIKE for one in self.ranked[crop]) - 1
            also = f"; {alike} other {'one' if alike == 1 else 'ones'} cannot be told from it here" if alike else ""
            return f"Reproduced by {how} (mean cosine {best.cosine:.5f}){also}."
        return f"Not reproduced: the nearest is {how}, with a mean cosine of {best.cosine:.5f}; {SAME} is needed."

    def remarks(self) -> list[str]:
        """What else differs, and what is the likely reason where nothing reproduces the features."""
        found = list(self.damaged)
        best = self.best
        if not best:
            return [*found, *self._of_counts()]
        for crop, one in best.items():
            if crop is not None and crop != one.crop and one.cosine >= NEAR:
                found.append(f"What is given as crop {crop} is nearest to crop {one.crop}.")
        first = next(iter(best.values()))
        if first.cosine >= SAME and first.sample not in _PICKS.values():
            found.append(f"They are of {first.sample} of each snippet, which no --sample gives.")
        if first.cosine >= SAME and first.shift:
            found.append(f"They are {abs(first.shift)} snippet {'late' if first.shift > 0 else 'early'}.")
        if abs(self.norm - 1) > _NORM and first.cosine >= NEAR:
            found.append(
                f"Their length is {self.norm:.3g} times ours: they were normalised or scaled after CLIP, and VadCLIP's"
                " released models want them as CLIP gives them."
            )
        found += self._of_counts()
        if first.cosine < SAME:
            found += _reasons(first.cosine)
        return found

    def _of_counts(self) -> list[str]:
        wrong = {name: n for name, n in self.counts.items() if n[0] != n[1]}
        if not wrong:
            return []
        name, (given, ours, frames) = next(iter(wrong.items()))
        sentence = f"{len(wrong)} of {len(self.counts)} videos have another number of snippets, such as {name!r}: "
        sentence += f"{given} are given, and its {frames} frames make {ours}"
        if abs(given - ours) > 1 + 0.02 * ours:
            return [f"{sentence}; that is one for every {frames / given:.3g} frames, not for {_FRAMES}."]
        if given == ours + 1 and frames % _FRAMES:
            return [f"{sentence}; the incomplete last snippet was kept."]
        return [f"{sentence}; another decoder or a copy of the video may have other frames at its ends."]


def check(
    given: Sequence[Given],
    encoder: Encoder,
    *,
    snippets: int = 4,
    rate: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Compare every way of making features with those that are given.

    Args:
        given: of a few videos, all with the same crops.
        encoder: CLIP's image encoder that is said to have made them.
        snippets: of each video, in a row: those in which the given features change most.
        rate: frames per second of folders of frames.
        progress: told how many snippets are encoded, and of how many.

    Raises:
        UserError: a video cannot be read, or the encoder's features have another width.
    """
    names = list(preprocessings(encoder.size))
    findings = Findings()
    _check_width(given, encoder)
    cosines: dict[int | None, list[Floats]] = {crop: [] for crop in given[0].crops}
    norms: dict[int | None, list[Floats]] = {crop: [] for crop in given[0].crops}
    equal = np.ones((len(names), len(names)), bool)  # whether two preprocessings have made the same images so far
    done = 0
    for one in given:
        reader = _Reader(one.video, rate, encoder.size, _window(one, snippets))
        for index, images in reader:
            equal &= [[np.array_equal(images[p], images[q]) for q in range(len(names))] for p in range(len(names))]
            ways = _ways(encoder, images)  # [17,10,p,d]
            lengths = np.linalg.norm(ways, axis=-1)
            for crop, features in one.crops.items():
                rows = [features[place] if 0 <= (place := index + s) < len(features) else None for s in _SHIFTS]
                cosines[crop].append(np.stack([_cosines(ways, lengths, row) for row in rows]))
                row = features[min(index, len(features) - 1)]
                norms[crop].append(np.linalg.norm(row.astype(np.float64)) / np.maximum(lengths, 1e-12))
            done += 1
            progress(done, len(given) * snippets)
        findings.counts[one.name] = (one.snippets, reader.snippets, reader.frames)
        findings.damaged += [] if reader.damage is None else [reader.damage]
    if not done:  # the given features are of far more snippets than the videos have
        return findings
    kept = [p for p in range(len(names)) if not equal[p, :p].any()]
    for crop, parts in cosines.items():
        findings.ranked[crop] = _ranked(np.stack(parts)[..., kept], [names[p] for p in kept], crop)
    crop, best = next(iter(findings.best.items()))
    place = next(k for k in range(_FRAMES + 1) if _sample(k) == best.sample)
    every = np.stack(norms[crop])[:, place, best.crop, names.index(best.preprocessing)]
    findings.norm = float(np.median(every))
    return findings


def _check_width(given: Sequence[Given], encoder: Encoder) -> None:
    width = encoder.encode(np.zeros((1, encoder.size, encoder.size, 3), np.uint8)).shape[1]
    for one in given:
        for features in one.crops.values():
            if features.shape[1] != width:
                raise UserError(
                    f"{one.name!r} has features of {features.shape[1]} numbers, but the encoder makes {width}: give the"
                    " CLIP that made them to --encoder"
                )


class _Reader:
    """The images [p,16,10,S,S,3] of the snippets of one video that are compared; it is decoded to its end."""

    def __init__(self, path: Path, rate: float | None, size: int, wanted: range) -> None:
        self.snippets = self.frames = 0
        self.damage: str | None = None
        self._path, self._rate, self._wanted = path, rate, wanted
        self._convert = [Preprocessor(one, TEN_CROPS) for one in preprocessings(size).values()]

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        with open_footage(self._path, self._rate) as footage:
            if isinstance(footage, FrameFolder):
                self.frames = footage.frames
                self.snippets = max(footage.frames // _FRAMES, 1)
                for index in self._wanted:
                    places = range(index * _FRAMES, min((index + 1) * _FRAMES, footage.frames))
                    if places:
                        yield self._made(index, [footage.frame(place) for place in places])
            else:
                # With "mean" a snippet has all of its frames.
                sampler: Sampler[av.VideoFrame, av.VideoFrame] = Sampler(
                    Sampling(pick="mean"), lambda frame: frame, joins=True
                )
                for decoded in footage.frames():
                    self.frames += 1
                    for found in sampler.push(decoded.frame, decoded.time, decoded.duration):
                        self.snippets += 1
                        if found.index in self._wanted:
                            yield self._made(found.index, found.images)
                for found in sampler.finish():
                    self.snippets += 1
                    if found.index in self._wanted:
                        yield self._made(found.index, found.images)
            self.damage = footage.damage

    def _made(self, index: int, frames: Frames) -> tuple[int, NDArray[np.uint8]]:
        filled = [*frames, *[frames[-1]] * (_FRAMES - len(frames))]
        return index, np.stack([[convert(frame) for frame in filled] for convert in self._convert])


def _window(given: Given, snippets: int) -> range:
    """The snippets in a row in which the given features change most: in still ones all ways look alike."""
    features = next(iter(given.crops.values())).astype(np.float64)
    count = min(snippets, len(features))
    steps = np.linalg.norm(np.diff(features, axis=0), axis=1)
    sums = np.convolve(np.concatenate([[0.0], steps]), np.ones(count), "valid")
    start = int(sums.argmax())
    return range(start, start + count)


def _ways(encoder: Encoder, images: NDArray[np.uint8]) -> Floats:
    """Features [17,10,p,d] of images [p,16,10,S,S,3]: of each frame and, last, the mean of all frames."""
    flat = images.reshape(-1, *images.shape[3:])
    places: dict[bytes, int] = {}
    order = [places.setdefault(blake2b(image.tobytes()).digest(), len(places)) for image in flat]
    first = [order.index(k) for k in range(len(places))]
    parts = [encoder.encode(flat[first[i : i + encoder.batch]]) for i in range(0, len(first), encoder.batch)]
    features = np.concatenate(parts).astype(np.float64)[order].reshape(*images.shape[:3], -1)  # [p,16,10,d]
    features = np.moveaxis(features, 0, 2)  # [16,10,p,d]
    return np.concatenate([features, features.mean(axis=0, keepdims=True)])


def _cosines(ways: Floats, lengths: Floats, row: NDArray[np.floating] | None) -> Floats:
    """Cosines [17,10,p] of one snippet's features with a given row [d]; NaN where there is none."""
    if row is None:
        return np.full(lengths.shape, np.nan)
    given = row.astype(np.float64)
    cosines: Floats = (ways @ given) / np.maximum(lengths * np.linalg.norm(given), 1e-12)
    return cosines


def _ranked(cosines: Floats, names: Sequence[str], crop: int | None) -> list[Combination]:
    """All combinations, the nearest first, from cosines [snippets,shifts,17,10,p]."""
    known = ~np.isnan(cosines)
    counts = known.sum(axis=0)
    mean = np.where(known, cosines, 0).sum(axis=0) / np.maximum(counts, 1)
    lowest = np.where(known, cosines, np.inf).min(axis=0)
    found = [
        Combination(_sample(int(k)), int(c), names[p], _SHIFTS[s], float(mean[s, k, c, p]), float(lowest[s, k, c, p]))
        for s, k, c, p in zip(*np.nonzero(counts), strict=True)
    ]

    def order(one: Combination) -> tuple[float, ...]:
        # Of combinations that cannot be told apart, the one that is the default, or that the name promises.
        odd = (one.shift != 0, one.sample not in _PICKS.values(), one.crop != (crop or 0))
        return (-round(one.cosine / _ALIKE), *odd, names.index(one.preprocessing), one.sample != "middle", -one.cosine)

    return sorted(found, key=order)


def _sample(place: int) -> str:
    return _PICKS.get(place, f"frame {place}")


def _reasons(cosine: float) -> list[str]:
    if cosine < NEAR:
        return [
            "Likely reasons: another CLIP (give the one that made them to --encoder), other videos of the same names,"
            " or another frame rate or cut of the videos, so that snippets are not of the same frames."
        ]
    return [
        "Likely reasons: another resize or crop of the frames, videos that were encoded again, another CLIP"
        " arithmetic (INT8, or GELU in place of QuickGELU), or a few frames more or less at the beginning."
    ]
