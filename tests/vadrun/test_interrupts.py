from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vadrun import interrupts

# How a main thread hangs: in Python, in a library that never comes back (a lock that is taken twice), or not at all.
HANGS = {
    "python": "threading.Event().wait()",
    "library": "m = ctypes.create_string_buffer(64); take = ctypes.CDLL(None).pthread_mutex_lock; take(m); take(m)",
    "pipe": "os.mkfifo('pipe'); open('pipe')",
}
BODY = """
import ctypes, os, sys, threading
from pathlib import Path
from vadrun.console import run_command
from vadrun.files import whole_directory, whole_file

def body():
    with whole_directory(Path("x"), replace=True) as folder, whole_file(Path("x.json")):
        (folder / "half").write_text("1")
        print("ready", flush=True)
        HANG
    return 0

sys.exit(run_command("test", body))
"""


def started(where: Path, code: str, **more: object) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code], cwd=where, stdout=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload]
    assert isinstance(process, subprocess.Popen) and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("hang", sorted(HANGS))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_and_leaves_nothing(tmp_path: Path, hang: str, number: signal.Signals) -> None:
    with started(tmp_path, BODY.replace("HANG", HANGS[hang]), stderr=subprocess.DEVNULL) as process:
        time.sleep(0.1)  # it hangs
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
    assert [path.name for path in tmp_path.iterdir() if path.name != "pipe"] == []


def test_what_is_ignored_from_the_start_stays_ignored(tmp_path: Path) -> None:
    code = BODY.replace("HANG", "sys.stdin.read()")
    with started(
        tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + code, stdin=subprocess.PIPE
    ) as process:
        process.send_signal(signal.SIGHUP)
        process.communicate()
    assert process.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.json"]


def test_a_second_signal_does_not_stop_the_cleaning(tmp_path: Path) -> None:
    hang = """
        try:
            print("working", flush=True)
            threading.Event().wait()
        finally:
            print("cleaning", flush=True)
            sys.stdin.readline()
            Path("cleaned").touch()
"""
    with started(tmp_path, BODY.replace("HANG", hang), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "working\n"
        process.terminate()
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        process.stdin.write("\n")
        process.stdin.close()
        process.wait(timeout=20)
    assert process.returncode == 143 and [path.name for path in tmp_path.iterdir()] == ["cleaned"]


def test_a_signal_waits_for_the_end_of_a_replacement() -> None:
    done = []
    with pytest.raises(SystemExit) as end, interrupts.answered():
        with interrupts.uninterrupted():
            with interrupts.uninterrupted():
                signal.raise_signal(signal.SIGTERM)
            done.append("inner")
        done.append("never")
    assert end.value.code == 143 and done == ["inner"]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt), interrupts.answered():
        assert signal.getsignal(signal.SIGTERM) not in before
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_in_another_thread_signals_are_left_alone() -> None:
    found = []

    def work() -> None:
        with interrupts.answered(), interrupts.uninterrupted():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_threads_that_hang_are_left_behind() -> None:
    stop = threading.Event()
    hangs, ends = threading.Thread(target=stop.wait, daemon=True), threading.Thread(target=int)
    hangs.start()
    ends.start()
    assert not interrupts.join([hangs, ends], patience=0.05)
    stop.set()
    assert interrupts.join([hangs, ends])


def test_a_process_that_was_forked_does_not_speak_for_ours(tmp_path: Path) -> None:
    """A worker that is ended by a signal must not end its parent, nor take along what that writes."""
    hang = """
        import time
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writes, b".")
            while True:
                time.sleep(0.01)
        os.read(reads, 1)  # Python forgets a signal that comes before the fork is over
        os.kill(child, 15)
        os.waitpid(child, 0)
        time.sleep(2.5)
"""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BODY.replace("HANG", hang)], cwd=tmp_path, capture_output=True
    )
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.json"]
