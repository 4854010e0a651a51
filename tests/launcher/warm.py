"""`triaxis` commands as forks of a process that has imported everything, since in a test most of a command's time is imports.

The server forks a keeper for each command, and the keeper the command. A process that the kernel would hand to init is the
keeper's (PR_SET_CHILD_SUBREAPER), so all that comes of a command is found below it. Modules that the command starts
(launcher/spawn.py) are forks too, with what an exec would give them: default signals, their own descriptors, environment
and arguments. Real commands are for tests that give variables or another program, and for whoever is not `triaxis`.

    python -m tests.launcher.warm SOCKET      the server
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PDEATHSIG, SUBREAPER = 1, 36  # of prctl
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
IMPORTS = (
    *("launcher.cli", "launcher.submit", "launcher.train", "launcher.nursery", "launcher.sweep.command"),
    *("launcher.sweep.child", "parallel.engines.deepspeed", "parallel.engines.fsdp", "parallel.engines.torch"),
)


# In a test ------------------------------------------------------------------------------------------------------------


class Command:
    """A command that was forked, as subprocess.Popen shows a process. keeper: the process above it."""

    def __init__(self, channel: socket.socket) -> None:
        self._lines = channel.makefile("r")
        self.keeper, self.pid = map(int, self._line())
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._channel = channel

    def _line(self) -> list[str]:
        line = self._lines.readline()
        assert line, "the process that commands are forks of has died"
        return line.split()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; negative for a signal."""
        with self._lock:
            if self.returncode is None:
                if not socket_ready(self._channel, timeout):
                    raise subprocess.TimeoutExpired("triaxis", timeout or 0)
                self.returncode = int(self._line()[0])
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the command alone."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL the command alone."""
        self.send_signal(signal.SIGKILL)


def socket_ready(channel: socket.socket, timeout: float | None) -> bool:
    """Whether something comes within so many seconds."""
    import select

    return bool(select.select([channel], [], [], timeout)[0])


class Server:
    """The process that commands are forks of, started at the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._ours: socket.socket | None = None
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str], log: Path) -> Command:
        """Fork `triaxis arguments`."""
        with self._lock:  # requests of several threads
            if self._process is None:
                self._begin()
            assert self._ours is not None
            ours, theirs = socket.socketpair()
            request = json.dumps([list(arguments), str(directory), dict(environment), str(log)]).encode()
            with theirs:
                socket.send_fds(self._ours, [len(request).to_bytes(4, "big")], [theirs.fileno()])
                self._ours.sendall(request)
        return Command(ours)

    def _begin(self) -> None:
        self._ours, theirs = socket.socketpair()
        variables = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCH_FR_BUFFER_SIZE": "512"}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.launcher.warm", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": path, **variables},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._ours is not None:
            self._ours.close()
            self._process.wait(30)
            self._process = None


SERVER = Server()
atexit.register(SERVER.close)


def below(keepers: Sequence[int]) -> list[int]:
    """All processes that descend from these, zombies not counted."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.name))
    found = list(keepers)
    for pid in found:
        found += children.get(pid, [])
    return found[len(keepers) :]


# In the server --------------------------------------------------------------------------------------------------------


def serve(channel: socket.socket) -> None:
    """Fork commands until the test's process is gone."""
    import importlib

    import launcher.spawn

    for name in IMPORTS:
        importlib.import_module(name)
    launcher.spawn.Popen = Forked  # type: ignore[misc, assignment]
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave nothing behind
    while True:
        head, descriptors, *_ = socket.recv_fds(channel, 4, 1)
        if not head:
            os._exit(0)
        request = channel.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        if os.fork() == 0:
            channel.close()
            keep(socket.socket(fileno=descriptors[0]), *json.loads(request))
        os.close(descriptors[0])


def keep(channel: socket.socket, arguments: list[str], directory: str, environment: dict[str, str], log: str) -> None:
    """A keeper's life: fork the command, tell how it ended, stay until nothing is left of it."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PDEATHSIG, signal.SIGKILL)
    prctl(SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    pid = os.fork()
    if pid == 0:
        os.chdir(directory)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        become(output, output, (), environment)
        sys.argv = ["triaxis", *arguments]
        live(lambda: runpy.run_module("launcher", run_name="__main__"))
    channel.sendall(f"{os.getpid()} {pid}\n".encode())
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.wait()
            if ended == pid:
                with contextlib.suppress(OSError):  # nobody asks any more
                    channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(stdout: int, stderr: int, keep_open: Sequence[int], environment: Mapping[str, str]) -> None:
    """What exec does for a new process: descriptors, signals, environment, a session of its own."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((nothing, 0), (stderr, 99), (stdout, 1), (99, 2)):
        os.dup2(descriptor, place)
    first = 3
    for descriptor in sorted(keep_open):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 4096)
    for number in HANDLED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    os.environ.clear()
    os.environ.update(environment)


def live(run: Any) -> None:
    """Run the main program of a fork, and end as an interpreter would: nothing of the forks above is finished here."""
    code = 0
    try:
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


class Forked(subprocess.Popen):
    """`python -u -m module` of launcher/spawn.py as a fork of this process."""

    def __init__(
        self, args: Sequence[str], *, env: Mapping[str, str], stdout: Any, stderr: Any, pass_fds: Any, **_: Any
    ) -> None:
        module, *arguments = args[args.index("-m") + 1 :]
        sys.stdout.flush()
        sys.stderr.flush()
        self.args, self.returncode, self._child_created = args, None, True
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock, self._sigint_wait_secs, self._input = threading.Lock(), 0.25, None
        self._communication_started = False
        self.pid = os.fork()
        if self.pid == 0:
            out = 1 if stdout is None else stdout.fileno()
            become(out, out if stderr == subprocess.STDOUT else stderr.fileno(), pass_fds, env)
            from hydra.core.global_hydra import GlobalHydra

            GlobalHydra.instance().clear()
            sys.argv = [module, *arguments]
            live(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
