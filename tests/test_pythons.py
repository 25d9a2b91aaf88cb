"""The script that tries the wheel on other Pythons notices what it is there to notice."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.pythons import Failed, Scored, compare, find_python, lowest, requirements, run

SCORED = Scored([["snippet", "start", "anomaly"], ["0", "0.000", "0.250000"]], [("riot", 0.0, 5.0, 0.75)])


def wheel_of(folder: Path, *lines: str) -> Path:
    path = folder / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x-1.dist-info/METADATA", "\n".join(["Metadata-Version: 2.4", "Name: x", *lines, "", "Text"]))
    return path


def test_the_lowest_versions_are_the_wheels_own(tmp_path: Path) -> None:
    wheel = wheel_of(
        tmp_path,
        "Requires-Dist: numpy<3,>=1.23",
        'Requires-Dist: cuda-bindings<14,>=12.9; extra == "rtx"',
        'Requires-Dist: cuda-bindings<14,>=12.10; (platform_machine == "x86_64") and extra == "tensorrt"',
    )
    assert [name for name, _, _ in requirements(wheel)] == ["numpy", "cuda-bindings", "cuda-bindings"]
    assert lowest(wheel) == ["cuda-bindings==12.10", "numpy==1.23"]


@pytest.mark.parametrize("line", ["numpy", "numpy>=1.23", "numpy<3", "numpy!=2"])
def test_a_dependency_without_two_bounds_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(Failed, match="numpy needs a lower and an upper bound"):
        lowest(wheel_of(tmp_path, f"Requires-Dist: {line}"))


def test_equal_results_are_equal() -> None:
    near = Scored([SCORED.rows[0], ["0", "0.000", "0.250050"]], [("riot", 0.0, 5.0, 0.75005)])
    assert compare(SCORED, SCORED) == 0
    assert compare(near, SCORED) == pytest.approx(5e-5)


@pytest.mark.parametrize(
    "other",
    [
        Scored([SCORED.rows[0], ["0", "0.000", "0.250200"]], SCORED.events),
        Scored([SCORED.rows[0], ["0", "0.000", "nan"]], SCORED.events),
        Scored([SCORED.rows[0], ["0", "0.000", ""]], SCORED.events),
        Scored([SCORED.rows[0], ["0", "0.033", "0.250000"]], SCORED.events),
        Scored([SCORED.rows[0]], SCORED.events),
        Scored([["snippet", "start", "other"], SCORED.rows[1]], SCORED.events),
        Scored(SCORED.rows, []),
        Scored(SCORED.rows, [("abuse", 0.0, 5.0, 0.75)]),
        Scored(SCORED.rows, [("riot", 0.0, 5.5, 0.75)]),
        Scored(SCORED.rows, [("riot", 0.0, 5.0, 0.76)]),
    ],
)
def test_other_results_are_not(other: Scored) -> None:
    with pytest.raises(Failed, match="expected"):
        compare(other, SCORED)


def test_a_python_that_does_not_work_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyenv's stand-ins on PATH, which are there for versions that are not chosen."""
    broken = tmp_path / "versions/3.99.1/bin/python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    (broken.parent / "python3.99").symlink_to(broken)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(broken.parent), prepend=":")
    assert find_python("3.99") is None
    assert find_python("%d.%d" % sys.version_info[:2]) is not None  # noqa: UP031


def test_a_command_that_fails_tells_its_end() -> None:
    with pytest.raises(Failed, match=r"ended with 3:\nwhy it did"):
        run(sys.executable, "-c", "import sys; print('why it did'); sys.exit(3)")
