"""What docs, images and units say is what the commands take."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from vadcalibrate import cli as vadcalibrate
from vadclip import cli as vadclip
from vadexport import cli as vadexport
from vadrun import cli as vadrun
from vadrun import silence

ROOT = Path(__file__).parent.parent
PARSERS = {
    "vadrun": vadrun.parser,
    "vadclip": vadclip.parser,
    "vadexport": vadexport.parser,
    "vadcalibrate": vadcalibrate.parser,
}
# docs/testing.md has commands of make alone.
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "testing.md"})]


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


def test_images_and_the_unit_call_nobody() -> None:
    for path in (ROOT / "docker").iterdir():
        (line,) = re.findall(r"^ENV (.*TELEMETRY.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert dict(pair.split("=") for pair in line.split()) == silence.VARIABLES, path.name
    unit = (ROOT / "deploy" / "vadrun@.service").read_text(encoding="utf-8")
    assert "\nEnvironment=ORT_DISABLE_TELEMETRY=1\n" in unit


@pytest.mark.parametrize("path", sorted((ROOT / "docker").iterdir()), ids=lambda path: path.name)
def test_images_take_all_that_the_wheel_is_made_of(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    copied = {Path(name) for names in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in names.split()}
    assert all((ROOT / name).exists() for name in copied)
    packages = re.search(r"package-dir\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    assert packages is not None
    for folder in re.findall(r'= "([^"/]+)', packages[1]):
        assert Path(folder) in copied


DECODER = {"python3-gi", "gir1.2-gst-plugins-base-1.0"}  # what a Jetson's hardware decoder is reached through
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
[ "$1 $2" = "-m venv" ] || exit 0
for last; do :; done
mkdir -p "$last/bin" && cp "$0" "$last/bin/pip"
"""


def run_lines(path: Path, folder: Path) -> list[list[str]]:
    """Run an image's RUN lines with stand-ins for the programs in them; what these were called with."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {line.partition(" ")[0] for line in instructions} <= {"FROM", "ARG", "COPY", "RUN", "ENV", "ENTRYPOINT"}
    stubs, calls = folder / "stubs", folder / "calls"
    stubs.mkdir()
    for name in ("apt-get", "pip", "python3"):
        if name != "pip" or "FROM python:" in text:  # others have pip in their environment only
            (stubs / name).write_text(STUB.format(calls=calls))
            (stubs / name).chmod(0o755)
    for name in ("rm", "mkdir", "cp", "basename", "sh"):
        (stubs / name).symlink_to(shutil.which(name) or "")
    arguments = dict(line.removeprefix("ARG ").split("=", 1) for line in instructions if line.startswith("ARG "))
    for line in instructions:
        if line.startswith("RUN "):
            command = line.removeprefix("RUN ")
            for place in ("/src", "/opt/vadclip-edge", "/var/lib/apt"):
                command = command.replace(place, f"{folder}{place}")
            environment = arguments | {"PATH": str(stubs)}
            done = subprocess.run(
                ["/bin/sh", "-ec", command], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    return [shlex.split(line.replace(str(folder), "")) for line in calls.read_text().splitlines()]


@pytest.mark.parametrize("path", sorted((ROOT / "docker").iterdir()), ids=lambda path: path.name)
def test_what_images_run_can_run(path: Path, tmp_path: Path) -> None:
    calls = run_lines(path, tmp_path)
    packages: set[str] = set()
    installed = False
    for program, *arguments in calls:
        if program == "apt-get" and arguments != ["update"]:
            assert arguments[:3] == ["install", "-y", "--no-install-recommends"]
            packages |= set(arguments[3:])
        elif program == "python3":
            assert arguments[:3] == ["-m", "venv", "--system-site-packages"]
            assert "python3-venv" in packages
        elif program == "pip":
            assert arguments[:2] == ["install", "--no-cache-dir"]
            for wanted in arguments[2:]:
                if wanted.startswith("/src"):
                    installed = True
                    assert set(re.findall(r"[a-z]+", wanted.removeprefix("/src"))) <= extras()
                else:
                    assert re.fullmatch(r"cuda-bindings==\d+\.\d+\.\*", wanted)
    assert installed
    if "jetson" in path.name:
        assert packages >= DECODER


def test_images_of_jetsons_take_the_bindings_that_the_table_names() -> None:
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([67][.0-9, ]+) \|.*`([0-9.*]+)` \|$", page, re.MULTILINE)
    assert [jetpack for jetpack, _ in table] == ["6.1, 6.2", "7.0, 7.1", "7.2"]
    six, seven = ((ROOT / "docker" / f"Dockerfile.jetson{n}").read_text(encoding="utf-8") for n in (6, 7))
    assert f"cuda-bindings=={table[0][1]}" in six
    assert f"ARG CUDA_BINDINGS={table[1][1]}\n" in seven
    assert f"CUDA_BINDINGS={table[2][1]}" in seven and f"'CUDA_BINDINGS={table[2][1]}'" in page


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)(?=^\[)", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    return set(re.findall(r"^([a-z]+) = ", section[1], re.MULTILINE))


def understand(program: str, arguments: list[str]) -> None:
    """Parse a command line as the program would; argparse leaves it with SystemExit where it does not."""
    if (program, *arguments[:1]) == ("vadrun", "devices"):
        vadrun.devices_parser().parse_args(arguments[1:])
    else:
        PARSERS[program]().parse_args(arguments)
