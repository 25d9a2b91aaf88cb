from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vadrun import console
from vadrun.console import BAD_INPUT, CRASHED, run_command, tell
from vadrun.errors import NoMemory, UserError

Printed = pytest.CaptureFixture[str]


def ended(error: BaseException, **more: bool) -> int:
    def body() -> int:
        raise error

    return run_command("test", body, **more)


def child(code: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    """A command of its own, whose body is ``code``."""
    lines = ["import sys", "from vadrun.console import run_command", "def body():"]
    lines += [f"    {line}" for line in code.splitlines()] + ["    return 0"]
    text = "\n".join([*lines, "sys.exit(run_command('test', body, keeps='keeps' in sys.argv))"])
    words = [sys.executable, "-c", text, *(["keeps"] if more.pop("keeps", False) else [])]
    return subprocess.run(words, **{"capture_output": True, **more})  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("x is wrong: change it"), BAD_INPUT, "test: x is wrong: change it"),
        (FileNotFoundError(2, "No such file", "x"), BAD_INPUT, "test: x: No such file; check the place and try again"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), BAD_INPUT, "test: Broken pipe; check the place and try again"),
        (MemoryError(), BAD_INPUT, "test: there is not enough memory to go on: close other programs"),
        (RuntimeError("std::bad_alloc"), BAD_INPUT, "test: there is not enough memory"),
        (NoMemory("not enough for x"), BAD_INPUT, "test: not enough for x"),
        (KeyboardInterrupt(), 130, "test: interrupted, nothing half-written was left"),
    ],
)
def test_how_a_command_ends(capsys: Printed, error: BaseException, code: int, sentence: str) -> None:
    assert ended(error) == code
    printed = capsys.readouterr()
    assert printed.err.strip().startswith(sentence) and len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


def test_an_internal_error_has_a_code_of_its_own_and_its_traceback_is_kept(
    capsys: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ended(TypeError("no such thing\nat all")) == CRASHED == 70
    (line,) = capsys.readouterr().err.splitlines()
    kept = tmp_path / "vadclip-edge" / "crash.txt"
    assert line.startswith("test: internal error: TypeError in test_console.py:")
    assert line.endswith(f"no such thing; please report it with {kept}")
    assert "Traceback" in kept.read_text() and "vadclip-edge" in kept.read_text()
    monkeypatch.setattr(sys, "argv", ["vadrun", "rtsp://user:secret@door/1"])
    assert ended(TypeError("\n")) == CRASHED  # nothing to quote
    assert "rtsp://...@door" in kept.read_text() and "secret" not in kept.read_text()
    capsys.readouterr()
    monkeypatch.setenv(console.TRACEBACK, "1")
    ended(TypeError("no such thing"))
    assert "Traceback" in capsys.readouterr().err


def test_an_internal_error_where_nothing_can_be_kept(capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert ended(ZeroDivisionError()) == CRASHED
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError" in line and f"{console.TRACEBACK}=1" in line


def test_the_end_of_argparse_passes() -> None:
    with pytest.raises(SystemExit):
        ended(SystemExit(3))


def test_the_streams_are_put_back() -> None:
    before = sys.stdout, sys.stderr
    assert run_command("test", lambda: 5) == 5
    assert (sys.stdout, sys.stderr) == before


def gone() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("keeps", [True, False])
def test_a_reader_that_goes_away(tmp_path: Path, keeps: bool) -> None:
    pipe = gone()
    made = "print('x' * 100_000, flush=True)\nopen('made', 'w').close()"
    process = child(made, keeps=keeps, cwd=tmp_path, capture_output=False, stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    assert process.stderr == b""
    assert (process.returncode, (tmp_path / "made").exists()) == ((0, True) if keeps else (141, False))


def test_a_reader_that_goes_away_before_the_last_lines() -> None:
    pipe = gone()
    process = child("print('x')", capture_output=False, stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    assert (process.returncode, process.stderr) == (141, b"")


def test_nobody_who_reads_errors_ends_nothing() -> None:
    pipe = gone()
    code = "print('x', file=sys.stderr, flush=True)\nprint('y')"
    process = child(code, capture_output=False, stdout=subprocess.PIPE, stderr=pipe)
    os.close(pipe)
    assert (process.returncode, process.stdout) == (0, b"y\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("keeps", [True, False])
def test_a_full_disk_behind_stdout_is_said(tmp_path: Path, keeps: bool) -> None:
    with open("/dev/full", "w") as full:
        made = "print('x', flush=True)\nopen('made', 'w').close()"
        process = child(made, keeps=keeps, cwd=tmp_path, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert process.returncode == BAD_INPUT and (tmp_path / "made").exists() is keeps
    (line,) = process.stderr.decode().splitlines()
    assert "standard output" in line and "No space left on device" in line


def test_closed_streams_do_not_lend_their_numbers_to_files(tmp_path: Path) -> None:
    code = """
import os, sys
from vadrun.console import run_command
def body():
    with open("made", "w") as file:
        print("out")
        print("err", file=sys.stderr)
        os.write(1, b"raw")  # as a library does
        file.write("content")
    return 0
sys.exit(run_command("test", body))
"""
    shell = f'{sys.executable} -c "$CODE" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell], cwd=tmp_path, env={**os.environ, "CODE": code}).returncode == 0
    assert (tmp_path / "made").read_text() == "content"


def test_names_that_cannot_be_shown() -> None:
    code = r"print('\u76d1', 'b\udce9')"
    assert child(code, env={**os.environ, "PYTHONIOENCODING": "ascii"}).stdout == rb"\u76d1 b\xe9" + b"\n"
    assert child(code, env={**os.environ, "PYTHONIOENCODING": "utf-8"}).stdout == "监 b".encode() + rb"\xe9" + b"\n"


def test_a_line_that_cannot_be_told_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    tell("x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_turns_into_another_error_ends_a_command_all_the_same(
    capsys: Printed, number: signal.Signals
) -> None:
    """A module in C++ makes an ImportError of a Ctrl-C that comes while it is imported."""

    def body() -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException as error:
            raise ImportError("initialization failed") from error
        return 0

    assert run_command("test", body) == 128 + number
    assert "internal error" not in capsys.readouterr().err
    assert ended(UserError("x is wrong: change it")) == BAD_INPUT  # the next command knows nothing of it
