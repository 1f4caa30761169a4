"""What whoever knows Lightning tries with the two classes and with `mnist-train`'s settings: one row each."""

import csv
import json
import logging
import math
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Runner
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.tuner import Tuner
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mnist_mlp
from mnist_mlp import MLP, Classifier, MNISTDataModule
from mnist_mlp.evaluate import load
from mnist_mlp.run.checkpoint import weights_sha256
from mnist_mlp.run.records import Run
from mnist_mlp.run.signals import STOP_SIGNALS
from mnist_mlp.settings import SettingError, compose_config
from mnist_mlp.train import train
from mnist_mlp.transforms import Warp

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*number of training batches",
    "ignore:.*but have no `val",
    "ignore:.*_dataloader. to enable",
)

MINIBATCHES = 16  # of 64: 1,000 images


def rows(run_dir: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))


def trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**{**quiet, "enable_model_summary": False, "max_epochs": 1, **settings})


@pytest.fixture
def data(tiny_root: Path) -> MNISTDataModule:
    return MNISTDataModule(root=str(tiny_root), test_size=200, mean=0.1307, std=0.3081, eval_batch_size=100)


# The two classes by themselves.


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.layer(images.flatten(1)), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_data_module_works_with_any_module_and_classifier_with_any_batches(data: MNISTDataModule) -> None:
    fit = trainer(limit_val_batches=0)
    fit.fit(Plain(), data)
    assert fit.global_step == MINIBATCHES
    images, labels = torch.randn(64, 1, 28, 28), torch.arange(64) % 10
    fit = trainer(limit_val_batches=0)
    fit.fit(Classifier(MLP([8])), DataLoader(TensorDataset(images, labels), 16))
    assert fit.global_step == 4


def test_the_data_modules_habits(data: MNISTDataModule, tiny_root: Path) -> None:
    with pytest.raises(RuntimeError, match=r"MNISTDataModule has no images yet: call setup\(\)"):
        data.train_dataloader()
    assert repr(data) == "MNISTDataModule(MNIST: not set up)"
    data.prepare_data()
    data.setup("fit")
    assert repr(data) == str(data) == "MNISTDataModule(MNIST: 1,000 train, 350 validation, 200 test)"
    loader = data.train_dataloader()
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [64] * 15 + [40]
    assert (len(loader), len(loader.dataset), loader.batch_size, loader.drop_last) == (MINIBATCHES, 1000, 64, False)
    assert loader.dataset[0][0].shape == (1, 28, 28)
    predicted = trainer().predict(Classifier(MLP([8])), data)
    assert predicted is not None
    assert [batch.shape for batch in predicted] == [(100, 10)] * 2  # type: ignore[union-attr]
    assert data.hparams["test_size"] == 200
    for name in ("num_workers", "pin_memory", "shuffle"):
        with pytest.raises(SettingError, match=rf"data\.{name}=true: has no use where all images lie in memory"):
            MNISTDataModule(**{name: True})
    assert MNISTDataModule(num_workers=0).root is None
    with pytest.raises(SettingError, match=r"data\.batchsize=3: MNISTDataModule takes no such argument"):
        MNISTDataModule(batchsize=3)


def test_a_loop_of_ones_own_gets_the_epochs_that_a_trainer_gets(tiny_root: Path) -> None:
    settings: dict[str, Any] = {"root": str(tiny_root), "test_size": 200, "mean": 0.1307, "std": 0.3081}

    class Seen(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.labels: list[int] = []
            self.pixels = 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.labels += batch[1].tolist()
            self.pixels += batch[0].sum().item()
            return super().training_step(batch, batch_idx)

    seen = Seen()
    trainer(max_epochs=2, limit_val_batches=0).fit(seen, MNISTDataModule(**settings, transform=Warp(shift=2)))
    data = MNISTDataModule(**settings, transform=Warp(shift=2))
    data.setup()
    loader = data.train_dataloader()
    batches = [batch for _ in range(2) for batch in loader]
    assert [label for _, labels in batches for label in labels.tolist()] == seen.labels
    assert sum(images.sum().item() for images, _ in batches) == seen.pixels
    loader.set_epoch(0)
    assert torch.equal(next(iter(loader))[0], batches[0][0])


def test_learning_curves_are_of_nested_sets(tiny_root: Path) -> None:
    def images(size: int | None) -> Tensor:
        data = MNISTDataModule(root=str(tiny_root), test_size=200, train_size=size, batch_size=10)
        data.setup()
        return data.splits["train"][0]

    assert torch.equal(images(100), images(500)[:100])
    assert torch.equal(images(500), images(None)[:500])
    with pytest.raises(SettingError, match=r"data\.train_size=1001: must lie between 1 and 1,000"):
        images(1001)


class Watch(Callback):
    """What a callback sees at the ends of epochs."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(dict(trainer.callback_metrics))


def test_what_a_plain_trainer_shows_is_what_was_measured(data: MNISTDataModule, tmp_path: Path) -> None:
    watch, logger = Watch(), CSVLogger(tmp_path, name="", version="csv")
    fit = trainer(callbacks=[watch], logger=logger, log_every_n_steps=1)
    classifier = Classifier(MLP([8]))
    fit.fit(classifier, data)
    assert {"train/loss", "train/error", "val/loss", "val/accuracy", "lr"} <= watch.seen[0].keys()
    assert watch.seen[0]["train/loss"].item() == pytest.approx(classifier.measured["train/loss"])
    (validated,) = fit.validate(classifier, data, verbose=False)
    (tested,) = fit.test(classifier, data, verbose=False)
    assert validated["val/f1"] == pytest.approx(classifier.measured["val/f1"])
    assert tested["test/loss"] == pytest.approx(classifier.measured["test/loss"])
    logged = [row for row in rows(tmp_path / "csv") if row.get("train/loss")]
    assert float(logged[0]["train/loss"]) == pytest.approx(classifier.measured["train/loss"])
    assert "hidden" in (tmp_path / "csv" / "hparams.yaml").read_text()


def test_a_plain_checkpoint_is_loaded_without_its_backbone(data: MNISTDataModule, tmp_path: Path) -> None:
    classifier = Classifier(MLP([8, 4], dropout=0.1), average="macro")
    fit = trainer()
    fit.fit(classifier, data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert weights_sha256(again.state_dict()) == weights_sha256(classifier.state_dict())
    assert again.hparams["average"] == "macro"
    (result,) = trainer().test(again, data, verbose=False)
    assert "test/accuracy" in result
    fit = trainer()
    fit.fit(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), data)
    fit.save_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="holds no MLP: give load_from_checkpoint its module"):
        Classifier.load_from_checkpoint(tmp_path / "b.ckpt")
    own = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    Classifier.load_from_checkpoint(tmp_path / "b.ckpt", backbone=own)
    restored = MNISTDataModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert restored.test_size == 200


@pytest.mark.parametrize("steps", [None, "eager", "native"])
@pytest.mark.parametrize("grouped", [False, True])
def test_grouped_and_single_minibatches_give_the_same_bits(
    data: MNISTDataModule, steps: Any, grouped: bool, tmp_path: Path
) -> None:
    if grouped and steps is None:
        pytest.skip("groups take steps")
    torch.manual_seed(0)
    classifier = Classifier(MLP([16], dropout=0.2), steps=steps, seed=3, gradient_clip_val=1.0)
    data.group(5 if grouped else None)
    trainer(max_epochs=2).fit(classifier, data)
    torch.manual_seed(0)
    oracle, torch_oracle = MLP([16], dropout=0.2), Classifier(MLP([16], dropout=0.2), seed=3)
    torch_oracle.backbone = oracle
    torch.manual_seed(0)
    other = Classifier(MLP([16], dropout=0.2), steps="native" if steps == "native" else "eager", seed=3)
    other.gradient_clip_val = 1.0
    if other.native:
        other.native.clip_limit = 1.0
    data.group(64)
    trainer(max_epochs=2).fit(other, data)
    assert weights_sha256(classifier.state_dict()) == weights_sha256(other.state_dict())
    assert classifier.measured == pytest.approx(other.measured, rel=1e-12)


def test_fabric_and_the_tuner(data: MNISTDataModule) -> None:
    data.setup()
    fabric = Fabric(accelerator="cpu", devices=1)
    backbone = MLP([8])
    model, optimizer = fabric.setup(backbone, torch.optim.Adam(backbone.parameters()))
    loader = data.train_dataloader()
    with pytest.raises(TypeError, match="Only PyTorch DataLoader"):  # Lightning's own sentence
        fabric.setup_dataloaders(loader)
    orders = []
    for batches in (loader, fabric.setup_dataloaders(DataLoader(loader, batch_size=None))):  # two epochs
        order = []
        for images, labels in batches:
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(model(images), labels))
            optimizer.step()
            order += labels.tolist()
        orders.append(order)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    classifier = Classifier(MLP([8]))
    found = Tuner(trainer(max_epochs=5)).lr_find(classifier, data, num_training=20)
    assert found is not None
    assert classifier.lr == found.suggestion()
    assert classifier.configure_optimizers().param_groups[0]["lr"] == classifier.lr
    finder = LearningRateFinder(num_training_steps=20)
    trainer(callbacks=[finder]).fit(classifier, data)


# Flags of the Trainer: the steps that were made, and what the record says of them.

CUT = "trainer.limit_train_batches"
CALLBACK = "+callbacks.mine._target_="
FLAGS: list[tuple[list[str], int, list[str] | None]] = [
    ([], 3 * MINIBATCHES, None),
    (["+trainer.limit_train_batches=5"], 15, [CUT]),
    (["+trainer.limit_train_batches=0.5"], 24, [CUT]),
    (["+trainer.limit_train_batches=1"], 3, [CUT]),
    (["+trainer.limit_train_batches=1.0"], 3 * MINIBATCHES, None),
    (["+trainer.limit_val_batches=1"], 3 * MINIBATCHES, ["trainer.limit_val_batches"]),
    (["+trainer.limit_test_batches=1"], 3 * MINIBATCHES, ["trainer.limit_test_batches"]),
    (["+trainer.overfit_batches=2"], 6, ["trainer.overfit_batches"]),
    (["+trainer.fast_dev_run=true"], 1, ["trainer.fast_dev_run"]),
    (["+trainer.fast_dev_run=3", "logger=csv"], 3, ["trainer.fast_dev_run"]),
    (["+trainer.val_check_interval=7"], 3 * MINIBATCHES, None),
    (["+trainer.val_check_interval=0.3"], 3 * MINIBATCHES, None),
    (["+trainer.accumulate_grad_batches=4"], 3 * MINIBATCHES // 4, None),
    (["+trainer.accumulate_grad_batches=4", "trainer.max_steps=6"], 6, None),
    (["+trainer.precision=bf16-mixed"], 3 * MINIBATCHES, None),
    (["+trainer.precision=64-true"], 3 * MINIBATCHES, None),
    (["+trainer.precision=bf16-true"], 3 * MINIBATCHES, None),
    (["+trainer.detect_anomaly=true"], 3 * MINIBATCHES, None),
    (["+trainer.num_sanity_val_steps=2"], 3 * MINIBATCHES, None),
    (["+trainer.enable_model_summary=true"], 3 * MINIBATCHES, None),
    (["+trainer.reload_dataloaders_every_n_epochs=1"], 3 * MINIBATCHES, None),
    (["scheduler=one_cycle"], 3 * MINIBATCHES, None),
    (
        [
            "optimizer._target_=torch.optim.LBFGS",
            "~optimizer.weight_decay=0.0",
            "~optimizer.fused=true",
            "+optimizer.max_iter=2",
        ],
        3 * MINIBATCHES,
        None,
    ),
]


@pytest.mark.parametrize(("overrides", "steps", "cut_down"), FLAGS, ids=lambda value: str(value)[:60])
def test_flags_mean_minibatches(
    run: Runner, overrides: list[str], steps: int, cut_down: list[str] | None, tmp_path: Path
) -> None:
    extra = ["tensorboard.images_every=null"] if overrides != ["+trainer.limit_val_batches=1"] else []
    run_dir, record = run("model.hidden=[8]", *extra, *overrides)
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps
    assert record.get("cut_down") == cut_down
    assert record["status"] == "completed"
    assert Run(run_dir, "r", record, {}).completed == (cut_down is None)
    assert len(rows(run_dir)) == record["epochs"]
    assert math.isfinite(record["test"]["last"]["loss"])


REFUSED = [
    ("+trainer.limit_train_batches=0", "must be a whole number of batches of at least 1, or a fraction"),
    ("+trainer.limit_val_batches=0", "each epoch is validated"),
    ("+trainer.check_val_every_n_epoch=2", "must be 1: each epoch has its validation in metrics.csv"),
    ("+trainer.max_time=soon", "must be a time as DD:HH:MM:SS"),
    ("+trainer.enable_checkpointing=false", "must be true: a run is recorded by its checkpoints"),
    ("+trainer.logger=false", "is not taken from the configuration: loggers have a group, such as logger=csv"),
    ("+trainer.callbacks=[]", "is not taken from the configuration: callbacks have a group"),
    ("+trainer.plugins=[]", "is not taken from the configuration: its plugins write checkpoints"),
    ("+trainer.barebones=true", "must be false"),
    ("loss.label_smoothing=1.5", "must be a number of at least 0 and below 1"),
    ("loss.weight=[1,2]", "must be a list of ten numbers"),
    ("loss._target_=torch.nn.MSELoss", "must be an nn.Module from logits"),
    ("loss._target_=torch.nn.CrossEntropyLoss +loss.reduction=none", "gives something else: reduction=mean"),
    ("trainer.steps=native +trainer.limit_train_batches=3", "trainer.steps=auto does without"),
    ("trainer.steps=native loss.label_smoothing=0.1", "native steps are for cross-entropy without label smoothing"),
    ("trainer.steps=native callbacks=ema", "callbacks.ema (EMAWeightAveraging) looks at each"),
    ("trainer.steps=compiled scheduler=one_cycle", "scheduler.interval=step is for steps that Lightning makes"),
    ("callbacks=early_stopping callbacks.early_stopping.monitor=val_loss", "did you mean val/loss?"),
    ("+callbacks.lr={_target_: lightning.pytorch.callbacks.LearningRateMonitor} logger=[]", "add one with logger=csv"),
    ("+callbacks.x={_target_: torch.nn.Flatten}", "must be a Lightning Callback"),
    ("+callbacks.x={_target_: lightning.pytorch.callbacks.BackboneFinetuning}", "nothing would be left to train"),
    ("+callbacks.x={_target_: lightning.pytorch.callbacks.BatchSizeFinder}", "changes data.batch_size unrecorded"),
    ("+callbacks.x={_target_: lightning.pytorch.callbacks.GarbageCollector}", "has no GarbageCollector"),
    ("+logger.mine=true", "must have a _target_"),
    ("+metrics.accuracy={_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 10}", "its own"),
    ("+metrics.m={_target_: torchmetrics.classification.MulticlassConfusionMatrix, num_classes: 10}", "one number"),
    ("+data.num_workers=4", "has no use where all images lie in memory"),
    ("data.transform=flip", "must be null or build a callable"),
    ("data/transform=warp data.transform.shift=-1", "must be a number of at least 0"),
]


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED)
def test_what_cannot_be_done_is_refused_before_there_is_a_directory(
    tiny: list[str], tmp_path: Path, overrides: str, sentence: str
) -> None:
    words = overrides.replace("=", "\0", 1).split(" ") if "{" not in overrides else [overrides]
    if "{" in overrides and "} " in overrides:
        words = [overrides.partition("} ")[0] + "}", overrides.partition("} ")[2]]
    words = [word.replace("\0", "=") for word in words]
    with pytest.raises((SettingError, InstantiationException)) as refused:
        train(compose_config([*tiny, f"run_dir={tmp_path / 'run'}", *words]))
    cause = refused.value if isinstance(refused.value, SettingError) else refused.value.__cause__
    assert isinstance(cause, SettingError)
    assert sentence in str(cause)
    assert "\n" not in str(cause)
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_its_remedy(tiny: list[str], tmp_path: Path) -> None:
    for name in ("wandb", "mlflow"):
        try:
            __import__(name)
        except ImportError:
            with pytest.raises(SettingError, match=rf"logger={name}: takes a package that is not .*pip install {name}"):
                train(compose_config([*tiny, f"logger={name}", f"run_dir={tmp_path / 'run'}"]))


class Batches(Callback):
    """Reads each batch, as callbacks do."""

    seen: list[int] = []  # noqa: RUF012

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        _, labels = batch
        self.seen.append(len(labels))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert all(parameter.grad is not None for parameter in pl_module.parameters())


def test_a_callback_that_looks_at_batches_gets_minibatches_and_is_told_once(
    run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    Batches.seen.clear()
    with caplog.at_level(logging.INFO):
        _, record = run(f"{CALLBACK}{__name__}.Batches", "trainer.max_epochs=1")
    assert record["steps"] == "eager"
    assert Batches.seen == [64] * 15 + [40]
    assert caplog.text.count("callbacks.mine (Batches) looks at each") == 1
    assert record["weights_sha256"] == run("trainer.steps=eager", "trainer.max_epochs=1")[1]["weights_sha256"]


def test_overfitting_sees_the_same_images_each_epoch(data: MNISTDataModule) -> None:
    seen: list[Tensor] = []

    class Sums(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch[0].sum())

    trainer(max_epochs=3, overfit_batches=1, callbacks=[Sums()]).fit(Classifier(MLP([8])), data)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


def test_model_checkpoint_counts_steps_and_epochs(run: Runner) -> None:
    run_dir, _ = run("callbacks=model_checkpoint", "trainer.max_epochs=2")
    assert len(list((run_dir / "checkpoints" / "model_checkpoint").glob("epoch=*.ckpt"))) == 2
    target = "lightning.pytorch.callbacks.ModelCheckpoint"
    run_dir, _ = run(
        f"+callbacks.every={{_target_: {target}, every_n_train_steps: 10, save_top_k: -1}}", "trainer.max_epochs=2"
    )
    names = sorted(path.name for path in (run_dir / "checkpoints" / "every").iterdir())
    assert [name.partition("step=")[2] for name in names] == ["10.ckpt", "20.ckpt", "30.ckpt"]


class Fails(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise ZeroDivisionError("the user's own")


def test_a_users_own_error_is_not_hidden_by_a_checkpoint(run: Runner, tmp_path: Path) -> None:
    target = f"{{_target_: lightning.pytorch.callbacks.OnExceptionCheckpoint, dirpath: {tmp_path / 'a' / 'b'}}}"
    with pytest.raises(ZeroDivisionError, match="the user's own"):
        run(f"+callbacks.save={target}", f"{CALLBACK}{__name__}.Fails")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["on_exception.ckpt"]


AVERAGED = [
    "callbacks=ema",
    "+callbacks.swa={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 0.01, "
    "swa_epoch_start: 0.5}",
]


@pytest.mark.parametrize("callback", AVERAGED, ids=["ema", "swa"])
@pytest.mark.filterwarnings("ignore:Swapping scheduler", "ignore:.*lr_scheduler.step")
def test_averaged_weights_are_what_is_saved_and_tested(run: Runner, tiny_root: Path, callback: str) -> None:
    run_dir, record = run(callback, "trainer.max_epochs=4")
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert weights_sha256(last["state_dict"]) == record["weights_sha256"]
    backbone = load(run_dir / "checkpoints" / "last.ckpt")
    data = MNISTDataModule(root=str(tiny_root), test_size=200, mean=0.1307, std=0.3081)
    data.setup()
    images, labels = data.splits["test"]
    accuracy = (backbone(images).argmax(1) == labels).double().mean().item()
    assert record["test"]["last"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert record["weights_sha256"] != run("trainer.max_epochs=4", "trainer.steps=eager")[1]["weights_sha256"]


class StopsWithin(Callback):
    """As a Timer does whose time is up after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.steps


def test_a_part_of_an_epoch_is_not_recorded_as_one(run: Runner, tmp_path: Path) -> None:
    stop = f"+callbacks.stop={{_target_: {__name__}.StopsWithin, steps: "
    run_dir, record = run(f"{stop}20}}")
    assert (record["epochs"], record["cut_down"]) == (1, ["callbacks"])
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == MINIBATCHES
    assert weights_sha256(last["state_dict"]) == record["weights_sha256"]
    with pytest.raises(SettingError, match="stopped the run within its first epoch: nothing is kept"):
        run(f"{stop}3}}")


def test_max_time_ends_a_run_after_a_whole_epoch(run: Runner) -> None:
    _, record = run("+trainer.max_time={milliseconds: 1}", "trainer.max_epochs=50")
    assert (record["epochs"], record["cut_down"], record["steps"]) == (1, ["trainer.max_time"], "native")
    _, record = run("+trainer.max_time='00:01:00:00'", "trainer.max_epochs=2")
    assert "cut_down" not in record


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_progress_bars_are_allowed_and_change_no_bits(run: Runner, finished: Any, bar: str) -> None:
    _, record = run("experiment=dropout_as_run", f"+callbacks.bar._target_=lightning.pytorch.callbacks.{bar}")
    assert record["weights_sha256"] == finished[1]["weights_sha256"]


class Counts(TQDMProgressBar):
    """Notes of each call how far it is, and of how many."""

    seen: list[tuple[int, float]] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seen.append((self.train_progress_bar.n, self.train_progress_bar.total))


@pytest.mark.parametrize(
    ("overrides", "counted"),
    [
        (["data.batch_size=10"], [64, 100, 64, 100]),  # 1,000 images: groups of 64 minibatches, the last one of 36
        (["data.batch_size=10", "trainer.max_steps=170"], [64, 100, 64, 70]),
        (["data.batch_size=300", "+trainer.limit_train_batches=3"], [1, 2, 3, 1, 2, 3]),  # one by one
    ],
)
def test_progress_bars_count_minibatches(run: Runner, overrides: list[str], counted: list[int]) -> None:
    Counts.seen.clear()
    run(f"{CALLBACK}{__name__}.Counts", "trainer.max_epochs=2", *overrides)
    assert [done for done, _ in Counts.seen] == counted
    totals = [counted[len(counted) // 2 - 1], counted[-1]]
    assert [total for _, total in Counts.seen] == [total for total in totals for _ in range(len(counted) // 2)]


def test_the_profiler_reports(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run("+trainer.profiler=simple", "trainer.max_epochs=1")
    assert "FIT Profiler Report" in caplog.text
    with caplog.at_level(logging.INFO):
        run("+callbacks.summary._target_=lightning.pytorch.callbacks.ModelSummary", "trainer.max_epochs=1")
    assert "Total params" in caplog.text


def test_schedulers_step_as_lightning_says(run: Runner) -> None:
    run_dir, _ = run("scheduler=one_cycle", "scheduler.max_lr=0.01")
    rates = []
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=0.001)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=3 * MINIBATCHES)
    for step in range(3 * MINIBATCHES):
        if step % MINIBATCHES == 0:
            rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 3 * MINIBATCHES - 1:
            oracle.step()
    assert [float(row["lr"]) for row in rows(run_dir)] == pytest.approx(rates)
    run_dir, _ = run("scheduler=plateau", "+scheduler.monitor=train/loss")
    assert [float(row["lr"]) for row in rows(run_dir)] == [0.001] * 3


# Losses, transforms, metrics.


def test_the_loss_is_what_was_asked_for(run: Runner) -> None:
    _, record = run("loss.label_smoothing=0.1", "trainer.max_epochs=1")
    assert record["steps"] == "eager"
    target = "{_target_: torch.nn.CrossEntropyLoss, label_smoothing: 0.1}"
    _, other = run(f"loss={target}", "trainer.max_epochs=1")
    assert other["weights_sha256"] == record["weights_sha256"]
    assert other["test"]["last"]["loss"] == pytest.approx(record["test"]["last"]["loss"], rel=1e-5)
    weighted, _ = run("loss.weight=[1,1,1,1,1,1,1,1,1,5]", "trainer.max_epochs=1")
    again = Classifier.load_from_checkpoint(weighted / "checkpoints" / "last.ckpt")
    assert again.loss.weight.tolist() == [1.0] * 9 + [5.0]


def test_transforms_are_the_same_in_groups_and_by_themselves(data: MNISTDataModule, tiny_root: Path) -> None:
    settings: dict[str, Any] = {"root": str(tiny_root), "test_size": 200, "mean": 0.1307, "std": 0.3081}
    warped = MNISTDataModule(**settings, transform=Warp(shift=2, degrees=10, elastic=1))
    warped.setup()
    single = list(warped.train_dataloader())
    before = torch.get_rng_state()
    warped.group(6)
    grouped = [batch for group in warped.train_dataloader() for batch in group]
    assert torch.equal(torch.get_rng_state(), before)
    for (images, labels), (other, same) in zip(single, grouped, strict=True):
        assert torch.equal(images, other)
        assert torch.equal(labels, same)
    data.setup()
    assert not torch.equal(next(iter(data.train_dataloader()))[0], single[0][0])
    assert not torch.equal(single[0][0], single[1][0])


@pytest.mark.parametrize("steps", ["native", "eager"])
def test_a_run_with_a_transform_is_resumed_to_the_same_bits(run: Runner, steps: str) -> None:
    overrides = ["data/transform=warp", f"trainer.steps={steps}"]
    _, record = run(*overrides)
    run_dir, _ = run(*overrides, "trainer.max_epochs=1")
    assert run(*overrides, f"run_dir={run_dir}")[1]["weights_sha256"] == record["weights_sha256"]
    assert record["weights_sha256"] != run(f"trainer.steps={steps}")[1]["weights_sha256"]


def test_a_metric_of_ones_own_is_a_column(run: Runner) -> None:
    metric = "{_target_: torchmetrics.classification.MulticlassCohenKappa, num_classes: 10}"
    run_dir, record = run(f"+metrics.kappa={metric}", "trainer.max_epochs=2")
    assert [0 < float(row["val/kappa"]) < 1 for row in rows(run_dir)] == [True, True]
    assert record["test"]["last"]["kappa"] < record["test"]["last"]["accuracy"]
    assert record["final"]["val/kappa"] == float(rows(run_dir)[-1]["val/kappa"])


# Loggers.


class Remote(Logger):
    """Stands in for a logger of a server that goes on with a run by its id: it keeps what it is told."""

    told: dict[str, list[Any]] = {}  # noqa: RUF012
    made = 0

    def __init__(self, run_id: str | None = None) -> None:
        super().__init__()
        if run_id is None:
            Remote.made += 1
        self.run_id = run_id or f"run-{Remote.made}"

    @property
    def name(self) -> str:
        return "remote"

    @property
    def version(self) -> str:
        return self.run_id

    @property
    def experiment(self) -> None:
        return None

    def log_hyperparams(self, params: Any, *arguments: Any, **keywords: Any) -> None:
        self.told.setdefault(self.run_id, []).append(params["seed"])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.told[self.run_id].append((step, sorted(metrics)[0]))


def test_every_logger_hears_settings_epochs_and_results_once(run: Runner) -> None:
    Remote.told.clear()
    Remote.made = 0
    overrides = ["logger=[tensorboard,csv]", f"+logger.remote._target_={__name__}.Remote"]
    run_dir, record = run(*overrides, "trainer.max_epochs=2")
    assert record["loggers"] == {"remote": "run-1"}
    _, record = run(*overrides, f"run_dir={run_dir}")
    expected = [0, *((epoch, "lr") for epoch in (1, 2)), (2, "test/best/accuracy"), (3, "lr")]
    assert Remote.told == {"run-1": [*expected, (3, "test/best/accuracy")]}
    logged = rows(run_dir / "csv")
    by_epoch = {int(row["step"]): row for row in logged if row["val/accuracy"]}
    assert [by_epoch[epoch]["val/accuracy"] for epoch in (1, 2, 3)] == [row["val/accuracy"] for row in rows(run_dir)]
    results = [row for row in logged if row["test/last/accuracy"]]
    assert float(results[-1]["test/last/accuracy"]) == record["test"]["last"]["accuracy"]
    assert "batch_size: 64" in (run_dir / "csv" / "hparams.yaml").read_text()
    assert list((run_dir / "tensorboard").iterdir())
    run_dir, _ = run("logger=csv", "trainer.max_epochs=1")
    assert not (run_dir / "tensorboard").exists()


# From Python.


@pytest.mark.parametrize("return_hydra_config", [False, True])
def test_compose_and_train_as_hydra_documents_it(
    tiny: list[str], tmp_path: Path, return_hydra_config: bool, finished: Any
) -> None:
    overrides = [*tiny, "experiment=dropout_as_run", f"run_dir={tmp_path / 'r'}"]
    with initialize_config_module("mnist_mlp.conf", version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=return_hydra_config)
        before = OmegaConf.to_yaml(config)
        record = train(config)
        compose("train")  # Hydra is as it was
    assert OmegaConf.to_yaml(config) == before
    assert (record["experiment"], record["model"]) == ("dropout_as_run", "network_a")
    assert record["weights_sha256"] == finished[1]["weights_sha256"]


def test_settings_that_no_experiment_has_are_not_called_by_ones_name(tiny: list[str], tmp_path: Path) -> None:
    with initialize_config_module("mnist_mlp.conf", version_base="1.3"):
        config = compose("train", [*tiny, "optimizer.lr=0.02", "model.hidden=[5]", f"run_dir={tmp_path / 'r'}"])
    record = train(config)
    assert (record["experiment"], record["model"]) == ("custom", "MLP 5")


def test_runs_leave_nothing_behind(run: Runner) -> None:
    import signal

    def state() -> dict[str, Any]:
        return {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "flushed": (torch.tensor(1e-310, dtype=torch.float64) * 1).item(),
            "filled": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            "random": (random.getstate(), torch.get_rng_state().tolist()),
            "signals": [signal.getsignal(number) for number in STOP_SIGNALS],
            "environment": dict(os.environ),
            "levels": [logging.getLogger(name).level for name in ("", "lightning.pytorch", "mnist_mlp")],
            "handlers": list(logging.getLogger().handlers),
        }

    before = state()
    run("threads=3", "trainer.max_epochs=1")
    assert state() == before


def test_a_run_in_a_thread(tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = compose_config([*tiny, "trainer.max_epochs=1", f"run_dir={tmp_path / 'r'}"])
    found: list[Any] = []
    with caplog.at_level(logging.INFO):
        thread = threading.Thread(target=lambda: found.append(train(config)))
        thread.start()
        thread.join()
    assert found[0]["status"] == "completed"
    assert caplog.text.count("where signals such as Ctrl-C do not reach it") == 1


def test_a_loaded_network_is_exported(finished: Any) -> None:
    network = mnist_mlp.load(finished[0] / "checkpoints" / "best.ckpt")
    assert not network.training
    shapes = ({0: torch.export.Dim("images")},)
    exported = torch.export.export(network, (torch.randn(2, 1, 28, 28),), dynamic_shapes=shapes).module()
    images = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(exported(images), network(images))


def test_readmes_python_section_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = text.partition("## From Python")[2].partition("```python\n")[2].partition("```")[0]
    assert 8 < len(code.splitlines()) < 14
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["record"]["test"]["best"]["accuracy"] > 0.9
    assert names["network"](torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert names["trainer"].global_step == 100


def test_old_records_mean_what_they_meant(tmp_path: Path) -> None:
    from mnist_mlp.run.groups import command
    from mnist_mlp.run.identity import other_settings
    from mnist_mlp.run.records import read_runs

    found = read_runs(Path(__file__).parent / "fixtures" / "run_of_0_1_0")
    assert "loss" not in json.dumps(OmegaConf.to_container(OmegaConf.load(found[0].path / "config.yaml")))
    words = command([found[0]])
    assert words is not None
    assert "loss" not in words
    assert "logger" not in words
    given = [word for word in words.split()[1:] if word != "-m"]
    again = compose_config(given)
    assert not {
        name for name in other_settings(found[0].settings, again) if name.startswith(("loss", "logger", "metr"))
    }
