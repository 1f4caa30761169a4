"""MNIST and its drop-in families: verified, split, normalized once and kept in memory on the training device."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import ceil
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from mnist_mlp.mnist.files import FAMILIES, locate, read
from mnist_mlp.seeds import stream_seed
from mnist_mlp.settings import HASHES, SettingError

Split = Literal["train", "validation", "test"]
Batch = tuple[Tensor, Tensor]
Transform = Callable[[Tensor], Tensor]

# Minibatches that `train` has handed to one training_step call. Lightning's work around a call (hooks, progress,
# transfer) is then paid once in 64 optimizer steps, while a step's images still fit into a core's cache when they are
# gathered.
MINIBATCHES_PER_STEP = 64


class Minibatches:
    """A group of minibatches (images (N, 1, 28, 28), labels (N,)), for one `training_step`.

    Iterating makes them one by one, each by one indexing operation. Native steps take the attributes instead, where
    nothing is transformed.

    Attributes:
        images, labels: the whole training set.
        order: (M,) int64, the numbers of this group's images.
        batch_size: N; the last minibatch may be smaller.
        first: how many minibatches of this epoch come before these.
        transform: a minibatch's images and its number in the epoch -> the images to train on; None for the same.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        order: Tensor,
        batch_size: int,
        first: int,
        transform: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.images, self.labels, self.order, self.batch_size, self.first = images, labels, order, batch_size, first
        self.transform = transform

    def __iter__(self) -> Iterator[Batch]:
        for number, index in enumerate(torch.split(self.order, self.batch_size), start=self.first):
            # index_select copies an image's 784 numbers at once, in half the time of images[index].
            images, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
            yield images if self.transform is None else self.transform(images, number), labels

    def __len__(self) -> int:
        return ceil(len(self.order) / self.batch_size)

    def divided(self, count: int) -> tuple["Minibatches", "Minibatches"]:
        """The first so many of them, and the rest."""
        orders = torch.tensor_split(self.order, [count * self.batch_size])
        one, other = (
            Minibatches(self.images, self.labels, order, self.batch_size, first, self.transform)
            for order, first in zip(orders, (self.first, self.first + count), strict=True)
        )
        return one, other

    def gathered(self) -> Batch:
        """All of them as one."""
        if self.transform is None:
            return self.images.index_select(0, self.order), self.labels.index_select(0, self.order)
        images, labels = zip(*self, strict=True)
        return torch.cat(images), torch.cat(labels)


class Loader(IterableDataset[Any]):
    """Batches of images in memory, for whoever expects a `DataLoader`: what one has of these names means the same.

    It is none: Lightning's Trainer would make it anew. What takes nothing else, as `Fabric.setup_dataloaders` does,
    takes `DataLoader(loader, batch_size=None)`, which gives the same batches.

    Attributes:
        dataset: images and labels, one by one.
        batch_size: of a batch; the last one may be smaller and is not dropped.
    """

    drop_last, num_workers = False, 0

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    @property
    def dataset(self) -> TensorDataset:
        return TensorDataset(self.images, self.labels)

    def __len__(self) -> int:
        return ceil(len(self.labels) / self.batch_size)


class TrainingEpoch(Loader):
    """The training set in a fresh order each epoch, as minibatches, or as groups of them.

    Args:
        images, labels: the training set.
        batch_size: images per minibatch.
        order: an epoch -> the permutation of their indices, on their device.
        group: how many minibatches make a `Minibatches`; None gives each by itself, as (images, labels).
        steps_left: minibatches that may yet be trained on; None for no limit.
        transform: as for `Minibatches`, after the number of the epoch.
        of_trainer: the epoch that a Trainer is in; None where there is no Trainer.

    Attributes:
        epoch: the next one, where there is no Trainer to say: each iteration is one. `set_epoch` sets it.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        order: Callable[[int], Tensor],
        group: int | None = None,
        steps_left: Callable[[], int | None] = lambda: None,
        transform: Callable[[int, Tensor, int], Tensor] | None = None,
        of_trainer: Callable[[], int | None] = lambda: None,
    ) -> None:
        super().__init__(images, labels, batch_size)
        self.order, self.group, self.steps_left, self.transform = order, group, steps_left, transform
        self.of_trainer, self.epoch = of_trainer, 0

    def set_epoch(self, epoch: int) -> None:
        """As of PyTorch's `DistributedSampler`."""
        self.epoch = epoch

    @property
    def minibatches(self) -> int:
        """How many the next iteration has, in groups or by themselves."""
        return ceil(self._samples() / self.batch_size)

    def _samples(self) -> int:
        steps = self.steps_left()
        return len(self.labels) if steps is None else min(len(self.labels), steps * self.batch_size)

    def __len__(self) -> int:
        return ceil(self._samples() / (self.batch_size * (self.group or 1)))

    def __iter__(self) -> Iterator[Minibatches | Batch]:
        epoch = self.of_trainer()
        if epoch is None:
            epoch = self.epoch
            self.epoch += 1
        order = self.order(epoch)[: self._samples()]
        transform = self.transform and partial(self.transform, epoch)
        group = self.group or MINIBATCHES_PER_STEP
        for number, some in enumerate(torch.split(order, self.batch_size * group)):
            minibatches = Minibatches(self.images, self.labels, some, self.batch_size, number * group, transform)
            if self.group:
                yield minibatches
            else:
                yield from minibatches


class InOrder(Loader):
    """Every sample once, in order, in batches of at most `batch_size`; views, nothing is copied or dropped."""

    def __iter__(self) -> Iterator[Batch]:
        return zip(torch.split(self.images, self.batch_size), torch.split(self.labels, self.batch_size), strict=True)


# What `DataLoader` takes, and what Lightning's data modules are often given for it.
LOADING = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "shuffle", "drop_last", "collate_fn")
# What an evaluation takes of a recorded run: which images make each split, and what is computed of them.
OF_EVALUATION = (
    *("dataset", "sha256", "mean", "std", "test_size", "validation_size", "train_size", "split_seed"),
    "eval_batch_size",
)
HYPERPARAMETERS = ("root", "download", "mirror", "seed", "batch_size", *OF_EVALUATION)


class MNISTDataModule(LightningDataModule):
    """Owns the data: where it comes from, the three-way split, normalization and the order of the samples.

    The official 60,000 training images are divided by a seeded permutation into training and test images, as in the
    report; the official 10,000 test images are the *validation* set, also as in the report. With `validation_size` the
    validation images too are training images of the official ones, and those 10,000 are not looked at.

    Everything lies in memory, on the trainer's device from the start: `DataLoader`'s workers or pinned memory would
    have nothing to do. What the loaders give are ordinary batches (images, labels), unless `group` was called.

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
        train_size: how many of what is left then are trained on, for learning curves: a smaller set is a part of every
            larger one. None: all.
        split_seed: decides which ones of all of these.
        seed: decides, with the epoch, the order of the training images and what `transform` draws.
        batch_size: images per optimizer step; the epoch's last batch may be smaller and is used.
        eval_batch_size: images per forward pass in validation and test; changes speed and memory only.
        transform: augmentation, from a minibatch's images (N, 1, 28, 28), normalized, to as many; such as `Warp`, or
            one of torchvision's. What it draws from PyTorch's global generator follows from seed, epoch and minibatch.

    Attributes:
        splits: after `setup`: `train`, `validation` and `test`, each images (N, 1, 28, 28) float32, normalized, and
            labels (N,) int64, on the trainer's device.
        data_sha256: after `setup`: SHA-256 of what `sha256sum` prints for the four unpacked files in name order.

    Raises:
        SettingError: `dataset`, `sha256` or `transform` cannot be used; or, from `setup`, the files are missing,
            altered or not of this shape, or the split or the batch does not fit them.
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
        train_size: int | None = None,
        split_seed: int = 0,
        seed: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 2500,
        transform: Transform | None = None,
        **loading: object,
    ) -> None:
        super().__init__()
        for name, value in loading.items():
            if name not in LOADING:
                raise SettingError(f"data.{name}", value, f"{type(self).__name__} takes no such argument")
            if value:
                raise SettingError(f"data.{name}", value, "has no use where all images lie in memory: leave it out")
        if transform is not None and not callable(transform):
            raise SettingError("data.transform", transform, "must be null or build a callable, such as Warp")
        if dataset not in FAMILIES:
            raise SettingError("data.dataset", dataset, f"must be one of {', '.join(FAMILIES)}")
        if not HASHES.accepts(sha256):
            raise SettingError("data.sha256", sha256, f"must be {HASHES.wanted}")
        self.dataset, self.root, self.download, self.mirror = dataset, root, download, mirror
        self.sha256, self.mean, self.std = dict(sha256) if sha256 else None, mean, std
        self.test_size, self.validation_size, self.train_size = test_size, validation_size, train_size
        self.split_seed, self.seed, self.transform = split_seed, seed, transform
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        # Plain values, which checkpoints keep. Not for loggers: Lightning refuses a seed that the module has otherwise.
        self.save_hyperparameters({name: vars(self)[name] for name in HYPERPARAMETERS}, logger=False)
        self.group_size: int | None = None
        self.data_sha256: str | None = None
        self.splits: dict[Split, Batch] = {}

    def __repr__(self) -> str:
        sizes = (f"{len(labels):,} {name}" for name, (_, labels) in self.splits.items())
        return f"{type(self).__name__}({self.dataset}: {', '.join(sizes) or 'not set up'})"

    __str__ = __repr__  # Lightning's own names classes of loaders

    def group(self, minibatches: int | None) -> None:
        """Has `train_dataloader` give `Minibatches` of so many, which a `Classifier` with `steps` trains on fast.

        None: each minibatch by itself.
        """
        self.group_size = minibatches

    def prepare_data(self) -> None:
        """Downloads what is not there yet, if `download` allows it."""
        if self.download and not self.splits:
            locate(self.dataset, self.root, self.download, self.mirror, self.sha256)

    def setup(self, stage: str | None = None) -> None:
        """Reads, verifies, splits and normalizes all three sets, once, onto the trainer's device, for every stage."""
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
        if self.train_size is not None and not 0 < self.train_size <= left:
            raise SettingError("data.train_size", self.train_size, f"must lie between 1 and {left:,}")
        left = self.train_size or left
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
        train = train[: self.train_size]
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
        images, labels = self._split("train")
        transform = self._transformed if self.transform is not None else None
        return TrainingEpoch(
            *(images, labels, self.batch_size, self._order, self.group_size, self._steps_left, transform, self._epoch)
        )

    def val_dataloader(self) -> InOrder:
        return InOrder(*self._split("validation"), self.eval_batch_size)

    def test_dataloader(self) -> InOrder:
        return InOrder(*self._split("test"), self.eval_batch_size)

    def predict_dataloader(self) -> InOrder:
        """The test images, with their labels."""
        return self.test_dataloader()

    def _split(self, name: Split) -> Batch:
        if not self.splits:
            raise RuntimeError(f"{type(self).__name__} has no images yet: call setup(), or hand it to a Trainer")
        return self.splits[name]

    def _epoch(self) -> int | None:
        return self.trainer.current_epoch if self.trainer else None

    def _order(self, epoch: int) -> Tensor:
        """An epoch's order of the training images: a function of (seed, epoch) alone."""
        images, labels = self.splits["train"]
        if self.trainer and getattr(self.trainer, "overfit_batches", None):
            return torch.arange(len(labels), device=images.device)  # the same few images, each epoch
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
        return torch.randperm(len(labels), generator=generator).to(images.device)

    def _transformed(self, epoch: int, images: Tensor, number: int) -> Tensor:
        """A minibatch's images transformed; the global generators are left as they were."""
        assert self.transform is not None
        on_gpu = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices=on_gpu):
            seed = stream_seed(self.seed, f"transform/{epoch}", number)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed does more, at each of 1,000 minibatches
            if on_gpu:
                torch.cuda.manual_seed(seed)
            return self.transform(images)

    def _steps_left(self) -> int | None:
        # An epoch that max_steps cuts short then ends as any other does: with validation and a checkpoint.
        if not self.trainer or self.trainer.max_steps < 0:
            return None
        steps = self.trainer.max_steps - self.trainer.global_step
        return max(0, steps * self.trainer.accumulate_grad_batches)


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
