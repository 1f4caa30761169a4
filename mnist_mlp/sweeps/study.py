"""What a search has found, read from its study in the sweep's directory: a table, an experiment file and a plot."""

import math
import os
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mnist_mlp.run.directory import durable_write
from mnist_mlp.run.identity import LABELS, PLACES
from mnist_mlp.run.records import load_settings, read_record
from mnist_mlp.run.shape import OTHERS, TEXT, Whole, choice, fault
from mnist_mlp.settings import SettingError, flatten

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

Direction = Literal["minimize", "maximize"]
STUDY = "study.db"  # SQLite: one file that is whole after any kill, and what Optuna's other tools read
BEST = Path("experiment") / "best_trial.yaml"  # in the sweep's directory, where --config-dir finds it
DIRECTORY = "directory"  # a trial's own attribute in the study: the name of its run directory
SHOWN = 10  # trials in the table
ATTRIBUTES = Whole(
    settings=Whole({"search.objective": choice("val/accuracy", "val/loss")}),
    command=TEXT,
    groups={OTHERS: TEXT},
    defaults=TEXT,
)
NAMES = (*PLACES, *LABELS)  # settings that only say where a run lies and what it is called


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Raises: SettingError, for whatever SQLite and Optuna raise about a file that is damaged, or holds no search."""
    try:
        yield
    except (SettingError, OSError):
        raise
    except Exception as error:  # SQLAlchemy's, Optuna's, and Python's own for what is not where it should be
        reason = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
        problem = f"is damaged, or holds no search of mnist-train's ({type(error).__name__}: {reason}): restore it"
        raise SettingError("sweep", os.path.relpath(path), problem) from error


def open_study(path: Path, direction: Direction | None = None) -> tuple["Study", "RDBStorage"]:
    """Opens the study in a file; where a direction is given, makes a new one there.

    Raises:
        SettingError: there is another file, or a damaged one.
    """
    import optuna
    from sqlalchemy import URL  # Optuna's own

    # Of a URL made by hand, a ? or a % in the path would be something else.
    url = URL.create("sqlite", database=str(path.absolute())).render_as_string()
    if direction is not None:
        storage = optuna.storages.RDBStorage(url)
        return optuna.create_study(storage=storage, study_name="search", direction=direction), storage
    if not path.is_file():  # a pipe would be waited for
        raise SettingError("sweep", os.path.relpath(path), "is no ordinary file: remove it, or give another sweep")
    with damage(path):
        with closing(sqlite3.connect(path)) as database:  # Optuna makes what is missing, and does not see what is wrong
            (state,) = database.execute("pragma quick_check").fetchone()
            database.execute("select 1 from studies")
            orphan = database.execute("pragma foreign_key_check").fetchone()
            twice = database.execute("select number from trials group by number having count(*) > 1").fetchone()
        if state != "ok":
            raise ValueError(state)
        if orphan is not None:
            raise ValueError(f"a row of {orphan[0]} belongs to one of {orphan[2]} that is missing")
        if twice is not None:  # of which Optuna shows one
            raise ValueError(f"two trials have the number {twice[0]}")
        storage = optuna.storages.RDBStorage(url)
        study = optuna.load_study(study_name="search", storage=storage)
        _check(study)
        return study, storage


def _check(study: "Study") -> None:
    """Raises: whatever SQLite, Optuna or Python raise of a study of which a part is lost or something else."""
    import optuna

    _ = study.direction, study.user_attrs  # each is read only when it is asked for
    trials = study.get_trials(deepcopy=False)
    if [trial.number for trial in trials] != [*range(len(trials))]:
        raise ValueError("a trial is missing")
    optuna.create_study().add_trials(trials)  # which looks at those that ended; reading them from a file does not
    for trial in trials:
        for name, distribution in trial.distributions.items():
            distribution.to_internal_repr(trial.params[name])  # raises for what is none of its values
    if len({frozenset(trial.params) for trial in trials}) > 1:
        raise ValueError("its trials are not all of the same settings")
    values = (value for trial in trials for value in (*(trial.values or ()), *trial.intermediate_values.values()))
    # SQLite stores a text there too; and what is not finite, a search never notes.
    if wrong := [value for value in values if not (isinstance(value, float | int) and math.isfinite(value))]:
        raise ValueError(f"{wrong[0]!r} is no finite number")


def known_of(study: "Study") -> dict[str, Any]:
    """What a search says of itself: its settings, command, groups and defaults.

    Raises:
        SettingError: it does not.
    """
    found = study.user_attrs
    if (problem := fault(found, ATTRIBUTES)) is not None:
        raise SettingError("sweep", STUDY, f"is damaged ({problem}): restore it")
    return dict(found)


def close(storage: "RDBStorage") -> None:
    storage.remove_session()
    storage.engine.dispose()


def trials_of(study: "Study") -> "dict[str, FrozenTrial]":
    """The trials by their directories' names; where one failed and was tried again, the last try.

    Raises:
        SettingError: a name is not one that a search gives, so it may lead out of the sweep's directory.
    """
    trials = {str(trial.user_attrs.get(DIRECTORY)): trial for trial in study.get_trials(deepcopy=False)}
    for name in trials:
        if not re.fullmatch(r"trial=\d+", name):
            raise SettingError("sweep", STUDY, f"is damaged: it names a trial {name!r}, which is no trial=NUMBER")
    return trials


def counts(study: "Study") -> str:
    """How many trials came to what end."""
    found = Counter(trial.state.name for trial in trials_of(study).values())
    said = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
    return ", ".join(f"{found[state]} {word}" for state, word in said.items() if found[state] or word == "complete")


def conclude(directory: Path, show: Callable[..., object] = lambda *_, **__: None) -> None:
    """Shows the best trials as a table; then writes the best settings so far as an experiment, and a plot.

    Args:
        directory: of the search.
        show: takes what `rich.console.Console.print` takes.

    Raises:
        SettingError: the study, or what it says of the best run, cannot be read.
    """
    # Here, because they import Matplotlib and Optuna, which a sweep that is no search does without.
    from mnist_mlp.drawing.figure import png, svg
    from mnist_mlp.sweeps.search_figure import draw

    study, storage = open_study(directory / STUDY)
    try:
        with damage(directory / STUDY):
            trials, known = trials_of(study), known_of(study)
            figure = draw(study, known["settings"]["search.objective"], list(trials.values()))
            lines: list[Table | Text] = [Text(f"{len(trials)} trials: {counts(study)}")]
            if ranked := ranking(study):
                lines.insert(0, _table(study, ranked[:SHOWN]))
            show(Group(*lines))
            if ranked:
                place = shlex.quote(os.path.relpath(directory))
                command = f"mnist-train --config-dir {place} experiment={BEST.stem}"
                show(Text(f"Best settings: {command}"), soft_wrap=True)  # whole, to be copied
            for kind, save in (("png", png), ("svg", svg)):
                durable_write(directory / f"search.{kind}", save(figure))
            if ranked:
                write_best(study, directory)
    finally:
        close(storage)


def ranking(study: "Study") -> "list[FrozenTrial]":
    """The complete trials, the best first; of a tie the earliest."""
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def _table(study: "Study", ranked: "list[FrozenTrial]") -> Table:
    objective = study.user_attrs["settings"]["search.objective"]
    settings = list(ranked[0].params)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    table.title = "the best trials"
    for column in ("trial", objective, *(name.rpartition(".")[2] for name in settings)):
        table.add_column(column, justify="right" if column != "trial" else "left")
    for trial in ranked:
        name = trial.user_attrs[DIRECTORY].removeprefix("trial=")
        table.add_row(name, f"{trial.value:.4f}", *(str(trial.params[name]) for name in settings))
    return table


def write_best(study: "Study", directory: Path) -> None:
    """Writes the best trial's settings as an experiment file, with only what differs from the defaults."""
    known, trial = known_of(study), ranking(study)[0]
    run = directory / trial.user_attrs[DIRECTORY]
    config, record = load_settings(run, "sweep"), read_record(run)
    objective, images = known["settings"]["search.objective"], config.data.validation_size
    header = [
        "@package _global_",
        f"mnist-train --config-dir {os.path.relpath(directory)} experiment={BEST.stem}",
        "",
        f"{run.name}, the best of {len(trials_of(study))} trials ({counts(study)}) of",
        f"  {known['command']}",
        f"{objective}={trial.value!r} in the best of {record['epochs']} epochs, in {record['wall_seconds']:.1f} s,",
        f"on {images:,} of the training images. With data.validation_size=null they are trained on too, and the",
        "official test images are the validation set again.",
    ]
    stated = differences(config, known["defaults"])
    if known["groups"]:
        stated = {"defaults": [{f"override /{group}": option} for group, option in known["groups"].items()], **stated}
    # A command may have a line break in it, after which nothing must stand outside of the comment.
    comment = (line for entry in header for line in entry.splitlines() or [""])
    text = "".join(f"# {line}".rstrip() + "\n" for line in comment) + OmegaConf.to_yaml(OmegaConf.create(stated))
    (directory / BEST).parent.mkdir(exist_ok=True)
    durable_write(directory / BEST, text.encode())


def differences(config: DictConfig, defaults: str) -> dict[str, Any]:
    """What to state, nested, so that the defaults (YAML, with their interpolations) become the settings of `config`.

    A setting that is computed from another one is stated only where that does not bring it about.
    """
    composed, stated = OmegaConf.create(defaults), OmegaConf.create()
    wanted = {name: value for name, value in flatten(OmegaConf.to_container(config)).items() if name not in NAMES}
    for computed in (False, True):
        written = flatten(OmegaConf.to_container(composed))
        values = flatten(OmegaConf.to_container(composed, resolve=True))
        for name, value in wanted.items():
            if ("${" in str(written.get(name))) == computed and (name not in values or values[name] != value):
                for target in (composed, stated):
                    OmegaConf.update(target, name, value, force_add=True)
    return {str(name): node for name, node in stated.items()}
