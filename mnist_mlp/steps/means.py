"""What the steps and evaluations of an epoch leave for its means."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def summed(losses: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """Of each minibatch the sum of the losses over its images, on their device and without waiting for it.

    Args:
        losses: (steps,), the means.
        labels: of each minibatch, of which only the last may be smaller.
    """
    sizes = losses.new_full((len(labels),), len(labels[0]))
    sizes[-1:] = len(labels[-1])
    return losses * sizes


class EpochMeans:
    """Exact means of loss and error over the samples of an epoch, left on the device until the epoch's end."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._errors: list[Tensor] = []
        self._sums: list[float] = []
        self._samples = 0

    def add(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Losses: any shape, together the sum over these samples; logits (N, num_classes); labels (N,)."""
        self._losses.append(losses.flatten())
        self._errors.append((logits.argmax(dim=1) != labels).sum())
        self._samples += len(labels)

    def add_sums(self, loss: float, errors: int, samples: int) -> None:
        """The sum of the losses and the number of errors of these samples."""
        self._sums.append(loss)
        self._errors.append(torch.tensor(errors))
        self._samples += samples

    def take(self) -> tuple[float, float]:
        """Mean loss and share of errors, both over all samples added; starts afresh."""
        if self._losses:
            self._sums.append(torch.cat(self._losses).cpu().double().sum().item())  # on the CPU: MPS has no float64
        loss, error = math.fsum(self._sums) / self._samples, int(torch.stack(self._errors).sum()) / self._samples
        self.__init__()  # type: ignore[misc]
        return loss, error
