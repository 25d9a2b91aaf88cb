import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vadclip.groundtruth import Event, VideoTruth, ground_truth, read_annotations, read_counts, video_name
from vadrun.errors import UserError

GT = Path(__file__).parents[1] / "data" / "gt"
UCF = GT / "Temporal_Anomaly_Annotation.txt"
XD = GT / "annotations.txt"
XD_CLASSES = GT / "annotations_multiclasses.txt"


@pytest.mark.parametrize(
    ("annotations", "counts", "videos", "frames", "positive"),
    [
        (UCF, "ucf_test_snippets.csv", 290, 1_109_680, 84_128),
        (XD, "xd_test_snippets.csv", 800, 2_330_384, 537_805),
        # Of the same videos, but XD-Violence's two files do not mark the same frames.
        (XD_CLASSES, "xd_test_snippets.csv", 800, 2_330_384, 537_930),
    ],
)
def test_frames_of_the_data_sets(annotations: Path, counts: str, videos: int, frames: int, positive: int) -> None:
    truths = ground_truth(read_annotations(annotations), read_counts(GT / counts))
    masks = [truth.mask for truth in truths]
    assert len(truths) == videos
    assert (sum(map(len, masks)), sum(int(mask.sum()) for mask in masks)) == (frames, positive)


@pytest.mark.parametrize(("annotations", "dataset"), [(UCF, "ucf"), (XD_CLASSES, "xd")])
def test_segments_are_the_authors(annotations: Path, dataset: str) -> None:
    # The authors' arrays have normal videos as long as their own features, and abnormal ones as annotated.
    path = GT / f"{dataset}_test_snippets.csv"
    snippets = {**read_counts(path), **read_counts(path, "n_snippets_VadCLIP_if_known")}
    truths = ground_truth(read_annotations(annotations), snippets)
    expected = json.loads((GT / f"{dataset}_segments.json").read_text(encoding="utf-8"))
    assert [[list(span) for span in truth.segments] for truth in truths] == expected["segments"]
    assert [truth.labels for truth in truths] == expected["labels"]


def test_videos_whose_names_end_in_numbers_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("video,label,start,end\ngate__1,fire,0,16\ngate__2,fire,32,48\n", encoding="utf-8")
    found = read_annotations(path)
    assert found == {"gate__1": (Event(0, 16, "fire"),), "gate__2": (Event(32, 48, "fire"),)}
    assert [truth.normal for truth in ground_truth(found, {video_name("f/gate__2__0.npy"): 3})] == [False]


def test_a_video() -> None:
    video = VideoTruth("v", 48, (Event(4, 8, "Fire"), Event(40, 60, "Fire")))
    assert np.flatnonzero(video.mask).tolist() == [4, 5, 6, 7, *range(40, 48)]
    assert video.segments == [(4, 8), (40, 60)] and not video.normal
    normal = VideoTruth("n", 48, ())
    assert normal.segments == [(0, 48)] and normal.labels == ["A"] and normal.normal and not normal.mask.any()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Abuse028_x264", "Abuse028_x264"),
        ("Abuse/Abuse028_x264__5.npy", "Abuse028_x264"),
        (r"C:\features\Abuse028_x264.mp4", "Abuse028_x264"),
        ("gate__1", "gate__1"),  # only features have crops
        ("gate__2.mp4", "gate__2"),
        ("gate__1__0.npy", "gate__1"),
        ("Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6__0.npy", "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6"),
    ],
)
def test_names(given: str, expected: str) -> None:
    assert video_name(given) == expected


def test_own_annotations(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text('\ufeffvideo, label, start, end\ncam1.mp4,car accident,0,30\n"a,b",fire,5,9\ncam1,fire,40,50\n')
    assert read_annotations(path) == {
        "cam1": (Event(0, 30, "car accident"), Event(40, 50, "fire")),
        "a,b": (Event(5, 9, "fire"),),
    }


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_own_annotations_as_spreadsheets_save_them(tmp_path: Path, separator: str) -> None:
    lines = ["Label,Camera,Video,Start,End", "fire,2,yard.avi,0,30", ",,,,", "fire,2,yard.avi,64,80"]
    path = tmp_path / "truth.csv"
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").replace(",", separator).encode("utf-8"))
    assert read_annotations(path) == {"yard": (Event(0, 30, "fire"), Event(64, 80, "fire"))}
    path.write_bytes(f"\ufeffvideo{separator}n\r\nyard{separator}7\r\n".encode())
    assert read_counts(path, "n") == {"yard": 7}


def test_plain_annotations_hold_no_classes() -> None:
    truth = ground_truth(read_annotations(XD), read_counts(GT / "xd_test_snippets.csv"))
    with pytest.raises(UserError, match="hold no classes: use the multi-class annotation file"):
        _ = truth[0].labels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("hello\n", "line 1: it is no annotation"),
        ("V A B C\n", "line 1: it is no annotation"),
        ("V Fire 1 2 -1 -1\n\nW Fire 1 2 -1\n", "line 3: there are 5 fields"),
        ("V Fire 1 2 -1 -1\nW Fire 2 x -1 -1\n", "line 2: '2' to 'x' are no frame numbers"),
        ("V Fire 1 2 -1 -1\nW Fire 9 5 -1 -1\n", "line 2: frame 9 to 5 is no event"),
        ("V Fire 1 2 -1 -1\nW Fire 5 -1 -1 -1\n", "line 2: frame 5 to -1 is no event"),
        ("V Fire 1 2 -1 -1\nW Normal 5 9 -1 -1\n", "line 2: 'Normal' video with 1 events"),
        ("V Fire 1 2 -1 -1\nW Fire -1 -1 -1 -1\n", "line 2: 'Fire' video with 0 events"),
        ("V Fire 1 2 -1 -1\nV.mp4 Fire 1 2 -1 -1\n", "line 2: the video 'V' is there a second time"),
        ("V 1 2\nW 1 2 3\n", "line 2: the frames are not pairs"),
        ("V 1 2\nW\n", "line 2: the frames are not pairs"),
        ("V B1 1 2\nW B1 1\n", "line 2: the fields after the name are not triples"),
        ("video,label,start,end\nV,Fire,1\n", "line 2: expected video,label,start,end, found 'V,Fire,1'"),
        ("video,label,start,end\nV,Fire,1,one\n", "line 2: '1' to 'one' are no frame numbers"),
        ("video,label,start,end\nV,Fire,1,%s\n" % ("9" * 5000), "are no frame numbers"),
        ("video;class;start;end\nV;Fire;1;2\n", "has no column 'label', its header is video,class,start,end"),
        ("video,label,start,end\n,Fire,1,2\n", "line 2: the column 'video' is empty"),
        ("V" * 200_000 + ",1\n", "line 1: it is no annotation"),
    ],
)
def test_annotations_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "truth.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_annotations(path)
    assert str(path) in str(error.value) and expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty: begin it with the header video,n"),
        ("video,m\nv,3\n", "has no column 'n', its header is video,m"),
        ("v,3\n", "does not begin with the header video,n"),
        ("video,n\nv,3\nw,3.5\n", "line 3: '3.5' is no number of snippets"),
        ("video,n\nv,0\n", "line 2: '0' is no number of snippets"),
    ],
)
def test_counts_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_counts(path, "n")
    assert str(path) in str(error.value) and expected in str(error.value)


@pytest.mark.parametrize("read", [read_annotations, read_counts])
def test_files_that_are_no_text(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it does not exist: name a"):
        read(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is not a regular file: name a"):
        read(tmp_path / "pipe")
    (tmp_path / "video.mp4").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read(tmp_path / "video.mp4")


def test_frames_that_do_not_match() -> None:
    annotations = {"v": (Event(100, 160, "Fire"),)}
    assert ground_truth(annotations, {"v": 8})[0].mask.sum() == 28  # the end is cut, as much as tails are
    for snippets in (7, 6, 1):
        with pytest.raises(
            UserError, match=f"'v' has {snippets} snippets.*an event is annotated from frame 100 to 160"
        ):
            ground_truth(annotations, {"v": snippets})


def test_events_after_the_end_do_not_match() -> None:
    assert not ground_truth({"v": (Event(127, 129, "Fire"),)}, {"v": 8})[0].normal
    with pytest.raises(UserError, match="an event is annotated from frame 128 to 140"):
        ground_truth({"v": (Event(128, 140, "Fire"),)}, {"v": 8})


def test_annotations_of_other_videos() -> None:
    with pytest.raises(UserError, match=r"none of the 1 videos \(such as 'w'\) is in the annotations \(such as 'v'\)"):
        ground_truth({"v": (Event(1, 2, "Fire"),)}, {"w": 8})
