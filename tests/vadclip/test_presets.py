import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

from tests.golden import Golden
from vadclip.presets import PRESETS, check_labels, get_preset, load_labels
from vadrun.errors import UserError


def test_classes_are_the_released_ones_in_order(golden: Golden) -> None:
    preset = get_preset(golden.dataset)
    assert list(preset.classes.items()) == list(golden.config["label_map"].items())
    assert list(preset.labels) == golden.config["labels"]
    assert preset.labels[preset.normal] == "normal"
    sizes = (preset.window, preset.layers, preset.heads)
    assert sizes == (golden.config["window"], golden.config["layers"], golden.config["head"])


def test_which_branch_and_crop() -> None:
    ucf, xd = PRESETS["ucf"], PRESETS["xd"]
    assert (ucf.anomaly, ucf.mirrored) == ("confidence", True)
    assert (xd.anomaly, xd.mirrored) == ("alignment", False)


def test_preset_is_a_value() -> None:
    preset = get_preset("ucf")
    assert hash(preset) == hash(get_preset("ucf"))
    assert asdict(preset)["classes"]["RoadAccidents"] == "roadAccidents"
    with pytest.raises(FrozenInstanceError):
        preset.window = 9  # type: ignore[misc]


def test_unknown_dataset() -> None:
    with pytest.raises(UserError, match=r"^unknown dataset 'shanghai': use one of ucf, xd$"):
        get_preset("shanghai")


def test_no_torch_for_presets_and_configurations() -> None:
    program = "import sys, vadclip, vadclip.presets, vadclip.config; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_lazy_names_are_all_there() -> None:
    import vadclip

    for name in vadclip.__all__:
        assert getattr(vadclip, name) is not None
    assert vadclip.PRESETS is PRESETS
    with pytest.raises(AttributeError, match="nothing"):
        _ = vadclip.nothing


def test_labels_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(
        "\ufeff# classes of site 7\n\nnormal\n  car accident  \nfire # indoors\n\t\nC# concert\n", encoding="utf-8"
    )
    assert load_labels(path) == ("normal", "car accident", "fire", "C# concert")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "found 0 label"),
        ("# only a comment\n", "found 0 label"),
        ("normal\n", "found 1 label"),
        ("normal\nfire\nnormal\n", "'normal' repeats 'normal'"),
        ("normal\nCar  Accident\ncar accident\n", "'car accident' repeats 'Car  Accident'"),
    ],
)
def test_labels_file_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_labels(path)
    assert str(path) in str(error.value) and expected in str(error.value)


def test_labels_file_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: it does not exist"):
        load_labels(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("normal\nÜberfall\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: it is not UTF-8 text: name a plain UTF-8 text file of labels"):
        load_labels(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("normal", "expected a list of strings, got str"),
        (7, "expected a list of strings, got int"),
        (["normal", 7], "label 1 is 7, which is not a string"),
        (["normal", "  "], "label 1 is empty"),
        (["normal"], "found 1 label"),
    ],
)
def test_labels_refused(labels: object, expected: str) -> None:
    with pytest.raises(UserError, match=f"^labels: {expected}"):
        check_labels(labels)  # type: ignore[arg-type]
