from pathlib import Path

import pytest
from helpers import make_run

from mnist_mlp.run.groups import by_length, command, completed, damage, variants, varied
from mnist_mlp.run.records import read_runs


def test_runs_are_grouped_by_settings_then_length_then_seed(tmp_path: Path) -> None:
    for seed in (0, 1, 1):  # the second of seed 1 is the same run in another directory
        make_run(tmp_path, "baseline", "A", seed)
    make_run(tmp_path, "baseline", "A", 2, epochs=20)
    make_run(tmp_path, "baseline", "A", 0, settings={"optimizer.lr": 0.1, "model.hidden": [64, 128, 64]})
    make_run(tmp_path, "baseline", "A", 3, status="failed")
    runs = read_runs(tmp_path)
    one, other = sorted(variants(runs), key=lambda variant: variant.label)
    assert (one.label, other.label) == ("baseline, A, lr=0.001", "baseline, A, lr=0.1")
    assert list(by_length(one.runs)) == [20, 10]
    assert [run.seed for run in completed(by_length(one.runs)[10])] == [0, 1]
    assert [run.seed for run in one.over_seeds()] == [0, 1]
    assert other.over_seeds() == []
    longest = one.longest()
    assert longest is not None
    assert longest.seed == 2
    assert set(varied(runs)[runs[0].name]) == {"optimizer.lr", "trainer.max_epochs"}


def test_a_run_that_never_began_leaves_the_names_of_the_others_short(tmp_path: Path) -> None:
    make_run(tmp_path, "baseline", "A", 0)
    make_run(tmp_path, "baseline", "A", 0, settings={"optimizer.lr": 0.1})
    path = make_run(tmp_path, "baseline", "A", 1, status="failed")
    for name in ("config.yaml", "metrics.csv"):
        (path / name).unlink()
    assert sorted(variant.label for variant in variants(read_runs(tmp_path))) == [
        "baseline, A",
        "baseline, A, lr=0.001",
        "baseline, A, lr=0.1",
    ]


def test_a_record_may_call_a_network_anything(tmp_path: Path) -> None:
    path = make_run(tmp_path, "baseline", "A")
    name = "x" * 5000  # longer than a file system takes
    (path / "run.json").write_text((path / "run.json").read_text().replace("network_a", name))
    (run,) = read_runs(tmp_path)
    assert (run.model, command([run])) == (name, None)


def test_a_part_that_others_lack_is_named_by_its_class(tmp_path: Path) -> None:
    step = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 10, "gamma": 0.1}
    make_run(tmp_path, "baseline", "A", 0)
    make_run(tmp_path, "baseline", "A", 0, settings={"scheduler": step})
    make_run(tmp_path, "baseline", "B", 0, settings={"scheduler": step})
    labels = sorted(variant.label for variant in variants(read_runs(tmp_path)))
    assert labels == ["baseline, A", "baseline, A, scheduler=StepLR, gamma=0.1, step_size=10", "baseline, B"]


def test_runs_that_stop_early_stay_one_group(tmp_path: Path) -> None:
    for seed, epochs in enumerate((8, 9)):
        make_run(tmp_path, "baseline", "A", seed, epochs=epochs, settings={"trainer.max_epochs": 10})
    (variant,) = variants(read_runs(tmp_path))
    assert [run.length for run in variant.over_seeds()] == [8, 9]


def test_the_command_has_what_was_changed(tmp_path: Path) -> None:
    make_run(tmp_path, "baseline", "A", 3, settings={"model.dropout": 0.5, "threads": None})
    (run,) = read_runs(tmp_path)
    changes = "threads=null trainer.max_epochs=10 model.dropout=0.5"
    assert command([run]) == f"mnist-train experiment=baseline model=network_a seed=3 {changes}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr\n0.1\n", "its metrics.csv has no column epoch"),
        ("epoch,new\n1,2\n", None),
        ("epoch\n1\n2\n", "its metrics.csv has 2 epochs, its run.json 1"),
        ("epoch\nx\n", "its metrics.csv is damaged"),
        ("", "it has no metrics.csv, or one without epochs"),
    ],
)
def test_a_run_is_damaged_where_what_is_needed_cannot_be_read(tmp_path: Path, text: str, problem: str | None) -> None:
    path = make_run(tmp_path, "baseline", "A", epochs=1)
    (path / "metrics.csv").write_text(text)
    assert damage(read_runs(tmp_path)[0]) == problem
