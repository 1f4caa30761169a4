import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from forked import Server
from helpers import Command, Runner, until

from mnist_mlp.rerun import rerun
from mnist_mlp.settings import SettingError

Finished = tuple[Path, dict[str, Any]]
CONF = Path(__file__).parents[1] / "conf"
WHOLE = "identical: every epoch ({}), the best one, the weights and the test results"


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# Each experiment and each network, and another seed: what differs in kind, not every combination.
REPEATED = [
    ("baseline", "network_a", 0),
    ("baseline", "network_b", 7),
    ("dropout_scheduler", "tiny", 0),
    ("dropout_as_run", "network_a", 7),
    ("dropout_as_intended", "network_b", 0),
    ("best", "network_a", 0),
]


def test_what_is_repeated_is_everything_there_is() -> None:
    for group, given in (("experiment", {row[0] for row in REPEATED}), ("model", {row[1] for row in REPEATED})):
        assert given == {path.stem for path in (CONF / group).glob("*.yaml")}


@pytest.mark.parametrize(("experiment", "model", "seed"), REPEATED)
def test_every_experiment_repeats(run: Runner, tmp_path: Path, experiment: str, model: str, seed: int) -> None:
    run_dir, record = run(f"experiment={experiment}", f"model={model}", f"seed={seed}", "trainer.max_epochs=2")
    identical, lines = rerun(run_dir, tmp_path / "again")
    assert (identical, lines[0]) == (True, WHOLE.format(2))
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["weights_sha256"] == record["weights_sha256"]


def test_a_committed_run_of_a_sweep_is_repeated_from_anywhere_by_another_process(
    command: Command, run: Runner, tmp_path: Path
) -> None:
    run_dir, _ = run("experiment=dropout_as_run")
    kept = tmp_path / "sweep" / "model=network_a,seed=0"
    kept.mkdir(parents=True)
    for name in ("run.json", "config.yaml", "metrics.csv"):
        shutil.copy(run_dir / name, kept)
    before = contents(kept)
    done = command("mnist-rerun", str(kept))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == WHOLE.format(3)
    (again,) = (tmp_path / "logs" / "runs").iterdir()
    assert again.name.endswith("_rerun_of_model=network_a,seed=0")
    assert contents(kept) == before
    assert not (kept / "checkpoints").exists()


def test_the_first_epochs_alone_and_then_the_rest(run: Runner, tmp_path: Path) -> None:
    # Cosine annealing depends on the number of epochs: the first one must be that of three, not of one.
    run_dir, _ = run("scheduler=cosine")
    assert rerun(run_dir, tmp_path / "r", epochs=1) == (
        True,
        ["identical: the first epoch", f"  the rerun is in {tmp_path / 'r'}"],
    )
    assert len((tmp_path / "r" / "metrics.csv").read_text().splitlines()) == 2
    assert rerun(run_dir, tmp_path / "r", epochs=2)[1][0] == "identical: the first 2 epochs"
    assert rerun(run_dir, tmp_path / "r", epochs=3)[1][0] == WHOLE.format(3)


def test_a_changed_setting_is_named_with_what_it_changes(command: Command, finished: Finished) -> None:
    done = command("mnist-rerun", str(finished[0]), "--run-dir", "r", "optimizer.lr=0.01", "threads=2", "--epochs", "1")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["different: in epoch 1, lr was 0.001, now 0.01", "  the rerun is in r"]
    assert lines[2] == "  that was to be expected: the settings differ"
    assert sorted(lines[3:]) == ["  optimizer.lr: 0.001, now 0.01", "  threads: 1, now 2"]


def test_another_seed_is_that_seeds_run(run: Runner, finished: Finished, tmp_path: Path) -> None:
    _, record = run("experiment=dropout_as_run", "seed=5")
    identical, lines = rerun(finished[0], tmp_path / "again", overrides=["seed=5"])
    assert not identical
    assert {"  seed: 0, now 5", "  data.seed: 0, now 5"} <= set(lines)
    assert json.loads((tmp_path / "again" / "run.json").read_text())["weights_sha256"] == record["weights_sha256"]
    with pytest.raises(SettingError, match="holds a complete run, so nothing would be repeated: give another"):
        rerun(finished[0], tmp_path / "again", overrides=["seed=5"])


def test_what_was_edited_since_and_where_it_ran_are_named(run: Runner, finished: Finished, tmp_path: Path) -> None:
    run_dir, _ = finished
    old = tmp_path / "old"
    old.mkdir()
    (old / ".hydra").mkdir()
    shutil.copy(run_dir / "metrics.csv", old)
    text = (run_dir / "config.yaml").read_text()
    (old / ".hydra" / "config.yaml").write_text(text)
    (old / "config.yaml").write_text(text.replace("lr: 0.001", "lr: 0.002").replace("threads: 1", "threads: 2"))
    record = json.loads((run_dir / "run.json").read_text())
    record["versions"]["torch"], record["device"], record["git"] = "1.0", "abacus", {"commit": "c0ffee", "dirty": True}
    (old / "run.json").write_text(json.dumps(record))
    identical, lines = rerun(old, tmp_path / "again", epochs=1)
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert not identical
    assert lines[0] == "different: in epoch 1, lr was 0.001, now 0.002"
    assert set(lines) >= {
        "  optimizer.lr: 0.001, now 0.002",
        "  threads: 1, now 2",
        f"  versions.torch: 1.0, now {again['versions']['torch']}",
        f"  device: abacus, now {again['device']}",
        f"  git.commit: c0ffee, now {again['git']['commit']}",
        "  the run had uncommitted changes, and its uncommitted.diff is not there",
    }
    (old / "uncommitted.diff").write_text("a diff of its own")
    lines = rerun(old, tmp_path / "more", epochs=1)[1]
    diffs = [path for path in (old / "uncommitted.diff", tmp_path / "more" / "uncommitted.diff") if path.exists()]
    clean = f"  uncommitted changes: {diffs[0]}, now none recorded"  # as this checkout may be
    assert lines[-1] == (clean if len(diffs) == 1 else f"  uncommitted changes: compare {diffs[0]} with {diffs[1]}")


@pytest.mark.parametrize(
    ("name", "old", "new", "difference"),
    [
        ("metrics.csv", "\n2,", "\n2,1", "in epoch 2, train/loss was 1"),
        ("run.json", '"weights_sha256": "', '"weights_sha256": "0', "weights_sha256: 0"),
        ("run.json", '"epoch": ', '"epoch": 1', "best.epoch: 1"),
    ],
)
def test_a_record_that_was_tampered_with_is_found_out(
    finished: Finished, tmp_path: Path, name: str, old: str, new: str, difference: str
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(finished[0], kept)
    head, _, tail = (kept / name).read_text().partition("\n")
    (kept / name).write_text(head + "\n" + tail.replace(old, new, 1))
    identical, lines = rerun(kept, tmp_path / "again")
    assert not identical
    assert lines[0].startswith(f"different: {difference}")


def test_of_a_run_that_failed_the_complete_epochs_are_compared(finished: Finished, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(finished[0], kept)
    rows = (kept / "metrics.csv").read_text().splitlines(True)
    (kept / "metrics.csv").write_text("".join(rows[:3]))
    (kept / "run.json").write_text(json.dumps({"status": "failed"}))
    assert rerun(kept, tmp_path / "again")[1][0] == "identical: the first 2 epochs"
    (kept / "metrics.csv").write_text(rows[0])
    with pytest.raises(SettingError, match="has no complete epoch to compare with"):
        rerun(kept, tmp_path / "more")


def test_bad_input_is_one_sentence_and_leaves_nothing(command: Command, finished: Finished, tmp_path: Path) -> None:
    run_dir = str(finished[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("- a: [")
    for arguments, expected in (
        (["nowhere"], "RUN_DIR=nowhere: there is no such directory\n"),
        (["empty"], "RUN_DIR=empty/config.yaml: cannot be read (No such file or directory)"),
        (["odd"], "RUN_DIR=odd/config.yaml: is not YAML (while parsing"),
        ([run_dir, "--run-dir", run_dir], f"--run-dir={run_dir}: must lie outside {run_dir}, which is only read"),
        ([run_dir, "--run-dir", f"{run_dir}/a"], f"--run-dir={run_dir}/a: must lie outside {run_dir}, which is only"),
        ([run_dir, "--epochs", "4"], f"--epochs=4: must lie between 1 and 3, the epochs of {run_dir}"),
        ([run_dir, "optimiser.lr=1"], f"optimiser.lr=1: there is no setting optimiser.lr in {run_dir}/config.yaml"),
        (["."], "RUN_DIR=config.yaml: cannot be read (No such file or directory)"),
        ([run_dir, "run_dir=there"], "run_dir=there: say where the rerun goes with --run-dir"),
        ([run_dir, "threads=0"], "threads=0: must be a whole number from 1 to 1024, or null"),
    ):
        done = command("mnist-rerun", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert done.stderr.startswith(expected)
    assert not (tmp_path / "logs").exists()


def test_an_interrupted_rerun_is_continued(run: Runner, commands: Server, tmp_path: Path) -> None:
    run_dir, _ = run("trainer.max_epochs=40", "experiment=dropout_as_run")
    again = tmp_path / "again"
    arguments = [str(run_dir), "--run-dir", str(again)]
    process = commands.start("mnist-rerun", arguments, tmp_path, dict(os.environ))
    until(lambda: (again / "metrics.csv").exists() or process.poll() is not None, "an epoch")
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert error == f"{again}: stopped by SIGTERM; the same command with --run-dir {again} continues it\n"
    assert rerun(run_dir, again)[1][0] == WHOLE.format(40)


def test_help_does_not_import_torch(script: Command) -> None:
    done = script("mnist-rerun", "--help", PYTHONPROFILEIMPORTTIME="1")
    assert "RUN_DIR" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not {"torch", "lightning", "tensorboard"} & imported
