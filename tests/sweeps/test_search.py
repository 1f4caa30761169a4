"""Searches: what is refused, what a study remembers, and one that is killed twice."""

import csv
import io
import json
import math
import os
import random
import shutil
import sqlite3
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import Command, processes, started, statuses, until, write_run
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_up import impatient, one_sentence, with_noise
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.settings import SettingError, flatten
from mnist_mlp.sweeps.compose import Composer
from mnist_mlp.sweeps.jobs import Job
from mnist_mlp.sweeps.search import Search, Trial, check_search
from mnist_mlp.sweeps.study import STUDY, close, conclude, open_study, ranking, trials_of

NOTHING_BUT_LR = [
    f"search.space.{name}=null" for name in ("optimizer.weight_decay", "model.dropout", "data.batch_size")
]
BAD_INPUT = {
    "search.trials=0": "search.trials=0: must be a whole number of at least 1",
    "search.sampler=grid": "search.sampler=grid: must be one of tpe, random",
    "search.objective=test": "search.objective=test: must be one of val/accuracy, val/loss",
    "hydra/launcher=basic": "hydra/launcher=basic: must be process for a search, which starts and stops its trials",
    "data.validation_size=null": "data.validation_size=null: must be a number for a search: the official test images "
    "may not decide about settings",
    "optimizer.lr=0.1": "optimizer.lr=0.1: is what the search looks for: leave it out, or say "
    "search.space.optimizer.lr=null",
    "+search.space.optimizer.rate={low: 1, high: 2}": "search.space.optimizer.rate={low:1,high:2}: there is no "
    "setting optimizer.rate; mnist-train --cfg job lists them all",
    "+search.space.trainer.lr={low: 1, high: 2}": "search.space.trainer.lr={low:1,high:2}: there is no setting "
    "trainer.lr; did you mean optimizer.lr?",
    "+search.space.data.test_size={low: 1, high: 2}": "search.space.data.test_size={low:1,high:2}: cannot "
    "be searched: the trials could not be compared",
    "search.space.optimizer.lr.low=0.01": "search.space.optimizer.lr.low=0.01: must be below "
    "search.space.optimizer.lr.high=0.01",
    "search.space.optimizer.lr.low=0": "search.space.optimizer.lr.low=0: must be above 0 on a logarithmic scale",
    "search.space.optimizer.lr.high=much": "search.space.optimizer.lr.high=much: must be a number",
    "search.space.optimizer.lr.log=1": "search.space.optimizer.lr.log=1: must be true or false",
    "search.space.optimizer.lr=3": "search.space.optimizer.lr=3: must be an interval, such as {low: 0.1, high: 0.5}, "
    "or choices, such as {choices: [1, 2]}",
    "~search.space.optimizer.lr.low": "search.space.optimizer.lr={high:0.01,log:true}: must be an interval",
    "search.space.model.dropout.high=1.5": "search.space.model.dropout.high=1.5: model.dropout must be a number of at "
    "least 0 and below 1",
    "search.space.data.batch_size.choices=[]": "search.space.data.batch_size.choices=[]: must have at least one value",
    "search.space.data.batch_size.choices=[32,0]": "search.space.data.batch_size.choices=0: data.batch_size must be a "
    "whole number of at least 1",
    "search.space=null": "search.space={}: must hold a setting, such as search.space.optimizer.lr",
}


@pytest.fixture
def config() -> Iterator[Callable[..., DictConfig]]:
    """`config("search.trials=3")`: what Hydra hands to a search's launcher."""
    GlobalHydra.instance().clear()
    with initialize_config_module("mnist_mlp.conf", version_base="1.3"):
        yield lambda *overrides: compose("train", ["search=tpe", *overrides], return_hydra_config=True)


@pytest.mark.parametrize("override", BAD_INPUT)
def test_a_search_that_cannot_be_made_is_one_sentence(config: Callable[..., DictConfig], override: str) -> None:
    with pytest.raises(SettingError) as refused:
        check_search(config(override))
    assert str(refused.value).startswith(BAD_INPUT[override])


def test_every_search_that_is_packaged_can_be_made(config: Callable[..., DictConfig]) -> None:
    for option in ("tpe", "random"):
        check_search(config(f"search={option}"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["search=tpe"], "search=tpe: is a sweep of trials: add -m"),
        (["-m", "search=tpe", "seed=0,1"], "seed=0,1: must be one value: a search varies what is in search.space only"),
        (["-m", "search=foo"], "search=foo: there is no such search; choose one of none, random, tpe"),
        (["-m", "search=tpe", "search.trials=0"], "search.trials=0: must be a whole number of at least 1"),
    ],
)
def test_it_is_refused_before_anything_is_written(
    command: Command, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = command("mnist-train", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")
    assert not list(tmp_path.iterdir())


class Played:
    """A search whose runs are made up: `play` asks for a trial and writes what its job would have left."""

    def __init__(self, config: DictConfig, directory: Path, overrides: list[str]) -> None:
        self.config, self.directory, self.overrides = config, directory, overrides
        directory.mkdir(parents=True, exist_ok=True)
        self.search = self.restarted()
        self.composed = composed(self.search.base)

    def restarted(self) -> Search:
        """As after a kill: nothing is left but the directory."""
        if hasattr(self, "search"):
            close(self.search.storage)
        loader = GlobalHydra.instance().config_loader()
        self.search = Search(Composer(self.config, loader, self.directory), ["search=tpe", *self.overrides])
        return self.search

    def job(self, trial: Trial, values: list[float], status: str = "completed", error: str = "") -> Job:
        path = self.directory / trial.name
        rows = [dict.fromkeys(COLUMNS, value) | {"epoch": epoch} for epoch, value in enumerate(values, 1)]
        config = self.composed.copy()
        for name, value in self.given(trial).items():
            OmegaConf.update(config, name, value)
        write_run(path, rows, config, {"status": status, "error": error, "wall_seconds": 1.0})
        return Job(trial.name, path, [], 3, 1, 1.0, state=status)

    def play(self, values: Callable[[dict[str, Any]], list[float]]) -> Job | None:
        trial = self.search.ask()
        if trial is None:
            return None
        job = self.job(trial, values(self.given(trial)))
        self.search.tell(job)
        return job

    def given(self, trial: Trial) -> dict[str, Any]:
        given = OverridesParser.create().parse_overrides(trial.overrides)
        return {override.key_or_group: override.value() for override in given}

    def trials(self) -> list[FrozenTrial]:
        return list(trials_of(self.search.study).values())


def composed(overrides: list[str]) -> DictConfig:
    config = compose("train", overrides)
    for name in ("experiment", "network", "run_dir", "sweep"):
        config[name] = "made up"
    OmegaConf.resolve(config)
    return config


@pytest.fixture
def played(config: Callable[..., DictConfig], tmp_path: Path) -> Iterator[Callable[..., Played]]:
    made: list[Played] = []

    def make(*overrides: str, name: str = "s") -> Played:
        made.append(Played(config(*overrides), tmp_path / name, list(overrides)))
        return made[-1]

    yield make
    for one in made:
        close(one.search.storage)


def valley(given: dict[str, Any]) -> list[float]:
    """Three epochs on the way to an accuracy that is highest at a rate of 0.001."""
    end = 1 - abs(math.log10(given["optimizer.lr"]) + 3) / 4
    return [end - 0.2, end, end - 0.1]


SMALL = ["search.trials=6", "search.random_trials=3", "search.prune_after_trials=3", "search.prune_after_epochs=1"]


def test_a_search_is_the_same_however_often_it_is_killed(played: Callable[..., Played]) -> None:
    whole, killed = played(*SMALL, name="whole"), played(*SMALL, name="killed")
    while whole.play(valley):
        pass
    for _ in range(6):
        asked = killed.restarted().ask()
        assert asked is not None
        killed.restarted()  # a trial was asked for and nothing came of it
        assert killed.play(valley) is not None
    assert killed.restarted().ask() is None
    assert killed.search.is_over()
    for one, other in zip(whole.trials(), killed.trials(), strict=True):
        assert (one.params, one.state, one.value) == (other.params, other.state, other.value)
    # The last ones know of those before: another result leads elsewhere, but not among the first, random ones.
    other_way = played(*SMALL, name="other_way")
    while other_way.play(lambda given: [1 - value for value in valley(given)]):
        pass
    params = [[trial.params for trial in one.trials()] for one in (whole, other_way)]
    assert params[0][:3] == params[1][:3]
    assert params[0][5] != params[1][5]


def test_values_are_within_the_space_and_short(played: Callable[..., Played]) -> None:
    search = played("search=random", "search.trials=15", "+search.space.model.hidden.choices=[[8],[16,16]]")
    while search.play(valley):
        pass
    for trial in search.trials():
        params = trial.params
        assert 1e-4 <= params["optimizer.lr"] <= 1e-2
        assert params["data.batch_size"] in (32, 64, 128, 256)
        assert params["model.hidden"] in ("[8]", "[16,16]")
        assert all(params[name] == float(f"{params[name]:.4g}") for name in ("optimizer.lr", "model.dropout"))
    rates = [math.log10(trial.params["optimizer.lr"]) for trial in search.trials()]
    assert statistics.fmean(rates) == pytest.approx(-3, abs=0.5)  # on a scale of powers
    assert {OmegaConf.load(path).model.hidden[0] for path in search.directory.glob("*/config.yaml")} == {8, 16}


def test_what_is_pruned_is_worse_than_the_median(played: Callable[..., Played]) -> None:
    search = played(*SMALL, "search.trials=15", *NOTHING_BUT_LR)
    while search.play(valley):
        pass
    complete: list[list[float]] = []
    for trial in search.trials():
        values = valley(trial.params)
        best = [max(values[: epoch + 1]) for epoch in range(3)]
        # The first epoch is looked at, the last one is not: the result is there then.
        hopeless = [
            len(complete) >= 3 and best[epoch] < statistics.median(other[epoch] for other in complete)
            for epoch in range(2)
        ]
        assert (trial.state == TrialState.PRUNED) == any(hopeless)
        if trial.state == TrialState.COMPLETE:
            complete.append(values)
            assert trial.value == max(values)
        else:
            assert trial.last_step == hopeless.index(True) + 1
    assert 3 < len(complete) < 15


def test_a_pruned_job_says_so(played: Callable[..., Played]) -> None:
    search = played(*SMALL)
    for value in (0.9, 0.8, 0.7):
        search.play(lambda given, value=value: [value] * 3)
    trial = search.search.ask()
    assert trial is not None
    job = search.job(trial, [0.75], "running")
    assert search.search.should_stop(job)
    search.restarted()  # killed before the job had stopped: it is pruned all the same
    job = search.job(trial, [0.75, 0.99], "interrupted", "InterruptionError: stopped by SIGTERM")
    search.search.tell(job)
    assert job.state == "pruned"
    record = json.loads((job.path / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert record["error"].startswith("pruned after epoch 1: the best val/accuracy was worse than the median")
    following = search.search.ask()
    assert following is not None
    assert following.name == "trial=004"


def test_the_last_epoch_prunes_nothing_and_a_kill_forgets_no_epoch(played: Callable[..., Played]) -> None:
    search = played(*SMALL)
    for _ in range(3):
        search.play(lambda given: [0.5, 0.6, 0.9])
    slower = search.play(lambda given: [0.5, 0.6, 0.7])
    assert slower is not None
    assert slower.state == "completed"
    trial = search.search.ask()
    assert trial is not None
    study, storage = search.search.study, search.search.storage
    storage.set_trial_intermediate_value(study.trials[-1]._trial_id, 1, 0.4)  # noted, and killed before it was judged
    job = search.job(trial, [0.4], "running")
    assert search.restarted().should_stop(job)


def test_what_failed_is_tried_again_but_not_a_loss_that_is_not_finite(played: Callable[..., Played]) -> None:
    search = played(*SMALL)
    names = []
    for error in ("NonFiniteLossError: the loss became nan", "killed by SIGKILL", ""):
        trial = search.search.ask()
        assert trial is not None
        names.append(trial)
        search.search.tell(search.job(trial, [0.5], "failed" if error else "interrupted", error))
    assert search.search.result() == "3 of 6 trials: 0 complete, 2 failed, 1 unfinished"
    search.restarted()
    assert [search.search.ask(), search.search.ask()] == names[1:]  # the same values in the same directories
    search.search.tell(search.job(names[1], [0.5, 0.6, 0.55]))
    search.search.tell(search.job(names[2], [0.5], "failed", "NonFiniteLossError: the loss became inf"))
    following = search.restarted().ask()
    assert following is not None
    assert following.name == "trial=003"
    assert search.search.result() == "4 of 6 trials: 1 complete, 2 failed, 1 unfinished"


def test_a_study_of_another_search_is_refused(played: Callable[..., Played], tmp_path: Path) -> None:
    played("search.trials=1").play(valley)
    for override, was in {
        "search.space.optimizer.lr.high=0.1": "search.space.optimizer.lr.high=0.01 (not 0.1)",
        "search.objective=val/loss": "search.objective=val/accuracy (not val/loss)",
        "trainer.max_epochs=4": "trainer.max_epochs=10 (not 4)",
        "search=random": "search.sampler=tpe (not random)",
        "model=network_b": "model.hidden=[64, 128, 64] (not [256, 512, 128])",
    }.items():
        with pytest.raises(
            SettingError, match=r"^sweep=.*/s: holds a search that was run with .*: keep that, or"
        ) as no:
            played(override)
        assert was in str(no.value)
    assert played("search.trials=2").play(valley) is not None  # more trials are the same search
    (tmp_path / "sweep" / "seed=0").mkdir(parents=True)
    (tmp_path / "sweep" / "seed=0" / "run.json").write_text("{}")
    with pytest.raises(SettingError, match="holds a sweep that is no search: give another name"):
        played(name="sweep")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=network_b", "scheduler=cosine", "experiment=dropout_as_run", "trainer.max_epochs=7"],
        ["seed=3", "data.sha256=null", "model.hidden=[8,8]", "optimizer=sgd", "scheduler=step"],
        ["seed=3", "data.seed=4", "scheduler=cosine", "scheduler.T_max=5", "data=kmnist"],
    ],
)
def test_the_experiment_states_only_differences_and_they_are_enough(
    played: Callable[..., Played], overrides: list[str]
) -> None:
    search = played(*overrides, "search.trials=2")
    while search.play(valley):
        pass
    path = search.directory / "experiment" / "best_trial.yaml"
    best = ranking(search.search.study)[0]
    stated = OmegaConf.load(path)
    assert isinstance(stated, DictConfig)
    chosen = [
        f"{group[len('override /') :]}={option}"
        for line in stated.pop("defaults", [])
        for group, option in line.items()
    ]
    again = compose("train", chosen)
    again.merge_with(stated)
    for name in ("experiment", "network", "run_dir", "sweep"):
        again[name] = "made up"
    wanted = flatten(OmegaConf.load(search.directory / best.user_attrs["directory"] / "config.yaml"))
    assert flatten(OmegaConf.to_container(again, resolve=True)) == wanted
    stating = flatten(stated)
    assert ("data.seed" in stating) == ("data.seed=4" in overrides)  # it follows from seed
    assert ("scheduler.T_max" in stating) == ("scheduler.T_max=5" in overrides)
    assert "optimizer.fused" not in stating


def test_the_conclusion_ranks_and_draws(played: Callable[..., Played], tmp_path: Path) -> None:
    search = played("search.objective=val/loss", "search.prune=false", "search.trials=4")
    for value in (0.4, 0.2, 0.2):
        search.play(lambda given, value=value: [value, value + 0.1])
    study, storage = open_study(search.directory / STUDY)
    assert [trial.number for trial in ranking(study)] == [1, 2, 0]  # the lowest first; of a tie the earliest
    close(storage)
    screen = io.StringIO()
    conclude(search.directory, Console(width=20, file=screen).print)
    best = f"mnist-train --config-dir {os.path.relpath(search.directory)} experiment=best_trial"
    assert f"\nBest settings: {best}\n" in screen.getvalue()  # on one line, to be copied
    assert (search.directory / "search.png").read_bytes().startswith(b"\x89PNG")
    svg = (search.directory / "search.svg").read_text()
    conclude(search.directory)
    assert (search.directory / "search.svg").read_text() == svg


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        # Its settings would become those of the next one.
        ("delete from trials where number = 1", r"a row of trial_\w+ belongs to one of trials that is missing"),
        ("update trials set number = 0", "two trials have the number 0"),
        # What no search notes; the pruner's median of it would be a warning of NumPy's.
        ("update trial_intermediate_values set intermediate_value = 9e999", "inf is no finite number"),
    ],
)
def test_trials_that_are_lost_or_called_alike_are_noticed(
    played: Callable[..., Played], change: str, problem: str
) -> None:
    search = played("search.trials=2")
    search.play(valley)
    search.search.ask()
    close(search.search.storage)
    with closing(sqlite3.connect(search.directory / STUDY)) as database, database:
        database.execute(change)
    with pytest.raises(SettingError, match=rf"study\.db: is damaged.*{problem}"):
        search.restarted()


def test_studies_made_up(
    played: Callable[..., Played], tmp_path: Path, rounds: Callable[[int], Iterator[random.Random]]
) -> None:
    """What is damaged is refused with one sentence that loses nothing, or the search goes on as if it were whole."""
    search = played("search.trials=6", "search.prune_after_trials=1", "search.prune_after_epochs=1")
    for _ in range(4):
        search.play(valley)
    search.search.ask()  # and one that a kill cut short
    close(search.search.storage)
    shutil.copytree(search.directory, tmp_path / "whole")

    def go_on() -> None:
        search.restarted()
        while search.play(valley):
            pass

    for number, chance in enumerate(rounds(25)):
        for work in (lambda: conclude(search.directory), go_on):
            shutil.rmtree(search.directory)
            shutil.copytree(tmp_path / "whole", search.directory)
            path = search.directory / STUDY
            done = damaged_study(path, random.Random(chance.random()))
            content = path.read_bytes()
            with impatient():
                try:
                    work()
                except SettingError as error:
                    one_sentence(error)
                    assert path.read_bytes() == content, (number, done)
                except Exception as error:
                    raise AssertionError(f"{number}: {done}") from error


def damaged_study(path: Path, chance: random.Random) -> str:
    """Damages a study's file: its bytes, or one value or row of one table; returns what was done."""
    if chance.random() < 0.3:
        path.write_bytes(with_noise(path.read_bytes(), chance))
        return "noise"
    with closing(sqlite3.connect(path)) as database, database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        filled = [table for table in tables if database.execute(f"select 1 from {table}").fetchone()]
        table = chance.choice(filled)
        rows = [row for (row,) in database.execute(f"select rowid from {table}")]
        row, column = chance.choice(rows), chance.choice(list(database.execute(f"pragma table_info({table})")))[1]
        if chance.random() < 0.15:
            database.execute(f"delete from {table} where rowid = ?", (row,))
            return f"{table}: without row {row}"
        junk = (
            None,
            -1,
            0,
            0.5,
            1e308,
            math.inf,
            2**62,
            "",
            "x",
            "a" * 10_000,
            b"\xff",
            "{}",
            "[]",
            "RUNNING",
            "COMPLETE",
        )
        value = chance.choice((*junk, '{"name": "FloatDistribution"}'))
        with suppress(sqlite3.IntegrityError):
            database.execute(f"update {table} set {column} = ? where rowid = ?", (value, row))
        return f"{table}.{column} = {value!r} in row {row}"


def test_killed_twice_it_ends_with_every_trial_and_the_best_is_repeated_exactly(
    command: Command, tiny: list[str], tmp_path: Path
) -> None:
    given = [*tiny, "data.validation_size=200", "trainer.max_epochs=4", "model=network_b"]
    pruning = ["search.random_trials=4", "search.prune_after_trials=3", "search.prune_after_epochs=1"]
    arguments = ["-m", "sweep=s", "search=tpe", "search.trials=8", "hydra.launcher.jobs=2", *pruning, *given]
    directory = tmp_path / "logs" / "sweeps" / "s"
    for ended in (2, 5):

        def underway(ended: int = ended) -> bool:
            found = list(statuses(directory).values())
            return "running" in found and len(found) - found.count("running") >= ended

        with started(arguments, tmp_path) as process:
            until(underway, "a trial after others")
            process.kill()
            until(lambda: not processes(tmp_path), "every process has gone with the search")
    done = command("mnist-train", *arguments)
    assert done.returncode == 0, done.stderr
    assert "8 of 8 trials" in done.stderr

    study, storage = open_study(directory / STUDY)
    trials = trials_of(study)
    assert list(trials) == [f"trial={number:03d}" for number in range(8)]
    assert len(study.trials) == 8
    assert {trial.state for trial in trials.values()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for name, trial in trials.items():
        rows = list(csv.DictReader((directory / name / "metrics.csv").read_text().splitlines()))
        if trial.state == TrialState.COMPLETE:
            assert trial.value == max(float(row["val/accuracy"]) for row in rows)
            assert len(rows) == 4
    best = ranking(study)[0]
    close(storage)
    assert len(list(csv.DictReader((directory / "results.csv").read_text().splitlines()))) == 8

    again = command("mnist-train", "--config-dir", "logs/sweeps/s", "experiment=best_trial", "run_dir=again")
    assert again.returncode == 0, again.stderr
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    before = json.loads((directory / best.user_attrs["directory"] / "run.json").read_text())
    assert record["best"]["val/accuracy"] == best.value
    assert record["weights_sha256"] == before["weights_sha256"]
    assert record["model"] == "network_b"

    refused = command("mnist-train", "-m", "sweep=s", "seed=0,1", *given)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "sweep=logs/sweeps/s: holds a search: give the sweep another name\n"
