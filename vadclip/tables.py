"""CSV tables as editors and spreadsheets save them: with a byte order mark, CRLF, semicolons or tabs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vadrun.errors import UserError
from vadrun.schema import Where, read_file

MOST_BYTES = 256 << 20
"""Of a list, a table or an annotation file."""

DELIMITERS = (",", ";", "\t")

Rows = list[tuple[int, dict[str, str]]]
"""Line number and cells by column name, of every row that is not blank."""


def read_text(path: Path, what: str) -> str:
    """A UTF-8 text file, without its byte order mark.

    Args:
        path: the file.
        what: what it should be, for the message: "a CSV file of path,label".

    Raises:
        UserError: it is no regular file, cannot be read, has more than :data:`MOST_BYTES`, or is no UTF-8 text.
    """
    try:
        return read_file(path, Where(path, f"name {what}"), most=MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: name {what}, saved as UTF-8") from error


def delimiter_of(header: str) -> str:
    """What separates the cells of a header line."""
    return max(DELIMITERS, key=header.count)  # the first of equal ones: a comma, for a header of one column


def split(line: str, delimiter: str) -> list[str]:
    """The cells of one line, without blanks around them.

    Raises:
        csv.Error: it is no line of a CSV file.
    """
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def read_table(path: Path, columns: Sequence[str]) -> Rows:
    """The rows of a CSV file. Columns may come in any order, and there may be others.

    Args:
        path: the file; its first line names the columns, in upper or lower case.
        columns: those that it must have, in lower case.

    Raises:
        UserError: the file cannot be read, is empty, lacks a column, or a row has too few or too many cells.
    """
    return parse_table(path, read_text(path, f"a CSV file of {','.join(columns)}"), columns)


def parse_table(path: Path, text: str, columns: Sequence[str]) -> Rows:
    """As :func:`read_table`, of a text that has been read from ``path``."""
    wanted = ",".join(columns)
    # Not by splitlines(), which also splits at characters that may be part of a name.
    first = next((line for line in io.StringIO(text) if line.strip()), None)
    if first is None:
        raise UserError(f"{path} is empty: begin it with the header {wanted}")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(first))
        lines = [(reader.line_num, [c.strip() for c in row]) for row in reader if any(c.strip() for c in row)]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}): save it again as one") from error
    header = [cell.lower() for cell in lines[0][1]] if lines else []
    _check_header(path, header, columns)
    rows: Rows = []
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: expected {','.join(header)}, found {','.join(cells)!r}")
        rows.append((line, dict(zip(header, cells, strict=True))))
    return rows


def required(path: Path, line: int, row: Mapping[str, str], column: str) -> str:
    """The cell of a column that may not be empty.

    Raises:
        UserError: it is empty.
    """
    if not row[column]:
        raise UserError(f"{path}, line {line}: the column {column!r} is empty; fill it in, or remove the line")
    return row[column]


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if len(missing) == len(columns):
        raise UserError(f"{path} does not begin with the header {','.join(columns)}: add it, so that columns are known")
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r}, its header is {','.join(header)}: name the columns"
            f" {','.join(columns)}"
        )
    for column in columns:
        if header.count(column) > 1:
            raise UserError(f"{path} has two columns {column!r}: rename one")
