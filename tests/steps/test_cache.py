import os
import sysconfig
from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir

from mnist_mlp.steps import cache
from mnist_mlp.steps.cache import cache_of_this_cpu, remove_damaged


def test_cpus_and_their_kernels_do_not_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def folder() -> Path:
        with cache_of_this_cpu() as path:
            assert path.is_dir()
            assert path.parent == tmp_path
            assert cache_dir() == str(path)
        assert cache_dir() == str(tmp_path)
        return path

    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    narrow = folder()
    assert folder() == narrow
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    widest = folder()
    monkeypatch.setattr(cache, "__cpu_features__", {"AVX2": True, "AVX512F": False})
    assert len({narrow, widest, folder()}) == 3


@pytest.mark.parametrize("kept", [0, 10, 64, 1000, -1, "all", "zeros", "text"])
def test_an_object_that_was_cut_off_is_removed(tmp_path: Path, kept: int | str) -> None:
    """The oracle is a real one: the package's own kernel, or a module of Python's."""
    found = next(path for path in Path(sysconfig.get_path("stdlib")).glob("lib-dynload/*.so"))
    content = found.read_bytes()
    assert content.startswith(b"\x7fELF")
    given = {"all": content, "zeros": bytes(len(content)), "text": b"not an object of this system's" * 9}
    path = tmp_path / "a" / "object.so"
    path.parent.mkdir()
    path.write_bytes(given[kept] if isinstance(kept, str) else content[:kept])
    os.utime(path, (0, 0))  # nobody is writing it
    whole = kept in ("all", "text")
    assert remove_damaged(tmp_path) == ([] if whole else [path])
    assert path.exists() == whole
