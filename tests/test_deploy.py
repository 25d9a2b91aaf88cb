"""What docs, images and units say is what the commands take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vadcalibrate import cli as vadcalibrate
from vadclip import cli as vadclip
from vadexport import cli as vadexport
from vadrun import cli as vadrun

ROOT = Path(__file__).parent.parent
PARSERS = {
    "vadrun": vadrun.parser,
    "vadclip": vadclip.parser,
    "vadexport": vadexport.parser,
    "vadcalibrate": vadcalibrate.parser,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The project's commands in a page's indented blocks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines() if line.startswith("    "))
    return [shlex.split(line, comments=True) for line in lines if line.partition(" ")[0] in PARSERS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_on_a_page_are_understood(page: Path) -> None:
    found = commands(page)
    assert found
    for program, *arguments in found:
        understand(program, arguments)


def test_the_unit_starts_what_there_is() -> None:
    text = (ROOT / "deploy" / "vadrun@.service").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, *arguments = shlex.split(line)
    understand(Path(program).name, arguments)


@pytest.mark.parametrize("path", sorted((ROOT / "docker").iterdir()), ids=lambda path: path.name)
def test_images_take_all_that_the_wheel_is_made_of(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    copied = {Path(name) for names in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in names.split()}
    assert all((ROOT / name).exists() for name in copied)
    packages = re.search(r"package-dir\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    assert packages is not None
    for folder in re.findall(r'= "([^"/]+)', packages[1]):
        assert Path(folder) in copied


def understand(program: str, arguments: list[str]) -> None:
    """Parse a command line as the program would; argparse leaves it with SystemExit where it does not."""
    if (program, *arguments[:1]) == ("vadrun", "devices"):
        vadrun.devices_parser().parse_args(arguments[1:])
    else:
        PARSERS[program]().parse_args(arguments)
