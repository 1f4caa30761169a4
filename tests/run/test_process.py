import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, NAdam

from mnist_mlp.run import process, provenance
from mnist_mlp.run.process import PORTABLE, prepare_process
from mnist_mlp.run.provenance import not_portable

CPU = torch.device("cpu")
PARAMETER = torch.nn.Parameter(torch.zeros(1))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process that has not imported PyTorch, on a CPU with AVX2."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(process, "_has_avx2", lambda: True)
    for name in PORTABLE:
        monkeypatch.setenv(name, "")  # and put back
        monkeypatch.delenv(name)
    return monkeypatch


def pinned() -> dict[str, str]:
    return {name: os.environ[name] for name in PORTABLE if name in os.environ}


def test_the_environment_is_set_before_pytorch_is_imported(fresh: pytest.MonkeyPatch) -> None:
    prepare_process(None, portable=False)
    assert pinned() == {}
    prepare_process(None, portable=True)
    assert pinned() == PORTABLE


def test_cublas_is_told_before_cuda_starts_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare_process(None, portable=False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    prepare_process(None, portable=False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_what_the_user_has_set_stays(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("MKL_CBWR", "AVX2")
    prepare_process(None, portable=True)
    assert pinned() == PORTABLE | {"MKL_CBWR": "AVX2"}
    assert (
        not_portable(True, "native", CPU, SGD([PARAMETER], lr=1)) == "the environment has MKL_CBWR=AVX2, not COMPATIBLE"
    )


def test_it_is_left_alone_on_a_cpu_without_avx2_and_after_pytorch(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(process, "_has_avx2", lambda: False)  # PyTorch would die of its first AVX2 instruction
    prepare_process(None, portable=True)
    assert pinned() == {}
    fresh.setattr(process, "_has_avx2", lambda: True)
    fresh.setitem(sys.modules, "torch", torch)
    prepare_process(None, portable=True)
    assert pinned() == {}


@pytest.mark.parametrize(
    ("asked", "steps", "device", "changes", "reason"),
    [
        (True, "native", CPU, {}, None),
        (True, "eager", CPU, {}, None),
        (False, "native", CPU, {}, "portable=false"),
        (True, "eager", torch.device("cuda"), {}, "it runs on cuda"),
        (True, "native", CPU, {"machine": "aarch64"}, "this CPU is aarch64, not x86-64"),
        (True, "native", CPU, {"kernels": "DEFAULT"}, "this CPU has no AVX2 or no FMA"),
        (True, "native", CPU, {"environment": {}}, "PyTorch was imported before ATEN_CPU_CAPABILITY=avx2, MKL_CBWR="),
        (True, "compiled", CPU, {}, "compiled steps are made for this CPU"),
        (True, "eager", CPU, {"threads": 2}, "eager steps depend on the number of threads, here 2"),
        (True, "native", CPU, {"threads": 2}, None),
        (True, "eager", CPU, {"optimizer": SGD([PARAMETER], lr=1)}, None),
        (True, "eager", CPU, {"optimizer": Adam([PARAMETER])}, "Adam takes square roots from MKL, which differ"),
        (True, "eager", CPU, {"optimizer": NAdam([PARAMETER])}, "NAdam takes square roots from MKL, which differ"),
        (True, "native", CPU, {"optimizer": Adam([PARAMETER])}, None),
        (True, "eager", CPU, {"mkl": False}, "this PyTorch computes without MKL"),
    ],
)
def test_why_bits_do_not_travel(
    monkeypatch: pytest.MonkeyPatch, asked: bool, steps: str, device: torch.device, changes: dict[str, Any], reason: Any
) -> None:
    for name in PORTABLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in changes.get("environment", PORTABLE).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(provenance.platform, "machine", lambda: changes.get("machine", "x86_64"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: changes.get("kernels", "AVX2"))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: changes.get("mkl", True))
    monkeypatch.setattr(torch, "get_num_threads", lambda: changes.get("threads", 1))
    optimizer = changes.get("optimizer", Adam([PARAMETER], fused=True))
    found = not_portable(asked, steps, device, optimizer)
    assert found is None if reason is None else str(found).startswith(reason)


def test_a_notebook_that_has_imported_pytorch_is_told_and_so_is_its_record(tmp_path: Any) -> None:
    """The variables come too late there; whoever sets them first has portable bits in a notebook too."""
    script = (
        "import torch, logging, sys; logging.basicConfig(); from mnist_mlp.settings import compose_config; "
        "from mnist_mlp.train import train; record = train(compose_config(["
        "'model=tiny', 'trainer.max_epochs=1', 'trainer.max_steps=1', 'tensorboard.enabled=false', 'run_dir=r'])); "
        "print(record['portable'], record.get('not_portable'))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    for more, portable in (({}, False), (PORTABLE, True)):
        place = tmp_path / str(portable)
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=place,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(portable))
        said = "a rerun on another kind of CPU may differ: PyTorch was imported before ATEN_CPU_CAPABILITY=avx2"
        assert done.stderr.count(said) == (not portable)
