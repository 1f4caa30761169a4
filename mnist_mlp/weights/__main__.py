"""`python -m mnist_mlp.weights RUN_DIR...`: puts the last weights of runs into the package, as NETWORK.safetensors."""

import json
import sys
from pathlib import Path

from mnist_mlp.datamodule import MNISTDataModule
from mnist_mlp.run.checkpoint import read_checkpoint, weights_sha256
from mnist_mlp.run.groups import command
from mnist_mlp.run.records import Run, read_record, read_settings
from mnist_mlp.settings import SettingError, one_sentence
from mnist_mlp.weights.files import write_safetensors

OTHERS = "official training images that were not trained on"


def main() -> None:
    """The files say of themselves what `described` takes from each run."""
    with one_sentence():
        for run_dir in map(Path, sys.argv[1:]):
            said = described(run_dir)
            state = read_checkpoint(run_dir / "checkpoints" / "last.ckpt", "RUN_DIR")["state_dict"]
            if weights_sha256(state) != said["weights_sha256"]:
                raise SettingError("RUN_DIR", run_dir, "has a last.ckpt that is not of the weights in its run.json")
            target = Path(__file__).with_name(f"{said['network']}.safetensors")
            weights = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
            write_safetensors(target, weights, said)
            print(f"{target}: {json.dumps(said, indent=2)}")


def described(run_dir: Path) -> dict[str, str]:
    """Of a run: its network, command and hash, which images it trained on, and which accuracy is of which images.

    Raises:
        SettingError: it cannot be read, is not completed, or had settings or images that are not the package's.
    """
    run = Run(run_dir, str(run_dir), read_record(run_dir), read_settings(run_dir))
    refused = SettingError("RUN_DIR", run_dir, "must be a completed run of this package's settings, on its images")
    made_by = command([run]) if run.completed else None
    if made_by is None:
        raise refused
    sized = ("test_size", "validation_size", "train_size", "split_seed")
    datamodule = MNISTDataModule(**{name: run.settings[f"data.{name}"] for name in sized})
    datamodule.setup()
    if datamodule.data_sha256 != run.record["data_sha256"]:
        raise refused
    sizes = {split: f"{len(labels):,}" for split, (_, labels) in datamodule.splits.items()}
    validation = "official test images" if datamodule.validation_size is None else OTHERS
    return {
        "network": str(run.model),
        "command": made_by,
        "trained_on": f"{sizes['train']} of the official training images",
        "validation_accuracy": str(run.record["final"]["val/accuracy"]),
        "validation_images": f"{sizes['validation']} {validation}",
        "test_accuracy": str(run.record["test"]["last"]["accuracy"]),
        "test_images": f"{sizes['test']} {OTHERS}",
        "weights_sha256": run.record["weights_sha256"],
    }


if __name__ == "__main__":
    main()
