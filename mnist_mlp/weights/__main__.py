"""`python -m mnist_mlp.weights RUN_DIR...`: puts the last weights of runs into the package, as NETWORK.safetensors."""

import json
import shlex
import sys
from pathlib import Path

import yaml

from mnist_mlp.run.checkpoint import read_checkpoint
from mnist_mlp.settings import one_sentence
from mnist_mlp.weights.files import write_safetensors


def main() -> None:
    """A run's `run.json` says what the file will say of itself: network, accuracies, the command and the hash."""
    with one_sentence():
        for run_dir in map(Path, sys.argv[1:]):
            state = read_checkpoint(run_dir / "checkpoints" / "last.ckpt", "RUN_DIR")["state_dict"]
            record = json.loads((run_dir / "run.json").read_text())
            overrides = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())
            command = ["mnist-train", *(word for word in overrides if not word.startswith("run_dir="))]
            said = {
                "network": record["model"],
                "command": shlex.join(command),
                "validation_accuracy": str(record["final"]["val/accuracy"]),
                "test_accuracy": str(record["test"]["last"]["accuracy"]),
                "weights_sha256": record["weights_sha256"],
            }
            target = Path(__file__).with_name(f"{record['model']}.safetensors")
            weights = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
            write_safetensors(target, weights, said)
            print(f"{target}: {json.dumps(said, indent=2)}")


if __name__ == "__main__":
    main()
