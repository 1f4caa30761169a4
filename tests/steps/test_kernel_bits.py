"""The same bits on every code path, number of threads, compiler and CPU: the hashes are committed."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_mlp.backbone import MLP
from mnist_mlp.steps import native
from mnist_mlp.steps.native import NativeImages, NativeSteps

KERNEL = Path(native.__file__).with_name("kernel")
DRIVER = Path(__file__).with_name("driver.cpp")
HIDDEN = {"A": [64, 128, 64], "B": [256, 512, 128]}
BATCH = {"A": 7, "B": 4}  # B is slow without a fused multiply-add
IMAGES = 500
STEPS = {"A": 200, "B": 100}
# SHA-256 of the weights and biases in PyTorch's layout after some hundred steps, the sum of losses, and logits and
# losses of all images; by (network, dropout, sparse).
EXPECTED = {
    ("A", 0.0, False): "342137a29335a45c75491149114343b68f194aa69629f286e4ddabc1fecd1dc4",
    ("A", 0.0, True): "fb99f00c72df2243ca389d7279312f19220e22ae355131a3c4552c56b8ca2595",
    ("A", 0.3, True): "214e22398649c10e2e4e8cdfbf7761f780a446acdfcdbad908478e064f3bb325",
    ("B", 0.0, True): "2b0a7d6da158e5c1e1e5436298241585a8d45b360a1a11260bcf70dc427b8d30",
    ("B", 0.3, False): "04e69015e5728daa4b3299e526ae982d16b7308586fc4cf77e528c1b8c727e79",
}
PATHS = ("avx512", "avx2", "portable")
FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-pthread")


def words(stream: int, count: int) -> np.ndarray:
    """Words 0..count - 1 of a stream, by murmur's finalizer; as in driver.cpp."""
    h = np.arange(count, dtype=np.uint32) + np.uint32(stream * 0x9E3779B9 % 2**32)
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    h = (h ^ h >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return h ^ h >> np.uint32(16)


def digest(network: str, dropout: float, sparse: bool, threads: int = 1) -> str:
    """What driver.cpp writes, hashed: the same numbers, through PyTorch's tensors and `native.py`."""
    w = words(1, IMAGES * 784)
    pixels = np.where(w % 5, -0.5, (w >> 8 & 255) / 256).astype(np.float32).reshape(IMAGES, 784)
    labels = words(2, IMAGES).astype(np.int64) % 10
    order = words(3, BATCH[network] * STEPS[network]).astype(np.int64) % IMAGES
    model = MLP(HIDDEN[network], dropout)
    steps = NativeSteps(model, torch.optim.Adam(model.parameters()), seed=1234567890123456789, threads=threads)
    with torch.no_grad():
        for i, layer in enumerate(steps.linears):
            made = ((words(10 + i, layer.weight.numel()) >> 8).astype(np.float32) / 16777216 - np.float32(0.5)) / 8
            layer.weight.copy_(torch.from_numpy(made).view_as(layer.weight))
            layer.bias.zero_()
    data = NativeImages(torch.from_numpy(pixels), torch.from_numpy(labels), sparse=sparse)
    loss, _ = steps.train(data, torch.from_numpy(order[:-3]), BATCH[network], epoch=3, step=0)
    evaluated = steps.evaluate(data)
    parts = [p.detach().numpy() for p in model.parameters()]
    parts += [np.float64(loss), evaluated.logits.numpy(), evaluated.losses.numpy()]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.code_path()
    if not native.use_code_path(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    native.use_code_path(before)


@pytest.mark.parametrize("case", EXPECTED, ids=str)
def test_every_code_path_gives_the_committed_bits(path: str, case: tuple[str, float, bool]) -> None:
    assert digest(*case) == EXPECTED[case]


@pytest.mark.parametrize("case", [("A", 0.3, True), ("B", 0.3, False)], ids=str)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(case: tuple[str, float, bool], threads: int) -> None:
    assert digest(*case, threads=threads) == EXPECTED[case]


def test_groups_and_flushing_of_denormals_change_no_bit() -> None:
    """One call or many; and whatever mode of the CPU the caller left."""
    results = []
    for size in (8, 80):
        torch.manual_seed(0)
        model = MLP([20], 0.5, in_features=30)
        steps = NativeSteps(model, torch.optim.Adam(model.parameters()), gradient_clip_val=1.0)
        data = NativeImages(torch.randn(80, 30), torch.randint(10, (80,)))
        torch.set_flush_denormal(size == 80)
        try:
            for step, order in enumerate(torch.arange(80).split(size)):
                steps.train(data, order, 8, epoch=0, step=step)
        finally:
            torch.set_flush_denormal(False)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)


def built(
    compiler: str, output: Path, *flags: str, sources: tuple[str, ...] = ("*",)
) -> "subprocess.CompletedProcess[str]":
    """The driver with the kernel's sources."""
    files = sorted(file for name in sources for file in KERNEL.glob(f"{name}.cpp"))
    command = [compiler, *FLAGS, *flags, str(DRIVER), *map(str, files), "-o", str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def driven(*command: str | Path, case: tuple[str, float, bool], threads: int = 1) -> str:
    """The hash of what the driver writes."""
    network, dropout, sparse = case
    arguments = [network, str(dropout), str(int(sparse)), str(threads)]
    done = subprocess.run([*command, *arguments], capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return hashlib.sha256(done.stdout).hexdigest()


def test_sanitizers_find_nothing_and_vectors_of_16_lanes_change_no_bit(tmp_path: Path) -> None:
    """GCC's AddressSanitizer and UndefinedBehaviorSanitizer, over the code that the AVX-512 path compiles too."""
    sanitize = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0", "-Wno-psabi")
    done = built(
        "g++", tmp_path / "d", *sanitize, "-DSTEPS_PORTABLE_ONLY", "-DSTEPS_LANES=16", sources=("steps", "portable")
    )
    assert done.returncode == 0, done.stderr
    case = ("A", 0.3, True)
    assert driven(tmp_path / "d", case=case, threads=2) == EXPECTED[case]


# (its compiler, what runs its programs, the cases). tests/portable has CPUs that are like this one.
ALONE = {
    "ARM": ("aarch64-linux-gnu-g++", ["qemu-aarch64"], list(EXPECTED)),
    "an Intel without a fused multiply-add": ("g++", ["qemu-x86_64", "-cpu", "Nehalem"], [("A", 0.3, True)]),
    "this CPU, by Clang": ("clang++", [], list(EXPECTED)),
}


@pytest.mark.portable
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cpu", ALONE)
def test_other_cpus_and_compilers_give_the_committed_bits(cpu: str, tmp_path: Path) -> None:
    compiler, emulator, cases = ALONE[cpu]
    for tool in (compiler, *emulator[:1]):
        assert shutil.which(tool), f"{tool} is missing: make test-portable installs it"
    done = built(compiler, tmp_path / "d", "-O3", "-static")
    assert done.returncode == 0, done.stderr
    for case in cases:
        assert driven(*emulator, tmp_path / "d", case=case) == EXPECTED[case]


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_the_compiler_does_not_warn(compiler: str, tmp_path: Path) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    for source in sorted(KERNEL.glob("*.cpp")):
        # What GCC says of uninitialized values takes optimization, which takes the time of this suite: see the build.
        command = [compiler, *FLAGS, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
        assert done.returncode == 0, done.stderr
