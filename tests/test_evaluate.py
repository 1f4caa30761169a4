import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Command, Payload

from mnist_mlp.evaluate import evaluate, load_classifier
from mnist_mlp.settings import SettingError

Finished = tuple[Path, dict[str, Any]]


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_checkpoint_scores_what_its_run_recorded(finished: Finished, tiny_root: Path, which: str) -> None:
    run_dir, record = finished
    checkpoint = run_dir / "checkpoints" / f"{which}.ckpt"
    assert evaluate(checkpoint, "test", str(tiny_root)) == pytest.approx(record["test"][which], abs=1e-6)


def test_the_validation_split_scores_the_last_row(command: Command, finished: Finished, tiny_root: Path) -> None:
    run_dir, record = finished
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    done = command("mnist-evaluate", str(checkpoint), "--split", "validation", "--data-root", str(tiny_root), "--json")
    assert done.returncode == 0, done.stderr
    expected = {name: record["final"][f"val/{name}"] for name in ("accuracy", "precision", "recall", "f1", "loss")}
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-6)


def test_nothing_in_a_checkpoint_is_executed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    bad = tmp_path / "bad.ckpt"
    torch.save({**content, "extra": Payload()}, bad)
    with pytest.raises(SettingError, match="holds more than tensors and plain values"):
        load_classifier(bad)
    content["hyper_parameters"]["model"] = {"_target_": "pathlib.Path.touch", "self": "executed"}
    torch.save(content, bad)
    with pytest.raises(SettingError, match=r"is of pathlib\.Path\.touch"):
        load_classifier(bad)
    bad.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(SettingError, match="is damaged"):
        load_classifier(bad)
    assert not (tmp_path / "executed").exists()


def test_files_that_are_no_checkpoint_are_one_sentence(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"CHECKPOINT=.*missing.ckpt: cannot be read \(No such file"):
        load_classifier(tmp_path / "missing.ckpt")
    bad = tmp_path / "bad.ckpt"
    whole = (finished[0] / "checkpoints" / "last.ckpt").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        with pytest.raises(SettingError, match="is damaged"):
            load_classifier(bad)
    torch.save({"state_dict": {}}, bad)
    with pytest.raises(SettingError, match="is not a checkpoint of mnist-train"):
        load_classifier(bad)


@pytest.mark.parametrize(
    ("group", "entries", "problem"),
    [
        ("model", {"hidden": "import os"}, "records model.hidden=import os, which must be a list of whole numbers"),
        ("model", {"hidden": [64, 128, 64], "in_features": "many"}, "records a network that cannot be built"),
        ("model", {"hidden": [3]}, "holds the weights of another backbone"),
        ("data", {"mean": "0"}, "records data.mean=0, which must be a number, or null"),
    ],
)
def test_values_of_a_stranger_are_one_sentence(
    finished: Finished, tmp_path: Path, group: str, entries: dict[str, Any], problem: str
) -> None:
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"][group] |= entries
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(SettingError, match=f"CHECKPOINT=.*bad.ckpt: {problem}"):
        load_classifier(tmp_path / "bad.ckpt")


def test_only_the_backbone_is_built_from_a_checkpoint(
    finished: Finished, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    target = {"_target_": "pathlib.Path.touch", "self": "executed"}
    settings = content["hyper_parameters"]
    settings |= {"optimizer": target, "scheduler": target, "callbacks": {"mine": target}}
    settings["data"]["_target_"] = "pathlib.Path.touch"
    settings["network"] = "${oc.create:{_target_: pathlib.Path.touch}}"
    content["callbacks"], content["optimizer_states"] = target, [target]
    torch.save(content, tmp_path / "bad.ckpt")
    assert evaluate(tmp_path / "bad.ckpt", "test", str(tiny_root)) == pytest.approx(
        finished[1]["test"]["last"], abs=1e-6
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ckpt"]


def test_a_model_file_that_cannot_be_used_is_one_sentence(finished: Finished, tmp_path: Path) -> None:
    for content, problem in (
        (None, "cannot be read (No such file or directory)"),
        ("hidden: [", "is not YAML (while parsing"),
        ("", "holds no settings"),
        ("hidden: [3]", "must be an nn.Module from images (N, 1, 28, 28) to logits (N, 10), and is DictConfig"),
    ):
        if content is not None:
            (tmp_path / "m.yaml").write_text(content)
        with pytest.raises(SettingError) as refused:
            load_classifier(finished[0] / "checkpoints" / "last.ckpt", tmp_path / "m.yaml")
        assert str(refused.value).startswith(f"--model={tmp_path / 'm.yaml'}: {problem}")
        assert "\n" not in str(refused.value)


def test_another_architecture_is_one_sentence(finished: Finished, tmp_path: Path) -> None:
    model = tmp_path / "model.yaml"
    model.write_text("_target_: mnist_mlp.backbone.MLP\nhidden: [5]\n")
    with pytest.raises(SettingError, match="holds the weights of another backbone"):
        load_classifier(finished[0] / "checkpoints" / "last.ckpt", model)
