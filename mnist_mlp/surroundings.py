"""What surrounds a command and must not matter: a notebook's variables, closed outputs, a terminal that is gone."""

import atexit
import contextlib
import errno
import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator

# Of places that cannot be read or written, whatever the program does.
PLACE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO),
)
CLOSED_PIPE = 128 + 13  # as a shell reports SIGPIPE, by which other commands end there


OUTPUT = "standard output"
_KEPT: list[io.TextIOWrapper] = []  # what was wrapped would close the stream with itself


class Output(io.TextIOWrapper):
    """Standard output, whose errors say so: to Python it is a file without a name."""

    def write(self, text: str, /) -> int:
        with _named():
            return super().write(text)

    def flush(self) -> None:
        with _named():
            super().flush()


class Patient(io.TextIOWrapper):
    """Standard error that may be gone: what nobody reads must not end a sweep of hours."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from error


def settle_in() -> None:
    """Makes this process one that draws no windows, whose standard streams can be used, and that ends quickly. For a
    command's own process, before anything that draws is imported."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook names one that may not be installed here
    warnings.formatwarning = lambda message, *_, **__: f"{' '.join(str(message).split())}\n"  # without a line of code
    _open_streams()
    for name, kind, lines in (("stdout", Output, False), ("stderr", Patient, True)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper:  # nobody has replaced it
            lines, through = lines or stream.line_buffering, stream.write_through
            # A terminal without ± shows a question mark.
            made = kind(stream.buffer, stream.encoding, "replace", line_buffering=lines, write_through=through)
            setattr(sys, name, made)
            _KEPT.append(stream)
    if len(_KEPT) == 2:
        atexit.register(_flush)
        atexit.register(_leave_memory)  # before the flush, since a __del__ may print


def _leave_memory() -> None:
    """Leaves what is in memory to the system. Else Python, at its end, goes through all that PyTorch and Lightning have
    made, which takes more than a second."""
    gc.collect()  # what nobody refers to any more: a class of the user's may have a __del__
    gc.freeze()


def _open_streams() -> None:
    """Opens what is closed: the next file to be opened would be taken for it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            if getattr(sys, name) is None:
                stream = open(number, mode, closefd=False)  # noqa: SIM115  # for as long as the process
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)


def _flush() -> None:
    """Ends the process with a status, and no traceback, where standard output takes nothing more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        quiet = isinstance(error, BrokenPipeError)
        if not quiet:
            print(place_problem(error), file=sys.stderr)
        os._exit(CLOSED_PIPE if quiet else 1)


def place_problem(error: OSError) -> str:
    """The sentence for a place that cannot be read or written."""
    return f"{error.filename or 'a file'}: cannot be used ({error.strerror})"


def one_line(error: BaseException) -> str:
    """What an exception says, for a sentence: without the lines of PyTorch's own calls."""
    return " ".join(str(error).partition("\nException raised from ")[0].split())


def import_from_here() -> None:
    """Has what is not found elsewhere imported from the working directory: a user's own class may lie there."""
    try:
        sys.path.append(os.getcwd())
    except FileNotFoundError as error:
        problem = "it was deleted: change to another one"
        raise FileNotFoundError(errno.ENOENT, problem, "the working directory") from error


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While this is open, Ctrl-C ends the process at once and without a word, unless something has taken it over: an
    exception would come from the middle of an import."""
    try:
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        previous = signal.signal(signal.SIGINT, signal.SIG_DFL) if usual else None
    except ValueError:  # not the main thread
        previous = None
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
