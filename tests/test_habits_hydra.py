"""Hydra's habits: one row each, the command and what it must do. All but the sweeps run in this process."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Command, statuses

from mnist_mlp import cli
from mnist_mlp.evaluate import _named_backbone as named_backbone
from mnist_mlp.settings import SettingError

Said = Callable[..., tuple[int, str, str]]

# The user's own files, under --config-dir mine.
FILES = {
    "experiment/cluster.yaml": "# @package _global_\ndefaults:\n  - override /hydra/launcher: submitit_slurm\n",
    "experiment/twice.yaml": "# @package _global_\ndefaults:\n  - override /model: tiny\n"
    "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n",
    "experiment/wide.yaml": "# @package _global_\ndefaults:\n  - override /model: bare\nmodel: {dropout: 0.3}\n",
    "experiment/there.yaml": "# @package _global_\nhydra: {job: {chdir: true}}\n",
    "experiment/unpacked.yaml": "seed: 3\n",
    "model/bare.yaml": "_target_: torch.nn.Flatten\n",
    "model/open.yaml": "_target_: mnist_mlp.backbone.MLP\nhidden: [3,\n",
    "model/tab.yaml": "_target_: mnist_mlp.backbone.MLP\nhidden: [3]\n\tdropout: 0.1\n",
    "model/word.yaml": "abc\n",
    "model/cnn.yaml": "_target_: torch.nn.modules.flatten.Unflatten\ndim: 1\n",
    "experiment/on_cnn.yaml": "# @package _global_\ndefaults:\n  - override /model: cnn\n",
    "model/typo.yaml": "_target_: mnist_mlp.backbone.MLQ\nhidden: [3]\n",
    "callbacks/ema.yaml": "mine: {_target_: lightning.pytorch.callbacks.Timer}\n",
    "callbacks/stop_early.yaml": "stop:\n  _target_: lightning.pytorch.callbacks.EarlyStopping\n  monitor: val/loss\n",
    "mine/label.yaml": "# @package _global_\nseed: 5\n",
    "mine/alone.yaml": "seed: 5\n",
    "whole.yaml": "defaults: [train, _self_]\nseed: 6\n",
    "twin/train.yaml": "seed: 5\n",
}

# What is refused, before there is a directory: the command, and what the one sentence begins with.
REFUSED: dict[str, str] = {
    # -m and sweeps
    "seed=0,1,2": "seed=0,1,2: several values are a sweep: add -m",
    "model=network_a,network_b": "model=network_a,network_b: several values are a sweep: add -m",
    "seed=range(0,3)": "seed=range(0,3): several values are a sweep: add -m",
    "-m seed=range(0)": "seed=range(0): has no value: a sweep takes at least one",
    "-m run_dir=x seed=0,1": "run_dir=x: is of a single run: a sweep lies in logs/sweeps/NAME with sweep=NAME",
    "seed=0,1 -m hydra.run.dir=x": "hydra.run.dir=x: is of a single run",
    "-m +hydra.sweeper.params.seed='0,1'": "hydra.sweeper.params.seed='0,1': on the command line a sweep is seed=VALUE",
    "run_dir=x hydra.run.dir=y": "hydra.run.dir=y: is the run's directory, and so is run_dir",
    "sweep=x": "sweep=x: is of a sweep, and this is a single run: add -m",
    "hydra.launcher.jobs=1": "hydra.launcher.jobs=1: is of a sweep, and this is a single run: add -m",
    "hydra/launcher=submitit_slurm": "hydra/launcher=submitit_slurm: is of a sweep, and this is a single run: add -m",
    "run_dir=null": "run_dir=null: must be a text",
    "hydra.job.chdir=true": "hydra.job.chdir=true: paths are relative to where the command is started",
    "experiment=there": "hydra.job.chdir=true: paths are relative to where the command is started",
    "-m experiment=cluster hydra/launcher=nosuch": "hydra/launcher=nosuch: there is no such hydra/launcher",
    "callbacks=ema": "callbacks=ema: is a file of this package, and mine/callbacks/ema.yaml would be passed over",
    "callbacks=[model_checkpoint,ema]": "callbacks=ema: is a file of this package, and mine/callbacks/ema.yaml would",
    "-m callbacks=ema,model_checkpoint": "callbacks=ema: is a file of this package, and mine/callbacks/ema.yaml would",
    # keys that nobody reads
    "seeed=3": "seeed=3: there is no setting seeed; did you mean seed?",
    "+seeed=3": "seeed=3: there is no setting seeed; did you mean seed?",
    "++optimiser.lr=0.1": "optimiser={lr:0.1}: there is no setting optimiser; did you mean optimizer?",
    "+losss._target_=torch.nn.L1Loss": "losss={_target_:torch.nn.L1Loss}: there is no setting losss",
    "+tensorboard.image_every=3": "tensorboard.image_every=3: there is no setting tensorboard.image_every; did you "
    "mean tensorboard.images_every?",
    "+trainer.max_epoch=3": "trainer.max_epoch=3: there is no setting trainer.max_epoch; did you mean "
    "trainer.max_epochs?",
    "+model.x=null": "model.x=null: mnist_mlp.backbone.MLP takes no x; it takes hidden, dropout, init",
    "+optimizer.weight_deca=0.1": "optimizer.weight_deca=0.1: torch.optim.Adam takes no weight_deca; did you mean "
    "weight_decay?",
    "experiment=wide": "model.dropout=0.3: torch.nn.Flatten takes no dropout; experiment=wide sets it: ~model.dropout",
    "+mine=alone": "mine={seed:5}: nothing reads this group: with a first line `# @package _global_`",
    # a forgotten +, and what a run gives to the Trainer itself
    "trainer.limit_train_batches=0.1": "trainer.limit_train_batches=0.1: is not in the configuration yet, and Trainer "
    "takes it: add it with +trainer.limit_train_batches=0.1",
    "scheduler=cosine scheduler.eta_min=0.1": "scheduler.eta_min=0.1: is not in the configuration yet, and "
    "CosineAnnealingLR takes it: add it with +scheduler.eta_min=0.1",
    "model=cnn model.unflattened_size=16": "model.unflattened_size=16: is not in the configuration yet, and Unflatten "
    "takes it: add it with +model.unflattened_size=16",
    "experiment=on_cnn model.unflattened_size=16": "model.unflattened_size=16: is not in the configuration yet, and ",
    "model=cnn model.hidden=16": "model.hidden=16: there is no setting model.hidden; torch.nn.modules.",
    "model._target_=my_nosuch.Net": "model._target_=my_nosuch.Net: there is no module my_nosuch (looked for in the cur",
    "experiment=unpacked": "experiment=unpacked: its file lacks the first line `# @package _global_`",
    "+trainer.plugins=[]": "trainer.plugins=[]: is not taken from the configuration: its plugins write checkpoints",
    **{
        f"{plus}trainer.{name}=1": f"trainer.{name}=1: is not taken from the configuration: "
        for name in ("logger", "callbacks", "plugins", "enable_progress_bar", "log_every_n_steps", "default_root_dir")
        for plus in ("", "+")
    },
    # groups and files
    "experiment=2": "experiment=2: is a group: choose one of its options, baseline, ",
    "model=3": "model=3: is a group: choose one of its options, network_a, network_b, tiny",
    "-m model=3,4": "model=3,4: is a group: choose one of its options",
    "data=[1,2]": "data=[1,2]: is a group: choose one of its options, fashion_mnist, kmnist, mnist",
    "scheduler={gamma:0.1}": "scheduler={gamma:0.1}: a setting in it is not there yet: set each by itself",
    "+scheduler.gamma=0.1": "scheduler.gamma=0.1: scheduler names no class: choose an option",
    "~data._target_": "data.dataset=MNIST: data names no class: choose an option, such as data=fashion_mnist",
    "~model": "model=null: must be one option, by which a run is called: network_a, network_b, tiny, or one of your",
    "~experiment": "experiment=null: must be one option, by which a run is called: baseline, best, ",
    "experiment=[baseline,best]": "experiment=[baseline,best]: must be one option, by which a run is called",
    "model=[network_a]": "model=[network_a]: must be one option, by which a run is called",
    "experiment=[baseline,nosuch]": "experiment=nosuch: there is no such experiment; choose one of baseline, best, ",
    "callbacks=[ema,nosuch]": "callbacks=nosuch: there is no such callback; choose one of early_stopping, ema, ",
    "data._target_=abc": "data._target_=abc: must be the full name of a class",
    "model=open": "mine/model/open.yaml, line 3: is not YAML (",
    "model=tab": "mine/model/tab.yaml, line 3: is not YAML (",
    "model=word": "model.abc=null: model names no class",
    "model=typo": "model._target_=mnist_mlp.backbone.MLQ: mnist_mlp.backbone has no MLQ; did you mean MLP?",
    "+callbacks.x=3": "callbacks.x=3: must name its class",
    "seed=${oc.env:NOBODYS,3}": "seed=3: must be a whole number of at least 0 and below 2**64; a variable of the "
    "environment is a text, and becomes a value by ${oc.decode:${oc.env:NOBODYS,3}}",
    # flags
    "--max_epochs 3": "--max_epochs: there is no such flag; a setting is written trainer.max_epochs=3",
    "--lr=0.1": "--lr=0.1: there is no such flag; a setting is written optimizer.lr=0.1",
    "-m --cfg job": "-m: leave it out with --cfg and --info",
    "--info -r": "--run: does something else than --info: give one of them",
    "-r -m seed=0,1": "--run: does something else than -m: give one of them",
    "-sc install=bash --cfg job": "--cfg: does something else than --shell-completion: give one of them",
    "-p trainer": "--package: is of what --cfg shows: add --cfg job",
    "seed=1 --resolve": "--resolve: is of what --cfg shows: add --cfg job",
    "--experimental-rerun x": "--experimental-rerun: takes a pickled job, and none is kept: mnist-rerun RUN_DIR",
    "--config-path mine": "--config-path: would take the place of the package's own files: --config-dir DIR adds yours",
    "-cn backprop": "--config-name backprop: is not for mnist-train: give a file in --config-dir, or leave it out",
    "-cn experiment/cluster": "--config-name experiment/cluster: lacks the settings of mnist-train: begin it with",
    "--config-dir mine/twin": "--config-dir=mine/twin/train.yaml: would be passed over, since this package's has",
    "-sc install=nosuch": "--shell-completion: takes install or uninstall, and a shell: -sc install=bash, fish or zsh",
    "-sc query=bash": "--shell-completion: query is for the shell, which says in COMP_LINE what was typed",
    # what Hydra's own code would fail at, or has made a directory for before it looks
    "hydra/hydra_logging=[1,2]": "hydra/hydra_logging=[1,2]: is a group of settings",
    "hydra.verbose=[1,2]": "hydra.verbose=[1,2]: Hydra cannot use it (TypeError: A logger name must be a string)",
    "hydra.job_logging.root.level=abc": "hydra.job_logging.root.level=abc: Hydra cannot use it (ValueError: Unknown le",
    "hydra.verbose=x hydra.job_logging.handlers.file.class=abc": "one of hydra.verbose=x, hydra.job_logging.handlers.",
    "hydra.job_logging.root.level=abc hydra.output_subdir=.hydra run_dir=a/b": "one of hydra.job_logging.root.level=",
    "hydra.overrides.task=[a]": "hydra.overrides.task=[a]: is what Hydra notes of a command by itself",
    "hydra.job.num=3": "hydra.job.num=3: is what Hydra notes of a command by itself: leave it out",
    "-m trainer.patience=1,2": "trainer.patience=1: there is no setting trainer.patience; mnist-train --cfg job lists",
    "-m +portable=true,false hydra.sweep.dir=here/it": "+portable: is in the configuration already: leave out the +",
    "-m model=network_a,nosuch": "model=nosuch: there is no such model; choose one of bare, cnn, network_a, network_b",
    "see\nd=1": "see\\nd=1: is not of the form setting=value",
    "seed='\x1b[2J'": "seed=\\x1b[2J: must be a whole number",
    "hydra.sweeper=inf": "hydra.sweeper=inf: must be a group of settings: choose one by hydra/sweeper",
    "-m hydra.launcher=3": "hydra.launcher=3: must be a group of settings: choose one by hydra/launcher",
    "~hydra.callbacks.check": "hydra.callbacks.check=null: is a callback of mnist-train itself: give yours another",
    "hydra.callbacks.search.x=1": "hydra.callbacks.search.x=1: is a callback of mnist-train itself: give yours another",
    "-m sweep=both hydra.sweep.dir=there seed=0,1": "hydra.sweep.dir=there: is the sweep's directory, and sweep names",
    "-m seed=0,1 sweep=null": "sweep=null: must be a name such as seeds or paper/long",
    "-m seed=0 sweep=a,b": "sweep=a,b: names the whole sweep: give one name",
    "run_dir=[e]": "run_dir=['e']: must be a text: leave it out",
    "run_dir=bad\udcff": "run_dir=bad\\udcff: must be a name in UTF-8, which the locale can read",
    f"run_dir={300 * 'x'}": "run_dir=",
    "~threads": "threads=null: is part of every run, and cannot be removed: give it another value",
    "-m ~trainer.max_epochs seed=0,1": "trainer.max_epochs=null: is part of every run, and cannot be removed",
    "seed=???": "seed=???: has no value yet: give it one",
    "optimizer.lr=${lr}": "optimizer.lr: Interpolation key 'lr' not found",
    "hydra.help=3": "hydra.help=3: cannot be that (",
    "data.eval_batch_size=9223372036854775808": "data.eval_batch_size=9223372036854775808: must be a whole number of "
    "at least 1, and below 2**63",
    # values, held against the class's own signature
    "-m optimizer.eps=1e-8,1e-7": "optimizer.eps=1e-08: is not in the configuration yet, and Adam takes it: add it",
    "+optimizer.lr=0.1": "+optimizer.lr: is in the configuration already: leave out the +",
    "threads=1025": "threads=1025: must be a whole number from 1 to 1024, or null",
    "threads=100000000000000000000000000": "threads=100000000000000000000000000: must be a whole number from 1 to",
    "data.seed=abc": "data.seed=abc: must be a whole number",
    "data.mean=nan": "data.mean=nan: must be a number, or null",
    "data.sha256=0": "data.sha256=0: must be the SHA-256 of each of t10k-images-idx3-ubyte and the three other files, "
    "or null",
    "optimizer.weight_decay=1e300": "optimizer.weight_decay=1e+300: must be a number from 0 to 3.4e+38",
    "scheduler=cosine scheduler.T_max=0": "scheduler.T_max=0: must be a whole number of at least 1",
    "scheduler=plateau scheduler.patience=abc": "scheduler.patience=abc: torch.optim.lr_scheduler.ReduceLROnPlateau "
    "takes a whole number",
    "scheduler=step +scheduler.last_epoch=3": "scheduler=StepLR: could not be made (",
    "+optimizer.amsgrad=maybe": "optimizer.amsgrad=maybe: torch.optim.Adam takes true or false",
    "+optimizer.betas=[0.9,x]": "optimizer.betas=[0.9,x]: torch.optim.Adam takes a list of 2: a number, a number",
    "+optimizer.eps=-1": "optimizer=Adam: could not be made (Invalid epsilon value: -1)",
    "+callbacks.s._target_=lightning.pytorch.callbacks.EarlyStopping": "callbacks.s=lightning.pytorch.callbacks."
    "EarlyStopping: takes monitor, which has no default: add +callbacks.s.monitor=VALUE",
    "+trainer.min_epochs=two": "trainer.min_epochs=two: Lightning's Trainer takes a whole number or null",
    "+trainer.profiler=nosuch": "trainer.profiler=nosuch: must be simple, advanced or pytorch, or null",
    **{
        f"{plus}trainer.{name}=1": f"trainer.{name}=1: Lightning has removed it: {instead}"
        for name, instead in {
            "gpus": "devices are chosen with trainer.accelerator=auto, cpu, gpu, cuda or mps",
            "resume_from_checkpoint": "a run that was stopped goes on by the same command with its run_dir",
            "weights_summary": "the network's layers are shown with +trainer.enable_model_summary=true",
        }.items()
        for plus in ("", "+")
    },
    "+trainer.qwerty=1": "trainer.qwerty=1: there is no setting trainer.qwerty; mnist-train --cfg job lists them all",
    "+max_epoch=1": "max_epoch=1: there is no setting max_epoch; did you mean trainer.max_epochs?",
    "ckpt_path=x.ckpt": "ckpt_path=x.ckpt: there is no setting ckpt_path: a run that was stopped goes on by the same",
    "data.num_workers=4": "data.num_workers=4: there is no setting data.num_workers: all images lie in memory",
    "+trainer.sync_batchnorm=true": "trainer.sync_batchnorm=true: must be false: a run uses one device",
    "trainer.max_epochs=-1": "trainer.max_epochs=-1: must be a whole number of at least 1",
    "logger=none": "logger=none: there is no such logger; choose one of csv, mlflow, tensorboard, wandb",
    "lr_scheduler=cosine": "lr_scheduler=cosine: there is no setting lr_scheduler; did you mean scheduler?",
    "model.init=3": "model.init=3: must be one of default, xavier_uniform",
}

# What works: the command, where the run lies, and its seed and epochs.
WORKS: dict[str, tuple[str, dict[str, object]]] = {
    "hydra.run.dir=x ++seed=3": ("x", {"seed": 3}),
    "run_dir=a=b": ("a=b", {"seed": 0}),
    "hydra.verbose=true run_dir=v callbacks=null logger=null": ("v", {"epochs": 1}),
    "run_dir=x ~callbacks ~logger ~metrics ~search": ("x", {"epochs": 1}),
    "run_dir=r ~scheduler +callbacks.x=null +width=8 model.hidden=[${width},${width}]": ("r", {"model": "MLP 8-8"}),
    "run_dir=w --config-dir mine --config-name whole": ("w", {"seed": 6, "experiment": "baseline"}),
    "run_dir=s callbacks=stop_early +mine=label": ("s", {"seed": 5, "epochs": 1}),
    "scheduler=null run_dir=n 'optimizer={lr: 0.01}'": ("n", {"epochs": 1}),
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """`said("seed=one")` is `mnist-train seed=one` in `tmp_path`: status, standard output and standard error."""
    for name, text in FILES.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # put back: a run sets it
    monkeypatch.setattr(sys, "path", list(sys.path))
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def start(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mnist-train", *arguments])
        try:
            cli.main()
            status: object = 0
        except SystemExit as end:
            status = end.code
        assert isinstance(status, int | None)
        return (status or 0, *capsys.readouterr())

    yield start
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers = handlers
    root.setLevel(level)
    logging.raiseExceptions = True


@pytest.mark.parametrize("line", REFUSED)
def test_what_has_another_way_here_is_one_sentence_and_leaves_nothing(said: Said, tmp_path: Path, line: str) -> None:
    status, out, err = said("--config-dir", "mine", *line.split(" "))
    assert err.replace(f"{tmp_path}/", "").startswith(REFUSED[line])
    assert (status in (1, 2), out, err.count("\n")) == (True, "", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("line", WORKS)
def test_what_is_usual_with_hydra_works(said: Said, tiny: list[str], tmp_path: Path, line: str) -> None:
    place, record = WORKS[line]
    arguments = [argument.strip("'") for argument in line.replace(": ", ":").split(" ")]
    chosen = [] if "model" in line else ["model=tiny"]
    chosen += ["--config-dir", "mine"] if "label" in line else []
    status, _, err = said(*tiny, *chosen, *arguments, "trainer.max_epochs=1", "tensorboard.enabled=false")
    assert status == 0, err
    assert record.items() <= json.loads((tmp_path / place / "run.json").read_text()).items()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", place}
    assert (tmp_path / place / "train.log").exists()


ENDS = """
import sys
from lightning.pytorch import Callback
from torch import nn
class Ends(nn.Module):
    def forward(self, images):
        sys.exit(0)
class Stops(Callback):
    def on_train_epoch_end(self, *_):
        sys.exit(0)
"""


def test_a_class_that_ends_the_process_does_not_end_it_well(said: Said, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "a_class_that_ends.py").write_text(ENDS)
    own = "_target_: a_class_that_ends.Ends\n"
    (tmp_path / "mine" / "model" / "ends.yaml").write_text(own)
    problem = "a class of the configuration ends the process (a_class_that_ends.py, line {}): let it raise\n"
    status, _, err = said("--config-dir", "mine", "model=ends")
    assert (status, err) == (1, f"sys.exit=0: {problem.format(7)}")
    with pytest.raises(SettingError, match=r"sys.exit=0: .*line 7"):
        named_backbone("mine/model/ends.yaml")
    callback = "+callbacks.stops._target_=a_class_that_ends.Stops"
    status, _, err = said(*tiny, callback, "run_dir=r", "trainer.max_epochs=1", "tensorboard.enabled=false")
    assert (status, err) == (1, f"sys.exit=0: {problem.format(10)}")
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "failed"


def test_a_refused_resume_is_told_before_pytorch_is_imported(
    script: Command, tmp_path: Path, finished: tuple[Path, object]
) -> None:
    shutil.copytree(finished[0], tmp_path / "r")
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    done = script("mnist-train", "run_dir=r", "seed=1", PYTHONPATH=".")
    assert done.stderr.startswith("run_dir=r: was run with "), done.stderr


def test_an_experiment_that_is_a_sweep_among_files_with_the_names_of_modules(
    script: Command, tiny: list[str], said: Said, tmp_path: Path
) -> None:
    for name in ("random.py", "queue.py", "statistics.py", "numpy.py", "settings.py"):
        (tmp_path / name).write_text("raise RuntimeError(__file__)\n")
    (tmp_path / "ray").mkdir()
    short = ("trainer.max_epochs=1", "tensorboard.enabled=false", "sweep=s")
    backend = {"MPLBACKEND": "module://of_a_notebook.backend"}
    done = script("mnist-train", *tiny, "--config-dir", "mine", "experiment=twice", *short, **backend)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "logs" / "sweeps" / "s") == {"seed=0": "completed", "seed=1": "completed"}


def test_glob_and_a_trailing_m_and_a_directory_for_the_sweep(command: Command, tiny: list[str], tmp_path: Path) -> None:
    given = (
        "model=glob(t*)",
        "seed=0,1",
        "hydra.sweep.dir=here/it is",
        "trainer.max_epochs=1",
        "tensorboard.enabled=false",
    )
    done = command("mnist-train", *tiny, *given, "-m")
    assert done.returncode == 0, done.stderr
    assert set(statuses(tmp_path / "here" / "it is").values()) == {"completed"}
    assert set(statuses(tmp_path / "here" / "it is")) == {"model=tiny,seed=0", "model=tiny,seed=1"}


def test_a_launcher_that_an_experiment_names_is_obeyed(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cli.SlurmLauncher, "check", staticmethod(lambda config: asked.append(config) or sys.exit(7)))
    assert said("--config-dir", "mine", "-m", "experiment=cluster", "seed=0,1")[0] == 7
    assert len(asked) == 1


def test_the_tab_key_completes_in_a_real_bash(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mnist-train")
    typed = (
        f'eval "$({script} -sc install=bash)"; COMP_LINE="{script} model=network_"; COMP_POINT=${{#COMP_LINE}}; '
        'COMP_WORDS=($COMP_LINE); COMP_CWORD=1; hydra_bash_completion; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["model=network_a", "model=network_b"], done.stderr
