"""`trainer.steps`: what is chosen, recorded, kept by a resume, and refused."""

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers import Command, Runner, plain_trainer
from omegaconf import OmegaConf
from torch.optim import SGD, Adam, RMSprop
from torch.utils.data import DataLoader, TensorDataset

from mnist_mlp.backbone import MLP
from mnist_mlp.classifier import Classifier
from mnist_mlp.datamodule import MNISTDataModule
from mnist_mlp.run.checkpoint import weights_sha256
from mnist_mlp.settings import SettingError, compose_config
from mnist_mlp.steps import native
from mnist_mlp.steps.choice import Choice, choose

# Lightning's, about data in a plain Trainer.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*have no `val_dataloader`", "ignore:.*does not have many workers", "ignore:.*training batches"
)
TINY = ("model=tiny", "model.dropout=0.3", "trainer.accelerator=cpu")


def losses(run_dir: Path) -> list[float]:
    return [float(row["val/loss"]) for row in csv.DictReader((run_dir / "metrics.csv").read_text().splitlines())]


def steps_of(run_dir: Path) -> tuple[str, str]:
    return json.loads((run_dir / "run.json").read_text())["steps"], OmegaConf.load(
        run_dir / "config.yaml"
    ).trainer.steps


def test_auto_is_native_where_it_can_be_and_both_records_say_so(run: Runner) -> None:
    native_run, record = run(*TINY)
    assert steps_of(native_run) == ("native", "native")
    eager_run, other = run(*TINY, "trainer.steps=eager")
    assert steps_of(eager_run) == ("eager", "eager")
    assert record["weights_sha256"] != other["weights_sha256"]
    assert losses(native_run) == pytest.approx(losses(eager_run), rel=0.05)
    assert steps_of(run(*TINY, "optimizer._target_=torch.optim.Adagrad")[0]) == ("eager", "eager")


@pytest.mark.parametrize("first", ["native", "eager"])
def test_a_resume_keeps_the_steps_that_a_run_began_with(run: Runner, tmp_path: Path, first: str) -> None:
    undisturbed, record = run(*TINY, f"trainer.steps={first}")
    run(*TINY, f"trainer.steps={first}", "trainer.max_epochs=1", f"run_dir={tmp_path / 'r'}")
    _, resumed = run(*TINY, f"run_dir={tmp_path / 'r'}")  # trainer.steps=auto, and two more epochs
    assert steps_of(tmp_path / "r") == (first, first)
    assert resumed["weights_sha256"] == record["weights_sha256"]
    assert losses(tmp_path / "r") == losses(undisturbed)
    other = {"native": "eager", "eager": "native"}[first]
    with pytest.raises(SettingError, match=rf"was run with trainer.steps={first} \(not {other}\)"):
        run(*TINY, f"trainer.steps={other}", f"run_dir={tmp_path / 'r'}")


@pytest.mark.parametrize("order", [("native", "eager"), ("eager", "native")])
@pytest.mark.parametrize("make", [Adam, lambda parameters: SGD(parameters, 0.01, momentum=0.9)], ids=["adam", "sgd"])
def test_a_checkpoint_of_either_kind_goes_on_as_the_other(order: tuple[str, str], make: type, tmp_path: Path) -> None:
    """Against the same steps made eagerly throughout, to float32's accuracy."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(96, 1, 28, 28, generator=generator), torch.randint(10, (96,), generator=generator)

    def trained(kinds: tuple[str, str]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        backbone, path = MLP([16, 8]), tmp_path / f"{'-'.join(kinds)}.ckpt"
        for epochs, kind in enumerate(kinds, 1):
            classifier = Classifier(backbone, make, steps=kind)  # type: ignore[arg-type]
            trainer = plain_trainer(epochs)
            resumed = path if epochs > 1 else None
            trainer.fit(
                classifier, DataLoader(TensorDataset(images, labels), 32), ckpt_path=resumed, weights_only=False
            )
            trainer.save_checkpoint(path)
        return backbone.state_dict()

    torch.testing.assert_close(trained(order), trained(("eager", "eager")), rtol=1e-4, atol=1e-5)


def test_groups_and_ordinary_minibatches_give_the_same_bits(tiny_root: Path) -> None:
    hashes = []
    for grouped in (True, False):
        torch.manual_seed(0)
        data = MNISTDataModule(root=str(tiny_root), test_size=200, seed=5)
        classifier = Classifier(MLP([16], dropout=0.3), Adam, steps="native", seed=3)
        trainer = plain_trainer(1)
        if grouped:
            data.group(64)
            trainer.fit(classifier, data)
        else:
            data.setup()
            batches = list(data.train_dataloader())
            trainer.fit(classifier, DataLoader(batches, batch_size=None))
        hashes.append(weights_sha256(classifier.state_dict()))
    assert hashes[0] == hashes[1]


def asked(steps: str, backbone: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Choice:
    return choose(compose_config([f"trainer.steps={steps}", "trainer.accelerator=cpu"]), backbone, optimizer, {})


def test_what_cannot_be_stepped_natively_is_refused_or_eager() -> None:
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    optimizer = Adam(backbone.parameters())
    assert asked("auto", backbone, optimizer) == ("eager", True, None)
    with pytest.raises(SettingError, match=r"trainer\.steps=native: the backbone is a Sequential"):
        asked("native", backbone, optimizer)
    mlp = MLP([4])
    with pytest.raises(SettingError, match=r"trainer\.steps=native: the optimizer is RMSprop"):
        asked("native", mlp, RMSprop(mlp.parameters()))
    assert asked("compiled", mlp, Adam(mlp.parameters())).steps == "compiled"
    with pytest.raises(SettingError, match=r"trainer\.steps=compiled: the optimizer is RMSprop"):
        asked("compiled", mlp, RMSprop(mlp.parameters()))


def test_without_a_kernel_auto_is_eager_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: "no C++ compiler was there: install g++, then the package again")
    mlp = MLP([4])
    choice = asked("auto", mlp, Adam(mlp.parameters()))
    assert choice.steps == "eager"
    assert choice.why == (
        "Steps are eager, which takes two to four times as long: no C++ compiler was there: install g++, then the "
        "package again"
    )
    with pytest.raises(SettingError, match="no C\\+\\+ compiler was there"):
        asked("native", mlp, Adam(mlp.parameters()))


def test_the_old_setting_is_answered_with_the_new_one(command: Command) -> None:
    done = command("mnist-train", "trainer.compile=true")
    assert done.returncode == 1
    assert "there is no setting trainer.compile" in done.stderr
