"""The `logger` group: Lightning's loggers, each told of the settings, every epoch's row and the test results."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from mnist_mlp.classifier import Classifier
from mnist_mlp.run.directory import RunDirectory
from mnist_mlp.run.metrics import Row
from mnist_mlp.settings import SettingError

# What Lightning's loggers import, which is no part of this package's dependencies.
PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml", "NeptuneLogger": "neptune"}
# Arguments that take the name of a run to go on with there.
IDS = ("run_id", "id")


def loggers_of(config: DictConfig) -> dict[str, DictConfig]:
    """The loggers that a configuration names with a `_target_`, by name; this package's own TensorBoard is none.

    Raises:
        SettingError: one is no such entry, or takes a package that is not installed.
    """
    found = {}
    for name, entry in config.logger.items():
        if entry is None or (name == "tensorboard" and isinstance(entry, bool)):
            continue
        if not isinstance(entry, DictConfig) or "_target_" not in entry:
            raise SettingError(f"logger.{name}", entry, "must have a _target_, the class of a Lightning logger")
        package = PACKAGES.get(str(entry["_target_"]).rpartition(".")[2])
        if package is not None and importlib.util.find_spec(package) is None:
            raise SettingError("logger", name, f"takes a package that is not installed: pip install {package}")
        found[str(name)] = entry
    return found


def _mlflows_own_store() -> str:
    """What MLflow uses where nothing is said, $MLFLOW_TRACKING_URI first. Lightning's logger would take ./mlruns, a
    kind of store that MLflow 3 refuses."""
    uri: str = importlib.import_module("mlflow").get_tracking_uri()
    return uri


class Loggers(Callback):
    """Tells the loggers. What Lightning itself would send them, step by step, they do not get from `Classifier`.

    A run that is resumed goes on in a logger that takes the name of an earlier run, such as Weights & Biases' and
    MLflow's, whose names `run.json` keeps; any other is told of the earlier epochs again.

    Args:
        config, run: of the run.
        rows: gives the epochs of earlier sessions, once training starts.

    Attributes:
        all: the loggers.

    Raises:
        SettingError: one cannot be made.
    """

    def __init__(self, config: DictConfig, run: RunDirectory, rows: Callable[[], list[Row]]) -> None:
        self.config, self.run, self.rows = config, run, rows
        self.known: dict[str, str] = run.read_record().get("loggers", {})
        self.named: dict[str, Logger] = {}
        self._goes_on: set[str] = set()
        self._told: set[str] = set()
        # As Lightning has it, loggers hear nothing of fast_dev_run.
        for name, entry in loggers_of(config).items() if not config.trainer.get("fast_dev_run") else ():
            arguments = inspect.signature(get_class(entry["_target_"])).parameters
            more: dict[str, Any] = {}
            place = arguments.get("save_dir")
            if place is not None and place.default in (inspect.Parameter.empty, ".") and "save_dir" not in entry:
                more["save_dir"] = str(run.path)
            if "tracking_uri" in arguments and entry.get("tracking_uri") is None:
                more["tracking_uri"] = _mlflows_own_store()
            argument = next((argument for argument in IDS if argument in arguments), None)
            if argument is not None and argument not in entry:
                self._goes_on.add(name)
                more |= {argument: self.known[name]} if name in self.known else {}
            with self._reaching(name):
                logger = instantiate(entry, _convert_="all", **more)
                getattr(logger, "experiment", None)  # as Lightning asks for it, where a refusal would be a traceback
            if not isinstance(logger, Logger):
                raise SettingError(f"logger.{name}", entry["_target_"], "is no Lightning logger")
            self.named[name] = logger

    @property
    def all(self) -> list[Logger]:
        return list(self.named.values())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settings: Any = OmegaConf.to_container(self.config)
        for name, logger in self.named.items():
            if name in self._goes_on and name in self.known:
                continue
            with self._reaching(name):
                logger.log_hyperparams(settings)
                if name in self._goes_on:
                    self.known[name] = str(getattr(logger, "run_id", None) or logger.version)
            for row in self.rows():
                self._tell(name, row)
        self.run.update_record(loggers=self.known or None)

    def epoch(self, trainer: Trainer, classifier: Classifier, row: Row, best: Row) -> None:
        """Tells of one epoch, a row of `metrics.csv`."""
        for name in self.named:
            self._tell(name, row)

    def _tell(self, name: str, row: Row) -> None:
        self._log(name, {column: value for column, value in row.items() if column != "epoch"}, int(row["epoch"]))

    def _log(self, name: str, metrics: dict[str, float], step: int) -> None:
        with self._reaching(name):
            self._told.add(name)
            self.named[name].log_metrics(metrics, step)
            self.named[name].save()

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """One sentence where a logger refuses, such as one of a service that nobody has logged in to."""
        try:
            yield
        except (SettingError, OSError):  # what the disk refuses has a sentence of its own
            raise
        except Exception as error:  # whatever their packages raise
            cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
            why = " ".join(str(cause).split())
            raise SettingError(f"logger.{name}", self.config.logger[name]["_target_"], f"refused ({why})") from error

    def results(self, test: dict[str, dict[str, float]], epoch: int) -> None:
        """Tells of the test results, such as `test/last/accuracy`, at the last epoch."""
        flat = {f"test/{which}/{name}": value for which, found in test.items() for name, value in found.items()}
        for name in self.named:
            self._log(name, flat, epoch)

    @contextmanager
    def closing(self) -> Iterator["Loggers"]:
        """Ends their runs, so that the next run of this process is another one there too."""
        status = "failed"
        try:
            yield self
            status = "success"
        finally:
            # Asking one that was told nothing for its experiment would begin a run there, or be refused a second time.
            for logger in [self.named[name] for name in self.named if name in self._told]:
                logger.finalize(status)
                finish = getattr(getattr(logger, "experiment", None), "finish", None)
                if callable(finish):  # of Weights & Biases
                    finish()
