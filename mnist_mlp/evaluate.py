"""`mnist-evaluate CHECKPOINT`: the metrics of a checkpoint on one of the three splits."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_mlp.settings import CLASS_RULES, OUR_BACKBONE, OUR_DATA, SettingError, load_yaml, one_sentence
from mnist_mlp.surroundings import import_from_here

if TYPE_CHECKING:
    from mnist_mlp.classifier import Classifier

SPLITS = ("train", "validation", "test")
# What of the recorded data settings says which images belong to which split; where to read them is asked afresh.
DATA_SETTINGS = ("dataset", "mean", "std", "test_size", "validation_size", "split_seed", "eval_batch_size", "sha256")


def main() -> None:
    """Runs `mnist-evaluate`. Exit status: 0; 1 where the checkpoint or the data cannot be used."""
    parser = argparse.ArgumentParser(prog="mnist-evaluate", description="Metrics of a checkpoint on a split.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="such as RUN_DIR/checkpoints/best.ckpt")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the data (default: %(default)s)")
    parser.add_argument("--data-root", metavar="PATH", help="images in torchvision's layout (default: the package's)")
    parser.add_argument("--model", metavar="YAML", type=Path, help="the file of a backbone that is not this package's")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args()
    with one_sentence():
        import_from_here()
        metrics = evaluate(arguments.checkpoint, arguments.split, arguments.data_root, arguments.model)
    if arguments.json:
        print(json.dumps(metrics))
    else:
        print(f"{arguments.split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def evaluate(
    checkpoint: Path, split: str = "test", data_root: str | None = None, model: Path | None = None
) -> dict[str, float]:
    """Accuracy, precision, recall and F1 (fractions) and the mean loss of a checkpoint on a split.

    The split, normalization and averaging are those of the checkpoint's run.

    Raises:
        SettingError: the checkpoint or the data cannot be used.
    """
    # Here and below, because PyTorch takes seconds to import, which --help and a wrong argument do not take.
    from lightning.pytorch import Trainer

    from mnist_mlp.classifier import score
    from mnist_mlp.datamodule import InOrder, MNISTDataModule
    from mnist_mlp.run.trainer import ONE_PROCESS, QUIET, quiet

    classifier = load_classifier(checkpoint, model)
    recorded = classifier.hparams["data"]
    datamodule = MNISTDataModule(root=data_root, **{name: recorded[name] for name in DATA_SETTINGS if name in recorded})
    datamodule.setup()
    images, labels = datamodule.splits[split]  # type: ignore[index]
    with quiet():
        trainer = Trainer(devices=1, logger=False, enable_checkpointing=False, plugins=[ONE_PROCESS()], **QUIET)
        return score(trainer, classifier, InOrder(images, labels, datamodule.eval_batch_size))


def load_classifier(checkpoint: Path, model: Path | None = None) -> "Classifier":
    """The classifier in a checkpoint, in evaluation mode. Nothing in the file is executed: it is read with
    `weights_only`, and only this package's backbone, or the one that the caller names, is built.

    Args:
        checkpoint: written by `mnist-train`.
        model: a YAML file with a `_target_`, as in `conf/model/`, for a backbone that is not this package's.

    Raises:
        SettingError: the file cannot be read, is no such checkpoint, or holds weights of another backbone.
    """
    from hydra.utils import instantiate

    from mnist_mlp.backbone import MLP, check_logits
    from mnist_mlp.classifier import Classifier
    from mnist_mlp.run.checkpoint import load_weights, read_checkpoint

    content = read_checkpoint(checkpoint, "CHECKPOINT")
    recorded = content["hyper_parameters"]
    if model is not None:
        backbone = instantiate(load_yaml(model, "--model"))
        check_logits(backbone, "--model", model)
    elif recorded["model"].get("_target_") == OUR_BACKBONE:
        try:
            backbone = MLP(**{key: value for key, value in recorded["model"].items() if key != "_target_"})
        except Exception as error:  # almost anything, if somebody else wrote the file
            raise SettingError("CHECKPOINT", checkpoint, f"records a network that cannot be built ({error})") from error
    else:
        raise SettingError(
            "CHECKPOINT",
            checkpoint,
            f"is of {recorded['model'].get('_target_')}: give that backbone's file with --model",
        )
    measured = content.get("MNISTDataModule")
    for name in ("mean", "std"):  # what the run computed, where it was not set
        if isinstance(measured, dict) and CLASS_RULES[OUR_DATA][name].accepts(measured.get(name)):
            recorded["data"][name] = measured[name]
    classifier = Classifier(backbone, average=recorded["average"], hyperparameters=recorded)
    load_weights(classifier, content, "CHECKPOINT", checkpoint)
    return classifier.eval()


if __name__ == "__main__":
    main()
