"""`mnist-tensorboard DIR`: TensorBoard on the runs under a directory, set up for sweeps of hundreds of them."""

import argparse
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mnist_mlp.settings import SettingError, one_sentence

HOST = "127.0.0.1"
RELOAD_SECONDS = 5.0
# How many steps of each tag TensorBoard keeps. By default it keeps 10 images, which may leave out the best epoch. 0
# should keep all, but its data server then keeps none.
SAMPLES = {"scalars": 100_000, "images": 100, "pr_curves": 100}
# A browser's settings until its user changes them: automatic reloading, and no smoothing, because a smoothed curve was
# not measured. TensorBoard wants more than 30 seconds between two reloads.
BROWSER_SETTINGS = {"scalarSmoothing": 0, "autoReload": True, "autoReloadPeriodInMs": 31_000}
# With more runs than this, TensorBoard selects none at first, and its charts are empty.
SELECTED = 40
# The page at http://127.0.0.1:6006/, which leads on to TensorBoard's own. Its script sees what the server cannot: a tab
# in the address, and the settings that the browser has stored for this address. TAB is replaced. Two tabs take their
# smoothing from the address, which keeps it when another tab is clicked.
LANDING = f"""<!doctype html>
<title>TensorBoard</title>
<script>
  const settings = "_tb_global_settings";
  localStorage.getItem(settings) || localStorage.setItem(settings, '{json.dumps(BROWSER_SETTINGS)}');
  const tab = location.hash || "#TAB", smoothing = tab.includes("_smoothingWeight") ? "" : "&_smoothingWeight=0";
  location.replace("index.html" + tab + smoothing);
</script>
"""

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def main() -> None:
    """Runs `mnist-tensorboard` until Ctrl-C or SIGTERM. Exit status: 0, or 1 if DIR or the port cannot be used."""
    parser = argparse.ArgumentParser(
        prog="mnist-tensorboard", description=f"Serves the runs under DIR on {HOST}, until Ctrl-C."
    )
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path("logs"), help="default: logs")
    parser.add_argument("--port", type=int, default=6006, help="default: 6006; 0 is any that is free")
    arguments = parser.parse_args()
    with one_sentence():
        refuse(arguments.directory, arguments.port)
        serve(arguments.directory, arguments.port)


def refuse(directory: Path, port: int) -> None:
    """Checks, before TensorBoard is loaded, that there can be a directory to show and a port to show it at.

    A directory that does not exist yet is accepted: a sweep may be about to make it.

    Raises:
        SettingError: DIR is a file, or the port cannot be used.
    """
    if not directory.exists():
        print(f"There is no directory {directory} yet", flush=True)
    if directory.exists() and not directory.is_dir():
        raise SettingError("DIR", directory, "is a file: give a run, a sweep or any directory above them")
    if not 0 <= port < 2**16:
        raise SettingError("--port", port, "must be a whole number from 0 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a port just left is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            taken = "another TensorBoard may be running there; " if error.errno == errno.EADDRINUSE else ""
            raise SettingError("--port", port, f"cannot be used ({error.strerror}): {taken}give another one") from error


def serve(directory: Path, port: int) -> None:
    """Serves TensorBoard until this process is asked to end."""
    from tensorboard import program
    from tensorboard_data_server import server_binary

    from mnist_mlp.tensorboard.plugins import PLUGINS, TensorBoard  # here: importing TensorBoard takes a second

    class Server(program.WerkzeugServer):  # type: ignore[misc]
        def __init__(self, application: WSGI, flags: argparse.Namespace) -> None:
            super().__init__(with_landing(application, directory), flags)

        def print_serving_message(self) -> None:
            print(f"{contents(directory)}\n{self.get_url()} shows them until Ctrl-C", flush=True)

    tensorboard = TensorBoard(PLUGINS, server_class=Server)
    tensorboard.configure(
        logdir=os.fspath(directory),
        host=HOST,
        port=port,
        window_title=f"{directory} · TensorBoard",
        # Where its package has one for this system, the data server is used, which reads hundreds of runs in seconds.
        # A resumed run has several event files. The data server follows all of them; Python's reader must be told to.
        load_fast="true" if server_binary() else "false",
        reload_multifile=True,
        reload_interval=RELOAD_SECONDS,
        samples_per_plugin=SAMPLES,
    )
    try:
        sys.exit(tensorboard.main())
    except KeyboardInterrupt:  # Ctrl-C before the server was listening
        sys.exit(0)


def event_files(directory: Path) -> dict[Path, list[Path]]:
    """The event files of each run under `directory`, in order of the runs' paths; a run may have none."""
    from mnist_mlp.run.records import find_runs  # here: it imports Hydra

    found = {run: sorted(run.glob("tensorboard/**/*tfevents*")) for run in find_runs(directory)}
    return {run: [path for path in paths if path.is_file()] for run, paths in found.items()}  # no pipe is waited for


def contents(directory: Path) -> str:
    """One line on what is shown, and one for each file or group of runs that is not, or not wholly."""
    files = event_files(directory)
    shown, without = sum(map(bool, files.values())), sum(not found for found in files.values())
    lines = [f"{shown} run{'' if shown == 1 else 's'} under {directory}"]
    if not shown:
        lines = [f"There are no runs to show under {directory} yet: they appear here as they start"]
    if without:
        lines.append(f"{without} more without event files, not shown")
    lines += [
        f"{file}: its last event is incomplete, after a kill or while a run writes; all before it is shown"
        for found in files.values()
        for file in found
        if ends_within_an_event(file)
    ]
    return "\n".join(lines)


def ends_within_an_event(path: Path) -> bool:
    """Whether the last record of an event file is incomplete.

    A record is a length (64 bits, little-endian), its checksum (32 bits), the event, and its checksum (32 bits):
    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            position += 16 + int(struct.unpack("<Q", file.read(8))[0])
    return position != size


def with_landing(application: WSGI, directory: Path) -> WSGI:
    """TensorBoard's application with `LANDING` at its root, which opens the charts, or the table if runs are many."""

    def respond(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environment["PATH_INFO"] != "/" or environment.get("QUERY_STRING"):
            return application(environment, start_response)
        many = sum(map(bool, event_files(directory).values())) > SELECTED
        page = LANDING.replace("TAB", "hparams" if many else "custom_scalars").encode()
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))]
        start_response("200 OK", headers)
        return [page]

    return respond
