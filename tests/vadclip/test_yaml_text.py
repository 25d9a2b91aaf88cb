from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

from vadclip.lists import load_classes
from vadclip.yaml_text import parse_yaml
from vadrun.errors import UserError
from vadrun.schema import Where

WHERE = Where("classes.yaml", "write it again")
LEVELS = "abcdefghi"
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in pairwise(LEVELS)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(['*' + before] * 10)}]}}\n" for before, name in pairwise(LEVELS)
)


def test_plain_documents() -> None:
    text = "name: shop\nclasses:\n  Normal: normal  # nobody\n  2: 'a fire'\nwindow: 8\nday: 2026-11-28\nempty:\n"
    expected = {"name": "shop", "classes": {"Normal": "normal", 2: "a fire"}, "window": 8}
    assert parse_yaml(text, WHERE) == {**expected, "day": date(2026, 11, 28), "empty": None}
    assert parse_yaml("[a, {b: 1.5}]", WHERE) == ["a", {"b": 1.5}]
    assert parse_yaml("", WHERE) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS + "classes: *i\n", "an anchor"),
        (MERGES + "classes: *i\n", "an anchor"),
        ("classes: &a\n  n: *a\n", "an anchor"),
        ("<<: {a: 1}\nb: 2", "a key that is no plain word"),
        ("? [a, b]\n: c", "a key that is no plain word"),
        ("!!python/object/apply:os.system [ls]", "has the tag 'tag:yaml.org,2002:python"),
        ("a: !!binary aGVsbG8=", "has the tag"),
        ("[" * 100_000, "more than 16 levels"),
        ("- " * 50_000, "more than 16 levels"),
        ("\n".join(f"- {n}" for n in range(10_001)), "more than 10000 values"),
        ("window: " + "1" * 5000, "line 1 has a number of 5000 digits"),
        ("window: " + ":".join(["59"] * 2000), "line 1 has a number of 5999 digits"),
        ("a: 1\nb: 2\na: 3", "line 3 has the key 'a' for the second time"),
        ("a: 2020-13-45", "is not YAML (month must be in 1..12)"),
        ("a:\n\t- b", "is not YAML (while scanning"),
        ("a: \x00", "is not YAML (unacceptable character"),
        ("a: b\n---\nc: d", "is not YAML (expected a single document"),
    ],
)
def test_documents_that_are_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(text, WHERE)
    sentence = str(error.value)
    assert expected in sentence and sentence.startswith("classes.yaml: ") and "\n" not in sentence
    assert len(sentence) < 400


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"#" * (1 << 19), "more than the 262144"),
        (b"classes: {1: normal, '1': fire}", "two classes have one name"),
        (b"classes: {2020-01-01: normal, b: fire}", "cannot be the name of a class"),
        (b"classes: [normal, [fire]]", "label 1 is a list of 1, which is not a string"),
        (b"classes: [normal, " + b"a" * 2000 + b"]", "label 1 has 2000 characters"),
        (b'classes: [normal, "a\\x07b"]', "label 1, 'a\\x07b', has a control"),
        (b"classes: [normal, fire]\nname: [a]", "name is a list of 1"),
        (b"classes: [normal, fire]\nwindow: [8]", "window is a list of 1"),
        (b"classes: [" + b", ".join(b"l%d" % n for n in range(2000)) + b"]", "found 2000 labels"),
    ],
)
def test_files_of_classes_that_are_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_classes(path)
    assert expected in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
