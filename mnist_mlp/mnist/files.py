"""The four files of a family of images: where they are, that they are whole, and what is in them.

MNIST's own lie beside this module, as they were published. They are unpacked into the user's cache, because torchvision
reads files and the package may be read-only.
"""

import gzip
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from mnist_mlp.settings import DATA_FILES, SettingError
from mnist_mlp.surroundings import one_line

FAMILIES: dict[str, type[datasets.MNIST]] = {
    "MNIST": datasets.MNIST,
    "FashionMNIST": datasets.FashionMNIST,
    "KMNIST": datasets.KMNIST,
}
# The four files that ship in the package, from their ATTRIBUTION.md.
SHIPPED_SHA256 = {
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
}


def locate(
    dataset: str, root: str | None, download: bool, mirror: str | None, sha256: Mapping[str, str] | None
) -> tuple[Path, str]:
    """Finds the four files of a family, unpacks or downloads what is missing, and verifies each.

    Args:
        dataset, root, download, mirror, sha256: as for `MNISTDataModule`.

    Returns:
        The directory, in torchvision's layout, and the SHA-256 of what `sha256sum` prints for the files in it.

    Raises:
        SettingError: a file is missing, altered or out of reach.
    """
    shipped = dataset == "MNIST" and root is None and not download
    place = Path(root) if root is not None else cache_directory()
    if shipped:
        _unpack_shipped(place / "MNIST" / "raw")
    elif download:
        _download(dataset, place, mirror)
    raw = place / dataset / "raw"
    _refuse_missing(raw, dataset, root, place)
    try:
        digests = {name: file_sha256(raw / name) for name in DATA_FILES}
    except OSError as error:
        raise SettingError("data.root", place, f"cannot be read ({error.strerror})") from error
    for name, expected in ((name, sha256[name]) for name in DATA_FILES if sha256):
        if digests[name] != expected and shipped:
            (raw / name).unlink()  # the cache was altered: unpack that file again
            _unpack_shipped(raw)
            digests[name] = file_sha256(raw / name)
        if digests[name] != expected:
            raise SettingError(
                "data.root",
                place,
                f"{dataset}/raw/{name} is truncated or altered (SHA-256 {digests[name]}, expected "
                f"{expected}): restore it, or set data.sha256=null to use a version of your own",
            )
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return place, hashlib.sha256(listing.encode()).hexdigest()


def _refuse_missing(raw: Path, dataset: str, root: str | None, place: Path) -> None:
    """Raises: SettingError, where one of the four files is not in `raw`; it says what would help."""
    for name in DATA_FILES:
        if not (raw / name).is_file():
            remedy = "unpack the .gz that is there" if (raw / f"{name}.gz").is_file() else "set data.download=true"
            if root is None:
                option = re.sub("(?<=[a-z])(?=[A-Z])", "_", dataset).lower()
                problem = f"its files are not there yet: {place} has no {dataset}/raw/{name}"
                raise SettingError("data", option, f"{problem}; data.download=true fetches them")
            raise SettingError(
                "data.root",
                root,
                f"has no {dataset}/raw/{name}: give a root that does, or {remedy}",
            )


def _download(dataset: str, root: Path, mirror: str | None) -> None:
    """torchvision's own download, into a temporary directory first: a killed one leaves no half file behind."""
    raw = root / dataset / "raw"

    def is_complete() -> bool:
        return all((raw / name).is_file() for name in DATA_FILES)

    if is_complete():  # perhaps where nothing can be written
        return
    try:
        raw.mkdir(parents=True, exist_ok=True)
        held = FileLock(raw / ".download.lock").acquire()  # of several processes started at once, one downloads
    except OSError as error:
        raise SettingError("data.root", root, f"cannot be written ({error.strerror})") from error
    with held:
        if is_complete():
            return
        family = FAMILIES[dataset]
        if mirror is not None:
            # torchvision names the folder after the class, so the subclass keeps its parent's name.
            family = type(family.__name__, (family,), {"mirrors": [mirror.rstrip("/") + "/"]})
        with tempfile.TemporaryDirectory(dir=raw) as temporary:
            try:
                family(temporary, download=True)
            except (RuntimeError, OSError) as error:
                reason = one_line(error)
                setting, value = ("data.mirror", mirror) if mirror else ("data.download", True)
                raise SettingError(
                    setting,
                    value,
                    f"{dataset} could not be downloaded ({reason}): give a data.mirror that is in reach, or a "
                    "data.root that holds it",
                ) from error
            for file in (Path(temporary) / dataset / "raw").iterdir():
                file.replace(raw / file.name)


def read(dataset: str, root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) uint8 and labels (N,) int64 of one official half, through torchvision.

    Raises:
        SettingError: the files hold something else.
    """
    try:
        half = FAMILIES[dataset](root, train=train)
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        reason = one_line(error) or type(error).__name__
        raise SettingError("data.root", root, f"holds files that torchvision cannot read ({reason})") from error
    images, labels = half.data, half.targets
    if images.shape != (len(labels), 28, 28) or len(labels) == 0 or not 0 <= labels.min() <= labels.max() <= 9:
        raise SettingError("data.root", root, "must hold 28x28 images and as many labels in 0..9")
    return images, labels


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_directory() -> Path:
    """A directory of this user's that can be written to, for files that need not be kept."""
    preferred = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnist-mlp"
    try:
        preferred.mkdir(parents=True, exist_ok=True)
        if os.access(preferred, os.W_OK):
            return preferred
    except (OSError, RuntimeError):
        pass
    fallback = Path(tempfile.gettempdir()) / f"mnist-mlp-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    fallback.mkdir(parents=True, exist_ok=True)
    return fallback


def _unpack_shipped(raw: Path) -> None:
    """The package's own files, unpacked into the cache: torchvision reads files, and the package may be read-only.

    A file appears there whole (written aside, then renamed), so processes that start together need no lock: at worst
    each writes the same bytes.
    """
    raw.mkdir(parents=True, exist_ok=True)
    for name, expected in SHIPPED_SHA256.items():
        packed = Path(str(files("mnist_mlp") / "mnist" / name))
        found = file_sha256(packed) if packed.is_file() else None
        if found != expected:
            state = "missing" if found is None else f"truncated or altered (SHA-256 {found}, expected {expected})"
            raise SettingError("data.root", None, f"the package's own {packed} is {state}: install the package again")
        unpacked = raw / name.removesuffix(".gz")
        size = int.from_bytes(packed.read_bytes()[-4:], "little")  # RFC 1952: a gzip file ends with its content's size
        if not unpacked.is_file() or unpacked.stat().st_size != size:
            temporary = unpacked.with_name(f".{unpacked.name}.{os.getpid()}.tmp")
            temporary.write_bytes(gzip.decompress(packed.read_bytes()))
            temporary.replace(unpacked)
