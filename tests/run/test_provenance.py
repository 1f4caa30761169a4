import subprocess
from pathlib import Path

import pytest

from mnist_mlp.run import provenance


def test_git_state_and_uncommitted_changes_of_a_checkout_and_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "mnist_mlp"
    package.mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "run" / "provenance.py"))
    assert provenance.git_state() == {"commit": None, "dirty": None}
    assert provenance.uncommitted_diff() is None
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    assert provenance.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "new.py").touch()
    assert provenance.git_state()["dirty"] is True

    (package / "old.py").write_text("a = 1\n")
    git("add", "-A")
    git("commit", "-m", "second")
    assert provenance.uncommitted_diff() is None
    (package / "old.py").write_text("a = 2\n")
    (package / "new.py").write_bytes(b"caf\xe9\n")
    (package / "picture").write_bytes(bytes(range(256)))
    (tmp_path / "data").write_bytes(b"x" * provenance.DIFF_BYTES)
    diff = provenance.uncommitted_diff()
    assert diff is not None
    assert diff.endswith("# left out: data\n") or "\n# left out: data\n" in diff
    changed = {path.name: path.read_bytes() for path in package.iterdir()}
    git("reset", "--hard")
    (package / "picture").unlink()
    (tmp_path / "diff").write_bytes(diff.encode(errors="surrogateescape"))
    git("apply", "diff")
    assert {path.name: path.read_bytes() for path in package.iterdir()} == changed

    inside = package / "site-packages" / "mnist_mlp"  # an installed wheel inside somebody else's checkout
    inside.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inside / "run" / "provenance.py"))
    assert provenance.git_state() == {"commit": None, "dirty": None}
