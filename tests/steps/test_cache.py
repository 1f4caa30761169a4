import os
import sysconfig
from pathlib import Path

import pytest

from mnist_mlp.steps.cache import remove_damaged


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
