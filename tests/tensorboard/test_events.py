import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import COMPILED, COMPILER, Runner, accumulated, steps
from lightning.pytorch import Callback, LightningDataModule
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_curve
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets

from mnist_mlp.backbone import MLP
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.settings import compose_config
from mnist_mlp.tensorboard.content import HPARAMS_METRICS, confusion, f1_scores
from mnist_mlp.tensorboard.writer import EventWriter
from mnist_mlp.train import train

EVERYTHING = (
    "tensorboard.images_every=1",
    "tensorboard.histograms_every=1",
    "tensorboard.embeddings=true",
)
PICTURES = ("val/confusion_matrix", "val/most_confidently_wrong", "val/reliability", "weights/first_layer", "pr/7")
FOLLOWS = ("val_minus_train/loss", *(f"val_by_layer/dead_relu/{layer}" for layer in (1, 2, 3)))
Finished = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="session")
def watched(run: Runner) -> Finished:
    """The run `finished` once more, with everything that can be shown."""
    return run("experiment=dropout_as_run", *EVERYTHING)


def test_nothing_that_is_shown_changes_a_bit(run: Runner, finished: Finished, watched: Finished) -> None:
    unwatched, record = run("experiment=dropout_as_run", "tensorboard.enabled=false")
    assert record["weights_sha256"] == watched[1]["weights_sha256"] == finished[1]["weights_sha256"]
    assert record["test"] == watched[1]["test"]
    assert not (unwatched / "tensorboard").exists()
    ours, theirs = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Recorder"]["random_states"]
        for path in (unwatched, watched[0])
    )
    assert torch.equal(ours["torch"], theirs["torch"])
    assert torch.equal(ours["numpy"][1], theirs["numpy"][1])
    assert ours["python"] == theirs["python"]


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler on this machine")
def test_nothing_that_is_shown_changes_a_bit_of_compiled_steps(run: Runner) -> None:
    overrides = (*COMPILED, "experiment=dropout_as_run")  # as in test_compiled.py, whose graph is in the cache
    watched = run(*overrides, *EVERYTHING)[1]["weights_sha256"]
    assert run(*overrides, "tensorboard.enabled=false")[1]["weights_sha256"] == watched


def test_everything_is_there_once(watched: Finished) -> None:
    shown = steps(watched[0])
    for tag in (*COLUMNS[1:], "best/accuracy", "best/epoch", *FOLLOWS, *PICTURES):
        assert shown[tag] == [1, 2, 3], tag
    for tag in ("weights/layers.1.weight", "gradients/layers.1.bias", "activations/layers.2"):
        assert shown[tag] == [1, 2, 3], tag
    for tag in (
        "run/architecture",
        "run/training_images",
        "run/configuration/text_summary",
        "custom_scalars__config__",
    ):
        assert shown[tag] == [0], tag
    assert shown["test/accuracy"] == [3]
    assert "hp_metric" not in shown
    # TensorBoard reads one file after the other, by name, and does not return to one: what grows is not followed by
    # another until it is complete.
    kinds = [path.name.rpartition(".")[2] for path in sorted((watched[0] / "tensorboard").glob("events.*"))]
    assert kinds == ["start", "epochs", "end", "end"]
    assert not list(watched[0].rglob("hparams.yaml"))


def test_pictures_come_at_the_first_the_best_and_the_last_epoch(run: Runner) -> None:
    # A rate that is too high: the best epoch is neither the first nor the last.
    run_dir, record = run("optimizer.lr=0.05", "trainer.max_epochs=6", "tensorboard.images_every=5")
    best = record["best"]["epoch"]
    assert best not in (1, 6)
    shown = steps(run_dir)
    for tag in PICTURES:
        assert shown[tag] == [1, 5, 6], tag
        assert shown[f"best/{tag}"] == [best], tag
    # A longer run: what was the last epoch is no longer.
    _, record = run("optimizer.lr=0.05", "trainer.max_epochs=8", "tensorboard.images_every=5", f"run_dir={run_dir}")
    shown = steps(run_dir)
    assert shown["val/confusion_matrix"] == [1, 5, 8]
    assert shown["best/val/confusion_matrix"] == [record["best"]["epoch"]]
    assert shown["val/loss"] == list(range(1, 9))
    assert shown["test/accuracy"] == [8]


def test_without_pictures(run: Runner) -> None:
    run_dir, _ = run("tensorboard.images_every=null", "trainer.max_epochs=1")
    shown = steps(run_dir)
    assert not set(PICTURES) & shown.keys()
    assert shown["val_by_digit/f1/3"] == [1]


@pytest.mark.parametrize("how", ["steps", "stopped"])
def test_a_run_that_ends_early_has_its_last_pictures(run: Runner, how: str) -> None:
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100.0}"
    overrides = {"steps": ["trainer.max_steps=25"], "stopped": [f"+callbacks.stop={stop}"]}[how]
    run_dir, record = run(*overrides, "trainer.max_epochs=9")
    assert record["epochs"] == 2
    assert steps(run_dir)["val/reliability"] == [1, 2]


def predictions(run_dir: Path, tiny_root: Path) -> tuple[Tensor, Tensor, MLP]:
    """Logits and labels of the tiny validation set, by way of torchvision alone, with the last weights."""
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    backbone = MLP((64, 128, 64), dropout=0.3).eval()
    backbone.load_state_dict({key.removeprefix("backbone."): value for key, value in content["state_dict"].items()})
    half = datasets.MNIST(tiny_root, train=False)
    images = (half.data.float()[:, None] / 255 - 0.1307) / 0.3081
    with torch.no_grad():
        return backbone(images), half.targets, backbone


def test_the_numbers_are_those_of_scikit_learn(watched: Finished, tiny_root: Path) -> None:
    logits, labels, backbone = predictions(watched[0], tiny_root)
    guesses = logits.argmax(dim=1)
    assert (confusion(logits, labels) == confusion_matrix(labels, guesses, labels=range(10))).all()
    events = accumulated(watched[0])
    for digit, expected in enumerate(f1_score(labels, guesses, average=None, labels=range(10), zero_division=0)):
        assert events.Scalars(f"val_by_digit/f1/{digit}")[-1].value == pytest.approx(expected, abs=1e-6)
    last = {tag: events.Scalars(tag)[-1].value for tag in HPARAMS_METRICS}
    assert last["val_minus_train/loss"] == pytest.approx(
        last["val/loss"] - events.Scalars("train/loss")[-1].value, abs=1e-6
    )
    assert last["best/accuracy"] == pytest.approx(watched[1]["best"]["val/accuracy"])
    assert last["best/epoch"] == watched[1]["best"]["epoch"]
    assert last["test/accuracy"] == pytest.approx(watched[1]["test"]["last"]["accuracy"])
    # A dead unit passes nothing on for any image.
    half = datasets.MNIST(tiny_root, train=False)
    passed = (half.data.float()[:, None] / 255 - 0.1307) / 0.3081
    found = []
    with torch.no_grad():
        for layer in backbone.layers:
            passed = layer(passed)
            if isinstance(layer, nn.ReLU):
                found.append((passed.max(dim=0).values <= 0).float().mean().item())
    shown = [events.Scalars(f"val_by_layer/dead_relu/{number}")[-1].value for number in (1, 2, 3)]
    assert shown == pytest.approx(found)


def test_a_precision_recall_curve_is_that_of_scikit_learn(watched: Finished, tiny_root: Path) -> None:
    logits, labels, _ = predictions(watched[0], tiny_root)
    scores = logits.softmax(dim=1)[:, 7]
    curve = accumulated(watched[0]).Tensors("pr/7")[-1].tensor_proto
    rows = torch.tensor(curve.float_val).reshape(6, -1)  # true and false positives and negatives, precision, recall
    middle = rows.shape[1] // 2  # the threshold 1/2
    precision, recall, thresholds = precision_recall_curve(labels == 7, scores)
    place = int((torch.tensor(thresholds.tolist()) >= 0.5).nonzero()[0])
    assert rows[4, middle].item() == pytest.approx(precision[place], abs=1e-6)
    assert rows[5, middle].item() == pytest.approx(recall[place], abs=1e-6)


def test_f1_of_a_class_that_is_nowhere_is_nothing() -> None:
    assert f1_scores(confusion(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]))) == pytest.approx([2 / 3, 2 / 3, 0])


def test_gradients_and_weights_are_those_of_the_run(watched: Finished, tiny_root: Path) -> None:
    _, _, backbone = predictions(watched[0], tiny_root)
    drawn = accumulated(watched[0]).Histograms("weights/layers.1.weight")[-1].histogram_value
    weight = backbone.layers[1].weight
    assert (drawn.num, drawn.min, drawn.max) == (weight.numel(), weight.min().item(), weight.max().item())


def test_the_layout_names_what_is_there(watched: Finished) -> None:
    (event,) = accumulated(watched[0]).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [(category.title, category.closed) for category in layout.category] == [
        *(("accuracy and loss", False), ("training beside validation", False), ("more", False)),
        *(("F1 of each digit", True), ("dead ReLUs", True)),
    ]
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert list(charts)[:3] == ["validation accuracy", "validation loss", "training loss"]
    tags = [tag for tag, numbers in steps(watched[0]).items() if numbers == [1, 2, 3]]
    shown = {title: [tag for tag in tags for p in patterns if re.match(p, tag)] for title, patterns in charts.items()}
    assert shown["validation accuracy"] == ["val/accuracy"]
    assert shown["loss"] == ["train/loss", "val/loss"]
    assert shown["error"] == ["train/error", "val/error"]
    assert shown["learning rate"] == ["lr"]
    assert shown["share in hidden layer 3"] == ["val_by_layer/dead_relu/3"]
    assert "share in hidden layer 4" not in shown
    assert all(shown.values())


def test_the_graph_has_the_modules_names(watched: Finished) -> None:
    names = [node.name for node in accumulated(watched[0]).Graph().node]
    assert any(name.startswith("MLP/Sequential[layers]/Linear[1]/") for name in names)


def test_the_texts_say_how_to_repeat_the_run(watched: Finished) -> None:
    events = accumulated(watched[0])
    text = {
        tag: events.Tensors(f"run/{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("changed", "configuration", "repeat_it", "versions")
    }
    changed = text["changed"].splitlines()
    assert changed[:3] == [
        "| setting | this run | default |",
        "| --- | --- | --- |",
        r"| experiment | dropout\_as\_run | baseline |",
    ]
    assert "| model.dropout | 0.3 | 0.0 |" in changed
    assert r"| trainer.max\_epochs | 3 | 500 |" in changed
    assert not [
        line for line in changed if re.match(r"\| (run.*dir|trainer.steps|tensorboard|data.sha256|data.seed)", line)
    ]
    assert "      dropout: 0.3\n" in text["configuration"]
    assert text["repeat_it"] == f"    mnist-rerun {watched[0]}"
    assert f"| torch | {watched[1]['versions']['torch']} |" in text["versions"]


def test_the_projector_has_embeddings_with_labels_and_sprites(watched: Finished) -> None:
    place = watched[0] / "tensorboard"
    config = (place / "projector_config.pbtxt").read_text()
    for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
        assert f"00003/penultimate/{name}" in config
        assert (place / "00003" / "penultimate" / name).stat().st_size > 0
    lines = (place / "00003" / "penultimate" / "tensors.tsv").read_text().splitlines()
    assert (len(lines), len(lines[0].split("\t"))) == (350, 64)


# --- HPARAMS, as TensorBoard itself reads them ---


class Fails(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("on purpose")


def table(logdir: Path) -> dict[str, tuple[dict[str, Any], dict[str, float], int]]:
    """Of each row of the HPARAMS tab its hyperparameters, metrics and status."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=str(logdir)))
    asked = RequestContext()
    experiment = context.experiment_from_metadata(
        asked, "", True, context.hparams_metadata(asked, ""), context.hparams_from_data_provider(asked, "", None)
    )
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=1000,
        include_metrics=True,
        allowed_statuses=list(api_pb2.Status.values()),
        col_params=[api_pb2.ColParams(metric=metric.name) for metric in experiment.metric_infos],
    )
    answer = list_session_groups.Handler(asked, context, "", request).run()
    rows = {}
    for group in answer.session_groups:
        (session,) = group.sessions
        settings = {
            name: value.string_value if value.HasField("string_value") else value.number_value
            for name, value in group.hparams.items()
        }
        rows[session.name] = settings, {m.name.tag: m.value for m in session.metric_values}, session.status
    return rows


CONVOLUTIONAL = {
    "_target_": "torch.nn.Sequential",
    "_args_": [
        {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 5, "stride": 2},
        {"_target_": "torch.nn.ReLU"},
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": 288, "out_features": 10},
    ],
}


def test_hparams_have_a_row_for_each_run_and_the_same_columns_for_all(
    run: Runner, tiny: list[str], tmp_path: Path
) -> None:
    record = run("experiment=dropout_as_intended", "trainer.max_epochs=2", f"run_dir={tmp_path / 'a'}")[1]
    run("model=network_b", "optimizer=sgd", "seed=3", "trainer.max_epochs=1", f"run_dir={tmp_path / 'nested' / 'b'}")
    config = compose_config([*tiny, "trainer.max_epochs=1", f"run_dir={tmp_path / 'c'}"])
    config.model, config.network = CONVOLUTIONAL, "convolutional"
    train(config)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(f"+callbacks.fails._target_={__name__}.Fails", f"run_dir={tmp_path / 'd'}")
    rows = table(tmp_path)
    assert rows.keys() == {"a/tensorboard", "nested/b/tensorboard", "c/tensorboard", "d/tensorboard"}
    settings, metrics, status = rows["a/tensorboard"]
    assert settings == {
        "experiment": "dropout_as_intended",
        "model": "network_a",
        "hidden widths": "64-128-64",
        "parameters": 67466,
        "dropout": 0.3,
        "optimizer": "Adam",
        "learning rate": 0.001,
        "scheduler": "StepLR",
        "batch size": 64,
        "seed": "0",
        "epochs": 2,
    }
    assert metrics.keys() == set(HPARAMS_METRICS)
    assert metrics["test/accuracy"] == pytest.approx(record["test"]["last"]["accuracy"])
    assert metrics["val/f1"] == pytest.approx(record["final"]["val/f1"])
    assert status == api_pb2.STATUS_SUCCESS
    for other, _, _ in rows.values():
        assert {name: type(value) for name, value in other.items()} == {
            name: type(value) for name, value in settings.items()
        }
    assert rows["nested/b/tensorboard"][0]["optimizer"] == "SGD"
    assert rows["c/tensorboard"][0]["hidden widths"] == "2×12×12"
    assert "weights/first_layer" not in steps(tmp_path / "c")
    # Of a run that has not ended there is what it has.
    _, metrics, status = rows["d/tensorboard"]
    assert metrics.keys() == set(HPARAMS_METRICS) - {"test/accuracy"}
    assert status == api_pb2.STATUS_UNKNOWN


# --- what must not lose a run ---


class Awkward(nn.Module):
    """With weights of five dimensions, and no way to look at one image or to copy what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 1, 784, 1, 10) / 28)

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            raise RuntimeError("one image is not enough")
        torch.rand(3)  # in evaluation too
        return images.flatten(1) @ self.weight.reshape(784, 10)


def test_a_backbone_that_cannot_be_drawn_is_trained_all_the_same(
    tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config([*tiny, *EVERYTHING, f"run_dir={tmp_path / 'r'}"])
    config.model, config.network = {"_target_": f"{__name__}.Awkward"}, "awkward"
    monkeypatch.setattr("mnist_mlp.tensorboard.pictures.confusion_matrix", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        assert train(config)["status"] == "completed"
    said = [record.getMessage() for record in caplog.records if record.name == "mnist_mlp.tensorboard.events"]
    assert said == [
        "TensorBoard: no graph (RuntimeError: one image is not enough)",
        "TensorBoard: no picture val/confusion_matrix (ZeroDivisionError: division by zero)",
    ]
    assert steps(tmp_path / "r")["val/reliability"] == [1, 2, 3]


class Own(LightningDataModule):
    """A user's: nothing but the loaders, over torchvision's data."""

    def __init__(self, root: str) -> None:
        super().__init__()
        halves = [datasets.MNIST(root, train=train) for train in (True, False)]
        self.halves = [TensorDataset(half.data[:, None] / 255, half.targets) for half in halves]

    def train_dataloader(self) -> Any:
        return DataLoader(self.halves[0], 64)

    def val_dataloader(self) -> Any:
        return DataLoader(self.halves[1], 100)

    test_dataloader = val_dataloader


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_data_module_of_ones_own_is_shown_without_what_needs_its_images(
    tiny: list[str], tiny_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose_config([*tiny, *EVERYTHING, f"run_dir={tmp_path / 'r'}"])
    config.data = {"_target_": f"{__name__}.Own", "root": str(tiny_root)}
    with caplog.at_level(logging.WARNING):
        assert train(config)["status"] == "completed"
    said = [record.getMessage() for record in caplog.records if record.name == "mnist_mlp.tensorboard.events"]
    assert said == [
        "TensorBoard: no F1 of each digit, pictures of images or predictions, precision-recall curves, histograms or "
        "embeddings: they need an MNISTDataModule, and this run's data module is `Own`"
    ]
    shown = steps(tmp_path / "r")
    for tag in (*COLUMNS[1:], "best/accuracy", *FOLLOWS, "weights/first_layer"):
        assert shown[tag] == [1, 2, 3], tag
    assert shown["run/architecture"] == [0]
    assert shown["test/accuracy"] == [3]
    assert not shown.keys() & {
        *PICTURES[:3],
        "pr/7",
        "run/training_images",
        "val_by_digit/f1/3",
        "weights/layers.1.weight",
    }


def test_what_is_shown_is_no_setting_of_the_run(run: Runner, watched: Finished) -> None:
    assert run("experiment=dropout_as_run", "tensorboard.enabled=false", f"run_dir={watched[0]}")[1] == watched[1]


def test_a_record_from_before_there_were_these_settings(tiny: list[str], tmp_path: Path) -> None:
    config = compose_config([*tiny, "trainer.max_epochs=1", f"run_dir={tmp_path / 'r'}"])
    del config.tensorboard
    train(config)
    assert steps(tmp_path / "r")["val/loss"] == [1]


def test_a_callback_that_asks_for_lightnings_logger_has_one(run: Runner) -> None:
    run_dir, _ = run("+callbacks.rate._target_=lightning.pytorch.callbacks.LearningRateMonitor")
    assert any(tag.startswith("lr-") for tag in steps(run_dir))


class OneReLU(nn.Module):
    """Uses one ReLU after layers of different widths, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(784, 32), nn.Linear(32, 16), nn.Linear(16, 10)
        self.relu = nn.ReLU()
        nn.init.constant_(self.second.bias, -1000.0)  # all of the second layer's units are dead

    def forward(self, images: Tensor) -> Tensor:
        return self.third(self.relu(self.second(self.relu(self.first(images.flatten(1))))))


def test_a_relu_that_serves_several_layers_is_counted_for_each(tiny: list[str], tmp_path: Path) -> None:
    config = compose_config([*tiny, "trainer.max_epochs=1", f"run_dir={tmp_path / 'r'}"])
    config.model, config.network = {"_target_": f"{__name__}.OneReLU"}, "one_relu"
    train(config)
    events = accumulated(tmp_path / "r")
    first, second = (events.Scalars(f"val_by_layer/dead_relu/{number}")[0].value for number in (1, 2))
    assert first < 0.5
    assert second == 1
    assert "val_by_layer/dead_relu/3" not in steps(tmp_path / "r")
    assert b"hidden layer 2" in events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize(
    "earlier", ["events.out.tfevents.1999999999.host.1.0", "events.out.tfevents.1999999999000000007.epochs"]
)
def test_the_later_session_counts_when_the_clock_was_set_back(tmp_path: Path, earlier: str) -> None:
    directory = tmp_path / "tensorboard"
    for step in (1, 2, 3):
        writer = EventWriter(directory, "epochs", purge_step=step)
        writer.add_scalar("a", 0.0, step)
        writer.close()
        if step == 1:  # from a later time: the name of an earlier Lightning run, or of this package
            next(directory.iterdir()).rename(directory / earlier)
    assert steps(tmp_path) == {"a": [1, 2, 3]}


def test_the_later_session_counts_however_quickly_it_came(tmp_path: Path) -> None:
    """File names of TensorBoard's own writers have seconds and then the process's number, 10 before 9."""
    for _ in range(12):
        writer = EventWriter(tmp_path / "tensorboard", "epochs", purge_step=1)
        writer.add_scalar("a", 0.0, 1)
        writer.close()
    assert steps(tmp_path) == {"a": [1]}
