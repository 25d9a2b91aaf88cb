"""Damaged and hostile files: every reader ends with exit code 0, 1 or 2 and at most one sentence, never a traceback.

The seed is fixed, so a failure comes again: it names the reader and the number of the input. ``make fuzz`` takes many
more inputs; ``FUZZ_INPUTS`` and ``FUZZ_SEED`` say how many and which.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pytest

from tests import clips, mutations
from tests.golden import Golden
from tests.vadrun.test_calibration import document as calibration_document
from tests.vadrun.test_plans import ORIN, plan_set
from vadcalibrate.cli import main as vadcalibrate
from vadcalibrate.footage import read_footage
from vadcalibrate.ranges import KIND, Ranges
from vadcalibrate.report import write_report
from vadclip.checkpoint import load_checkpoint, load_clip
from vadclip.features import read_features
from vadclip.groundtruth import read_annotations, read_counts
from vadclip.lists import load_classes, load_list, read_video_list
from vadclip.presets import get_preset
from vadexport.cli import main as vadexport
from vadexport.probe import Probe
from vadrun import Bundle, Calibration, Engine, UserError, Video
from vadrun.cli import main as vadrun
from vadrun.console import run_command
from vadrun.plans import ENGINES, PlanError, PlanSet, fitting_plans
from vadrun.selftest import load_probe

INPUTS = int(os.environ.get("FUZZ_INPUTS", "600"))
SEED = int(os.environ.get("FUZZ_SEED", "20240217"))
SECONDS = 60  # for one input, or the reader hangs
MOST_MEMORY = 2 << 30  # resident, of this process with all libraries

Reader = Callable[[Random, Path], Callable[[], object]]
"""Writes an input into a folder, and returns what reads it: an exit code, or anything else for 0."""


class Bench:
    """What the inputs are made from."""

    def __init__(self, bundle: Path, checkpoint: Path, clip: Path, folder: Path) -> None:
        self.bundle, self.clip, self.folder = bundle, clip, folder
        self.engine = Engine.load(bundle, "onnxruntime:cpu", threads=1)
        self.manifest = json.loads((bundle / "manifest.json").read_text())
        self.certificate = json.loads((bundle / "certificate.json").read_text())
        self.calibration = full_calibration(bundle)
        self.checkpoint = checkpoint.read_bytes()
        with np.load(bundle / "probe.npz") as data:
            self.probe = {name: data[name] for name in data.files}
        plan_set(Bundle.open(bundle), folder / "plans")
        self.build = json.loads((folder / "plans" / "build.json").read_text())
        assert vadrun([str(clip), "--engine", str(bundle), "--out", str(folder / "results"), "--quiet"]) == 0
        self.results = next((folder / "results").glob("*/result.json")).parent

    def copy(self, folder: Path) -> Path:
        """The bundle, its large files by another name for the same."""
        target = folder / "bundle"
        target.mkdir()
        for path in self.bundle.iterdir():
            if path.is_file():
                os.link(path, target / path.name)
        return target

    def put(self, root: Path, name: str, raw: bytes, *, listed: bool = False) -> None:
        """Replace a file; with ``listed`` the manifest has its hash, as whoever changes it on purpose would see to."""
        (root / name).unlink(missing_ok=True)
        (root / name).write_bytes(raw)
        if listed:
            manifest = json.loads((root / "manifest.json").read_text())
            manifest["files"][name] |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
            self.put(root, "manifest.json", json.dumps(manifest).encode())


def full_calibration(bundle: Path) -> dict[str, Any]:
    """A calibration with alarms, probabilities and a gate, and all that a report shows of them."""
    labels = Bundle.open(bundle).model.labels
    rule = {"threshold": 0.5, "release": 0.4, "min_length": 0.0, "merge_gap": 2.0}
    entry = rule | {"count": 1, "per_day": [0.1, 1.0, 3.0], "curve": [0, 1, 4], "scores": [5, 1]}
    made = {"date": "2026-01-01", "backend": "openvino", "method": "m"}
    reliability = {"error": 0.1, "said": [0.1, 0.9], "happened": [0.2, 0.8]}
    curve = {"score": [0.0, 1.0], "probability": [0.0, 0.9]}
    trial = {"threshold": 0.01, "share_held": 0.5, "mean": 0.01, "at_most": 0.02, "missed": 0}
    gate = made | {
        **{"threshold": 0.01, "heartbeat": 10.0, "audit": 0.05, "wanted": 0.05, "confidence": 0.95, "shown": True},
        "share_held": 0.5,
        "footage": {"snippets": 100, "hours": 1.0, "videos": 1, "pictures": ["160x120"]},
        "score_error": {"mean": 0.01, "largest": 0.1, "at_most": 0.02, "stretch": 60.0, "stretches": 30},
        "events": {"found": 3, "missed": 0, "share_missed_at_most": 0.6},
        "trials": [trial, trial | {"threshold": 0.02}],
    }
    return calibration_document(
        Bundle.open(bundle),
        **made,
        wanted=1.0,
        footage={"videos": 1, "hours": 24.0, "pictures": ["160x120"]},
        total={
            **{"count": 3, "per_day": 3.0, "at_most": 5.0, "shown": True, "index": 1.0},
            "bursts": {"index": 1.0, "at_most": 1.5, "events": 40, "seconds": 600.0},
            "stopped": [{"source": "a.mp4", "start": 1.0, "label": labels[1], "peak": 0.9}],
        },
        classes={label: entry for label in labels[1:]},
        levels=[0.9, 0.5, 0.1],
        score_edges=[-1.0, 0.0, 1.0],
        labelled=[{"label": labels[1], "found": True, "level": 0.5}],
        probabilities={"method": "isotonic", "curves": {label: curve for label in labels[1:]}},
        reliability={"clips": 9, "before": reliability, "after": reliability},
        gate=gate,
    )


@pytest.fixture(scope="module")
def bench(bundles: dict[str, Path], xd: Golden, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("fuzz")
    bundle = Path(shutil.copytree(bundles["xd"], folder / "bundle"))
    clip = clips.write_clip(folder / "clip.mp4", 48, size=(64, 48))
    made = Bench(bundle, xd.checkpoint, clip, folder)
    yield made
    made.engine.close()


def manifests(bench: Bench) -> Reader:
    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        root = bench.copy(folder)
        bench.put(root, "manifest.json", mutations.json_text(rng, bench.manifest))
        if rng.random() < 0.05:
            return lambda: vadrun([str(bench.clip), "--engine", str(root), "--backend", "onnxruntime:cpu", "--quiet"])
        return lambda: vadexport(["inspect", str(root), *rng.choice([[], ["--json"]])])

    return reader


def certificates(bench: Bench) -> Reader:
    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        root = bench.copy(folder)
        bench.put(root, "certificate.json", mutations.json_text(rng, bench.certificate))
        return lambda: vadexport(["inspect", str(root)])

    return reader


def arrays(bench: Bench) -> Reader:
    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        root = bench.copy(folder)
        name = rng.choice(["text.npy", "probe.npz"])
        text = np.load(bench.bundle / "text.npy")
        raw = mutations.npy(rng, text) if name == "text.npy" else mutations.npz(rng, bench.probe)
        bench.put(root, name, raw, listed=True)
        if rng.random() < 0.05:
            return lambda: vadrun([str(bench.clip), "--engine", str(root), "--backend", "onnxruntime:cpu", "--quiet"])

        def read() -> None:
            bundle = Bundle.open(root)
            bundle.text()
            load_probe(root / "probe.npz", size=bundle.model.image_size, width=bundle.model.features)
            Probe.load(root / "probe.npz")

        return read

    return reader


def graphs(bench: Bench) -> Reader:
    """Their bytes changed, without a right hash and with one: what no structure holds together is refused."""

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        root = bench.copy(folder)
        name = rng.choice(["head.onnx", "encoder.fp32.onnx"])
        bench.put(root, name, mutations.octets(rng, (root / name).read_bytes()), listed=rng.random() < 0.7)
        return lambda: vadexport(["inspect", str(root)])

    return reader


def plans(bench: Bench) -> Reader:
    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        root = bench.copy(folder)
        place = root / ENGINES / "orin"
        place.mkdir(parents=True)
        (place / "build.json").write_bytes(mutations.json_text(rng, bench.build))

        def read() -> None:
            try:
                PlanSet.read(place)
            except PlanError as error:  # a reason why this backend is passed over
                raise UserError(str(error)) from error
            for _, found in fitting_plans(Bundle.open(root), ORIN, "tensorrt", "10.3.0"):
                assert found.least_cosine is None or found.passed_on(ORIN) in (True, False)

        return read if rng.random() < 0.98 else lambda: vadrun(["devices", "--engine", str(root)])

    return reader


def calibrations(bench: Bench) -> Reader:
    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        path = folder / "c.json"
        path.write_bytes(mutations.json_text(rng, bench.calibration))
        if rng.random() < 0.05:
            return lambda: vadrun(
                [
                    str(bench.clip),
                    "--engine",
                    str(bench.bundle),
                    "--backend",
                    "onnxruntime:cpu",
                    "--calibration",
                    str(path),
                ]
            )

        def read() -> None:
            calibration = Calibration.read(path)
            calibration.check(bench.engine.bundle)
            calibration.promise(), calibration.gate_promise(), calibration.knows_picture(160, 120)
            anomaly, alignment = np.full(3, 0.5), np.full((3, len(calibration.labels)), 1 / len(calibration.labels))
            calibration.class_probabilities(anomaly, alignment)
            if calibration.rules:
                calibration.detector().push(0, 0.0, 1.0, 0.5, alignment[0])

        return read

    return reader


def reports(bench: Bench) -> Reader:
    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        path = folder / "c.json"
        path.write_bytes(mutations.json_text(rng, bench.calibration))
        return lambda: vadcalibrate(["report", str(path), "--out", str(folder / "report")])

    return reader


def ranges(bench: Bench) -> Reader:
    facts = {"kind": KIND, "checkpoint": "0" * 64, "linears": ["a", "b"], "origin": {"frames": 3}}
    sound = {
        "method percentile 99.9": np.ones(2),
        "method entropy": np.ones(2),
        "frames": np.zeros((2, 4, 4, 3), np.uint8),
    }

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        told = json.dumps(facts) if rng.random() < 0.6 else mutations.json_text(rng, facts).decode("utf-8", "replace")
        (folder / "r.npz").write_bytes(mutations.npz(rng, {**sound, "facts": np.array(told)}))
        return lambda: Ranges.load(folder / "r.npz")

    return reader


def results(bench: Bench) -> Reader:
    result = json.loads((bench.results / "result.json").read_text())
    scores = (bench.results / "scores.csv").read_text()

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        place = folder / "results"
        shutil.copytree(bench.results, place)
        if rng.random() < 0.5:
            (place / "result.json").write_bytes(mutations.json_text(rng, result))
        else:
            (place / "scores.csv").write_bytes(mutations.text(rng, scores))
        return lambda: read_footage([place], bench.engine)

    return reader


def classes(bench: Bench) -> Reader:
    sound = "name: yard\nclasses:\n  normal: normal\n  fight: people fighting\n  fire: fire\nwindow: 8\nlayers: 1\n"

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        if rng.random() < 0.3:
            path = folder / "c.json"
            value = {"classes": {"normal": "normal", "fight": "people fighting"}, "window": 8, "mirrored": False}
            path.write_bytes(mutations.json_text(rng, value))
        else:
            path = folder / "c.yaml"
            path.write_bytes(mutations.text(rng, sound))
        return lambda: load_classes(path)

    return reader


def checkpoints(bench: Bench) -> Reader:
    from safetensors.numpy import load, save

    weights = load(bench.checkpoint) if bench.checkpoint[8:9] == b"{" else {"a": np.zeros(3, np.float32)}

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        if rng.random() < 0.5:
            path = folder / "c.safetensors"
            raw = save({name: weights[name] for name in list(weights)[:3]}, {"configuration": "{}", "format": "x"})
            size = int.from_bytes(raw[:8], "little")
            header = mutations.json_text(rng, json.loads(raw[8 : 8 + size]))
            path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
        else:
            path = folder / "c.pth"
            head = bench.checkpoint[:4096] + bench.checkpoint[-4096:]
            path.write_bytes(mutations.octets(rng, bench.checkpoint if rng.random() < 0.3 else head))
        return lambda: load_clip(path) if rng.random() < 0.3 else load_checkpoint(path, dataset="xd")

    return reader


def lists(bench: Bench) -> Reader:
    sound = "path,label\na__0.npy,normal\nb__0.npy,fighting\nc__0.npy,B1-B2-0\n"

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        path = folder / "list.csv"
        path.write_bytes(mutations.text(rng, sound))
        if rng.random() < 0.5:
            return lambda: read_video_list(path)
        return lambda: load_list(path, get_preset("xd"))

    return reader


def annotations(bench: Bench) -> Reader:
    ucf = "Abuse028_x264.mp4  Abuse  165  240  -1  -1  \nArson011_x264.mp4  Arson  150  420  680  1267  \n"
    sound = [ucf, "video,start,end,label\na.mp4,1.0,2.5,fighting\nb.mp4,,,\n", "a 10 20\nb 5 9 12 30\n"]

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        path = folder / "a.csv"
        path.write_bytes(mutations.text(rng, rng.choice(sound)))
        return lambda: read_counts(path) if rng.random() < 0.3 else read_annotations(path)

    return reader


def features(bench: Bench) -> Reader:
    sound = np.ones((5, 64), np.float16)

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        path = folder / "a.npy"
        path.write_bytes(mutations.npy(rng, sound))
        return lambda: read_features(path, rng.choice([64, None]))

    return reader


def videos(bench: Bench) -> Reader:
    kinds = [bench.clip.read_bytes()]
    for name in ("a.ts", "a.mkv", "a.avi"):
        kinds.append(clips.write_clip(bench.folder / name, 48, size=(64, 48)).read_bytes())

    def reader(rng: Random, folder: Path) -> Callable[[], object]:
        path = folder / "a.video"
        path.write_bytes(mutations.octets(rng, rng.choice(kinds)))

        def read() -> None:
            bundle = bench.engine.bundle
            with Video(path) as video:
                for snippet in video.snippets(bundle.sampling, bundle.preprocessing):
                    assert snippet.start <= snippet.end

        return read

    return reader


# Each with its share of the inputs: what takes long gets fewer.
READERS: dict[str, tuple[Callable[[Bench], Reader], float]] = {
    "manifests": (manifests, 0.15),
    "certificates": (certificates, 0.08),
    "arrays": (arrays, 0.1),
    "graphs": (graphs, 0.05),
    "plans": (plans, 0.08),
    "calibrations": (calibrations, 0.15),
    "reports": (reports, 0.01),
    "ranges": (ranges, 0.08),
    "results": (results, 0.08),
    "classes": (classes, 0.08),
    "checkpoints": (checkpoints, 0.04),
    "lists": (lists, 0.04),
    "annotations": (annotations, 0.03),
    "features": (features, 0.02),
    "videos": (videos, 0.01),
}


@pytest.mark.parametrize("name", READERS)
def test_no_input_is_worse_than_refused(bench: Bench, name: str, tmp_path: Path) -> None:
    make, share = READERS[name]
    reader = make(bench)
    refused = 0
    for number in range(max(int(INPUTS * share), 1)):
        rng = Random(f"{SEED} {name} {number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        with limited(f"input {number} of {name} (seed {SEED})"):
            refused += code_of(reader(rng, folder)) == 2
        shutil.rmtree(folder)
    assert refused or INPUTS * share < 10  # else the damage would not reach what is read
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MOST_MEMORY


def code_of(run: Callable[[], object]) -> int:
    """The exit code of a command with this body, which has to be one that users know."""

    def body() -> int:
        found = run()
        return found if type(found) is int else 0

    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(said):
        code = run_command("fuzz", body)
    assert code in (0, 1, 2), said.getvalue()
    assert "Traceback" not in said.getvalue()
    for text in (said, told):
        text.getvalue().encode()  # can be printed
    return code


@contextmanager
def limited(what: str) -> Iterator[None]:
    """Name the input that raises something, or that is not done in time."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError(f"{what} is not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop), signal.getsignal(signal.SIGTERM)
    signal.alarm(SECONDS)
    try:
        yield
    except BaseException as error:
        error.args = (f"{what}: {type(error).__name__}: {error}",)
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGTERM, before[1])  # commands set it


def test_a_report_of_the_sound_document_is_drawn(bench: Bench, tmp_path: Path) -> None:
    """Else nothing behind the schema would be reached."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps(bench.calibration))
    write_report(Calibration.read(path), tmp_path)
    assert (tmp_path / "index.html").is_file()
