"""`mnist-train`: one run, or with -m a sweep. `main` is the command, a Hydra application; `train` does the work."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_mlp.run.directory import refuse_other_settings
from mnist_mlp.run.process import prepare_process
from mnist_mlp.run.refused import remove_refused
from mnist_mlp.run.signals import InterruptionError
from mnist_mlp.settings import (
    DERIVED,
    SWEEP_RULES,
    NonFiniteLossError,
    SettingError,
    as_override,
    check,
    check_accelerator,
    check_rules,
    counted,
    defaults,
    divided,
    flatten,
    groups,
    in_callback,
    make_directory,
    name_sweep_jobs,
    one_sentence,
    options,
    refuse_derived,
    sentence,
    settle,
    without_hydra,
)
from mnist_mlp.surroundings import import_from_here, interruptible
from mnist_mlp.sweeps.launcher import register
from mnist_mlp.sweeps.local import ProcessLauncher
from mnist_mlp.sweeps.ray import RayLauncher
from mnist_mlp.sweeps.slurm import SlurmLauncher
from mnist_mlp.sweeps.table import summarise

PATHS = ("run_dir", "data.root", "hydra.run.dir", "hydra.sweep.dir")

log = logging.getLogger(__name__)


def main() -> None:
    """Runs `mnist-train`. Exit status: 0; 1 where a run failed or a setting cannot be used; 2 for an unknown flag."""
    here: set[Path] = set()  # the sweep whose jobs run in this process: Hydra's own launcher does that

    @hydra.main(version_base="1.3", config_path="pkg://mnist_mlp.conf", config_name="train")
    def job(config: DictConfig) -> dict[str, Any]:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            here.add(Path(HydraConfig.get().sweep.dir))
        return run_job(config)

    logging.raiseExceptions = False  # a full disk is one sentence, without a traceback for each line of train.log
    with interruptible(), one_sentence():
        import_from_here()
        sys.argv[1:] = arranged(sys.argv[1:])
        register(main, ProcessLauncher, SlurmLauncher, RayLauncher)
        try:
            job()
        finally:
            for directory in here:
                with contextlib.suppress(SettingError):  # no job has left a record
                    summarise(directory)
            remove_refused()


def arranged(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it: flags first, places quoted, each group with a name of an option.

    Raises:
        SettingError: a group is given what is no name of an option.
        SystemExit: there is no such flag, or flags that exclude each other; status 2.
    """
    flags, given = divided(arguments, "train")
    return [*flags, *map(_checked, OverridesParser.create().parse_overrides(list(map(_place, given))))]


def _place(override: str) -> str:
    """An override that names a place: with the home directory for ~, and quoted where Hydra's grammar asks for it."""
    name, equals, value = override.partition("=")
    plain = re.fullmatch(r"[^'\"\[{$(,][^$(,]*", value)  # neither quoted nor several
    if name.lstrip("+") not in PATHS or not plain or value.lower() == "null":
        return override
    return f"{name}{equals}{as_override(os.path.expanduser(value))}"


def _checked(override: Override) -> str:
    """An override as it is handed to Hydra: `scheduler=null` is `scheduler=none`.

    Raises:
        SettingError: it gives a group what is no name of an option, where Hydra itself fails.
    """
    line = str(override.input_line)
    given, _, text = line.partition("=")
    name = given.lstrip("+~")
    if name.startswith("hydra.sweeper.params."):
        setting = name.removeprefix("hydra.sweeper.params.")
        problem = f"on the command line a sweep is {setting}=VALUE,VALUE; in a file it may be in hydra.sweeper.params"
        raise SettingError(name, text, problem)
    own = re.match(r"hydra\.callbacks\.(\w+)(\.|$)", name)
    if own and own[1] in defaults()["hydra"]["callbacks"]:
        raise SettingError(name, text or None, "is a callback of mnist-train itself: give yours another name")
    if re.match(r"hydra\.(overrides|runtime)\b|hydra\.job\.(id|num|override_dirname|config_name)$", name):
        raise SettingError(name, text or None, "is what Hydra notes of a command by itself: leave it out")
    if override.is_delete():
        return _checked_removal(name, text, line)
    if not (name in groups() or "/" in name):
        return line
    known = options(name) if name in groups() else []
    if override.value() in (None, "") and "none" in known:
        return f"{given}=none"
    if override.value() in (None, "") and name == "logger":
        return f"{given}=[]"
    if not _may_choose(override):
        problem = f"is a group: choose one of its options, {', '.join(known)}" if known else "is a group of settings"
        raise SettingError(name, text or None, problem)
    return line


def _checked_removal(name: str, text: str, line: str) -> str:
    """As `_checked`, of `~name` or `~name=text`: `~logger` is `logger=[]`, since Hydra removes no list of options."""
    if name in ("callbacks", "logger") and not text:
        return f"{name}=[]"
    stated = flatten({key: node for key, node in defaults().items() if key not in ("defaults", "hydra", *groups())})
    if name != "metrics" and any(f"{setting}.".startswith(f"{name}.") for setting in stated):
        raise SettingError(name, None, "is part of every run, and cannot be removed: give it another value")
    return line


def _may_choose(override: Override) -> bool:
    """Whether Hydra understands the value as options of a group, or as settings of it."""
    value = override.value()
    if isinstance(value, dict) or (override.is_sweep_override() and not isinstance(value, ChoiceSweep)):  # glob(*)
        return True
    names = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    return all(isinstance(name, str | QuotedString) and name != "" for name in names)


class CheckBeforeRun(Callback):
    """Hydra callback: a single run is checked before Hydra makes its directory, so that a refused one leaves none.

    Of a sweep, what all its jobs share is checked as early; of what differs between them, each launcher takes care.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _checking(config):
            name_sweep_jobs(config)
            check_rules(config, SWEEP_RULES)
            with contextlib.suppress(OmegaConfBaseException):  # a setting without a value may get one from each job
                check(config)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _checking(config):
            settings = without_hydra(config)
            settings.run_dir = config.hydra.run.dir
            settle(settings)
            check_accelerator(settings.trainer.accelerator)
            refuse_other_settings(Path(settings.run_dir), settings)  # before PyTorch is imported, which takes seconds
            announce(settings)
            prepare_process(settings.get("threads"), settings.get("portable") is True)
            from mnist_mlp.classes import check_classes  # here, because it imports PyTorch too

            check_classes(settings)
            make_directory(Path(settings.run_dir))


@contextlib.contextmanager
def _checking(config: DictConfig) -> Iterator[None]:
    """Ends the process with a sentence where a setting cannot be used. What is refused of runs and sweeps alike is
    looked for first."""
    HydraConfig.instance().set_config(config)  # run_dir interpolates Hydra's choices
    with in_callback():
        refuse_derived(config, config.hydra)
        refuse_habits(config)
        refuse_namesakes(config)
        yield


def announce(settings: DictConfig) -> None:
    """Tells a terminal where the run lies and what it is, before seconds of silence."""
    if sys.stderr.isatty():
        epochs, images = settings.trainer.max_epochs, settings.data.get("dataset", settings.data.get("_target_"))
        print(
            f"{os.path.relpath(settings.run_dir)}: {settings.experiment}, {settings.network}, seed {settings.seed}, "
            f"{counted(epochs, 'epoch')}, on {images}, trainer.accelerator={settings.trainer.accelerator}; "
            "PyTorch is being loaded",
            file=sys.stderr,
        )


def refuse_habits(config: DictConfig) -> None:
    """Looks for what is usual with Hydra, and has another way here.

    Raises:
        SettingError: there is such a setting, or a sweep without a value.
    """
    hydra = config.hydra
    for name in ("launcher", "sweeper"):
        if not isinstance(hydra[name], DictConfig):
            raise SettingError(f"hydra.{name}", hydra[name], f"must be a group of settings: choose one by hydra/{name}")
    if hydra.job.chdir:
        problem = (
            "paths are relative to where the command is started: leave it out, and name places with run_dir or sweep"
        )
        raise SettingError("hydra.job.chdir", True, problem)
    if "run_dir" in config and not isinstance(config.run_dir, str | int | float):  # hydra.run.dir would be "None"
        raise SettingError(
            "run_dir", config.run_dir, "must be a text: leave it out for a name by date, experiment and seed"
        )
    given = {override.key_or_group: override for override in _overrides(config)}
    place = _value(given["hydra.run.dir"]) if "hydra.run.dir" in given else None
    job_of_sweep = place == "${run_dir}"  # as its launcher writes it
    if hydra.mode == RunMode.MULTIRUN:
        _refuse_in_a_sweep(given)
    elif not job_of_sweep:
        for name, override in given.items():
            if re.match(r"sweep$|hydra[./](launcher|sweep)", name):
                raise SettingError(name, _value(override), "is of a sweep, and this is a single run: add -m")
    if "run_dir" in given and place is not None and not job_of_sweep:
        raise SettingError("hydra.run.dir", place, "is the run's directory, and so is run_dir: give one of them")


def _refuse_in_a_sweep(given: Mapping[str, Override]) -> None:
    for name in ("run_dir", "hydra.run.dir"):
        if name in given:
            problem = "is of a single run: a sweep lies in logs/sweeps/NAME with sweep=NAME, or in hydra.sweep.dir"
            raise SettingError(name, _value(given[name]), problem)
    if "sweep" in given and given["sweep"].is_sweep_override():
        raise SettingError("sweep", _value(given["sweep"]), "names the whole sweep: give one name")
    if "sweep" in given and "hydra.sweep.dir" in given:
        place = _value(given["hydra.sweep.dir"])
        raise SettingError("hydra.sweep.dir", place, "is the sweep's directory, and sweep names it: give one of them")
    for name, override in given.items():
        if override.is_sweep_override() and not list(override.sweep_string_iterator()):
            raise SettingError(name, _value(override), "has no value: a sweep takes at least one")


def refuse_namesakes(config: DictConfig) -> None:
    """Looks for a user's file that Hydra would pass over, because one of this package has its name.

    Raises:
        SettingError: an option that was chosen is in --config-dir too.
    """
    own = next((one.path for one in config.hydra.runtime.config_sources if one.provider == "command-line"), None)
    if own and (file := Path(str(own)) / "train.yaml").exists():
        problem = "would be passed over, since this package's has its name: rename it, and give --config-name its name"
        raise SettingError("--config-dir", os.path.relpath(file), problem)
    for override in _overrides(config) if own else ():
        name = override.key_or_group
        if override.is_delete() or name not in groups():
            continue
        value = override.value()
        chosen = list(override.sweep_string_iterator()) if override.is_sweep_override() else value
        names = {str(one) for one in (chosen if isinstance(chosen, list) else [chosen])}
        for option in sorted(names & set(options(name))):
            file = Path(str(own)) / name / f"{option}.yaml"
            if file.exists():
                problem = f"is a file of this package, and {os.path.relpath(file)} would be passed over: rename that"
                raise SettingError(name, option, problem)


def _value(override: Override) -> str:
    return str(override.input_line).partition("=")[2]


def _overrides(config: DictConfig) -> Iterator[Override]:
    """What the command line and `hydra.sweeper.params` say."""
    params = config.hydra.sweeper.get("params") or {}
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what glob(*) finds
    yield from parser.parse_overrides([f"{name}={value}" for name, value in params.items()])
    given: Any = OmegaConf.to_container(config.hydra.overrides)  # as it was given: what it refers to may hold a =
    yield from parser.parse_overrides([*given["hydra"], *given["task"]])


def run_job(config: DictConfig) -> dict[str, Any]:
    """One Hydra job: a run in the directory that Hydra gives it."""
    single = HydraConfig.get().mode == RunMode.RUN  # `CheckBeforeRun` has checked it, and prepared this process
    place = Path(HydraConfig.get().runtime.output_dir).absolute()
    # The record gets a relative path: one that is committed does not name directories of the machine it was made on.
    config.run_dir = str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)
    try:
        if not single:
            refuse_derived(config, HydraConfig.get())
            prepare_process(config.get("threads"), config.get("portable") is True)
        for name in DERIVED:
            config[name] = config[name]  # as Hydra's choices are in this job
        from mnist_mlp.train import train  # here, because it imports PyTorch, which takes seconds that --help has not

        return train(config, checked=single)
    except InterruptionError as error:
        log.error("%s: %s; the same command with this run_dir continues it", os.path.relpath(config.run_dir), error)
        sys.exit(error.exit_status)
    except (SettingError, NonFiniteLossError, InstantiationException) as error:
        log.error("%s", sentence(error))
        if single:
            sys.exit(1)  # said: Hydra would say it again
        raise


if __name__ == "__main__":
    main()
