import subprocess
from pathlib import Path

import pytest

from mnist_mlp import provenance


def test_git_state_of_a_checkout_and_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "mnist_mlp"
    package.mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance.git_state() == {"commit": None, "dirty": None}
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    assert provenance.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "new.py").touch()
    assert provenance.git_state()["dirty"] is True

    inside = package / "site-packages" / "mnist_mlp"  # an installed wheel inside somebody else's checkout
    inside.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inside / "provenance.py"))
    assert provenance.git_state() == {"commit": None, "dirty": None}
