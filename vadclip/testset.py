"""A test list that has been checked against its annotations, before anything is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vadclip.groundtruth import Annotations, VideoTruth, ground_truth, video_name
from vadclip.lists import FeatureList
from vadclip.metrics import FRAMES_PER_SNIPPET
from vadclip.presets import Preset
from vadclip.sidecar import FeatureSettings, common_settings
from vadrun.errors import UserError

# Counts of snippets from two decoders differ by one now and then.
_COUNT_SLACK = 2


@dataclass(frozen=True)
class TestSet:
    """A test list that has been checked against its annotations.

    Attributes:
        listed: one feature file of each video.
        class_names: as annotations name them, the normal one first.
        truths: the anomalous frames of each video.
        detection: the same from the file that tells events with their classes; None where none does.
        settings: how the features were made (:mod:`vadclip.sidecar`); None where nothing says.
    """

    __test__ = False  # no test of pytest's

    listed: FeatureList
    class_names: tuple[str, ...]
    truths: Sequence[VideoTruth]
    detection: Sequence[VideoTruth] | None
    settings: FeatureSettings | None

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the list and of which frames are anomalous."""
        digest = hashlib.sha256(self.listed.fingerprint().encode())
        for truth in self.truths:
            digest.update(f"\n{truth.name} {truth.frames} {truth.events}".encode())
        return digest.hexdigest()


def read_test_set(
    listed: FeatureList,
    preset: Preset,
    width: int,
    annotations: Annotations,
    event_annotations: Annotations | None = None,
    counts: Mapping[str, int] | None = None,
) -> TestSet:
    """Check everything that can be wrong with a test list of feature files but the files' numbers.

    Args:
        listed: the test list, read with ``preset``; one feature file of each video.
        preset: of :func:`classes_of`.
        width: d, what the model takes.
        annotations: which frames are anomalous.
        event_annotations: the events with their classes for the detection mAP, where ``annotations`` do not
            tell them: XD-Violence has a file for each.
        counts: snippets that each video should have, to check the feature files against.

    Raises:
        UserError: see the module; the sentence names the file or the video.
    """
    settings = common_settings(listed.paths)
    snippets = _count_all(listed, width)
    if counts is not None:
        check_counts(snippets, counts, "feature files", "extract them again")
    return checked(listed, preset, snippets, annotations, event_annotations, settings)


def checked(
    listed: FeatureList,
    preset: Preset,
    snippets: Mapping[str, int],
    annotations: Annotations,
    event_annotations: Annotations | None = None,
    settings: FeatureSettings | None = None,
) -> TestSet:
    """As :func:`read_test_set`, with the snippets of each video, by its name and in order of the list.

    Raises:
        UserError: the list and the annotations do not fit each other, or videos of both kinds are not there.
    """
    if listed.normal.all():  # said first, for then none of its videos need be in the annotations
        raise UserError(
            f"{listed.source} has no abnormal video: the labels of all {len(listed)} are normal; add abnormal ones, or"
            " correct the labels"
        )
    truths = ground_truth(annotations, snippets)
    _check_labels(listed, truths)
    if all(truth.mask.all() for truth in truths):
        raise UserError(f"{listed.source} has no normal frame to tell from the others: list videos of both kinds")
    if not any(truth.mask.any() for truth in truths):
        raise UserError(f"{listed.source} has no anomalous frame to tell from the others: list videos of both kinds")
    events = truths if event_annotations is None else ground_truth(event_annotations, snippets)
    return TestSet(listed, tuple(preset.classes), truths, _with_classes(events, preset), settings)


def _count_all(listed: FeatureList, width: int) -> dict[str, int]:
    """Video name -> snippets of its feature file."""
    snippets: dict[str, int] = {}
    for index, path in enumerate(listed.paths):
        name = video_name(str(path))
        if name in snippets:
            raise UserError(f"{listed.source} lists the video {name!r} twice: name one feature file of each video")
        snippets[name] = listed.count(index, width)
    return snippets


def check_counts(snippets: Mapping[str, int], counts: Mapping[str, int], what: str, advice: str) -> None:
    """Hold the lengths of files against those of their videos.

    Args:
        snippets: of the files, by video.
        counts: of the videos; one that is not there is not compared.
        what, advice: for the sentence: "feature files", "extract them again".

    Raises:
        UserError: some differ by more than decoders do.
    """
    wrong = [name for name, count in snippets.items() if abs(counts.get(name, count) - count) > _COUNT_SLACK]
    if wrong:
        name = wrong[0]
        if abs(snippets[name] - FRAMES_PER_SNIPPET * counts[name]) < 2 * FRAMES_PER_SNIPPET:
            advice = f"it seems to be one number for each frame, so keep every {FRAMES_PER_SNIPPET}th"
        raise UserError(
            f"{len(wrong)} of {len(snippets)} {what} do not have the length of their video, the first is "
            f"{name!r} with {snippets[name]} snippets instead of {counts[name]}: {advice}"
        )


def _check_labels(listed: FeatureList, truths: Sequence[VideoTruth]) -> None:
    """The list and the annotations must call the same videos normal: names that do not meet would go unseen."""
    wrong = [i for i, truth in enumerate(truths) if bool(listed.normal[i]) != truth.normal]
    if wrong:
        truth = truths[wrong[0]]
        raise UserError(
            f"{listed.source} and the annotations disagree on {len(wrong)} of {len(listed)} videos, the first is "
            f"{truth.name!r}: its label is {listed.labels[wrong[0]]!r}, but {len(truth.events) or 'no'} events are "
            "annotated; name the annotations of this list, or correct one of them"
        )


def _with_classes(truths: Sequence[VideoTruth], preset: Preset) -> list[VideoTruth] | None:
    """The truths with their events' classes as the preset names them; None where an event has no class."""
    known = {label: name for name, label in preset.classes.items()}
    known.update((name, name) for name in preset.classes)
    found = []
    for truth in truths:
        events = []
        for event in truth.events:
            if event.label is None:
                return None
            if event.label not in known:
                raise UserError(
                    f"the annotations name the class {event.label!r} in {truth.name!r}, which the model does not "
                    f"know: its classes are {', '.join(preset.classes)}"
                )
            events.append(replace(event, label=known[event.label]))
        found.append(replace(truth, events=tuple(events)))
    return found
