"""Commands in processes of their own that cost no imports: forked, one for each, from a process that has made them all.

PyTorch and Lightning take some seconds of a processor to import. What is tested of a start itself, the order of its
imports or what the interpreter reads from the environment, takes the fixture `script` instead.
"""

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# What the commands import, and what they import later; what they have to do with each process is not done here.
MODULES = [
    *("cli", "evaluate", "predict", "rerun", "compare", "train"),
    *("backprop.command", "backprop.network", "report.command", "tensorboard.serve"),
]


class Process:
    """One command, with what `subprocess.Popen` has of these names."""

    def __init__(self, server: "Server", pid: int, output: Path) -> None:
        self.server, self.pid, self.output = server, pid, output
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.status(self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"not within {timeout} s: the end of the command\n{self.said('err')}")
            self.server.listen(0.05)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def said(self, stream: str) -> str:
        """What it has written to `out` or `err`."""
        return self.output.with_suffix(f".{stream}").read_text()

    def communicate(self, timeout: float) -> tuple[str, str]:
        self.wait(timeout)
        return self.said("out"), self.said("err")


class Server:
    """The process that has imported the commands. It ends with this one."""

    def __init__(self) -> None:
        self.directory = TemporaryDirectory()
        self.count, self.statuses, self.started = 0, dict[int, int](), list[int]()
        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[0] = {str(Path(__file__).parent)!r}; import forked; forked.serve({theirs.fileno()})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self.socket, self.unread = ours, b""

    def start(self, name: str, arguments: list[str], directory: Path, environment: dict[str, str]) -> Process:
        """Starts a console script in a directory."""
        self.count += 1
        output = Path(self.directory.name) / str(self.count)
        request = {"name": name, "arguments": arguments, "directory": str(directory), "output": str(output)}
        self.socket.sendall(f"{json.dumps(request | {'environment': environment})}\n".encode())
        while not self.started:
            self.listen(None)
        return Process(self, self.started.pop(), output)

    def status(self, pid: int) -> int | None:
        self.listen(0)
        return self.statuses.get(pid)

    def listen(self, timeout: float | None) -> None:
        """Takes what the server has said, or says within the timeout."""
        with selectors.DefaultSelector() as ready:
            ready.register(self.socket, selectors.EVENT_READ)
            if not ready.select(timeout):
                return
        told = self.socket.recv(65536)
        assert told, "the server of the commands has gone"
        *lines, self.unread = (self.unread + told).split(b"\n")
        for pid, status in map(json.loads, lines):
            if status is None:
                self.started.append(pid)
            else:
                self.statuses[pid] = status

    def close(self) -> None:
        self.socket.close()
        self.process.wait()
        self.directory.cleanup()


def serve(descriptor: int) -> None:
    """Imports the commands, and runs each that is asked for in a fork. Its end is told as [process, exit status]."""
    sys.path[0] = str(Path(sys.executable).parent)  # as in a console script
    from mnist_mlp.run.process import prepare_process

    prepare_process(threads=None, portable=True)
    for module in MODULES:
        importlib.import_module(f"mnist_mlp.{module}")
    gc.collect()
    gc.freeze()  # else each fork copies all of this memory, to see at its end that none of it is garbage
    connection = socket.socket(fileno=descriptor)
    requests, running = connection.makefile("r"), dict[int, int]()

    def tell(pid: int, status: int | None) -> None:
        connection.sendall(f"{json.dumps([pid, status])}\n".encode())

    with selectors.DefaultSelector() as ready:
        ready.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is connection:
                    line = requests.readline()
                    if not line:
                        os._exit(0)  # at once: nothing here is worth a second of the interpreter's tidying up
                    pid = os.fork()
                    if not pid:
                        ready.close()
                        requests.close()
                        connection.close()
                        run(**json.loads(line))
                        return
                    tell(pid, None)
                    handle = os.pidfd_open(pid)
                    running[handle] = pid
                    ready.register(handle, selectors.EVENT_READ)
                else:
                    handle = int(key.fd)
                    pid = running.pop(handle)
                    ready.unregister(handle)
                    os.close(handle)
                    tell(pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def run(name: str, arguments: list[str], directory: str, output: str, environment: dict[str, str]) -> None:
    """What the console script does, in a process that is like a new one."""
    for stream, suffix in ((1, "out"), (2, "err")):
        file = os.open(f"{output}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as on a terminal; a shell's & has it ignored
    sys.argv = [str(Path(sys.executable).with_name(name)), *arguments]
    commands: Any = importlib.import_module("mnist_mlp.start")
    getattr(commands, name.removeprefix("mnist-"))()
