import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Command, Payload

from mnist_mlp.backbone import MLP
from mnist_mlp.evaluate import evaluate, load_classifier
from mnist_mlp.run.checkpoint import weights_sha256
from mnist_mlp.settings import SettingError
from mnist_mlp.weights.__main__ import described
from mnist_mlp.weights.files import own_weights, read_safetensors, write_safetensors

Finished = tuple[Path, dict[str, Any]]


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_checkpoint_scores_what_its_run_recorded(finished: Finished, tiny_root: Path, which: str) -> None:
    run_dir, record = finished
    checkpoint = run_dir / "checkpoints" / f"{which}.ckpt"
    assert evaluate(load_classifier(checkpoint), "test", str(tiny_root)) == pytest.approx(
        record["test"][which], abs=1e-6
    )


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
    assert evaluate(load_classifier(tmp_path / "bad.ckpt"), "test", str(tiny_root)) == pytest.approx(
        finished[1]["test"]["last"], abs=1e-6
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ckpt"]


def test_a_model_file_that_cannot_be_used_is_one_sentence(finished: Finished, tmp_path: Path) -> None:
    for content, problem in (
        (None, "cannot be read (No such file or directory)"),
        ("hidden: [", "is not YAML (while parsing"),
        ("", "holds no settings"),
        ("hidden: [3]", "must be an nn.Module from images (N, 1, 28, 28) to logits (N, 10), and is dict"),
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


def test_weights_that_are_no_numbers_are_refused(finished: Finished, tmp_path: Path) -> None:
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    for value in (float("nan"), float("inf")):
        content["state_dict"]["backbone.layers.1.bias"][3] = value
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(
            SettingError, match=r"bad.ckpt: has weights that are NaN or infinite, in backbone.layers.1.bias"
        ):
            load_classifier(tmp_path / "bad.ckpt")


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "directory.ckpt").mkdir()
    os.mkfifo(tmp_path / "pipe.ckpt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.ckpt").symlink_to("loop.ckpt")
    for name, problem in (
        ("directory.ckpt", r"cannot be read \(it is no ordinary file\)"),
        ("pipe.ckpt", r"cannot be read \(it is no ordinary file\)"),
        ("pipe.safetensors", "is not a file"),
        ("loop.ckpt", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ):
        with pytest.raises(SettingError, match=f"CHECKPOINT=.*{name}: {problem}"):
            load_classifier(tmp_path / name, "network_a")


def test_a_network_that_would_fill_the_memory_is_not_built(finished: Finished, tmp_path: Path) -> None:
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["model"]["hidden"] = [10**9, 10**9]
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(SettingError, match="holds the weights of another backbone"):
        load_classifier(tmp_path / "bad.ckpt")


def renamed(form: str, weights: dict[str, torch.Tensor]) -> Any:
    numbered = list(weights.values())
    return {
        "as the backbone's own": weights,
        "of a script's class": {
            f"fc{1 + number // 2}.{('weight', 'bias')[number % 2]}": tensor for number, tensor in enumerate(numbered)
        },
        "of DataParallel, in a checkpoint": {
            "epoch": 7,
            "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()},
        },
        "of an optimizer's checkpoint, in float64": {
            "model_state_dict": {name.replace("layers", "net"): tensor.double() for name, tensor in weights.items()}
        },
    }[form]


@pytest.mark.parametrize(
    "form",
    [
        "as the backbone's own",
        "of a script's class",
        "of DataParallel, in a checkpoint",
        "of an optimizer's checkpoint, in float64",
        "safetensors",
    ],
)
def test_a_plain_state_dict_is_evaluated(tiny_root: Path, tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    weights = dict(MLP((64, 128, 64)).state_dict())
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        write_safetensors(path, weights, {})
    else:
        torch.save(renamed(form, weights), path)
    classifier = load_classifier(path, "network_a")
    for name, tensor in classifier.backbone.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert "does not say what it was trained on" in classifier.hparams["doubt"]


def test_other_state_dicts_are_one_sentence_each(tmp_path: Path) -> None:
    weights = dict(MLP((64, 128, 64)).state_dict())
    nan = {name: tensor.clone() for name, tensor in weights.items()}
    nan["layers.7.bias"][0] = float("nan")
    for content, model, problem in (
        (weights, None, "if it is a state dict, name its network, such as --model network_a"),
        (weights, "network_b", r"holds the weights of another network \(layers.1.weight 64x784"),
        ({**weights, "bn.weight": torch.ones(64)}, "network_a", "holds the weights of another network"),
        ({"layers.1.weight": 3}, "network_a", "holds no state dict"),
        ([1, 2], "network_a", "holds no state dict"),
        (nan, "network_a", "has weights that are NaN or infinite, in layers.7.bias"),
        (weights, "network_c", r"--model=network_c: is neither a file nor one of network_a, network_b, tiny"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(SettingError, match=problem):
            load_classifier(tmp_path / "w.pth", model)


def test_damaged_safetensors_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a.weight": torch.ones(2, 3)}, {"x": "y"})
    whole = path.read_bytes()
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    headers = [
        {"a": entry | change} for change in ({"dtype": "X"}, {"shape": [9]}, {"data_offsets": [0, 99]}, {"shape": 1})
    ]
    texts = [json.dumps(header).encode() for header in headers] + [b"[]", b"{", b"9" * 9, 5000 * b"["]
    for content in (b"", whole[:7], whole[:-1], *(struct.pack("<Q", len(text)) + text + bytes(24) for text in texts)):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=r"w\.safetensors: is damaged, or not in safetensors' format"):
            load_classifier(path, "network_a")


@pytest.mark.parametrize("network", ["network_a", "network_b"])
def test_the_packages_own_weights_are_of_a_committed_run_and_score_what_they_say(network: str) -> None:
    path = Path(__file__).parents[1] / "logs" / "paper" / "best" / f"model={network},seed=0"
    weights, said = read_safetensors(own_weights(network), "CHECKPOINT")
    assert said == described(path)
    assert weights_sha256({f"backbone.{name}": tensor for name, tensor in weights.items()}) == said["weights_sha256"]
    classifier = load_classifier(None, network)
    assert classifier.hparams["doubt"] is None
    accuracy, test_accuracy = float(said["validation_accuracy"]), float(said["test_accuracy"])
    assert evaluate(classifier, "validation")["accuracy"] == pytest.approx(accuracy, abs=0.00011)
    row = f"| `{network}.safetensors` | {accuracy:.2%} | {test_accuracy:.2%} | `{said['command']}` |"
    assert row.replace("%", " %") in (own_weights(network).parent / "README.md").read_text()
    assert (said["trained_on"][:6], said["validation_images"]) == ("57,000", "10,000 official test images")


def test_weights_of_other_images_or_of_no_run_do_not_get_into_the_package(finished: Finished, tmp_path: Path) -> None:
    for run_dir in (finished[0], tmp_path):
        with pytest.raises(SettingError, match=f"RUN_DIR={run_dir}: must be a completed run of this package's"):
            described(run_dir)


def test_a_note_says_that_weights_may_have_seen_the_split(command: Command, tiny_root: Path, tmp_path: Path) -> None:
    torch.save(MLP((64, 128, 64)).state_dict(), tmp_path / "w.pth")
    arguments = ("mnist-evaluate", "w.pth", "--model", "network_a")
    noted = command(*arguments)
    assert noted.returncode == 0
    assert noted.stdout.startswith("test: accuracy 0.")
    assert noted.stderr.startswith("note: w.pth does not say what it was trained on: images of the test split")
    assert command(*arguments, "--split", "validation").stderr == ""
