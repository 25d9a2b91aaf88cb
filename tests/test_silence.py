"""Nothing of ours calls anybody: seen in the files under a new home, and in what is looked up or connected to.

onnxruntime is silent by itself where it finds itself in CI, so commands run here in an environment without its signs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clips import write_clip

ROOT = Path(__file__).parent.parent
PACKAGES = ("vadrun", "vadclip", "vadcalibrate", "vadexport")
TOOLS = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "LD_LIBRARY_PATH")
# Notes what a process looks up and connects to, and lets nothing out.
WATCH = """
#define _GNU_SOURCE
#include <errno.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *name) {
    const char *path = getenv("WATCH_FILE");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file < 0) return;
    dprintf(file, "%s %s\\n", what, name ? name : "");
    close(file);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    (void)service, (void)hints, (void)found;
    note("look-up", name);
    return EAI_NONAME;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    static int (*real)(int, const struct sockaddr *, socklen_t);
    if (address->sa_family == AF_INET || address->sa_family == AF_INET6) {
        note("connection", "");
        errno = ENETUNREACH;
        return -1;
    }
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "connect");
    return real(socket, address, length);
}
"""


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The watcher, compiled; where it cannot be, nothing would be seen."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    command = [compiler, "-shared", "-fPIC", "-o", "watch.so", "watch.c", "-ldl"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"the C compiler cannot make a library: {made.stderr}")
    return folder / "watch.so"


class Box:
    """A user's new home, in which commands are watched."""

    def __init__(self, folder: Path, watch: Path) -> None:
        self.home, self.noted = folder / "home", folder / "noted"
        self.home.mkdir(parents=True)
        self._folder = folder
        self._environment = {name: os.environ[name] for name in TOOLS if name in os.environ} | {
            "HOME": str(self.home),
            "LD_PRELOAD": str(watch),
            "WATCH_FILE": str(self.noted),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *command: object, **environment: str) -> subprocess.Popen[str]:
        """Start Python with these arguments."""
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=self._folder,
            env=self._environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: object, **environment: str) -> str:
        """The same, to its end; what it printed."""
        process = self.start(*command, **environment)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    @property
    def files(self) -> set[str]:
        """Files in the home but for our own cache, relative to it."""
        ours = Path(".cache/vadclip-edge")
        found = {path.relative_to(self.home) for path in self.home.rglob("*") if path.is_file()}
        return {str(path) for path in found if not path.is_relative_to(ours)}

    @property
    def calls(self) -> list[str]:
        """What was looked up and connected to."""
        return self.noted.read_text().splitlines() if self.noted.exists() else []


@pytest.fixture
def box(tmp_path: Path, watch: Path) -> Box:
    return Box(tmp_path / "box", watch)


def test_the_watcher_sees(box: Box) -> None:
    code = """
import contextlib, pathlib, socket
pathlib.Path.home().joinpath("file").touch()
for call in (lambda: socket.getaddrinfo("example.invalid", 443), lambda: socket.create_connection(("127.0.0.1", 9))):
    with contextlib.suppress(OSError):
        call()
with contextlib.suppress(OSError), socket.socket() as one:
    one.connect(("127.0.0.1", 9))
"""
    box.run("-c", code)
    assert box.files == {"file"}
    assert box.calls == ["look-up example.invalid", "look-up 127.0.0.1", "connection "]


def test_a_user_who_set_it_otherwise_is_not_reported_either(box: Box) -> None:
    code = "import {}, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    for package in PACKAGES:
        output = box.run("-c", code.format(package), ORT_DISABLE_TELEMETRY="0", HF_HUB_DISABLE_TELEMETRY="0")
        assert output.split() == ["1", "1"], package


@pytest.mark.parametrize("modules", [*(f"{package}.cli, onnxruntime" for package in PACKAGES), "vadclip.clip"])
def test_importing_what_reports_behind_ours_leaves_nothing(box: Box, modules: str) -> None:
    """Of the last, that is PyTorch, open_clip and huggingface_hub."""
    box.run("-c", f"import {modules}")
    assert box.files == set() and box.calls == []


@pytest.mark.parametrize("backend", ["auto", "onnxruntime:cpu"])
def test_vadrun_calls_nobody(box: Box, bundles: dict[str, Path], tmp_path: Path, backend: str) -> None:
    video = write_clip(tmp_path / "clip.mp4", 50)
    box.run("-m", "vadrun.cli", video, "--engine", bundles["ucf"], "--backend", backend, "--out", tmp_path / "out")
    assert list((tmp_path / "out").rglob("result.json"))
    assert box.files == set() and box.calls == []


def test_devices_and_verify_call_nobody(box: Box, bundle_copy: Path) -> None:
    box.run("-m", "vadrun.cli", "devices", "--engine", bundle_copy)
    box.run("-m", "vadexport.cli", "verify", bundle_copy)
    assert box.files == set() and box.calls == []


def test_what_was_imported_before_ours_is_told_to_stop(box: Box) -> None:
    code = """
import sys, types
calls = []
sys.modules["onnxruntime"] = types.SimpleNamespace(disable_telemetry_events=lambda: calls.append(1))
import vadrun
print(calls)
"""
    assert box.run("-c", code).strip() == "[1]"


@pytest.mark.slow
def test_onnxruntime_would_call(tmp_path: Path, watch: Path) -> None:
    """What the tests above look for is there to be found: without ours, and in time for a process that lives on."""
    silent, loud = Box(tmp_path / "silent", watch), Box(tmp_path / "loud", watch)
    kept = [
        silent.start("-c", "import vadrun, onnxruntime, time; time.sleep(20)"),
        loud.start("-c", "import onnxruntime, time; time.sleep(20)"),
    ]
    try:
        deadline = time.monotonic() + 60
        while not loud.calls and kept[1].poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if not loud.files:
            pytest.skip("this onnxruntime reports nothing")
        assert loud.calls and "look-up" in loud.calls[0]
        assert kept[0].poll() is None  # it has lived as long
        assert silent.files == set() and silent.calls == []
    finally:
        for process in kept:
            process.kill()
            process.communicate()
