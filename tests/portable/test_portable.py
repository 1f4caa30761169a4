"""The same bits on CPUs that are not here: whole runs and all their parts, natively and in an emulator.

`bits.json` holds the hashes that every machine which ran this suite has found.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BITS = Path(__file__).with_name("bits.py")
COMMITTED = json.loads(Path(__file__).with_name("bits.json").read_text())
# One Intel of the first generation with AVX2, a later one, and an AMD.
CPUS = ("Haswell-v4", "Skylake-Client-v4", "EPYC-Milan")


def computed(*runs: Path, cpu: str | None = None, **environment: str) -> dict[str, Any]:
    """What `bits.py` prints here, or on an emulated CPU."""
    emulator: list[str] = []
    if cpu is not None:
        emulator = ["qemu-x86_64", "-cpu", cpu]
        environment |= {"NPY_DISABLE_CPU_FEATURES": "X86_V3"}  # QEMU 7.2 crashes in NumPy's sorting for AVX2
    done = subprocess.run(
        [*emulator, sys.executable, BITS, *runs],
        env={**{name: value for name, value in os.environ.items() if name not in PINNED}, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


PINNED = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> list[Path]:
    """Two runs with dropout, native and eager, made by `mnist-train` on this CPU."""
    place = tmp_path_factory.mktemp("portable")
    for steps in ("native", "eager"):
        command = [Path(sys.executable).with_name("mnist-train"), "experiment=dropout_as_run", *tiny]
        more = [
            f"run_dir={place / steps}",
            f"trainer.steps={steps}",
            "trainer.max_epochs=2",
            "tensorboard.enabled=false",
        ]
        environment = {name: value for name, value in os.environ.items() if name not in PINNED}
        subprocess.run([*command, *more], cwd=place, env=environment, timeout=300, check=True)
    return [place / "native", place / "eager"]


def test_this_machine_has_the_bits_of_all_the_earlier_ones() -> None:
    found = computed()
    if found["torch"].partition("+")[0] == COMMITTED["torch"]:
        assert found["bits"] == COMMITTED["bits"]
    else:  # another version than the lock has: what PyTorch computes may differ
        own = [name for name in COMMITTED["bits"] if name.startswith("native")]
        assert {name: found["bits"][name] for name in own} == {name: COMMITTED["bits"][name] for name in own}


@pytest.mark.portable
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("cpu", CPUS)
def test_an_emulated_cpu_has_the_same_bits_and_repeats_runs_of_this_one(cpu: str, runs: list[Path]) -> None:
    assert shutil.which("qemu-x86_64"), "qemu-x86_64 is missing: apt-get install qemu-user"
    found = computed(*runs, cpu=cpu)
    assert found["arithmetic"]["kernels"] == "AVX2"
    assert found["bits"] == COMMITTED["bits"]
    for identical, lines in found["reruns"]:
        assert (identical, lines[0]) == (
            True,
            "identical: every epoch (2), the best one, the weights and the test results",
        )
