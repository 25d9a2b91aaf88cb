"""One validator for the documents of this project: JSON files, and values that a reader of YAML or others has parsed.

A document may come from anywhere, so nothing in it is believed. A file is read only if it is a regular file of bounded
size. JSON is parsed only if its nesting, its number of values and its numbers are bounded. The value is then checked
against a declarative description, and the first thing that does not fit is named in one sentence:

    engines/ucf/manifest.json: model.labels[3] is 7, not a text: build the bundle again

Example:
    >>> person = Record({"name": Text(), "age": Whole(0, 150)}, optional={"friends": List(Text())})
    >>> validate({"name": "Ada", "age": 36}, person, Where("ada.json", "write it again"))
    {'name': 'Ada', 'age': 36}
    >>> validate({"name": "Ada", "age": "old"}, person, Where("ada.json", "write it again"))
    Traceback (most recent call last):
    vadrun.errors.UserError: ada.json: age is 'old', not a whole number from 0 to 150: write it again
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from vadrun.errors import UserError

MOST_BYTES = 4 << 20  # of a JSON file
MOST_DEPTH = 32  # objects and lists within each other
MOST_VALUES = 500_000  # in one document; each takes up to about 100 bytes of memory
MOST_DIGITS = 400  # of a number: more than any float takes


@dataclass(frozen=True)
class Where:
    """Where a value comes from, for the sentence: the file, and what to do if it does not fit.

    Attributes:
        name: of the file, or of the option that gave the value.
        advice: a clause such as "build the bundle again".
    """

    name: str | Path
    advice: str

    def error(self, what: str) -> UserError:
        """``NAME: what: advice``; ``what`` is a clause that says what is wrong."""
        return UserError(f"{self.name}: {what}: {self.advice}")


class Schema(Protocol):
    """A description of a value."""

    def check(self, value: Any, key: str) -> None:
        """Raise :class:`Misfit` unless ``value`` fits; ``key`` is its place in the document."""


class Misfit(Exception):
    """A value does not fit its description; the message is a clause that names the key."""

    def __init__(self, key: str, value: Any, wanted: str, said: str | None = None) -> None:
        super().__init__(f"{key or 'the whole'} is {said or shown(value)}, not {wanted}")


def validate(value: Any, schema: Schema, where: Where) -> Any:
    """``value``, if it fits.

    Raises:
        UserError: it does not; names the file and the key.
    """
    try:
        schema.check(value, "")
    except Misfit as error:
        raise where.error(str(error)) from None
    return value


def load_json(path: Path, schema: Schema, advice: str, *, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file, checked.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else.
    """
    where = Where(path, advice)
    return validate(parse_json(read_file(path, where, most=most), where), schema, where)


def open_file(path: Path, where: Where, *, most: int | None = None) -> IO[bytes]:
    """A regular file of at most ``most`` bytes, opened for reading.

    Raises:
        UserError: there is no such file, it is something else (a FIFO, a device, a folder), it is larger, or the system
            does not let us read it.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode):
            os.close(number)
            raise where.error("it is a folder" if stat.S_ISDIR(state.st_mode) else "it is not a regular file")
        stream = os.fdopen(number, "rb")
    except FileNotFoundError:
        raise where.error("it does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise where.error(f"it cannot be read ({_reason(error)})") from error
    if most is not None and state.st_size > most:
        stream.close()
        raise where.error(f"it has {state.st_size} bytes, more than the {most} that such a file may have")
    return stream


def read_file(path: Path, where: Where, *, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes.

    Raises:
        UserError: as :func:`open_file`.
    """
    with open_file(path, where, most=most) as stream:
        try:
            value = stream.read(most + 1)
        except OSError as error:
            raise where.error(f"it cannot be read ({_reason(error)})") from error
    if len(value) > most:  # it grew
        raise where.error(f"it has more than the {most} bytes that such a file may have")
    return value


def parse_json(raw: bytes | str, where: Where) -> Any:
    """The value of JSON text, with bounded nesting and size, finite numbers, no key twice and no broken text.

    Raises:
        UserError: it is not such JSON.
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise where.error("it is not UTF-8 text") from None
    _bound(text, where)
    try:
        value = json.loads(
            text,
            parse_int=lambda digits: int(_bounded(digits)),
            parse_float=_finite,
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique,
        )
    except json.JSONDecodeError as error:
        raise where.error(f"it is not JSON (line {error.lineno}: {error.msg})") from None
    except ValueError as error:  # of the hooks
        raise where.error(f"it is not JSON as it should be ({error})") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):
        _refuse_surrogates(value, where)
    return value


def shown(value: Any) -> str:
    """A value for a sentence: short, and safe to print."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}..."


@dataclass(frozen=True)
class Anything:
    """Any value at all."""

    def check(self, value: Any, key: str) -> None:
        pass


@dataclass(frozen=True)
class Text:
    """A text of one line, without control characters or broken characters.

    Attributes:
        least, most: characters.
        plain: refuse control characters; a file's name may hold them.
        among: the only texts that are allowed; empty for any.
        pattern: a regular expression for the whole of it.
        wanted: how a sentence names it.
    """

    least: int = 0
    most: int = 10_000
    plain: bool = True
    among: Sequence[str] = ()
    pattern: str | None = None
    wanted: str = "a text"

    def check(self, value: Any, key: str) -> None:
        if self.among:
            if not isinstance(value, str) or value not in self.among:
                raise Misfit(key, value, f"one of {', '.join(self.among)}")
            return
        if not isinstance(value, str):
            raise Misfit(key, value, self.wanted)
        if not self.least <= len(value) <= self.most:
            raise Misfit(key, value, f"{self.wanted} of {self.least} to {self.most} characters")
        if self.plain and _CONTROL.search(value):
            raise Misfit(key, value, f"{self.wanted} without control characters")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise Misfit(key, value, self.wanted)


# C0 and C1 controls, what starts a new line or paragraph, and halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

SHA256 = Text(pattern="[0-9a-f]{64}", wanted="a sha256 of 64 hexadecimal digits")


@dataclass(frozen=True)
class FileName:
    """The name of a file within its folder: no separators, not hidden."""

    def check(self, value: Any, key: str) -> None:
        Text(1, 200, wanted="the name of a file").check(value, key)
        if re.search(r"[/\\:]", value) or value.startswith("."):
            raise Misfit(key, value, "the name of a file in the same folder")


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def check(self, value: Any, key: str) -> None:
        if type(value) is not bool:
            raise Misfit(key, value, "true or false")


@dataclass(frozen=True)
class Whole:
    """A whole number in a range, both ends included."""

    least: int = 0
    most: int = 2**53

    def check(self, value: Any, key: str) -> None:
        if type(value) is not int or not self.least <= value <= self.most:
            top = "on" if self.most == 2**53 else f"to {self.most}"
            raise Misfit(key, value, f"a whole number from {self.least} {top}")


@dataclass(frozen=True)
class Number:
    """A finite number in a range.

    Attributes:
        least, most: both ends included.
        above: the number must be greater than this; None for no such bound.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float | None = None

    def check(self, value: Any, key: str) -> None:
        if type(value) not in (int, float) or not abs(value) < 1e300:  # of NaN, too
            raise Misfit(key, value, self._wanted())
        if not self.least <= value <= self.most or (self.above is not None and not value > self.above):
            raise Misfit(key, value, self._wanted())

    def _wanted(self) -> str:
        if self.above is not None:
            return f"a number above {self.above:g}" + ("" if self.most == math.inf else f" and at most {self.most:g}")
        if self.least == -math.inf and self.most == math.inf:
            return "a finite number"
        if self.most == math.inf:
            return f"a number from {self.least:g} on"
        if self.least == -math.inf:
            return f"a number of at most {self.most:g}"
        return f"a number from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Maybe:
    """null, or what ``schema`` describes."""

    schema: Schema

    def check(self, value: Any, key: str) -> None:
        if value is not None:
            self.schema.check(value, key)


@dataclass(frozen=True)
class List:
    """A list of ``least`` to ``most`` items of one description; ``unique`` where none may come twice."""

    item: Schema
    least: int = 0
    most: int = MOST_VALUES
    unique: bool = False

    def check(self, value: Any, key: str) -> None:
        if not isinstance(value, list):
            raise Misfit(key, value, "a list")
        if not self.least <= len(value) <= self.most:
            count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
            raise Misfit(key, value, f"a list of {count}")
        for index, item in enumerate(value):
            self.item.check(item, f"{key}[{index}]")
        if self.unique:
            seen = set()
            for index, item in enumerate(value):
                if item in seen:
                    raise Misfit(f"{key}[{index}]", item, "named once only")
                seen.add(item)


@dataclass(frozen=True)
class Table:
    """An object with keys of the user's own: every key fits one description, every value another."""

    value: Schema
    key: Schema = field(default_factory=Text)
    least: int = 0
    most: int = 10_000

    def check(self, value: Any, key: str) -> None:
        if not isinstance(value, Mapping):
            raise Misfit(key, value, "an object")
        if not self.least <= len(value) <= self.most:
            wanted = f"an object of {self.least} to {self.most} entries"
            raise Misfit(key, value, wanted, f"an object of {len(value)} entries")
        for name, item in value.items():
            self.key.check(name, f"a key of {key or 'the whole'}")
            self.value.check(item, _join(key, name))


@dataclass(frozen=True)
class Record:
    """An object with known keys.

    Attributes:
        required: key -> description.
        optional: the same, for keys that may be missing.
        others: the description of all other keys' values; None where there may be none.
    """

    required: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)
    others: Schema | None = None

    def check(self, value: Any, key: str) -> None:
        if not isinstance(value, Mapping):
            raise Misfit(key, value, "an object")
        for name in self.required:
            if name not in value:
                raise Missing(_join(key, name))
        for name, item in value.items():
            schema = self.required.get(name) or self.optional.get(name) or self.others
            if schema is None or not isinstance(name, str):
                known = ", ".join([*self.required, *self.optional])
                raise Unknown(_join(key, name), known)
            schema.check(item, _join(key, name))


class Missing(Misfit):
    """A key is not there."""

    def __init__(self, key: str) -> None:
        Exception.__init__(self, f"{key} is missing")


class Unknown(Misfit):
    """A key that nobody knows."""

    def __init__(self, key: str, known: str) -> None:
        Exception.__init__(self, f"{key} is not known (known are {known})")


def _join(key: str, name: Any) -> str:
    plain = isinstance(name, str) and len(name) <= 60 and name.isprintable()
    last = name if plain else shown(name)
    return f"{key}.{last}" if key else str(last)


def _bound(text: str, where: Where) -> None:
    """Refuse text that would nest or grow too much, before anything is parsed."""
    depth = values = 0
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[][{},]', text, re.DOTALL):
        mark = token[0][0]
        if mark in "[{":
            depth += 1
            values += 1
            if depth > MOST_DEPTH:
                raise where.error(f"it nests deeper than {MOST_DEPTH} levels")
        elif mark in "]}":
            depth -= 1
        elif mark == ",":
            values += 1
        if values > MOST_VALUES:
            raise where.error(f"it holds more than {MOST_VALUES} values")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _bounded(digits: str) -> str:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return digits


def _finite(digits: str) -> float:
    value = float(_bounded(digits))
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {shown(name)} comes twice")
            seen.add(name)
    return made


def _refuse_surrogates(value: Any, where: Where) -> None:
    """Refuse halves of surrogate pairs: no file, terminal or hash takes such a text."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            if re.search("[\ud800-\udfff]", one):
                raise where.error(f"{shown(one)} has half a character in it")
        elif isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += [*one, *one.values()]
