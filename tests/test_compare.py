import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import Command, Runner

from mnist_mlp.compare import Pair, Recorded
from mnist_mlp.evaluate import load_classifier
from mnist_mlp.settings import SettingError

Finished = tuple[Path, dict[str, Any]]


@pytest.fixture
def edited(finished: Finished, tmp_path: Path) -> Any:
    """`edited(name, **changes)`: a copy of the finished run whose run.json has these entries."""

    def make(name: str, **changes: Any) -> Path:
        path = tmp_path / name
        path.mkdir()
        for file in ("config.yaml", "metrics.csv", "run.json"):
            shutil.copy(finished[0] / file, path)
        record = json.loads((path / "run.json").read_text())
        for key, value in changes.items():
            record[key] = record[key] | value if isinstance(value, dict) and key in record else value
        kept = {key: value for key, value in record.items() if value is not None}
        (path / "run.json").write_text(json.dumps(kept))
        return path

    return make


def test_a_recorded_setting_that_refers_to_nothing_is_one_sentence(finished: Finished, tmp_path: Path) -> None:
    content = (finished[0] / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(content.replace("strategy: auto", "strategy: ${a}"))
    with pytest.raises(SettingError) as refused:
        Recorded(tmp_path)
    assert str(refused.value) == (
        f"RUN_DIR={tmp_path / 'config.yaml'}: holds what cannot be used (Interpolation key 'a' not found)"
    )


def test_another_path_than_a_runs_directory_is_told_of(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "runs" / "one")
    with pytest.raises(SettingError, match=r"RUN_DIR=\S+/runs\S*: .*one"):
        Recorded(tmp_path / "runs")
    with pytest.raises(SettingError, match=r"RUN_DIR=\S+/one/config\.yaml: .*/one"):
        Recorded(tmp_path / "runs" / "one" / "config.yaml")
    with pytest.raises(SettingError, match=r"CHECKPOINT=\S+/one: .*/one/checkpoints/best\.ckpt"):
        load_classifier(tmp_path / "runs" / "one")


def test_of_runs_of_two_lengths_it_says_whether_what_both_have_is_the_same(edited: Any, finished: Finished) -> None:
    shorter = edited("shorter")
    rows = (shorter / "metrics.csv").read_text().splitlines(True)
    (shorter / "metrics.csv").write_text("".join(rows[:3]))
    assert Pair(Recorded(finished[0]), Recorded(shorter)).verdict == (
        "different: 3 epochs, other 2; the first 2 are identical"
    )
    (shorter / "metrics.csv").write_text("".join([*rows[:2], rows[2].replace(",", ",1", 1)]))
    assert Pair(Recorded(finished[0]), Recorded(shorter)).verdict.startswith("different: in epoch 2, train/loss was ")


def test_two_runs_side_by_side(command: Command, run: Runner, finished: Finished) -> None:
    other, _ = run("experiment=dropout_as_run", "optimizer.lr=0.01", "trainer.max_epochs=2")
    done = command("mnist-compare", str(finished[0]), str(other))
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "different: in epoch 1, lr was 0.001, other 0.01"
    assert lines[1].endswith("run (dropout_as_run, network_a, seed 0, 3 epochs, completed)")
    assert "  that was to be expected: the settings differ" in lines
    assert "  optimizer.lr: 0.001, other 0.01" in lines
    assert "  trainer.max_epochs: 3, other 2" in lines
    start = lines.index("  largest differences in 2 epochs:")
    assert lines[start + 2].split() == ["lr", "1", "0.001", "0.01", "0.009"]
    # The loss's largest difference, by hand.
    losses = [
        [float(row.split(",")[1]) for row in (path / "metrics.csv").read_text().splitlines()[1:3]]
        for path in (finished[0], other)
    ]
    apart = [abs(one - two) for one, two in zip(*losses, strict=True)]
    epoch = apart.index(max(apart))
    expected = ["train/loss", str(epoch + 1), *(f"{x:.6g}" for x in (losses[0][epoch], losses[1][epoch], apart[epoch]))]
    assert lines[start + 3].split() == expected


def test_a_run_is_identical_with_itself_and_with_its_first_epochs(command: Command, finished: Finished) -> None:
    done = command("mnist-compare", str(finished[0]), str(finished[0]))
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "identical: every epoch (3), the best one, the weights and the test results",
    )
    assert len(done.stdout.splitlines()) == 3
    assert Pair(Recorded(finished[0]), Recorded(finished[0]), 2).verdict == "identical: the first 2 epochs"
    for arguments, expected in (
        (["nowhere", str(finished[0])], "RUN_DIR=nowhere: there is no such directory\n"),
        ([str(finished[0]), str(finished[0]), "--epochs", "4"], "--epochs=4: must lie between 1 and 3"),
    ):
        done = command("mnist-compare", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith(expected)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {}, "not to be expected, with the same settings, data and versions: please report it"),
        ({"data_sha256": "0"}, {}, "to be expected: the data differ"),
        ({"steps": "eager"}, {}, "to be expected: steps were eager, other native"),
        ({"versions": {"mnist-mlp": "0"}}, {}, "to be expected: mnist-mlp was 0, other "),
        ({"steps": "eager", "versions": {"torch": "1.0"}}, {"steps": "eager"}, "to be expected: torch was 1.0, other"),
        ({"versions": {"torch": "1.0"}}, {}, "not to be expected"),  # native steps are not PyTorch's
        ({"device": "cpu (abacus)"}, {}, "not to be expected"),  # that is what portable means
        ({"portable": False, "not_portable": "portable=false"}, {}, "not to be expected"),  # on the same CPU
        (
            {"device": "cpu (abacus)", "portable": False, "not_portable": "this CPU is arm64, not x86-64"},
            {},
            "to be expected: {one} is not portable (this CPU is arm64, not x86-64)",
        ),
        (
            {},
            {"device": "cuda (card)", "portable": False, "not_portable": "it runs on cuda"},
            "to be expected: {other} is not portable (it runs on cuda)",
        ),
        (
            {"portable": None, "device": "cpu (x)"},
            {},
            "to be expected: {one} is not portable (it was",
        ),
    ],
)
def test_whether_a_difference_was_to_be_expected(
    edited: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: Any, now: Any, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    portable = {"portable": True, "not_portable": None, "weights_sha256": "0"}
    one = edited("one", **(portable | before))
    other = edited("other", **(portable | now | {"weights_sha256": "1"}))
    pair = Pair(Recorded(one), Recorded(other))
    assert pair.verdict == "different: weights_sha256: 0, other 1"
    assert f"that was {expected.format(one='one', other='other')}" in pair.circumstances()[0]


def test_only_a_record_of_changes_that_is_there_is_named(edited: Any, tmp_path: Path) -> None:
    clean = {"commit": "c0ffee", "dirty": False}
    one, other = (Recorded(edited(name, git=clean)) for name in ("one", "other"))
    assert Pair(one, other).circumstances() == []
    there = tmp_path / "other" / "uncommitted.diff"
    there.write_text("a change")
    assert Pair(one, other, now="now").circumstances() == [f"  uncommitted changes: none recorded, now {there}"]
    assert Pair(other, one).circumstances() == [f"  uncommitted changes: {there}, other none recorded"]


def test_what_cannot_be_compared_is_one_sentence(finished: Finished, tmp_path: Path) -> None:
    shutil.copy(finished[0] / "config.yaml", tmp_path)
    with pytest.raises(SettingError, match="has no complete epoch to compare with"):
        Recorded(tmp_path)
