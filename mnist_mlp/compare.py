"""`mnist-compare RUN_DIR RUN_DIR`: in what two runs differ, and whether that was to be expected. Runs nothing."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mnist_mlp.reading import read_file
from mnist_mlp.run.identity import LENGTH, other_settings
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import Epochs, load_settings, read_record
from mnist_mlp.settings import SettingError, counted, flatten, load_yaml, one_sentence, spelled

# What an epoch must repeat, causes first: a changed rate is named as such, not by the loss that it led to.
REPEATED = ("lr", *(column for column in COLUMNS if column not in ("epoch", "lr", "seconds")))
RESULTS = ("epochs", "best", "weights_sha256", "test")
CIRCUMSTANCES = ("data_sha256", "versions", "device", "arithmetic", "steps", "threads", "git")
# Native steps are computed by this package's own kernel, which no version of PyTorch changes.
DECISIVE_VERSIONS = {"native": ("mnist-mlp",), "eager": ("mnist-mlp", "torch"), "compiled": ("mnist-mlp", "torch")}


def main() -> None:
    """Runs `mnist-compare`. Exit status: 0 where both are identical; 1 where they are not, or cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="mnist-compare",
        description="Says in what two runs differ: the first epoch, settings, versions, device, commit, curves.",
    )
    parser.add_argument("one", metavar="RUN_DIR", type=Path, help="a run's directory")
    parser.add_argument("other", metavar="RUN_DIR", type=Path, help="another one")
    parser.add_argument("--epochs", metavar="N", type=int, help="compare the first N epochs only")
    arguments = parser.parse_args()
    with one_sentence():
        pair = Pair(Recorded(arguments.one), Recorded(arguments.other), arguments.epochs)
        lines = [pair.verdict, f"  one: {pair.one}", f"  other: {pair.other}", *pair.circumstances(), *pair.largest()]
        print("\n".join(lines))
    sys.exit(0 if pair.difference is None else 1)


class Recorded:
    """A run as its directory tells it.

    Raises:
        SettingError: there is no such run, or it cannot be read.
    """

    def __init__(self, path: Path, setting: str = "RUN_DIR") -> None:
        self.path = path
        self.config = load_settings(path, setting)
        self.record = read_record(path)
        self.epochs = Epochs(path)
        if not self.epochs.rows:
            raise SettingError(setting, path, "has no complete epoch to compare with")

    def __str__(self) -> str:
        experiment, model, seed, status = map(self.record.get, ("experiment", "model", "seed", "status"))
        what = f"{experiment}, {model}, seed {seed}, {counted(len(self.epochs), 'epoch')}, {status}"
        return f"{os.path.relpath(self.path)} ({what})"

    @property
    def steps(self) -> str:
        """What made its optimizer steps; a record from before there was a choice has eager ones."""
        return str(self.record.get("steps") or self.config.get("trainer", {}).get("steps", "eager"))

    def why_not_portable(self) -> str | None:
        """Why its bits hold on its own kind of processor only; None where they hold on every one."""
        if self.record.get("portable"):
            return None
        return str(self.record.get("not_portable", "it was made before runs were portable"))


@dataclass(frozen=True)
class Pair:
    """Two runs side by side.

    Args:
        one, other: the runs.
        limit: how many epochs to compare; None for all, and the results.
        now: what to call the other one's values.
    """

    one: Recorded
    other: Recorded
    limit: int | None = None
    now: str = "other"

    def __post_init__(self) -> None:
        most = min(len(self.one.epochs), len(self.other.epochs))
        if self.limit is not None and not 1 <= self.limit <= most:
            raise SettingError("--epochs", self.limit, f"must lie between 1 and {most}, the epochs that both have")

    @property
    def whole(self) -> bool:
        """Whether the results are compared too."""
        both = all(run.record.get("status") == "completed" for run in (self.one, self.other))
        return both and self.limit in (None, len(self.one.epochs))

    @property
    def count(self) -> int:
        """How many epochs both have, up to the limit."""
        return min(len(self.one.epochs), len(self.other.epochs), self.limit or len(self.one.epochs))

    @cached_property
    def difference(self) -> str | None:
        """The first one, in the order of causes; None where all that is compared is the same."""
        for epoch in range(1, self.count + 1):
            before, now = self.one.epochs.texts(epoch), self.other.epochs.texts(epoch)
            for column in REPEATED:
                if column in before and column in now and before[column] != now[column]:
                    return f"in epoch {epoch}, {column} was {before[column]}, {self.now} {now[column]}"
        if self.limit is None and len(self.one.epochs) != len(self.other.epochs):
            same = f"the first {self.count} are" if self.count > 1 else "the first is"
            return f"{len(self.one.epochs)} epochs, {self.now} {len(self.other.epochs)}; {same} identical"
        return next(self._differences(RESULTS), None) if self.whole else None

    @property
    def verdict(self) -> str:
        """Such as `identical: the first 2 epochs`."""
        if self.difference is not None:
            return f"different: {self.difference}"
        if self.whole:
            return f"identical: every epoch ({self.count}), the best one, the weights and the test results"
        return "identical: the first epoch" if self.count == 1 else f"identical: the first {self.count} epochs"

    def circumstances(self) -> list[str]:
        """What else differs, a line each: what was to be expected of that, settings, versions, device, commit."""
        lines = [f"  {self.expectation()}"] if self.difference else []
        lines += [f"  {line}" for line in (*self._settings(), *self._differences(CIRCUMSTANCES))]
        return list(dict.fromkeys(lines + self._uncommitted()))  # `threads` is a setting and a circumstance

    def expectation(self) -> str:
        """Whether a difference was to be expected, and from what."""
        causes = list(self.causes())
        if causes:
            return f"that was to be expected: {'; '.join(causes)}"
        return "that was not to be expected, with the same settings, data and versions: please report it"

    def causes(self) -> Iterator[str]:
        """What may have changed the bits."""
        if any(True for _ in self._settings()):
            yield "the settings differ"
        before, now = self.one.record, self.other.record
        if before.get("data_sha256") != now.get("data_sha256") and before.get("data_sha256") and now.get("data_sha256"):
            yield "the data differ"
        if self.one.steps != self.other.steps:
            yield f"steps were {self.one.steps}, {self.now} {self.other.steps}"
        for name in DECISIVE_VERSIONS.get(self.other.steps, ()):
            versions = [record.get("versions", {}).get(name) for record in (before, now)]
            if versions[0] != versions[1]:
                yield f"{name} was {versions[0]}, {self.now} {versions[1]}"
        same_machine = all(before.get(name) == now.get(name) for name in ("device", "arithmetic"))
        for run in (self.one, self.other):
            if not same_machine and (reason := run.why_not_portable()):
                yield f"{os.path.relpath(run.path)} is not portable ({reason})"

    def largest(self) -> Iterator[str]:
        """A table of each column's largest difference over the epochs that both have."""
        rows = []
        for column in REPEATED:
            if column in self.one.epochs and column in self.other.epochs:
                pairs = zip(self.one.epochs[column][: self.count], self.other.epochs[column][: self.count], strict=True)
                apart = [abs(float(one) - float(other)) for one, other in pairs]
                epoch = max(range(self.count), key=apart.__getitem__)
                values = [float(run.epochs[column][epoch]) for run in (self.one, self.other)]
                if apart[epoch]:
                    rows.append((column, str(epoch + 1), *(f"{value:.6g}" for value in (*values, apart[epoch]))))
        if rows:
            yield f"  largest differences in {counted(self.count, 'epoch')}:"
            yield from _aligned([("", "epoch", "one", self.now, "difference"), *rows])

    def _settings(self) -> Iterator[str]:
        """The settings that differ from those that Hydra noted, if it did: config.yaml may have been edited since."""
        noted = self.one.path / ".hydra" / "config.yaml"
        before = load_yaml(noted, "RUN_DIR") if noted.exists() else self.one.config
        for name, (one, other) in other_settings(before, self.other.config).items():
            if self.limit is None or name != LENGTH:  # a rerun is made as long as what is compared
                yield f"{name}: {spelled(one)}, {self.now} {spelled(other)}"

    def _differences(self, keys: Sequence[str]) -> Iterator[str]:
        """One line for each value under `keys` of run.json that both have and that is not the same."""
        now = flatten(self.other.record)
        for name, value in flatten(self.one.record).items():
            if name.partition(".")[0] in keys and name in now and value != now[name]:
                yield f"{name}: {spelled(value)}, {self.now} {spelled(now[name])}"

    def _uncommitted(self) -> list[str]:
        """What to say of changes that no commit holds."""
        before, now = (run.path / "uncommitted.diff" for run in (self.one, self.other))
        if self.one.record.get("git", {}).get("dirty") and not before.exists():
            return ["  the run had uncommitted changes, and its uncommitted.diff is not there"]
        try:
            texts = [read_file(path) if path.exists() else b"" for path in (before, now)]
        except OSError as error:
            return [f"  uncommitted changes: {error.filename} cannot be read ({error.strerror})"]
        if texts[0] == texts[1]:
            return []
        if not (before.exists() and now.exists()):
            then, since = (path if path.exists() else "none recorded" for path in (before, now))
            return [f"  uncommitted changes: {then}, {self.now} {since}"]
        return [f"  uncommitted changes: compare {before} with {now}"]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of a table as lines: the first column to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        numbers = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join((f"    {row[0]:<{widths[0]}}", *numbers))


if __name__ == "__main__":
    main()
