"""`mnist-evaluate [CHECKPOINT]`: the metrics of a checkpoint on one of the three splits."""

import argparse
import json
import os
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mnist_mlp.run.process import prepare_process
from mnist_mlp.settings import (
    CLASS_RULES,
    OUR_DATA,
    SettingError,
    compose_config,
    ended_itself,
    load_yaml,
    one_sentence,
    options,
)
from mnist_mlp.surroundings import import_from_here, one_line

if TYPE_CHECKING:
    from torch import nn

    from mnist_mlp.classifier import Classifier

SPLITS = ("train", "validation", "test")
CHECKPOINT_HELP = (
    "such as RUN_DIR/checkpoints/best.ckpt; or a PyTorch state dict (.pth, .safetensors) of the network that --model "
    "names; without it, the package's own weights of that network, or of network_b"
)
MODEL_HELP = (
    "of a plain state dict or the package's weights: network_a or network_b; or the YAML file of a backbone that is "
    "not this package's"
)


def main() -> None:
    """Runs `mnist-evaluate`. Exit status: 0; 1 where the checkpoint or the data cannot be used."""
    parser = argparse.ArgumentParser(prog="mnist-evaluate", description="Metrics of a checkpoint on a split.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, nargs="?", help=CHECKPOINT_HELP)
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the data (default: %(default)s)")
    parser.add_argument("--data-root", metavar="PATH", help="images in torchvision's layout (default: the package's)")
    parser.add_argument("--model", metavar="NAME|YAML", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args()
    prepare_process(threads=None, portable=True)
    with one_sentence():
        import_from_here()
        classifier = load_classifier(arguments.checkpoint, arguments.model)
        if (doubt := classifier.hparams.get("doubt")) and arguments.split != "validation":
            print(f"note: {doubt}", file=sys.stderr)
        metrics = evaluate(classifier, arguments.split, arguments.data_root)
        if arguments.json:
            print(json.dumps(metrics))
        else:
            print(f"{arguments.split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def evaluate(classifier: "Classifier", split: str = "test", data_root: str | None = None) -> dict[str, float]:
    """Accuracy, precision, recall and F1 (fractions) and the mean loss of a checkpoint on a split.

    The split, normalization and averaging are those of the checkpoint's run.

    Args:
        classifier: as `load_classifier` gives it.

    Raises:
        SettingError: the data cannot be used.
    """
    # Here and below, because PyTorch takes seconds to import, which --help and a wrong argument do not take.
    from lightning.pytorch import Trainer

    from mnist_mlp.classifier import score
    from mnist_mlp.datamodule import OF_EVALUATION, InOrder, MNISTDataModule
    from mnist_mlp.run.trainer import ONE_PROCESS, QUIET, quiet

    recorded = classifier.hparams["data"]
    settings = {name: recorded[name] for name in OF_EVALUATION if name in recorded}
    for name, rule in CLASS_RULES[OUR_DATA].items():  # a run with data of another class may call other things so
        if name in settings and not rule.accepts(settings[name]):
            raise SettingError(
                f"data.{name}", settings[name], f"is what the checkpoint records, and must be {rule.wanted}"
            )
    datamodule = MNISTDataModule(root=data_root, **settings)
    datamodule.setup()
    images, labels = datamodule.splits[split]  # type: ignore[index]
    with quiet():
        trainer = Trainer(devices=1, logger=False, enable_checkpointing=False, plugins=[ONE_PROCESS()], **QUIET)
        return score(trainer, classifier, InOrder(images, labels, datamodule.eval_batch_size))


def load_classifier(checkpoint: Path | None, model: str | Path | None = None) -> "Classifier":
    """The classifier in a checkpoint, in evaluation mode. Nothing in the file is executed: it is read with
    `weights_only`, and only this package's backbone, or the one that the caller names, is built.

    Args:
        checkpoint: written by `mnist-train`; or, with `model`, a plain state dict, of PyTorch or of safetensors.
                None: the package's own weights of `model`, or of Network B.
        model: a network in `conf/model/`, or a YAML file with a `_target_` as there is in it.

    Raises:
        SettingError: the file cannot be read, is no such checkpoint, or holds weights of another backbone.
    """
    from mnist_mlp.classifier import Classifier
    from mnist_mlp.run.checkpoint import checked_checkpoint, load_weights, read_file
    from mnist_mlp.weights.files import OWN, own_weights

    if checkpoint is None:
        network = OWN if model is None else str(model)
        return _with_plain_weights(own_weights(network), network, known=True)
    if os.path.isfile(best := checkpoint / "checkpoints" / "best.ckpt"):
        raise SettingError("CHECKPOINT", checkpoint, f"is a run's directory: give {best}")
    content = None if checkpoint.suffix == ".safetensors" else read_file(checkpoint, "CHECKPOINT")
    if content is None or not (isinstance(content, dict) and "hyper_parameters" in content):
        if model is not None:
            return _with_plain_weights(checkpoint, str(model))
        problem = (
            "is not a checkpoint of mnist-train: if it is a state dict, name its network, such as --model network_a"
        )
        raise SettingError("CHECKPOINT", checkpoint, problem)
    content = checked_checkpoint(content, "CHECKPOINT", checkpoint)
    recorded = content["hyper_parameters"]
    parts = _recorded_parts(content, checkpoint, model)
    measured = content.get("MNISTDataModule")
    for name in ("mean", "std"):  # what the run computed, where it was not set
        if isinstance(measured, dict) and CLASS_RULES[OUR_DATA][name].accepts(measured.get(name)):
            recorded["data"][name] = measured[name]
    classifier = Classifier(**parts, average=recorded["average"], hyperparameters=recorded)  # type: ignore[arg-type]
    load_weights(classifier, content, "CHECKPOINT", checkpoint)
    return classifier.eval()


def _recorded_parts(content: dict[str, Any], checkpoint: Path, model: str | Path | None) -> "dict[str, nn.Module]":
    """Backbone and loss of a checkpoint, without its weights.

    Raises:
        SettingError: they cannot be built from what it records, or do not fit its weights.
    """
    import torch

    from mnist_mlp.backbone import check_logits
    from mnist_mlp.classifier import rebuilt

    recorded = content["hyper_parameters"]
    try:
        with torch.device("meta"):  # the shapes without the memory, which a stranger's numbers could exhaust
            own = rebuilt(recorded).get("backbone")
        if model is None and own is not None:
            shapes = {f"backbone.{name}": weights.shape for name, weights in own.state_dict().items()}
            weights = {name: tensor for name, tensor in content["state_dict"].items() if name.startswith("backbone.")}
            if shapes != {name: getattr(tensor, "shape", None) for name, tensor in weights.items()}:
                raise SettingError("CHECKPOINT", checkpoint, "holds the weights of another backbone")
        parts = rebuilt(recorded)
    except SettingError:
        raise
    except Exception as error:  # almost anything, if somebody else wrote the file
        problem = f"records a network that cannot be built ({one_line(error)})"
        raise SettingError("CHECKPOINT", checkpoint, problem) from error
    if model is not None:
        parts["backbone"] = _named_backbone(str(model))
    elif own is not None:
        check_logits(parts["backbone"], "CHECKPOINT", checkpoint)
    else:
        problem = (
            f"is of {recorded['model'].get('_target_')}: give that backbone's file with --model (a class that a "
            "checkpoint names is not run on its word alone)"
        )
        raise SettingError("CHECKPOINT", checkpoint, problem)
    return parts


def _named_backbone(model: str) -> "nn.Module":
    """What `--model` names: a network of this package's, or the file of a backbone."""
    from hydra.utils import instantiate

    from mnist_mlp.backbone import check_logits

    own = files("mnist_mlp.conf") / "model" / f"{model}.yaml"
    is_name = re.fullmatch(r"\w+", model) is not None and not Path(model).is_file()
    if is_name and not own.is_file():
        raise SettingError("--model", model, f"is neither a file nor one of {', '.join(options('model'))}")
    try:
        backbone = instantiate(load_yaml(Path(str(own)) if is_name else Path(model), "--model"), _convert_="all")
        check_logits(backbone, "--model", model)
    except SystemExit as error:
        raise ended_itself(error) from error
    return backbone  # type: ignore[no-any-return]


def _with_plain_weights(path: Path, model: str, known: bool = False) -> "Classifier":
    """A network with weights that come without settings: the data are those of `conf/data/mnist.yaml`. Where it is not
    `known` what they were trained on, a sentence among the hyperparameters, `doubt`, says so."""
    from mnist_mlp.classifier import Classifier
    from mnist_mlp.weights.files import fit, read_weights

    backbone = _named_backbone(model)
    fit(backbone, read_weights(path, "CHECKPOINT"), "CHECKPOINT", path)
    config = compose_config([])
    data: Any = OmegaConf.to_container(config.data)
    doubt = (
        f"{path} does not say what it was trained on: images of the test split, which is of MNIST's training images, "
        f"may be among that; mean {data['mean']} and std {data['std']} are assumed"
    )
    hyperparameters = {"data": data, "average": config.average, "doubt": None if known else doubt}
    return Classifier(backbone, average=config.average, hyperparameters=hyperparameters).eval()


def load(checkpoint: str | os.PathLike[str], model: str | os.PathLike[str] | None = None) -> "nn.Module":
    """The network in a checkpoint, for use by itself: on the CPU, in evaluation mode, without gradients.

    It takes images (N, 1, 28, 28), normalized as the run's were, and gives logits (N, 10).

    Args:
        checkpoint, model: as for `load_classifier`.

    Raises:
        SettingError: as from `load_classifier`.
    """
    classifier = load_classifier(Path(checkpoint), None if model is None else Path(model))
    return classifier.backbone.requires_grad_(False)


if __name__ == "__main__":
    main()
