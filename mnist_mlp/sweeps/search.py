"""`mnist-train -m search=tpe`: better settings, looked for by Optuna, each trial a job of a sweep.

The study lies in the sweep's directory and is written before a trial starts and when it ends, so that a search goes on
where it was killed. A trial's values depend only on the study and on (seed, trial): with one job at a time a search is
repeatable, also where it was killed; with more jobs it depends on which trial ends first. Optuna is imported inside
functions: that takes a second, which a command that does not search does not spend.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mnist_mlp.run.directory import RunDirectory
from mnist_mlp.run.identity import other_settings, was_run_with
from mnist_mlp.run.records import Epochs, read_record
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import (
    NUMBER,
    SEARCH_RULES,
    TRUTH,
    SettingError,
    as_override,
    check_rules,
    flatten,
    in_callback,
    no_such_setting,
    rules_of,
    settle,
    without_hydra,
)
from mnist_mlp.sweeps.compose import Composer
from mnist_mlp.sweeps.jobs import Job
from mnist_mlp.sweeps.study import (
    DIRECTORY,
    NAMES,
    STUDY,
    Direction,
    close,
    counts,
    damage,
    known_of,
    open_study,
    ranking,
    trials_of,
    write_best,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

INTERVALS = ({"low", "high"}, {"low", "high", "log"})
DIGITS = 4  # of a value from an interval: nobody types, or needs, the others

# Settings that are not searched: trials that differ in one of these could not be compared, or told apart.
FIXED = (*NAMES, "data.test_size", "data.validation_size", "data.split_seed", "data.eval_batch_size")


class Trial(NamedTuple):
    """One point of the space: the name of its directory, and the values to try as overrides."""

    name: str
    overrides: list[str]


class CheckSearch(Callback):
    """Hydra callback: refuses a search that cannot be made before there is a directory for it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with in_callback():
            if config.get("search"):
                raise SettingError("search", config.hydra.runtime.choices.search, "is a sweep of trials: add -m")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with in_callback():
            if config.get("search"):
                check_search(config)


def check_search(config: DictConfig) -> None:
    """Raises: SettingError, where this composed configuration of a sweep asks for a search that cannot be made."""
    check_rules(config, SEARCH_RULES)
    chosen = config.hydra.runtime.choices["hydra/launcher"]
    if chosen != "process":
        raise SettingError("hydra/launcher", chosen, "must be process for a search, which starts and stops its trials")
    if config.data.get("validation_size") is None:
        problem = "must be a number for a search: the official test images may not decide about settings"
        raise SettingError("data.validation_size", None, problem)
    space = read_space(config)
    for override in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
        name, _, value = str(override.input_line).partition("=")
        if override.is_sweep_override():
            raise SettingError(name, value, "must be one value: a search varies what is in search.space only")
        if override.key_or_group in space:
            problem = f"is what the search looks for: leave it out, or say search.space.{override.key_or_group}=null"
            raise SettingError(name, value, problem)


def read_space(config: DictConfig) -> dict[str, dict[str, Any]]:
    """What is searched, by setting: `choices`, or `low`, `high`, `log` and `whole` (only whole numbers are tried).

    Raises:
        SettingError: there is no such setting, or it cannot take every value of its interval or choices.
    """
    container: Any = OmegaConf.to_container(without_hydra(config))
    known, rules = flatten(container), rules_of(container)
    space = dict(_dimensions(container["search"]["space"] or {}))
    for setting, dimension in space.items():
        where = f"search.space.{setting}"
        if setting in FIXED:
            raise SettingError(where, as_override(dimension), "cannot be searched: the trials could not be compared")
        if setting not in known:
            settings = [name for name in known if name not in FIXED and not name.startswith("search.")]
            raise SettingError(where, as_override(dimension), no_such_setting(setting, settings))
        values = _choices(where, dimension) if "choices" in dimension else _interval(where, dimension, known[setting])
        for name, value in values:
            if setting in rules and not rules[setting].accepts(value):
                raise SettingError(name, as_override(value), f"{setting} must be {rules[setting].wanted}")
    if not space:
        raise SettingError("search.space", "{}", "must hold a setting, such as search.space.optimizer.lr")
    return space


def _choices(where: str, dimension: dict[str, Any]) -> list[tuple[str, Any]]:
    """Checks a list of choices; returns each with the name to call it by."""
    values = [(f"{where}.choices", value) for value in dimension["choices"]]
    if not values:
        raise SettingError(f"{where}.choices", "[]", "must have at least one value")
    return values


def _interval(where: str, dimension: dict[str, Any], usual: Any) -> list[tuple[str, Any]]:
    """Checks and completes an interval; returns its ends, each with its name. `usual` is the setting's default."""
    ends = [(f"{where}.{name}", dimension[name]) for name in ("low", "high")]
    low, high, log = dimension["low"], dimension["high"], dimension.setdefault("log", False)
    for name, value in ends:
        if not NUMBER.accepts(value) or not math.isfinite(value):
            raise SettingError(name, as_override(value), "must be a number")
    if low >= high:
        raise SettingError(f"{where}.low", low, f"must be below {where}.high={high}")
    if not TRUTH.accepts(log):
        raise SettingError(f"{where}.log", as_override(log), f"must be {TRUTH.wanted}")
    if log and low <= 0:
        raise SettingError(f"{where}.low", low, "must be above 0 on a logarithmic scale")
    dimension["whole"] = all(type(value) is int for value in (low, high, usual))
    return ends


def _dimensions(node: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each setting in the nested `search.space`; null leaves one out."""
    for key, value in node.items():
        setting, keys = f"{prefix}{key}", set(value) if isinstance(value, dict) else set()
        if keys and not keys & {"low", "high", "log", "choices"}:
            yield from _dimensions(value, f"{setting}.")
        elif keys in INTERVALS or (keys == {"choices"} and isinstance(value["choices"], list)):
            yield setting, value
        elif value is not None:
            problem = "must be an interval, such as {low: 0.1, high: 0.5}, or choices, such as {choices: [1, 2]}"
            raise SettingError(f"search.space.{setting}", as_override(value), problem)


class Search:
    """A source of jobs, which are the trials of a study: says what to try next, and takes note of what came of it.

    Only the process that holds the sweep's lock may have one. A trial that the study calls running was therefore cut
    short: it is resumed, with the same values in the same directory. Each command tries a trial that failed again,
    unless its loss was not finite.

    Args:
        composer: makes the jobs of the sweep, whose configuration is checked.
        overrides: of its command line.

    Raises:
        SettingError: the directory holds something else.
    """

    def __init__(self, composer: Composer, overrides: Sequence[str]) -> None:
        config, loader = composer.config, composer.loader
        self.settings, self.seed, self.directory = config.search, config.seed, composer.directory
        self.jobs: list[Job] = []
        self._composer = composer
        self.direction: Direction = "minimize" if self.settings.objective == "val/loss" else "maximize"
        self.space = read_space(config)
        # A trial is a run like any other, composed without the search group: what that group says of a run is added.
        self.base = [override for override in overrides if not override.lstrip("+~").startswith(("search=", "search."))]
        plain, searched = loader.load_sweep_config(config, self.base), _settings(config)
        for name, (_, value) in other_settings(_settings(plain), searched).items():
            if not name.startswith("search."):
                self.base.append(f"{name}={as_override(value)}")
        chosen, usual = plain.hydra.runtime.choices, loader.load_sweep_config(config, []).hydra.runtime.choices
        groups = {
            group: chosen[group]
            for group, option in usual.items()
            if "/" not in group and group not in ("experiment", "search") and chosen[group] != option
        }
        defaults = loader.load_sweep_config(config, [f"{group}={option}" for group, option in groups.items()])
        stated = [str(name) for name in defaults if name not in ("hydra", "search", *NAMES)]
        left_out = (*NAMES, *self.space, "search.trials")
        self.study, self.storage = self._open(
            {
                "settings": {name: value for name, value in searched.items() if name not in left_out},
                "command": shlex.join(["mnist-train", "-m", *overrides]),
                "groups": groups,
                "defaults": OmegaConf.to_yaml(OmegaConf.masked_copy(defaults, stated)),  # with its interpolations
            }
        )
        self._seen: dict[str, int] = {}  # how many epochs of a trial were looked at
        with damage(self.directory / STUDY):
            self._unfinished = list(self._take_up())

    def _open(self, attributes: Mapping[str, Any]) -> tuple["Study", "RDBStorage"]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.directory / STUDY
        if not os.path.lexists(path):
            if any(self.directory.glob("*/run.json")):
                raise SettingError(
                    "sweep", os.path.relpath(self.directory), "holds a sweep that is no search: give another name"
                )
            temporary = path.with_name(f".{STUDY}.tmp")
            temporary.unlink(missing_ok=True)
            study, storage = open_study(temporary, self.direction)
            for name, value in attributes.items():
                study.set_user_attr(name, value)
            close(storage)
            temporary.replace(path)
        study, storage = open_study(path)
        others = other_settings(known_of(study)["settings"], attributes["settings"])
        if others:
            problem = f"holds a search that {was_run_with(others)}: keep that, or give another name"
            raise SettingError("sweep", os.path.relpath(self.directory), problem)
        return study, storage

    def _take_up(self) -> Iterator[Trial]:
        """The trials that were cut short, and those that failed and might complete when they are tried again."""
        from optuna.trial import TrialState

        for name, trial in trials_of(self.study).items():
            if trial.state == TrialState.FAIL:
                record = read_record(self.directory / name)
                if record.get("status") == "completed" or str(record.get("error")).startswith("NonFiniteLossError"):
                    continue  # it would be the same again
                self._add(name, trial.params)
            if trial.state in (TrialState.RUNNING, TrialState.FAIL):
                yield Trial(name, self._overrides(trial.params))

    def next_job(self) -> Job | None:
        while (trial := self.ask()) is not None:
            job = self._composer.job([*self.base, *trial.overrides], len(self.jobs), trial.name)
            job.note = " ".join(trial.overrides)
            self.jobs.append(job)
            if job.state != "completed":
                return job
            self.tell(job)  # it completed just before a kill, and the study does not know yet
        return None

    def ask(self) -> Trial | None:
        """The next trial, which the study then calls running; None where there are as many trials as were wanted."""
        if self._unfinished:
            return self._unfinished.pop(0)
        count = len(trials_of(self.study))
        if count >= self.settings.trials:
            return None
        import optuna

        seed = stream_seed(self.seed, "search", count) % 2**32
        sampler = (
            optuna.samplers.RandomSampler(seed)
            if self.settings.sampler == "random"
            else optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.settings.random_trials)
        )
        # Asked of a copy in memory: a kill would leave a trial with half its values in the study itself.
        copy = optuna.create_study(direction=self.direction, sampler=sampler)
        copy.add_trials(self.study.get_trials(deepcopy=False))
        found = copy.ask(self._distributions()).params
        params = {name: _rounded(value, self.space[name]) for name, value in found.items()}
        trial = Trial(f"trial={count:03d}", self._overrides(params))
        self._add(trial.name, params)
        return trial

    def _add(self, name: str, params: dict[str, Any]) -> None:
        from optuna.trial import TrialState, create_trial

        running = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=self._distributions(),
            user_attrs={DIRECTORY: name},
        )
        self.study.add_trial(running)

    def _distributions(self) -> "dict[str, BaseDistribution]":
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {}
        for name, dimension in self.space.items():
            if "choices" in dimension:
                found[name] = CategoricalDistribution([_scalar(value) for value in dimension["choices"]])
            else:
                kind = IntDistribution if dimension["whole"] else FloatDistribution
                found[name] = kind(dimension["low"], dimension["high"], log=dimension["log"])
        return found

    def _overrides(self, params: Mapping[str, Any]) -> list[str]:
        choices = {
            name: next(value for value in dimension["choices"] if _scalar(value) == params[name])
            for name, dimension in self.space.items()
            if "choices" in dimension
        }
        return [f"{name}={as_override(choices.get(name, params[name]))}" for name in self.space]

    def should_stop(self, job: Job) -> bool:
        """Whether a running trial is to be stopped, which the study then calls pruned.

        Looked at after each epoch but the last, so that what is pruned does not depend on when this is called.
        """
        import optuna
        from optuna.trial import TrialState

        if not self.settings.prune:
            return False
        values = self._objective(job)
        if len(values) == self._seen.get(job.name, 0):
            return False
        trial = trials_of(self.study)[job.name]
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=self.settings.prune_after_trials, n_warmup_steps=self.settings.prune_after_epochs
        )
        # The last that an earlier process noted is looked at again: it may have been killed in between.
        first = self._seen.get(job.name) or max(1, trial.last_step or 1) - 1
        for epoch, value in list(enumerate(values, 1))[first:]:
            if not math.isfinite(value):
                break
            self.storage.set_trial_intermediate_value(self._id(trial), epoch, value)
            now = self.study.get_trials(deepcopy=False)[trial.number]
            if epoch < job.epochs and pruner.prune(self.study, now):
                self.study.tell(trial.number, state=TrialState.PRUNED)
                return True
        self._seen[job.name] = len(values)
        return False

    def _objective(self, job: Job) -> list[float]:
        epochs = Epochs(job.path)
        return epochs[self.settings.objective].tolist() if len(epochs) else []

    def _id(self, trial: "FrozenTrial") -> int:
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, trial.number)

    def tell(self, job: Job) -> None:
        """Notes what came of a trial, and sets the job's state to `pruned` where the trial was pruned.

        An interrupted one stays as it is in the study, and so is resumed.
        """
        from optuna.trial import TrialState

        trial = trials_of(self.study)[job.name]
        if trial.state == TrialState.RUNNING and job.state == "completed":
            self.should_stop(job)  # its last epochs may not have been looked at
            trial = trials_of(self.study)[job.name]
        if trial.state == TrialState.PRUNED:
            job.state = "pruned"
            with RunDirectory(job.path) as run:
                if run.read_record().get("status") == "interrupted":
                    problem = f"the best {self.settings.objective} was worse than the median of the complete trials'"
                    run.update_record(error=f"pruned after epoch {trial.last_step}: {problem}")
        elif job.state == "completed":
            values = self._objective(job)
            if all(map(math.isfinite, values)):
                self.study.tell(trial.number, max(values) if self.direction == "maximize" else min(values))
                if ranking(self.study)[0].user_attrs[DIRECTORY] == job.name:
                    write_best(self.study, self.directory)
            else:
                job.state, job.cause = "failed", f"{self.settings.objective} is not finite"
                self.study.tell(trial.number, state=TrialState.FAIL)
        elif job.state == "failed":
            self.study.tell(trial.number, state=TrialState.FAIL)

    def plan(self) -> str:
        """How far the search is, in a line."""
        return f"{len(trials_of(self.study))} of {self.settings.trials} trials: {counts(self.study)}"

    result = plan

    def is_over(self) -> bool:
        from optuna.trial import TrialState

        states = [trial.state for trial in trials_of(self.study).values()]
        return len(states) >= self.settings.trials and TrialState.RUNNING not in states


def _settings(config: DictConfig) -> dict[str, Any]:
    """The run that a composed configuration asks for, as {"optimizer.lr": 0.001, ...}."""
    HydraConfig.instance().set_config(config)  # what ${hydra:...} looks at
    settings = without_hydra(config)
    settle(settings)
    return flatten(OmegaConf.to_container(settings))


def _scalar(value: Any) -> Any:
    """What a study takes for a choice: a list is a text in it, as JSON."""
    if isinstance(value, int | float | str) or value is None:
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _rounded(value: Any, dimension: Mapping[str, Any]) -> Any:
    if not isinstance(value, float) or "choices" in dimension:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), dimension["low"]), dimension["high"])
