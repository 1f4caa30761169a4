import hashlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn

from mnist_mlp.backbone import MLP
from mnist_mlp.classifier import Average, Classifier
from mnist_mlp.datamodule import InOrder, MNISTDataModule
from mnist_mlp.run.checkpoint import weights_sha256
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import NonFiniteLossError
from mnist_mlp.steps.choice import Steps
from mnist_mlp.steps.means import EpochMeans


def trainer(**settings: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **settings,
        }
    )


def adam(parameters: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=0.001, fused=True)


@pytest.fixture
def datamodule(tiny_root: Any) -> MNISTDataModule:
    return MNISTDataModule(root=str(tiny_root), test_size=200, batch_size=32, mean=0.1307, std=0.3081)


class Logits(nn.Module):
    """A backbone that looks its answer up: the images' first pixel is the row of a table of logits."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, images: Tensor) -> Tensor:
        return self.table[images[:, 0, 0, 0].long()]


@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
def test_metrics_equal_scikit_learns(average: Average) -> None:
    """On an imbalanced set in which the four differ, with an uneven last batch (97 = 3 x 30 + 7)."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(torch.tensor([50.0, 20, 10, 5, 5, 3, 3, 2, 1, 1]), 97, True, generator=generator)
    logits = torch.randn(97, 10, generator=generator) + 1.5 * F.one_hot(labels, 10)
    logits[:, 0] -= 1
    images = torch.arange(97.0).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    classifier = Classifier(Logits(logits), average=average)
    trainer().test(classifier, InOrder(images, labels, 30), verbose=False)

    predictions = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
    expected = {
        "accuracy": accuracy_score(labels, predictions),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "error": 1 - accuracy_score(labels, predictions),
    }
    measured = {name: classifier.measured[f"test/{name}"] for name in expected}
    assert measured == pytest.approx(expected, abs=1e-6)
    if average == "weighted":
        assert measured["recall"] == measured["accuracy"]
    if average == "macro":
        assert len({round(value, 3) for value in (measured["accuracy"], precision, recall, f1)}) == 4


class Plain(LightningModule):
    """Automatic optimization, one step per training_step: the oracle of Classifier's loop."""

    def __init__(self, backbone: nn.Module, seed: int) -> None:
        super().__init__()
        self.backbone, self.seed = backbone, seed

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(stream_seed(self.seed, "dropout", self.current_epoch))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_is_bitwise_plain_automatic_optimization(datamodule: MNISTDataModule, clip: float | None) -> None:
    torch.manual_seed(0)
    ours, theirs = MLP((16, 16), dropout=0.3), MLP((16, 16), dropout=0.3)
    theirs.load_state_dict(ours.state_dict())
    start = weights_sha256(ours.state_dict())

    manual = trainer(max_epochs=2)
    scheduler = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)  # noqa: E731
    datamodule.group(5)
    manual.fit(Classifier(ours, adam, scheduler, seed=9, gradient_clip_val=clip, steps="eager"), datamodule)

    automatic = trainer(max_epochs=2, gradient_clip_val=clip, limit_val_batches=0)
    orders = MNISTDataModule(root=datamodule.root, test_size=200, batch_size=32, mean=0.1307, std=0.3081)
    orders.setup()
    orders.trainer = automatic  # whose epoch decides the order
    automatic.fit(Plain(theirs, seed=9), orders.train_dataloader())

    assert weights_sha256(ours.state_dict()) == weights_sha256(theirs.state_dict()) != start
    assert manual.global_step == automatic.global_step == 2 * 32  # 1,000 images in batches of 32, the last one of 8


def test_epoch_means_are_exact() -> None:
    means = EpochMeans()
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(100, 10, generator=generator), torch.randint(10, (100,), generator=generator)
    for rows in torch.arange(100).split(33):
        losses = F.cross_entropy(logits[rows], labels[rows], reduction="none")
        means.add(losses, logits[rows], labels[rows])
    loss, error = means.take()
    assert loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)
    assert error == (logits.argmax(1) != labels).double().mean().item()


def test_training_loss_is_the_mean_over_samples_of_what_each_step_saw(datamodule: MNISTDataModule) -> None:
    classifier, oracle = Classifier(MLP((16,)), adam), MLP((16,))
    oracle.load_state_dict(classifier.backbone.state_dict())
    datamodule.setup()
    optimizer, total, wrong = adam(oracle.parameters()), 0.0, 0
    for images, labels in datamodule.train_dataloader():  # without a trainer: epoch 0
        logits = oracle(images)
        loss = F.cross_entropy(logits, labels)
        total += loss.item() * len(labels)
        wrong += int((logits.argmax(1) != labels).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer(max_epochs=1).fit(classifier, datamodule)
    assert classifier.measured["train/loss"] == pytest.approx(total / 1000, rel=1e-6)
    assert classifier.measured["train/error"] == wrong / 1000


def test_max_steps_counts_optimizer_steps(datamodule: MNISTDataModule) -> None:
    fit = trainer(max_epochs=5, max_steps=40)
    classifier = Classifier(MLP((8,)), adam)
    fit.fit(classifier, datamodule)
    assert fit.global_step == 40
    assert {"val/accuracy", "train/loss"} <= classifier.measured.keys()


@pytest.mark.parametrize("steps", [None, "eager"])
def test_plateau_scheduler_sees_the_validation_loss(datamodule: MNISTDataModule, steps: Steps | None) -> None:
    def plateau(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=10, threshold_mode="abs"
        )

    fit = trainer(max_epochs=3)
    fit.fit(Classifier(MLP((8,)), adam, plateau, steps=steps), datamodule)
    assert fit.optimizers[0].param_groups[0]["lr"] == 0.001 * 0.5**2


def test_a_loss_that_is_not_finite_ends_the_run(datamodule: MNISTDataModule) -> None:
    def sgd(parameters: Any) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr=1e20)

    with pytest.raises(NonFiniteLossError, match=r"train/loss became (nan|inf) in epoch 1: optimizer\.lr=1e\+20"):
        trainer(max_epochs=1).fit(Classifier(MLP((8,)), sgd), datamodule)


def test_predictions_are_probabilities() -> None:
    images = torch.randn(4, 1, 28, 28)
    classifier = Classifier(MLP((8,)))
    probabilities = classifier.predict_step(images, 0)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    torch.testing.assert_close(probabilities.log().diff(), classifier(images).diff())


def test_weights_sha256_is_as_documented() -> None:
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3]], dtype=torch.int64)}
    content = b"a" + b"int64" + b"1,1" + (3).to_bytes(8, "little")
    content += b"b" + b"float32" + b"2" + bytes.fromhex("0000803f00000040")
    assert weights_sha256(state) == hashlib.sha256(content).hexdigest()
