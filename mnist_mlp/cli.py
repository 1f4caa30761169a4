"""`mnist-train`: one run, or with -m a sweep. `main` is the command, a Hydra application; `train` does the work."""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

from mnist_mlp.run.process import prepare_process
from mnist_mlp.run.signals import InterruptionError
from mnist_mlp.settings import (
    NonFiniteLossError,
    SettingError,
    load_yaml,
    one_sentence,
    refuse_derived,
    refuse_empty_groups,
    sentence,
)
from mnist_mlp.sweeps.launcher import register
from mnist_mlp.sweeps.local import ProcessLauncher
from mnist_mlp.sweeps.ray import RayLauncher
from mnist_mlp.sweeps.slurm import SlurmLauncher
from mnist_mlp.sweeps.table import summarise

log = logging.getLogger(__name__)


def main() -> None:
    """Runs `mnist-train`. Exit status: 0; 1 where a run failed or a setting cannot be used; 2 for an unknown flag."""
    here: set[Path] = set()  # the sweep whose jobs run in this process: Hydra's own launcher does that

    @hydra.main(version_base="1.3", config_path="pkg://mnist_mlp.conf", config_name="train")
    def job(config: DictConfig) -> dict[str, Any]:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            here.add(Path(HydraConfig.get().sweep.dir))
        return run_job(config)

    sys.path.append(os.getcwd())  # a user's own backbone, named by its _target_, may lie beside where they work
    logging.raiseExceptions = False  # a full disk is one sentence, without a traceback for each line of train.log
    with one_sentence():
        # argparse takes overrides on one side of a flag only; -m says nothing about what it stands beside.
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
        refuse_empty_groups(sys.argv[1:])
        register(main, ProcessLauncher, SlurmLauncher, RayLauncher)
        try:
            job()
        finally:
            for directory in here:
                with contextlib.suppress(SettingError):  # no job has left a record
                    summarise(directory)


def run_job(config: DictConfig) -> dict[str, Any]:
    """One Hydra job: a run in the directory that Hydra gives it."""
    mode = HydraConfig.get().mode
    place = Path(HydraConfig.get().runtime.output_dir if mode == RunMode.MULTIRUN else config.run_dir).absolute()
    # The record gets a relative path: one that is committed does not name directories of the machine it was made on.
    config.run_dir = str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)
    try:
        refuse_derived(config, HydraConfig.get())
        if (place / "config.yaml").exists() and "portable" not in load_yaml(place / "config.yaml", "run_dir"):
            config.portable = False  # the run is older than the setting: it goes on as it began
        prepare_process(config.get("threads"), config.get("portable") is True)
        from mnist_mlp.train import train  # here, because it imports PyTorch, which takes seconds that --help has not

        return train(config)
    except InterruptionError as error:
        log.error("%s: %s; the same command with this run_dir continues it", os.path.relpath(config.run_dir), error)
        sys.exit(error.exit_status)
    except (SettingError, NonFiniteLossError, InstantiationException) as error:
        log.error("%s", sentence(error))
        if mode == RunMode.RUN:
            sys.exit(1)  # said: Hydra would say it again
        raise


if __name__ == "__main__":
    main()
