import functools
import hashlib
import http.server
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import Server
from helpers import PACKAGE_FILES
from torchvision import transforms
from torchvision.datasets import MNIST

from mnist_mlp import datamodule
from mnist_mlp.datamodule import MNISTDataModule, Split, normalize, pixel_statistics
from mnist_mlp.mnist import files
from mnist_mlp.settings import DATA_FILES, SettingError, compose_config


def real(**settings: object) -> MNISTDataModule:
    data = compose_config([]).data
    given = {key: value for key, value in data.items() if key != "_target_"} | settings
    datamodule = MNISTDataModule(**given)
    datamodule.setup()
    return datamodule


@pytest.fixture(scope="module")
def shipped() -> MNISTDataModule:
    return real()


def test_the_split_is_the_reports(shipped: MNISTDataModule) -> None:
    sizes = {split: len(labels) for split, (_, labels) in shipped.splits.items()}
    assert sizes == {"train": 57_000, "validation": 10_000, "test": 3_000}


def test_every_training_image_is_in_exactly_one_split(shipped: MNISTDataModule) -> None:
    official = MNIST(files.cache_directory(), train=True).data
    parts = torch.cat([shipped.splits["train"][0], shipped.splits["test"][0]])
    together = ((parts * 0.3081 + 0.1307) * 255).round().to(torch.uint8).flatten(1)

    def digests(images: torch.Tensor) -> list[bytes]:
        return sorted(hashlib.sha256(image.numpy().tobytes()).digest() for image in images)

    assert digests(together) == digests(official.flatten(1))


def test_a_carved_validation_set_leaves_the_test_set_and_the_official_images_alone(
    shipped: MNISTDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = []
    monkeypatch.setattr(datamodule, "read", lambda *a, train: halves.append(train) or files.read(*a, train=train))
    carved = real(validation_size=5_000, seed=1)
    assert halves == [True]
    sizes = {split: len(labels) for split, (_, labels) in carved.splits.items()}
    assert sizes == {"train": 52_000, "validation": 5_000, "test": 3_000}
    assert torch.equal(carved.splits["test"][0], shipped.splits["test"][0])

    def digests(datamodule: MNISTDataModule, *splits: Split) -> list[bytes]:
        images = torch.cat([datamodule.splits[split][0] for split in splits])
        return sorted(hashlib.sha256(image.numpy().tobytes()).digest() for image in images)

    assert digests(carved, "train", "validation") == digests(shipped, "train")
    again, other = real(validation_size=5_000), real(validation_size=5_000, split_seed=1)
    assert torch.equal(carved.splits["validation"][0], again.splits["validation"][0])
    assert not torch.equal(carved.splits["validation"][1], other.splits["validation"][1])
    counts = torch.bincount(carved.splits["validation"][1])  # no part of the sorted or of the first images
    assert counts.min() > 350
    assert not torch.equal(carved.splits["validation"][1], shipped.splits["train"][1][:5_000])


def test_normalization_is_bitwise_torchvisions(shipped: MNISTDataModule) -> None:
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    official = MNIST(files.cache_directory(), train=False, transform=theirs)
    images, labels = shipped.splits["validation"]
    for index in (0, 1, 4999, 9999):
        image, label = official[index]
        assert torch.equal(images[index], image)
        assert labels[index] == label


def test_the_reports_constants_are_mnists(shipped: MNISTDataModule) -> None:
    mean, std = pixel_statistics(MNIST(files.cache_directory(), train=True).data)
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)


def test_statistics_equal_torchs_own() -> None:
    images = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scaled = images.double() / 255
    expected = (scaled.mean().item(), scaled.std(correction=0).item())
    assert pixel_statistics(images) == pytest.approx(expected, rel=1e-12)


def test_split_seed_decides_the_split_and_seed_does_not(tiny_root: Path) -> None:
    def test_labels(**settings: int) -> torch.Tensor:
        return real(root=str(tiny_root), sha256=None, test_size=200, **settings).splits["test"][1]

    assert torch.equal(test_labels(), test_labels(seed=5))
    assert not torch.equal(test_labels(), test_labels(split_seed=5))


def test_an_epoch_sees_every_image_once_and_keeps_the_partial_batch(tiny_root: Path) -> None:
    datamodule = real(root=str(tiny_root), sha256=None, test_size=200, batch_size=7)
    datamodule.group(64)
    loader = datamodule.train_dataloader()
    groups = [list(group) for group in loader]
    sizes = [len(labels) for group in groups for _, labels in group]
    assert len(groups) == len(loader)
    assert sizes == [7] * 142 + [6]
    seen = torch.cat([images for group in groups for images, _ in group])
    assert not torch.equal(seen, datamodule.splits["train"][0])
    assert torch.equal(
        seen.flatten(1).sum(1).sort().values, datamodule.splits["train"][0].flatten(1).sum(1).sort().values
    )


def test_computed_constants_normalize_the_training_images(tiny_root: Path) -> None:
    datamodule = real(root=str(tiny_root), sha256=None, mean=None, std=None, test_size=200)
    both = torch.cat([datamodule.splits["train"][0], datamodule.splits["test"][0]])
    assert both.mean().item() == pytest.approx(0, abs=1e-5)
    assert both.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_data_sha256_is_what_sha256sum_prints(tiny_root: Path) -> None:
    datamodule = real(root=str(tiny_root), sha256=None, test_size=200)
    lines = [
        f"{hashlib.sha256((tiny_root / 'MNIST' / 'raw' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in DATA_FILES
    ]
    assert datamodule.data_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture
def own_copy(tmp_path: Path, shipped: MNISTDataModule) -> Path:
    shutil.copytree(files.cache_directory() / "MNIST", tmp_path / "MNIST")
    return tmp_path


def test_a_missing_file_is_named(own_copy: Path) -> None:
    (own_copy / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        SettingError, match=r"data\.root=.* has no MNIST/raw/t10k-labels-idx1-ubyte: .*data\.download=true"
    ):
        real(root=str(own_copy))


def test_images_that_are_not_there_yet_are_fetched_by_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        SettingError, match=r"data=fashion_mnist: its files are not there yet: .*; data\.download=true fetches them"
    ):
        real(dataset="FashionMNIST", sha256=None)


@pytest.mark.parametrize("damage", ["truncate", "alter"])
def test_a_damaged_file_is_refused(own_copy: Path, damage: str) -> None:
    file = own_copy / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content if damage == "alter" else content[:-1])
    with pytest.raises(SettingError, match="train-images-idx3-ubyte is truncated or altered"):
        real(root=str(own_copy))


def test_an_unverified_truncated_file_is_refused_by_its_shape(tiny_root: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_root / "MNIST", tmp_path / "MNIST")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SettingError, match=r"data\.root=.* holds files that torchvision cannot read"):
        real(root=str(tmp_path), sha256=None, test_size=200)


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_installation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    shutil.copytree(PACKAGE_FILES, tmp_path / "mnist")
    file = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes() + b"x")
    monkeypatch.setattr(files, "files", lambda package: tmp_path)
    with pytest.raises(SettingError, match=f"t10k-images-idx3-ubyte.gz is .*{damage}.*: install the package again"):
        real()


def test_an_altered_cache_is_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = real().data_sha256
    file = tmp_path / "mnist-mlp" / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    assert real().data_sha256 == expected


def test_processes_that_start_together_do_not_race(commands: Server, tmp_path: Path) -> None:
    """Each ends well only with the files of conf/data/mnist.yaml's hashes."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [commands.start("mnist-evaluate", ["--json"], tmp_path, environment) for _ in range(4)]
    said = {process.communicate(timeout=120) for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(said) == 1
    assert sorted(path.name for path in tmp_path.rglob("raw/*")) == sorted(DATA_FILES)


def test_a_home_that_cannot_be_written_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert files.cache_directory().parent == tmp_path


@pytest.fixture
def mirror() -> Iterator[str]:
    """The package's files, which carry the MD5 sums that torchvision checks, served on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(PACKAGE_FILES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_torchvision_downloads_from_a_mirror(tmp_path: Path, mirror: str, shipped: MNISTDataModule) -> None:
    downloaded = real(root=str(tmp_path), download=True, mirror=mirror)
    assert downloaded.data_sha256 == shipped.data_sha256
    assert real(root=str(tmp_path)).data_sha256 == shipped.data_sha256  # it stays, for runs without download


def test_a_root_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"data\.root=.*file: cannot be written \(Not a directory\)"):
        real(root=str(tmp_path / "file"), download=True)


def test_a_mirror_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(SettingError, match=rf"data\.mirror={url}: MNIST could not be downloaded"):
            real(root=str(tmp_path), download=True, mirror=url)
    assert not list(tmp_path.rglob("*ubyte*"))


def test_the_families_are_torchvisions(tiny_root: Path, tmp_path: Path) -> None:
    for name in ("fashion_mnist", "kmnist"):
        data = compose_config([f"data={name}"]).data
        shutil.copytree(tiny_root / "MNIST", tmp_path / data.dataset)
        given = {key: value for key, value in data.items() if key != "_target_"}
        datamodule = MNISTDataModule(**given | {"root": str(tmp_path), "test_size": 200})
        datamodule.setup()
        assert datamodule.mean is not None
        assert datamodule.mean != 0.1307


def test_normalize_shape() -> None:
    assert normalize(torch.zeros(2, 28, 28, dtype=torch.uint8), 0.5, 0.5).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(("setting", "value"), [("test_size", 1200), ("batch_size", 1001)])
def test_a_split_that_does_not_fit_is_refused(tiny_root: Path, setting: str, value: int) -> None:
    with pytest.raises(SettingError, match=rf"data\.{setting}={value}: must"):
        real(**{"root": str(tiny_root), "sha256": None, "test_size": 200, setting: value})


def test_complete_files_are_used_where_nothing_can_be_written(tiny_root: Path) -> None:
    raw = tiny_root / "MNIST" / "raw"
    before = {path: path.stat().st_mtime_ns for path in (raw, *raw.iterdir())}
    tiny = MNISTDataModule(root=str(tiny_root), download=True, test_size=200)
    tiny.prepare_data()
    tiny.setup()
    assert {path: path.stat().st_mtime_ns for path in (raw, *raw.iterdir())} == before  # no lock either
