"""MNIST and its drop-in families: verified, split, normalized once and kept in memory on the training device."""

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mnist_mlp.mnist.files import FAMILIES, locate, read
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import HASHES, SettingError

Split = Literal["train", "validation", "test"]
Batch = tuple[Tensor, Tensor]

# Minibatches handed to one training_step call. Lightning's work around a call (hooks, progress, transfer) is
# then paid once in 64 optimizer steps, while a step's images still fit into a core's cache when they are gathered.
MINIBATCHES_PER_STEP = 64


class Minibatches:
    """A group of minibatches (images (N, 1, 28, 28), labels (N,)), for one `training_step`.

    Iterating makes them one by one, each by one indexing operation. Native steps take the attributes instead.

    Attributes:
        images, labels: the whole training set.
        order: (M,) int64, the numbers of this group's images.
        batch_size: N; the last minibatch may be smaller.
        first: how many minibatches of this epoch come before these.
    """

    def __init__(self, images: Tensor, labels: Tensor, order: Tensor, batch_size: int, first: int) -> None:
        self.images, self.labels, self.order, self.batch_size, self.first = images, labels, order, batch_size, first

    def __iter__(self) -> Iterator[Batch]:
        for index in torch.split(self.order, self.batch_size):
            # index_select copies an image's 784 numbers at once, in half the time of images[index].
            yield self.images.index_select(0, index), self.labels.index_select(0, index)


class TrainingEpoch:
    """The training set in a fresh order each epoch, as groups of up to `MINIBATCHES_PER_STEP` minibatches.

    Args:
        images, labels: the training set.
        batch_size: images per minibatch.
        order: this epoch's permutation of their indices, on their device.
        steps_left: optimizer steps that may yet be made; None for no limit.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        order: Callable[[], Tensor],
        steps_left: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.order, self.steps_left = order, steps_left

    def _samples(self) -> int:
        steps = self.steps_left()
        return len(self.labels) if steps is None else min(len(self.labels), steps * self.batch_size)

    def __len__(self) -> int:
        return ceil(self._samples() / (self.batch_size * MINIBATCHES_PER_STEP))

    def __iter__(self) -> Iterator[Minibatches]:
        order = self.order()[: self._samples()]
        for number, some in enumerate(torch.split(order, self.batch_size * MINIBATCHES_PER_STEP)):
            yield Minibatches(self.images, self.labels, some, self.batch_size, number * MINIBATCHES_PER_STEP)


class InOrder:
    """Every sample once, in order, in batches of at most `batch_size`; views, nothing is copied or dropped."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __len__(self) -> int:
        return ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return zip(torch.split(self.images, self.batch_size), torch.split(self.labels, self.batch_size), strict=True)


class MNISTDataModule(LightningDataModule):
    """Owns the data: where it comes from, the three-way split, normalization and the order of the samples.

    The official 60,000 training images are divided by a seeded permutation into training and test images, as in the
    report; the official 10,000 test images are the *validation* set, also as in the report. With `validation_size` the
    validation images too are training images of the official ones, and those 10,000 are not looked at.

    Args:
        dataset: `MNIST`, `FashionMNIST` or `KMNIST`.
        root: a directory in torchvision's layout (`ROOT/MNIST/raw/train-images-idx3-ubyte` and so on). None: the
            files that ship with the package (MNIST), or a directory in the user's cache (the others).
        download: let torchvision fetch what `root` lacks.
        mirror: the URL that holds the four `.gz` files, in place of torchvision's own list.
        sha256: the expected SHA-256 of each of the four unpacked files, by name; None accepts any.
        mean, std: of the pixels, scaled to 0..1; None computes both from the 60,000 official training images.
        test_size: how many of the official training images become the test set; the rest is trained on.
        validation_size: how many of that rest are not trained on but become the validation set; None: the official test
            images are that.
        split_seed: decides which ones of both.
        seed: decides, with the epoch, the order of the training images.
        batch_size: images per optimizer step; the epoch's last batch may be smaller and is used.
        eval_batch_size: images per forward pass in validation and test; changes speed and memory only.

    Attributes:
        splits: after `setup`: `train`, `validation` and `test`, each images (N, 1, 28, 28) float32, normalized, and
            labels (N,) int64, on the trainer's device.
        data_sha256: after `setup`: SHA-256 of what `sha256sum` prints for the four unpacked files in name order.

    Raises:
        SettingError: `dataset` or `sha256` cannot be used; or, from `setup`, the files are missing, altered or not of
            this shape, or the split or the batch does not fit them.
    """

    def __init__(
        self,
        dataset: str = "MNIST",
        root: str | None = None,
        download: bool = False,
        mirror: str | None = None,
        sha256: Mapping[str, str] | None = None,
        mean: float | None = None,
        std: float | None = None,
        test_size: int = 3000,
        validation_size: int | None = None,
        split_seed: int = 0,
        seed: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 2500,
    ) -> None:
        super().__init__()
        if dataset not in FAMILIES:
            raise SettingError("data.dataset", dataset, f"must be one of {', '.join(FAMILIES)}")
        if not HASHES.accepts(sha256):
            raise SettingError("data.sha256", sha256, f"must be {HASHES.wanted}")
        self.dataset, self.root, self.download, self.mirror = dataset, root, download, mirror
        self.sha256, self.mean, self.std = dict(sha256) if sha256 else None, mean, std
        self.test_size, self.validation_size, self.split_seed, self.seed = test_size, validation_size, split_seed, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.data_sha256: str | None = None
        self.splits: dict[Split, Batch] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads, verifies, splits and normalizes all three sets, once, onto the trainer's device."""
        if self.splits:
            return
        root, self.data_sha256 = locate(self.dataset, self.root, self.download, self.mirror, self.sha256)
        official_train = read(self.dataset, root, train=True)
        total = len(official_train[1])
        if not 0 < self.test_size < total:
            raise SettingError("data.test_size", self.test_size, f"must lie between 1 and {total - 1:,}")
        left = total - self.test_size
        if self.validation_size is not None and not 0 < self.validation_size < left:
            raise SettingError("data.validation_size", self.validation_size, f"must lie between 1 and {left - 1:,}")
        left -= self.validation_size or 0
        if self.batch_size > left:
            raise SettingError("data.batch_size", self.batch_size, f"must be at most the {left:,} training images")
        mean, std = self.mean, self.std
        if mean is None or std is None:
            mean, std = self.mean, self.std = pixel_statistics(official_train[0])
        generator = torch.Generator().manual_seed(stream_seed(self.split_seed, "split"))
        permutation = torch.randperm(total, generator=generator)
        test, train = permutation[: self.test_size], permutation[self.test_size :]
        if self.validation_size is None:
            validation_images, validation_labels = read(self.dataset, root, train=False)
        else:
            # A stream of its own, so that the test set is the same with it and without.
            generator = torch.Generator().manual_seed(stream_seed(self.split_seed, "validation"))
            train = train[torch.randperm(len(train), generator=generator)]
            validation, train = train[: self.validation_size], train[self.validation_size :]
            validation_images, validation_labels = official_train[0][validation], official_train[1][validation]
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

        def place(images: Tensor, labels: Tensor) -> Batch:
            return normalize(images, mean, std).to(device), labels.to(device, copy=True)

        self.splits = {
            "train": place(official_train[0][train], official_train[1][train]),
            "validation": place(validation_images, validation_labels),
            "test": place(official_train[0][test], official_train[1][test]),
        }

    def state_dict(self) -> dict[str, float | None]:
        """What the images were normalized with, for a checkpoint that is used without them."""
        return {"mean": self.mean, "std": self.std}

    def train_dataloader(self) -> TrainingEpoch:
        images, labels = self.splits["train"]
        return TrainingEpoch(images, labels, self.batch_size, self._order, self._steps_left)

    def val_dataloader(self) -> InOrder:
        return InOrder(*self.splits["validation"], self.eval_batch_size)

    def test_dataloader(self) -> InOrder:
        return InOrder(*self.splits["test"], self.eval_batch_size)

    def _order(self) -> Tensor:
        """This epoch's order of the training images: a function of (seed, epoch) alone."""
        images, labels = self.splits["train"]
        epoch = self.trainer.current_epoch if self.trainer else 0
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
        return torch.randperm(len(labels), generator=generator).to(images.device)

    def _steps_left(self) -> int | None:
        # An epoch that max_steps cuts short then ends as any other does: with validation and a checkpoint.
        limited = self.trainer is not None and self.trainer.max_steps >= 0
        return self.trainer.max_steps - self.trainer.global_step if self.trainer and limited else None


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """(x / 255 - mean) / std, bit for bit as torchvision's ToTensor and Normalize: (N, 28, 28) uint8 ->
    (N, 1, 28, 28) float32."""
    return images.unsqueeze(1).to(torch.float32).div_(255).sub_(mean).div_(std)


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels scaled to 0..1, exact in float64 by way of their histogram."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()
