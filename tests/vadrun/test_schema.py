"""The validator of documents: what is refused, in which words, and before what it would cost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vadrun import schema
from vadrun.errors import UserError
from vadrun.schema import (
    Anything,
    FileName,
    Flag,
    List,
    Maybe,
    Number,
    Record,
    Schema,
    Table,
    Text,
    Where,
    Whole,
    load_json,
    parse_json,
    read_file,
    validate,
)

HERE = Where("a.json", "write it again")


@pytest.mark.parametrize(
    ("description", "value"),
    [
        (Text(), "Zürich 汽车"),
        (Text(plain=False), "a\nb"),
        (Text(among=("a", "b")), "b"),
        (Text(pattern="[0-9a-f]+"), "00ff"),
        (FileName(), "encoder.fp32.onnx"),
        (Flag(), False),
        (Whole(1, 3), 3),
        (Number(0, 1), 1),
        (Number(above=0), 1e-9),
        (Maybe(Whole()), None),
        (List(Text(), 1, 2, unique=True), ["a", "b"]),
        (Table(Number()), {"any": 1.5}),
        (Record({"a": Flag()}, {"b": Flag()}), {"a": True}),
        (Record({"a": Flag()}, others=Anything()), {"a": True, "c": [None]}),
    ],
)
def test_what_fits_is_given_back(description: Schema, value: Any) -> None:
    assert validate(value, description, HERE) is value


@pytest.mark.parametrize(
    ("description", "value", "said"),
    [
        (Text(), 7, "the whole is 7, not a text"),
        (Text(), True, "is true, not a text"),
        (Text(), "a\nb", "not a text without control characters"),
        (Text(), "a\x1b[31m", "not a text without control characters"),
        (Text(), "\ud800", r"is '\ud800', not a text without control characters"),
        (Text(1, 3), "abcd", "not a text of 1 to 3 characters"),
        (Text(among=("a", "b")), "c", "is 'c', not one of a, b"),
        (Text(among=("a", "b")), ["a"], "is a list of 1, not one of a, b"),
        (Text(pattern="[0-9]+", wanted="digits"), "1x", "is '1x', not digits"),
        (FileName(), "../passwd", "not the name of a file in the same folder"),
        (FileName(), "a\\b", "not the name of a file in the same folder"),
        (FileName(), "..", "not the name of a file in the same folder"),
        (FileName(), "", "not the name of a file"),
        (Flag(), 1, "is 1, not true or false"),
        (Whole(1, 3), 0, "is 0, not a whole number from 1 to 3"),
        (Whole(1, 3), 4, "is 4, not a whole number from 1 to 3"),
        (Whole(), 1.0, "is 1.0, not a whole number from 0 on"),
        (Whole(), True, "is true, not a whole number"),
        (Whole(), 10**390, "is a number of more than 20 digits, not a whole number"),
        (Number(), 10**390, "is a number of more than 20 digits, not a finite number"),
        (Number(), float("nan"), "is nan, not a finite number"),
        (Number(), float("inf"), "is inf, not a finite number"),
        (Number(), True, "is true, not a finite number"),
        (Number(0, 1), 1.5, "is 1.5, not a number from 0 to 1"),
        (Number(least=2), 1, "is 1, not a number from 2 on"),
        (Number(most=2), 3, "is 3, not a number of at most 2"),
        (Number(above=0), 0, "is 0, not a number above 0"),
        (Number(above=0, most=1), 2, "is 2, not a number above 0 and at most 1"),
        (Maybe(Whole()), "x", "is 'x', not a whole number"),
        (List(Text()), "abc", "is 'abc', not a list"),
        (List(Text(), 2), ["a"], "is a list of 1, not a list of 2 to"),
        (List(Text(), 2, 2), ["a"], "is a list of 1, not a list of 2:"),
        (List(Text(), unique=True), ["a", "a"], "[1] is 'a', not named once only"),
        (List(Text()), ["a", {}], "[1] is an object, not a text"),
        (Table(Whole()), {"a": "b"}, "a is 'b', not a whole number"),
        (Table(Whole()), [], "is a list of 0, not an object"),
        (Table(Whole(), least=1), {}, "the whole is an object of 0 entries, not an object of 1 to"),
        (Table(Whole(), key=FileName()), {"a/b": 1}, "a key of the whole is 'a/b'"),
        (Record({"a": Flag()}), {}, "a is missing"),
        (Record({"a": Flag()}), {"a": True, "b": 1}, "b is not known (known are a)"),
        (Record({"a": Flag()}), {"a": True, 5: 1}, "5 is not known"),
        (Record({"a": Record({"b": List(Text())})}), {"a": {"b": ["", 7]}}, "a.b[1] is 7, not a text"),
        (Record({"a": Flag()}), {"a": "x" * 1000}, "a is 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., not true"),
    ],
)
def test_what_does_not_fit_is_named_with_its_key(description: Schema, value: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(value, description, HERE)
    sentence = str(caught.value)
    assert sentence.startswith("a.json: ") and sentence.endswith(": write it again")
    assert said in sentence
    sentence.encode("utf-8")  # can be printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1', "is not JSON (line 1"),
        ("", "is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("[-Infinity]", "-Infinity is no number of JSON"),
        ("[1e999]", "1e999 is too large a number"),
        (f"[{'9' * 5000}]", "a number of 5000 digits"),
        (f"[0.{'9' * 5000}]", "a number of 5002 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' comes twice"),
        ("[" * 100_000, "nests deeper than 32 levels"),
        ('{"a":' * 100_000, "nests deeper than 32 levels"),
        (f"[{'0,' * schema.MOST_VALUES}0]", "holds more than 500000 values"),
        (f"[{'[],' * schema.MOST_VALUES}0]", "holds more than 500000 values"),
        (r'["\ud800"]', "has half a character in it"),
        (r'{"a": {"\udfff": 0}}', "has half a character in it"),
    ],
)
def test_json_that_would_harm_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_json(text, HERE)
    assert said in str(caught.value)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize(
    "value",
    [{"a": ["x", 1, 2.5, None, True, {"b": []}]}, ["[[[[{{{{" * 100], ['"[', "\\", "\\\\[" * 40], "\U0001f600", []],
)
def test_sound_json_is_read_as_it_is(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert parse_json(text, HERE) == value
        assert parse_json(b"\xef\xbb\xbf" + text.encode(), HERE) == value  # as Windows' editors begin a file


def test_a_file_is_read_only_if_it_is_a_regular_one_of_bounded_size(tmp_path: Path) -> None:
    fifo, large = tmp_path / "fifo.json", tmp_path / "large.json"
    os.mkfifo(fifo)
    large.write_bytes(b"0" * 100)
    for path, said in (
        (fifo, "it is not a regular file"),
        (tmp_path, "it is a folder"),
        (tmp_path / "none.json", "it does not exist"),
        (Path("/dev/zero"), "it is not a regular file"),
        (Path("a\0b"), "it cannot be read"),
        (large, "it has 100 bytes, more than the 99"),
    ):
        with pytest.raises(UserError) as caught:
            read_file(path, Where(path, "do"), most=99)
        assert said in str(caught.value)
    assert read_file(large, HERE, most=100) == b"0" * 100


def test_load_json_reads_parses_and_checks(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2]}')
    assert load_json(path, Record({"a": List(Whole())}), "do") == {"a": [1, 2]}
    with pytest.raises(UserError, match=r"a\.json: a\[0\] is 1, not a text: do$"):
        load_json(path, Record({"a": List(Text())}), "do")
