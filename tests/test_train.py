import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Server
from helpers import Command, Runner
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_mlp.cli import arranged
from mnist_mlp.run.checkpoint import weights_sha256
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.process import prepare_process
from mnist_mlp.settings import SettingError, compose_config, groups, options

Finished = tuple[Path, dict[str, Any]]


def rows(run_dir: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))


def test_a_run_directory_is_as_designed(finished: Finished) -> None:
    run_dir, record = finished
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"config.yaml", "run.json", "metrics.csv", "checkpoints", "tensorboard"}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert record == json.loads((run_dir / "run.json").read_text())
    assert record["status"] == "completed"
    assert (record["experiment"], record["model"], record["seed"], record["epochs"]) == (
        "dropout_as_run",
        "network_a",
        0,
        3,
    )
    assert record["threads"] == 1
    assert record["device"].startswith("cpu (")
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["git"].keys() == {"commit", "dirty"}
    assert record["test"].keys() == {"last", "best"}
    assert record["test"]["best"].keys() == {"accuracy", "precision", "recall", "f1", "loss"}


def test_metrics_csv_has_a_row_per_epoch(finished: Finished) -> None:
    run_dir, record = finished
    table = rows(run_dir)
    assert tuple(table[0]) == COLUMNS
    assert [int(row["epoch"]) for row in table] == [1, 2, 3]
    assert record["final"] == {name: float(value) for name, value in table[-1].items()}
    for row in table:
        assert float(row["val/error"]) == pytest.approx(1 - float(row["val/accuracy"]), abs=1e-6)
        assert float(row["lr"]) == 0.001
    assert float(table[-1]["train/loss"]) < float(table[0]["train/loss"])


def test_tensorboard_has_every_column_once_per_epoch(finished: Finished) -> None:
    run_dir, _ = finished
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    for name in COLUMNS[1:]:
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx([float(row[name]) for row in rows(run_dir)])


def test_best_is_the_first_epoch_of_highest_accuracy(finished: Finished) -> None:
    run_dir, record = finished
    accuracies = [float(row["val/accuracy"]) for row in rows(run_dir)]
    first = accuracies.index(max(accuracies)) + 1
    assert record["best"] == {"epoch": first, "val/accuracy": max(accuracies)}
    assert torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] + 1 == first


def test_a_tie_goes_to_the_earlier_epoch(run: Runner) -> None:
    # So small a rate that no prediction changes between the epochs.
    run_dir, record = run("optimizer.lr=1e-12")
    assert len({row["val/accuracy"] for row in rows(run_dir)}) == 1
    assert record["best"]["epoch"] == 1
    assert torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0


def test_weights_and_data_are_named_by_their_hashes(finished: Finished, tiny_root: Path) -> None:
    run_dir, record = finished
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert weights_sha256(last["state_dict"]) == record["weights_sha256"]
    raw = tiny_root / "MNIST" / "raw"
    listing = subprocess.run(["sha256sum", *sorted(os.listdir(raw))], cwd=raw, capture_output=True, check=True).stdout
    assert hashlib.sha256(listing).hexdigest() == record["data_sha256"]


def test_the_same_configuration_gives_the_same_bits_and_another_seed_others(run: Runner, finished: Finished) -> None:
    run_dir, record = run("experiment=dropout_as_run")
    assert record["weights_sha256"] == finished[1]["weights_sha256"]
    for ours, theirs in zip(rows(run_dir), rows(finished[0]), strict=True):
        assert {**ours, "seconds": ""} == {**theirs, "seconds": ""}
    assert run("experiment=dropout_as_run", "seed=1")[1]["weights_sha256"] != record["weights_sha256"]


def test_a_complete_run_is_not_run_again(run: Runner, finished: Finished) -> None:
    run_dir, record = finished
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    assert run("experiment=dropout_as_run", f"run_dir={run_dir}")[1] == record
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_longer_run_continues_to_the_same_bits(run: Runner, finished: Finished) -> None:
    run_dir, _ = run("experiment=dropout_as_run", "trainer.max_epochs=1")
    _, record = run("experiment=dropout_as_run", f"run_dir={run_dir}")
    assert record["weights_sha256"] == finished[1]["weights_sha256"]
    assert [row["epoch"] for row in rows(run_dir)] == ["1", "2", "3"]


@pytest.mark.parametrize("override", ["optimizer.lr=0.5", "trainer.max_epochs=2", "data.batch_size=32"])
def test_a_directory_of_another_run_is_refused(run: Runner, finished: Finished, override: str) -> None:
    setting, value = override.split("=")
    with pytest.raises(SettingError, match=rf"run_dir=.*: was run with {setting}=[\d.]+ \(not {value}\): keep that"):
        run("experiment=dropout_as_run", f"run_dir={finished[0]}", override)


def test_every_setting_that_differs_is_named_as_the_command_line_writes_it(run: Runner, finished: Finished) -> None:
    with pytest.raises(SettingError) as refused:
        run("experiment=dropout_as_run", f"run_dir={finished[0]}", "threads=null", "optimizer.fused=false", "seed=3")
    assert str(refused.value) == (
        f"run_dir={finished[0]}: was run with data.seed=0 (not 3), optimizer.fused=true (not false), seed=0 (not 3), "
        "threads=1 (not null): keep that, or give another run_dir"
    )


def test_a_relative_data_root_is_recorded_as_an_absolute_one(
    run: Runner, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_root.parent)
    run_dir, _ = run(f"data.root={tiny_root.name}", "trainer.max_epochs=1")
    assert OmegaConf.load(run_dir / "config.yaml").data.root == str(tiny_root)


def test_a_loss_that_is_not_finite_fails_the_run_and_keeps_what_was_written(run: Runner, tmp_path: Path) -> None:
    # One good epoch, then a rate that ends in NaN.
    run("optimizer=sgd", "trainer.max_epochs=1", f"run_dir={tmp_path / 'r'}")
    kept = (tmp_path / "r" / "metrics.csv").read_bytes()
    checkpoint = (tmp_path / "r" / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(Exception, match="became"):
        run("optimizer=sgd", "optimizer.lr=1e20", f"run_dir={tmp_path / 'n'}")
    record = json.loads((tmp_path / "n" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "optimizer.lr=1e+20 is probably too high" in record["error"]
    assert (tmp_path / "r" / "metrics.csv").read_bytes() == kept
    assert (tmp_path / "r" / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


def test_a_users_callback_and_scheduler_are_used(run: Runner) -> None:
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100.0}"
    overrides = ["scheduler=step", "scheduler.step_size=1", f"+callbacks.stop={stop}", "trainer.max_epochs=9"]
    run_dir, record = run(*overrides)
    assert record["epochs"] == 2
    assert run(*overrides, f"run_dir={run_dir}")[1] == record  # stopped early is complete, not to be resumed
    assert [float(row["lr"]) for row in rows(run_dir)] == pytest.approx([0.001, 0.0001])


@pytest.mark.parametrize("overrides", [[], ["+callbacks.stop=STOP", "trainer.max_epochs=9"]])
def test_a_run_killed_after_its_last_checkpoint_is_finished(run: Runner, overrides: list[str]) -> None:
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100.0}"
    overrides = [override.replace("STOP", stop) for override in overrides]
    run_dir, record = run(*overrides)
    table = rows(run_dir)
    # As a kill between the last epoch's checkpoint and its row leaves it.
    (run_dir / "metrics.csv").write_text("".join((run_dir / "metrics.csv").read_text().splitlines(True)[:-1]))
    (run_dir / "run.json").write_text(json.dumps({"status": "running"}))
    _, again = run(*overrides, f"run_dir={run_dir}")
    assert rows(run_dir) == table
    for key in ("status", "epochs", "best", "final", "test", "weights_sha256"):
        assert again[key] == record[key]


def test_a_damaged_checkpoint_is_refused_and_kept(run: Runner, tmp_path: Path) -> None:
    run_dir, _ = run("trainer.max_epochs=1")
    last = run_dir / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(SettingError, match=r"run_dir=.*last\.ckpt: is damaged"):
        run(f"run_dir={run_dir}")
    assert last.stat().st_size == 1000


class Payload:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_a_strangers_checkpoint_is_not_resumed(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir, _ = run("trainer.max_epochs=1")
    other_dir, _ = run("trainer.max_epochs=1", "model.hidden=[5]", "optimizer.lr=0.1")
    last = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    other = torch.load(other_dir / "checkpoints" / "last.ckpt", weights_only=True)
    settings = content["hyper_parameters"]
    target = {"_target_": "pathlib.Path.touch", "self": "executed"}
    for stranger, problem in (
        (Payload(), "is damaged, or holds more than tensors and plain values"),
        ({**content, "callbacks": Payload()}, "is damaged, or holds more than tensors and plain values"),
        (other, "is of a run with another model.hidden, optimizer.lr: restore this run's"),
        ({**content, "hyper_parameters": {**settings, "model": target}}, "is of a run with another model._target_"),
        ({**content, "state_dict": other["state_dict"]}, "holds the weights of another backbone"),
        ({**content, "state_dict": {"backbone": "x"}}, r"is damaged \(its weights have backbone, which is no tensor\)"),
    ):
        torch.save(stranger, last)
        before = last.read_bytes()
        with pytest.raises(SettingError, match=rf"run_dir=.*last\.ckpt: {problem}"):
            run(f"run_dir={run_dir}", "trainer.max_epochs=2")
        assert last.read_bytes() == before
    assert not (tmp_path / "executed").exists()


EXPERIMENTS: dict[str, dict[str, Any]] = {
    # As ../README.md and the report have them: (lr, scheduler, dropout, init, epochs).
    "baseline": {"lr": 0.001, "scheduler": None, "dropout": 0.0, "init": "default", "epochs": 500},
    "dropout_scheduler": {"lr": 0.01, "scheduler": (10, 0.1), "dropout": 0.3, "init": "default", "epochs": 500},
    "dropout_as_run": {"lr": 0.001, "scheduler": None, "dropout": 0.3, "init": "xavier_uniform", "epochs": 500},
    "dropout_as_intended": {
        "lr": 0.001,
        "scheduler": (10, 0.1),
        "dropout": 0.3,
        "init": "xavier_uniform",
        "epochs": 100,
    },
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("model", ["network_a", "network_b"])
def test_an_experiment_says_what_the_report_says(experiment: str, model: str) -> None:
    expected = EXPERIMENTS[experiment]
    config = compose_config([f"experiment={experiment}", f"model={model}"])
    optimizer = instantiate(config.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["lr"] == expected["lr"]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    if expected["scheduler"] is None:
        assert config.scheduler == {}
    else:
        scheduler = instantiate(config.scheduler)(optimizer)
        assert type(scheduler) is torch.optim.lr_scheduler.StepLR
        assert (scheduler.step_size, scheduler.gamma) == expected["scheduler"]
    assert (config.model.dropout, config.model.init) == (expected["dropout"], expected["init"])
    assert (config.trainer.max_epochs, config.data.batch_size) == (expected["epochs"], 64)
    assert (config.experiment, config.network) == (experiment, model)


def test_the_best_recipe_has_native_steps_on_other_images_each_epoch(run: Runner) -> None:
    path, record = run("experiment=best", "trainer.max_epochs=2")
    assert (record["experiment"], record["steps"], record["portable"]) == ("best", "native", True)
    _, plain = run("experiment=best", "trainer.max_epochs=2", "data.transform=null")
    assert record["final"]["train/loss"] > plain["final"]["train/loss"]
    with (path / "metrics.csv").open() as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == [0.001, 0.0005]  # half a cosine in two epochs


def test_every_option_of_every_group_composes_and_instantiates() -> None:
    conf = Path(__file__).parents[1] / "conf"
    for file in sorted(conf.glob("[!h]*/*.yaml")):
        config = compose_config([f"{file.parent.name}={file.stem}"])
        for node in (config.data, config.model, config.optimizer):
            assert instantiate(node) is not None


def test_the_command_trains_on_the_real_images(script: Command, tmp_path: Path) -> None:
    """The whole of MNIST, from another directory, through the console script."""
    done = script("mnist-train", "trainer.max_epochs=2", "run_dir=here/run")
    assert (done.returncode, done.stdout) == (0, "")
    run_dir = tmp_path / "here" / "run"
    record = json.loads((run_dir / "run.json").read_text())
    # Over seeds 0 to 4: 0.9618 ± 0.0038 and 0.9628 ± 0.0031. Three more standard deviations below the lowest are left.
    assert record["best"]["val/accuracy"] > 0.945
    assert record["test"]["last"]["accuracy"] > 0.945
    assert {path.name for path in (run_dir / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert "\r" not in done.stderr  # no progress bar where standard error is no terminal
    config = OmegaConf.load(run_dir / "config.yaml")
    assert OmegaConf.to_container(config) == OmegaConf.to_container(config, resolve=True)  # nothing is left to resolve


def test_a_sweep_names_its_jobs_and_ends_with_a_table(command: Command, tmp_path: Path, tiny: list[str]) -> None:
    arguments = ["-m", "sweep=s", "model=network_b,network_a", "seed=0,1", *tiny, "trainer.max_epochs=1"]
    done = command("mnist-train", *arguments)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "logs" / "sweeps" / "s"
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == [f"model=network_{network},seed={seed}" for network in "ab" for seed in (0, 1)]
    results = list(csv.DictReader((sweep / "results.csv").read_text().splitlines()))
    assert [row["run"] for row in results] == jobs
    assert done.stdout.count("n = 2") == 2
    table = done.stdout.partition("validation")[2]
    assert max(map(len, table.splitlines())) <= 80

    again = command("mnist-train", *arguments)
    assert again.returncode == 0
    assert "4 jobs, 4 of them completed" in again.stderr
    assert list(csv.DictReader((sweep / "results.csv").read_text().splitlines())) == results


def test_runs_started_together_get_their_own_directories(commands: Server, tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, "trainer.max_epochs=1"]
    processes = [commands.start("mnist-train", arguments, tmp_path, dict(os.environ)) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(list((tmp_path / "logs" / "runs").iterdir())) == 2


def test_a_backbone_of_ones_own_takes_one_file(command: Command, tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "linear.yaml").write_text(
        "_target_: torch.nn.Sequential\n_args_:\n"
        "  - {_target_: torch.nn.Flatten}\n"
        "  - {_target_: torch.nn.Linear, in_features: 784, out_features: 10}\n"
    )
    done = command("mnist-train", "--config-dir", ".", "model=linear", "run_dir=r", *tiny)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r" / "run.json").read_text())["model"] == "linear"
    checkpoint = "r/checkpoints/last.ckpt"
    refused = command("mnist-evaluate", checkpoint, "--data-root", tiny[0].partition("=")[2])
    assert refused.returncode == 1
    assert "give that backbone's file with --model" in refused.stderr
    evaluated = command(
        "mnist-evaluate", checkpoint, "--data-root", tiny[0].partition("=")[2], "--model", "model/linear.yaml", "--json"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert json.loads(evaluated.stdout) == pytest.approx(record["test"]["last"], abs=1e-6)


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["-sc", "query=bash"]])
def test_help_configuration_and_completion_do_not_import_torch(script: Command, arguments: list[str]) -> None:
    done = script(
        "mnist-train", *arguments, PYTHONPROFILEIMPORTTIME="1", COMP_LINE="mnist-train experiment=", COMP_POINT="23"
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not {"torch", "lightning", "tensorboard"} & imported


def test_a_terminal_is_told_of_the_run_before_torch_is_loaded(tmp_path: Path, tiny: list[str]) -> None:
    ours, theirs = os.openpty()
    script = Path(sys.executable).with_name("mnist-train")
    with subprocess.Popen(
        [script, *tiny, "seed=3", "run_dir=r"], cwd=tmp_path, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        try:
            with open(ours) as terminal:
                said = terminal.readline()
            assert not (tmp_path / "r").exists()  # it is made once PyTorch has looked at the settings
        finally:
            process.kill()
    assert said.startswith("r: baseline, network_a, seed 3, 3 epochs, on MNIST, trainer.accelerator=auto; ")


def test_help_shows_groups_and_four_examples(command: Command) -> None:
    text = command("mnist-train", "--help").stdout
    assert text.partition("Groups")[0].count("\n  mnist-train ") == 4
    shown = re.findall(r"[\w]+", text.partition("$")[0])
    assert not {option for group in groups() for option in options(group)} - {*shown}


def test_completion_offers_experiments(command: Command) -> None:
    done = command("mnist-train", "-sc", "query=bash", COMP_LINE="mnist-train experiment=", COMP_POINT="23")
    assert "experiment=baseline" in done.stdout


class Threads(Callback):
    told = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Threads.told = torch.__config__.parallel_info()


def test_torch_and_openmp_have_the_threads_that_were_asked_for(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # and put back
    before = torch.get_num_threads()
    try:
        _, record = run("threads=2", "trainer.max_epochs=1", f"+callbacks.mine._target_={__name__}.Threads")
        assert record["threads"] == 2
        assert torch.get_num_threads() == before
        assert "omp_get_max_threads() : 2" in Threads.told
        prepare_process(2, portable=False)  # what the commands call before they import PyTorch
        assert os.environ["OMP_NUM_THREADS"] == "2"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("setting", ["network", "++network"])
def test_a_network_is_not_called_by_another_name(command: Command, tmp_path: Path, setting: str) -> None:
    for arguments in ([f"{setting}=network_b"], ["-m", f"{setting}=network_a,network_b"]):
        done = command("mnist-train", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"network={arguments[-1].partition('=')[2]}: follows from model=NAME, which chooses what is run: leave it "
            "out\n"
        )
    assert not list(tmp_path.iterdir())


def test_an_experiment_file_does_not_rename_what_it_runs(command: Command, tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nnetwork: network_b\n")
    for launcher in ("process", "basic"):
        swept = command(
            "mnist-train", "--config-dir", ".", "-m", "experiment=mine", f"hydra/launcher={launcher}", "sweep=s", *tiny
        )
        assert swept.returncode == 1
        assert "network=network_b: follows from model=NAME" in swept.stderr
    assert not list(tmp_path.rglob("run.json"))


def test_a_network_of_other_widths_is_named_for_them(run: Runner) -> None:
    assert run("model.hidden=[8,4]", "trainer.max_epochs=1")[1]["model"] == "MLP 8-4"
    assert run("model.dropout=0.5", "trainer.max_epochs=1")[1]["model"] == "network_a"


@pytest.mark.parametrize(("flag", "place"), [("-m", 2), ("--multirun", 2), ("-m", 1)])
def test_a_sweep_is_asked_for_anywhere(flag: str, place: int) -> None:
    """Where Hydra's own parser takes a flag first only; that a sweep with -m at its end runs: test_habits_hydra.py."""
    given = ["experiment=baseline", "seed=0,1"]
    assert arranged([*given[:place], flag, *given[place:]]) == [flag, *given]


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--max_epochs=3", "a setting is written trainer.max_epochs=3"),
        ("--epochs=3", "the number of epochs is trainer.max_epochs"),
        ("--nosuch", "--hydra-help lists them"),
    ],
)
def test_a_setting_that_is_written_as_a_flag_is_told_of(
    flag: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        arranged([flag])
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        f"{flag}: there is no such flag; {hint}\n",
    )
