import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.detection_map import Sample, by_loops, synthetic
from tests.golden import DATA
from vadclip.metrics import IOU, _segments, detection_map, frame_metrics
from vadrun.errors import UserError

NAMES = ["Normal", "Fire", "Fight"]


class Videos:
    """The golden metric videos of one dataset."""

    def __init__(self, dataset: str) -> None:
        stored = json.loads((DATA / f"{dataset}-small.json").read_text(encoding="utf-8"))
        with np.load(DATA / f"{dataset}-small.npz") as arrays:
            lengths = arrays["metric_lengths"]
            self.predictions: list[NDArray[np.float32]] = np.split(
                arrays["metric_predictions"], np.cumsum(lengths)[:-1]
            )
        self.expected: dict[str, Any] = stored["metrics"]
        self.segments: list[list[list[int]]] = stored["metric_segments"]
        self.labels: list[list[str]] = stored["metric_labels"]
        self.names = list(stored["config"]["label_map"])

    @property
    def normal(self) -> list[bool]:
        return [labels == [self.names[0]] for labels in self.labels]

    @property
    def truth(self) -> list[NDArray[np.float64]]:
        found = []
        for prediction, segments, normal in zip(self.predictions, self.segments, self.normal, strict=True):
            mask = np.zeros(16 * len(prediction))
            for start, end in [] if normal else segments:
                mask[start:end] = 1
            found.append(mask)
        return found

    @property
    def scores(self) -> list[NDArray[np.float64]]:
        return [1 - prediction[:, 0].astype(np.float64) for prediction in self.predictions]

    def map(self, mode: str) -> Any:
        return detection_map(self.predictions, self.segments, self.labels, self.names, mode)


@pytest.fixture(params=["ucf", "xd"])
def videos(request: pytest.FixtureRequest) -> Videos:
    return Videos(request.param)


def test_golden_detection(videos: Videos) -> None:
    found = videos.map("paper")
    assert list(found.iou) == videos.expected["iou"] == list(IOU)
    np.testing.assert_allclose(found.map, videos.expected["mAP"], rtol=0, atol=1e-6)
    assert found.avg == pytest.approx(videos.expected["AVG"], abs=1e-6)
    per_class = np.array(list(found.per_class.values()))
    assert list(found.per_class) == videos.names
    np.testing.assert_allclose(per_class.mean(axis=0), found.map)


def test_golden_frames(videos: Videos) -> None:
    found = frame_metrics(videos.scores, videos.truth, videos.normal)
    assert found.auc == pytest.approx(videos.expected["AUC"], abs=1e-6)
    assert found.ap == pytest.approx(videos.expected["AP"], abs=1e-6)
    assert found.ano_auc == pytest.approx(videos.expected["AnoAUC"], abs=1e-6)


def test_scores_of_frames_are_scores_of_snippets_repeated(videos: Videos) -> None:
    of_frames = [np.repeat(score, 16) for score in videos.scores]
    expected = frame_metrics(videos.scores, videos.truth, videos.normal)
    assert frame_metrics(of_frames, videos.truth, np.array(videos.normal)) == expected
    repeated = [np.repeat(prediction, 16, axis=0) for prediction in videos.predictions]
    found = detection_map(repeated, videos.segments, videos.labels, videos.names, frames_per_snippet=1)
    assert found == videos.map("paper")


def test_abnormal_only_is_the_paper_mode_on_what_is_left(videos: Videos) -> None:
    found = videos.map("abnormal-only")
    kept = [i for i, normal in enumerate(videos.normal) if not normal]
    pruned = detection_map(
        [videos.predictions[i] for i in kept],
        [videos.segments[i] for i in kept],
        [videos.labels[i] for i in kept],
        videos.names,
    )
    assert list(found.per_class) == videos.names[1:]
    for name, values in found.per_class.items():
        assert values == pruned.per_class[name]
    np.testing.assert_allclose(found.map, np.mean(list(found.per_class.values()), axis=0))
    assert found.map != videos.map("paper").map


@pytest.mark.parametrize("seed", range(3))
def test_plain_loops_agree(seed: int) -> None:
    names = ["A", "B1", "B2", "B4", "G"]
    sample = synthetic(30, 20, names, seed)
    found = detection_map(sample.predictions, sample.segments, sample.labels, names)
    np.testing.assert_allclose(found.map, by_loops(sample, names), rtol=0, atol=1e-9)
    assert found.map[0] > found.map[-1] > 0


def one(columns: list[list[float]]) -> NDArray[np.float64]:
    return np.array(columns).T


FLAT = [0.2] * 4
RISING = one([[0.5, 0.4, 0.1, 0.1], [0.1, 0.1, 0.8, 0.9], [0.4, 0.5, 0.1, 0.0]])


def test_segments_by_hand() -> None:
    # Fire stands out in snippets 2 and 3, frames 32 to 64; IoU 24/40 and 24/32.
    for span, reached in (((40, 72), 5), ((32, 44), 3), ((0, 40), 1), ((0, 34), 0)):
        found = detection_map([RISING], [[span]], [["Fire"]], NAMES)
        assert found.per_class["Fire"] == tuple([100.0] * reached + [0.0] * (5 - reached)), span
        assert found.map[0] == pytest.approx(found.per_class["Fire"][0] / 3)


def test_each_annotated_segment_counts_once() -> None:
    two = one([FLAT[:3] * 2, [0.9, 0.0, 0.0, 0.0, 0.0, 0.8], [0.0, 0.3, 0.0, 0.0, 0.0, 0.0]])
    found = detection_map([two], [[(0, 96)]], [["Fire"]], NAMES, "abnormal-only")
    assert found.per_class["Fire"] == (100.0, 0.0, 0.0, 0.0, 0.0)  # both overlap by 1/6, one hit
    both = detection_map([two], [[(0, 16), (80, 96)]], [["Fire", "Fire"]], NAMES, "abnormal-only")
    assert both.per_class["Fire"] == (100.0,) * 5
    # The better one misses, so the hit comes second: precision 1/2.
    second = detection_map([two], [[(80, 96)]], [["Fire"]], NAMES, "abnormal-only")
    assert second.per_class["Fire"] == (50.0,) * 5


def peaks(snippets: int, at: list[int]) -> NDArray[np.float64]:
    """Fire with a segment of one snippet at each place, all with the same score."""
    fire = [1.0 if k in at else 0.0 for k in range(snippets)]
    return one([[0.5] * snippets, fire, [0.2] * snippets])


@pytest.mark.parametrize("hit", [0, 1, 7, 39])
def test_equal_scores_keep_the_order_of_the_videos(hit: int) -> None:
    """As sorted() has them, and so the released code: which of equal segments comes first decides the precision."""
    predictions = [peaks(4, [2])] * 40
    segments = [[(32, 48)] if video == hit else [(0, 16)] for video in range(40)]
    labels = [["Fire"] if video == hit else ["Fight"] for video in range(40)]
    found = detection_map(predictions, segments, labels, NAMES, "abnormal-only")
    assert found.per_class["Fire"] == (pytest.approx(100 / (hit + 1)),) * 5


@pytest.mark.parametrize("hit", [0, 1, 19])
def test_equal_scores_keep_their_order_within_a_video(hit: int) -> None:
    prediction = peaks(40, list(range(0, 40, 2)))
    found = detection_map([prediction], [[(32 * hit, 32 * hit + 16)]], [["Fire"]], NAMES, "abnormal-only")
    assert found.per_class["Fire"] == (pytest.approx(100 / (hit + 1)),) * 5


def test_of_equal_overlaps_the_first_annotated_one_is_taken() -> None:
    # Detections from 16 to 48 and, with a lower score, from 64 to 96. The first has IoU 1/3 with both events, the
    # second with the long one only.
    prediction = one([[0.5] * 8, [0.0, 1.0, 1.0, 0.0, 0.9, 0.9, 0.0, 0.0], [0.2] * 8])
    short, long = (0, 32), (16, 112)
    found = detection_map([prediction], [[short, long]], [["Fire"] * 2], NAMES, "abnormal-only")
    assert found.per_class["Fire"] == (100.0,) * 3 + (0.0,) * 2
    found = detection_map([prediction], [[long, short]], [["Fire"] * 2], NAMES, "abnormal-only")
    assert found.per_class["Fire"] == (50.0,) * 3 + (0.0,) * 2


@pytest.mark.parametrize("seed", range(3))
def test_plain_loops_agree_where_scores_are_equal(seed: int) -> None:
    names = ["A", "B1", "B2"]
    sample = synthetic(30, 20, names, seed)
    coarse = Sample([np.round(one, 1) for one in sample.predictions], sample.segments, sample.labels)
    found = detection_map(coarse.predictions, coarse.segments, coarse.labels, names)
    np.testing.assert_allclose(found.map, by_loops(coarse, names), rtol=0, atol=1e-9)


def test_single_frames_are_no_segment() -> None:
    frames = np.zeros((32, 3))
    frames[5, 1], frames[20:22, 1] = 1.0, 0.8
    found = detection_map([frames], [[(20, 22)]], [["Fire"]], NAMES, "abnormal-only", frames_per_snippet=1)
    assert found.per_class["Fire"] == (100.0,) * 5


def test_two_classes_are_enough_and_the_mode_is_named() -> None:
    for mode in ("paper", "abnormal-only"):
        found = detection_map([RISING[:, :2]], [[(32, 64)]], [["Fire"]], NAMES[:2], mode)
        assert (found.mode, found.per_class["Fire"]) == (mode, (100.0,) * 5)


def test_neighbours_do_not_overlap() -> None:
    """Two frames that are found, two that are annotated, none in common."""
    frames = np.zeros((16, 3))
    frames[5:7, 1] = 1.0
    for span, expected in (((5, 7), 100.0), ((7, 9), 0.0), ((3, 5), 0.0), ((8, 10), 0.0)):
        found = detection_map([frames], [[span]], [["Fire"]], NAMES, "abnormal-only", frames_per_snippet=1)
        assert found.per_class["Fire"] == (expected,) * 5, span


def test_the_top_sixteenth_of_a_short_video_is_its_best_frame() -> None:
    # Scores 1 + 0.7 * 1 and 0.95 + 0.7 * 0.95; over two frames the first would be 1 + 0.7 * 0.75, the lower one.
    first, second = np.zeros((20, 3)), np.zeros((20, 3))
    first[4:6, 1], second[4:6, 1] = (1.0, 0.5), 0.95
    segments, labels = [[(10, 12)], [(4, 6)]], [["Fire"], ["Fire"]]
    found = detection_map([first, second], segments, labels, NAMES, "abnormal-only", frames_per_snippet=1)
    assert found.per_class["Fire"] == (25.0,) * 5  # the miss comes first: precision 1/2 at one of two segments


def test_scores_that_never_change_have_no_segment() -> None:
    level = np.full((4, 3), 0.3)
    for mode in ("paper", "abnormal-only"):
        assert detection_map([level], [[(0, 64)]], [["Fire"]], NAMES, mode).map == (0.0,) * 5
    assert [(len(one.video), len(one.start), len(one.end)) for one in _segments([level], 16)] == [(0, 0, 0)] * 3


def test_quirk_a_class_without_any_segment_makes_the_map_zero() -> None:
    flat = one([FLAT, [0.1, 0.1, 0.8, 0.9], [0.5, 0.1, 0.1, 0.1]])  # the normal class never stands out
    found = detection_map([flat], [[(32, 64)]], [["Fire"]], NAMES)
    assert (found.map, found.avg) == ((0.0,) * 5, 0.0)
    assert detection_map([flat], [[(32, 64)]], [["Fire"]], NAMES, "abnormal-only").map == (100.0,) * 5


def test_quirk_normal_videos_must_be_named_to_the_letter() -> None:
    predictions, segments = [RISING, RISING[::-1]], [[(32, 64)], [(32, 64)]]
    tagged = detection_map(predictions, segments, [["Fire"], ["A"]], NAMES)
    named = detection_map(predictions, segments, [["Fire"], ["Normal"]], NAMES)
    assert tagged.per_class["Normal"] == (0.0,) * 5
    assert named.per_class["Normal"] is not None and named.per_class["Normal"][0] > 0
    only = [detection_map(predictions, segments, [["Fire"], [tag]], NAMES, "abnormal-only") for tag in ("A", "Normal")]
    assert only[0] == only[1] == detection_map([RISING], [[(32, 64)]], [["Fire"]], NAMES, "abnormal-only")


def test_abnormal_only_leaves_out_classes_that_are_not_there() -> None:
    found = detection_map([RISING], [[(32, 64)]], [["Fire"]], NAMES, "abnormal-only")
    assert found.per_class == {"Fire": (100.0,) * 5, "Fight": None}
    assert found.avg == 100.0
    assert json.loads(json.dumps(found.to_json()))["per_class"]["Fight"] is None


def test_ends_beyond_the_video_count() -> None:
    # The released code does not cut annotations at the last snippet: 32 of 64 frames overlap.
    found = detection_map([RISING], [[(32, 96)]], [["Fire"]], NAMES, "abnormal-only")
    assert found.per_class["Fire"] == (100.0,) * 5
    found = detection_map([RISING], [[(32, 98)]], [["Fire"]], NAMES, "abnormal-only")
    assert found.per_class["Fire"] == (100.0,) * 4 + (0.0,)


def test_ano_auc_is_none_where_abnormal_videos_have_no_normal_frame() -> None:
    found = frame_metrics([[0.2, 0.1], [0.9, 0.8]], [np.zeros(32), np.ones(32)], [True, False])
    assert (found.auc, found.ap, found.ano_auc) == (1.0, 1.0, None)
    assert found.to_json() == {"auc": 1.0, "ap": 1.0, "ano_auc": None}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mode": "strict"}, "the mode is 'strict': use one of paper, abnormal-only"),
        ({"class_names": ["Normal"]}, "class_names must name two"),
        ({"class_names": ["Normal", "Fire", "Fire"]}, "each once"),
        ({"segments": []}, "1 videos, segments of 0"),
        ({"predictions": [RISING[:, :2]]}, r"video 0 are [4, 2]: give [n,3]"),
        ({"predictions": [RISING[:0]]}, "n >= 1"),
        ({"predictions": [RISING * np.nan]}, "not finite"),
        ({"labels": [["Fire", "Fire"]]}, "1 segments but 2 labels"),
        ({"labels": [["fire"]]}, "a segment of 'fire': use one of Normal, Fire, Fight"),
        ({"labels": [["A"]], "mode": "abnormal-only"}, "no abnormal video"),
        ({"predictions": [], "segments": [], "labels": []}, "no video"),
    ],
)
def test_detection_refuses(change: dict[str, Any], expected: str) -> None:
    given = {"predictions": [RISING], "segments": [[(32, 64)]], "labels": [["Fire"]], "class_names": NAMES, **change}
    with pytest.raises(UserError) as error:
        detection_map(**given)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("scores", "truth", "normal", "expected"),
    [
        ([[0.1]], [np.zeros(16)], [True], "no anomalous frame"),
        ([[0.1]], [np.ones(16)], [False], "no normal frame"),
        ([[0.1, 0.2]], [np.ones(16)], [False], "video 0 has 2 scores but ground truth of 16 frames"),
        ([[np.nan]], [np.ones(16)], [False], "video 0 has a score that is not finite"),
        ([[0.1]], [np.full(16, 2)], [False], "other values than 0 and 1"),
        ([[[0.1]]], [np.ones(16)], [False], "one axis each"),
        ([[0.1]], [np.ones(16)], [0], "true or false"),
        ([[0.1]], [], [False], "1 videos, ground truth of 0"),
        ([], [], np.zeros(0, bool), "no video"),
    ],
)
def test_frames_refuse(scores: Any, truth: Any, normal: Any, expected: str) -> None:
    with pytest.raises(UserError) as error:
        frame_metrics(scores, truth, normal)
    assert expected in str(error.value)


def test_the_loops_know_the_quirk_too() -> None:
    flat = one([FLAT, [0.1, 0.1, 0.8, 0.9], [0.5, 0.1, 0.1, 0.1]]).astype(np.float32)
    assert by_loops(Sample([flat], [[(32, 64)]], [["Fire"]]), NAMES) == [0.0] * 5
