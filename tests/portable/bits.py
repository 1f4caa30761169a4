"""Prints, as JSON, a hash of everything that decides a bit; and, of each RUN given, what `mnist-rerun` says of it.

`test_portable.py` runs this on the CPU that is there and on emulated ones.
"""

import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from mnist_mlp.run.process import prepare_process

prepare_process(threads=1, portable=True)
import numpy as np
import optuna
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from mnist_mlp.backbone import MLP
from mnist_mlp.classifier import Classifier, cross_entropy
from mnist_mlp.datamodule import normalize, pixel_statistics
from mnist_mlp.rerun import rerun
from mnist_mlp.run.provenance import arithmetic
from mnist_mlp.seeds import stream_seed
from mnist_mlp.steps.native import NativeImages, NativeSteps
from mnist_mlp.sweeps.search import _rounded

STEPS, BATCH = 12, 64


def digest(*values: torch.Tensor | float) -> str:
    arrays = [value.detach().numpy() if isinstance(value, torch.Tensor) else np.float64(value) for value in values]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def network(init: str = "default") -> MLP:
    torch.manual_seed(stream_seed(0, "weights"))
    return MLP((64, 128, 64), 0.3, init)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images in which every fifth pixel is ink, and labels: (STEPS * BATCH, 1, 28, 28), (STEPS * BATCH,)."""
    generator = random.Random(0)  # Python's own, whose bits are the same everywhere
    pixels = bytes(generator.randrange(256) * (generator.random() < 0.2) for _ in range(STEPS * BATCH * 784))
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 28, 28)
    labels = torch.tensor([generator.randrange(10) for _ in range(STEPS * BATCH)])
    return normalize(images, *pixel_statistics(images)), labels


def eager(optimizer: Any, clip: float | None, **arguments: Any) -> str:
    """The weights after some of PyTorch's steps, with dropout, and the losses."""
    model, (images, labels), losses = network(), data(), []
    made = optimizer(model.parameters(), **arguments)
    torch.manual_seed(stream_seed(0, "dropout"))
    torch.set_flush_denormal(True)
    for some, wanted in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        loss = cross_entropy(model(some), wanted)
        made.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        made.step()
        losses.append(loss)
    return digest(*model.parameters(), *losses)


def native(optimizer: Any, clip: float | None, **arguments: Any) -> str:
    model, (images, labels) = network(), data()
    steps = NativeSteps(model, optimizer(model.parameters(), **arguments), seed=1, gradient_clip_val=clip)
    images_of = NativeImages(images, labels)
    loss, _ = steps.train(images_of, torch.arange(len(labels)), BATCH, epoch=0, step=0)
    found = steps.evaluate(images_of)
    return digest(*model.parameters(), loss, found.logits, found.losses)


def metrics() -> str:
    """Of an evaluation, with sums over batches, as `metrics.csv` has them."""
    images, labels = data()
    classifier = Classifier(network()).eval()
    with torch.no_grad():
        for some, wanted in zip(images.split(100), labels.split(100), strict=True):
            logits = classifier(some)
            classifier.evaluation_means.add(cross_entropy(logits, wanted, "sum"), logits, wanted)
            classifier.metrics.update(logits, wanted)
    means = classifier.evaluation_means.take()
    return digest(*means, *(float(f"{value.item():.6g}") for value in classifier.metrics.compute().values()))


def proposals() -> str:
    """What a search tries, if the results are these."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=3, n_startup_trials=5))
    distributions: dict[str, Any] = {
        "lr": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True),
        "dropout": optuna.distributions.FloatDistribution(0, 0.5),
        "batch": optuna.distributions.IntDistribution(16, 256),
        "init": optuna.distributions.CategoricalDistribution(["a", "b"]),
    }
    found = []
    for _ in range(25):
        trial = study.ask(distributions)
        params = {
            name: _rounded(
                value, {"low": getattr(distributions[name], "low", 0), "high": getattr(distributions[name], "high", 0)}
            )
            for name, value in trial.params.items()
            if name != "init"
        }
        study.tell(trial, 1 - abs(params["dropout"] - 0.2) - params["lr"] + params["batch"] % 7 / 100)
        found.append([params, trial.params["init"]])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def main(runs: list[str]) -> None:
    adam, sgd = torch.optim.Adam, torch.optim.SGD
    generator = torch.Generator().manual_seed(stream_seed(0, "order"))
    images, labels = data()
    found = {
        "initial weights": digest(*network().parameters()),
        "Xavier's weights": digest(*network("xavier_uniform").parameters()),
        "order": digest(torch.randperm(57000, generator=generator)),
        "normalized images": digest(images, labels),
        "metrics": metrics(),
        "F1": digest(multiclass_f1_score(torch.arange(100) % 7, labels[:100], 10, average="macro")),
        "proposals": proposals(),
        "native steps, Adam": native(adam, None),
        "native steps, SGD, clipped": native(sgd, 0.5, lr=0.1, momentum=0.9),
        "eager steps, fused Adam": eager(adam, None, fused=True),
        "eager steps, fused AdamW": eager(torch.optim.AdamW, None, fused=True),
        "eager steps, SGD, clipped": eager(sgd, 0.5, lr=0.1, momentum=0.9),
    }
    with tempfile.TemporaryDirectory() as place:
        for number, run in enumerate(runs):  # the first epoch alone, so that the rest goes on from its checkpoint
            rerun(Path(run), Path(place) / str(number), epochs=1)
        reruns = [rerun(Path(run), Path(place) / str(number)) for number, run in enumerate(runs)]
    print(json.dumps({"bits": found, "reruns": reruns, "arithmetic": arithmetic(), "torch": torch.__version__}))


if __name__ == "__main__":
    main(sys.argv[1:])
