import math
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import Command
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mnist_mlp.settings import (
    SettingError,
    as_override,
    check,
    compose_config,
    flatten,
    name_sweep_jobs,
    one_sentence,
    rules_of,
    sentence,
    settle,
)

# What a user types, and the sentence they get.
BAD_INPUT = {
    "trainer.max_epoch=3": "trainer.max_epoch=3: there is no setting trainer.max_epoch; did you mean "
    "trainer.max_epochs?",
    "trainer.lr=3": "trainer.lr=3: there is no setting trainer.lr; did you mean optimizer.lr?",
    "experiment=foo": "experiment=foo: there is no such experiment; choose one of baseline, best, dropout_as_intended, "
    "dropout_as_run, dropout_scheduler",
    "model=network_c": "model=network_c: there is no such model; choose one of network_a, network_b, tiny",
    "foo": "foo: is not of the form setting=value, such as seed=1 or model.hidden=[64,128,64]",
    "seed=one": "seed=one: must be a whole number of at least 0 and below 2**64",
    "seed=18446744073709551616": "seed=18446744073709551616: must be a whole number of at least 0 and below 2**64",
    "model=null": "model=null: is a group: choose one of its options, network_a, network_b, tiny",
    "optimizer=": "optimizer=null: is a group: choose one of its options, adam, sgd",
    "optimizer.fused=maybe": "optimizer.fused=maybe: must be true or false, or null",
    "trainer.deterministic=maybe": "trainer.deterministic=maybe: must be true, false or warn",
    "data.mirror=banana": "data.mirror=banana: must be a URL, such as https://example.org/mnist, or null",
    "sweep=../..": "sweep=../..: is of a sweep, and this is a single run: add -m",
    "trainer.max_epochs=0": "trainer.max_epochs=0: must be a whole number of at least 1",
    "trainer.max_epochs=2.5": "trainer.max_epochs=2.5: must be a whole number of at least 1",
    "trainer=3": "trainer=3: must be a group of settings, such as trainer.accelerator",
    "data.batch_size=0": "data.batch_size=0: must be a whole number of at least 1",
    "optimizer.lr=-0.1": "optimizer.lr=-0.1: must be a number above 0 and at most 3.4e+38",
    "model.dropout=1": "model.dropout=1: must be a number of at least 0 and below 1",
    "trainer.devices=2": "trainer.devices=2: must be 1: a run uses one device; a sweep puts its runs on several",
    "trainer.strategy=ddp": "trainer.strategy=ddp: must be auto: a run uses one device; a sweep puts its runs on "
    "several",
    "threads=0": "threads=0: must be a whole number from 1 to 1024, or null",
    "average=mean": "average=mean: must be one of weighted, macro, micro",
    "run_dir=/dev/null/run": "run_dir=/dev/null/run: cannot be written (Not a directory): choose a directory that you "
    "can write to",
    "trainer.accelerator=gpu": "trainer.accelerator=gpu: PyTorch finds no such device on this machine: use cpu, "
    "or auto",
    "+trainer.num_nodes=2": "trainer.num_nodes=2: must be 1: a run uses one device; a sweep puts its runs on several",
    "+trainer.foo=3": "trainer.foo=3: there is no setting trainer.foo; mnist-train --cfg job lists them all",
    "+optimizer.betas=3": "optimizer.betas=3: torch.optim.Adam takes a list of 2: a number, a number",
    "+model.num_classes=7": "model=network_a: must be an nn.Module from images (N, 1, 28, 28) to logits (N, 10), and "
    "gives a tensor of (2, 7) for two images",
    "+model.in_features=7": "model=network_a: must be an nn.Module from images (N, 1, 28, 28) to logits (N, 10), and "
    "fails (mat1 and mat2 shapes cannot be multiplied (2x784 and 7x64))",
    "+model.depth=3": "model.depth=3: mnist_mlp.backbone.MLP takes no depth; it takes hidden, dropout, init, "
    "in_features, num_classes",
}
# These are known only once the images are there.
LATER_BAD_INPUT = {
    "data.batch_size=57001": "data.batch_size=57001: must be at most the 57,000 training images",
    "data.root=/nowhere": "data.root=/nowhere: has no MNIST/raw/t10k-images-idx3-ubyte: give a root that does, or set "
    "data.download=true",
}


@pytest.mark.parametrize("override", BAD_INPUT)
def test_bad_input_is_one_sentence_and_leaves_nothing(command: Command, tmp_path: Path, override: str) -> None:
    done = command("mnist-train", override, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", BAD_INPUT[override] + "\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", LATER_BAD_INPUT)
def test_bad_input_found_later_is_one_sentence_too(command: Command, tmp_path: Path, override: str) -> None:
    done = command("mnist-train", override, "run_dir=r", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", LATER_BAD_INPUT[override] + "\n")
    assert '"status": "failed"' in (tmp_path / "r" / "run.json").read_text()
    assert LATER_BAD_INPUT[override] in (tmp_path / "r" / "train.log").read_text()


def test_a_sweep_is_not_put_anywhere(command: Command, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    done = command("mnist-train", "-m", "sweep=../../..", "seed=0,1")
    expected = "sweep=../../..: must be a name such as seeds or paper/long: it becomes logs/sweeps/NAME\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_the_traceback_is_there_for_who_asks(script: Command) -> None:
    done = script("mnist-train", "seed=one", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_defaults_follow_every_rule() -> None:
    config = compose_config([])
    check(config)
    present = flatten(config)
    missing = [
        name for name in rules_of(config) if not any(f"{setting}.".startswith(f"{name}.") for setting in present)
    ]
    assert all(name.startswith("trainer.") for name in missing)  # Lightning's own, which have no default here
    of_step = [name for name in rules_of(compose_config(["scheduler=step"])) if name.startswith("scheduler.")]
    assert of_step[:3] == ["scheduler.step_size", "scheduler.T_max", "scheduler.gamma"]  # and none of optimizers'
    assert "scheduler.lr" not in of_step


def test_an_argument_of_a_users_own_class_is_its_own_affair() -> None:
    config = compose_config([])
    config.model = {"_target_": "my_net.Net", "hidden": 128, "dropout": 7, "init": "he"}
    config.optimizer = {"_target_": "my_optimizer.Mine", "lr": "auto"}
    check(config)
    config.model._target_ = "mnist_mlp.backbone.MLP"
    with pytest.raises(SettingError, match=r"model\.hidden=128: must be a list"):
        check(config)


def test_a_setting_that_a_users_own_part_lacks_is_not_asked_for() -> None:
    config = compose_config([])
    config.model = {"_target_": "torch.nn.Flatten"}
    check(config)


@pytest.mark.parametrize(("setting", "value"), [("data.download", 1), ("data.std", 0), ("model.hidden", [64, 0])])
def test_rules(setting: str, value: object) -> None:
    config = compose_config([])
    OmegaConf.update(config, setting, value)
    with pytest.raises(SettingError, match=f"{setting}="):
        check(config)


@pytest.mark.parametrize(
    ("group", "settings", "problem"),
    [
        ("optimizer", {"_partial_": {"a": 1}}, r"optimizer\._partial_=\{a:1\}: must be true or false"),
        ("optimizer", {"_partial_": False}, r"optimizer\._partial_=false: must be true: the run gives it the param"),
        ("data", {"_partial_": True}, r"data\._partial_=true: must be left out"),
        ("callbacks", {"a": {"_target_": "b.C", "_partial_": True}}, r"callbacks\.a\._partial_=true: must be left out"),
        ("metrics", {"a": {"_target_": "b.C", "_convert_": "x"}}, r"metrics\.a\._convert_=x: must be one of none, par"),
        ("model", {"_recursive_": 3}, r"model\._recursive_=3: must be true or false"),
        ("model", {"_args_": 3}, r"model\._args_=3: must be a list"),
    ],
)
def test_hydras_own_keys_have_rules_too(group: str, settings: dict[str, Any], problem: str) -> None:
    config = compose_config([])
    config[group] = OmegaConf.merge(config[group], settings)
    with pytest.raises(SettingError, match=problem):
        check(config)


@pytest.mark.parametrize("group", ["scheduler", "callbacks", "logger", "metrics", "search"])
def test_a_group_that_is_null_is_an_empty_one(group: str) -> None:
    config = compose_config(["trainer.steps=native"])
    config[group] = None
    settle(config)
    assert config[group] == {}


def test_no_word_of_a_sentence_fills_a_screen() -> None:
    told = sentence(SettingError("CHECKPOINT", "c.ckpt", f"is of {'a' * 3000}: give --model"))
    assert told == f"CHECKPOINT=c.ckpt: is of {'a' * 300}...{'a' * 99}: give --model"
    path = f"/{'directory/' * 50}"
    assert path in sentence(SettingError("run_dir", path, "cannot be written"))


def test_ctrl_c_ends_a_command_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_sentence():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}


def test_only_what_varies_names_a_job() -> None:
    config = OmegaConf.create({"hydra": {"overrides": {"task": ["sweep=s", "seed=range(0,5)", "model=a,b", "+x.y=1"]}}})
    config.hydra.overrides.hydra = ["hydra.mode=MULTIRUN"]
    name_sweep_jobs(config)
    excluded = "hydra.job.config.override_dirname.exclude_keys=[sweep,x.y]"
    assert config.hydra.overrides.hydra == ["hydra.mode=MULTIRUN", excluded]


PIECES = [
    "a",
    "Z",
    "7",
    "_",
    "-",
    "+",
    ".",
    "/",
    "\\",
    "\\'",
    "'",
    '"',
    ",",
    "=",
    ":",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    " ",
    "\t",
]
PIECES += [
    "\n",
    "$",
    "${",
    "@",
    "%",
    "*",
    "?",
    "|",
    "#",
    "~",
    "é",
    "null",
    "true",
    "inf",
    "NaN",
    "1e5",
    "0.1",
    "range(1,3)",
]


def made_up(source: random.Random, depth: int = 0) -> Any:
    """A value that a setting may have, at random."""
    kinds: list[Any] = [
        lambda: "".join(source.choices(PIECES, k=source.randrange(5))),
        lambda: source.choice([None, True, False]),
        lambda: source.randrange(-(10**20), 10**20) if source.random() < 0.5 else source.randrange(-3, 3),
        lambda: source.choice(
            [math.inf, -math.inf, -0.0, 1.0, 1e-5, 1e22, source.uniform(-1, 1), source.gauss(0, 1e9)]
        ),
    ]
    if depth < 3:
        kinds.append(lambda: [made_up(source, depth + 1) for _ in range(source.randrange(4))])
        keys: list[Any] = ["low", "a/b", "x.y", "_", "network-a", 3, 2.5]
        kinds.append(lambda: {key: made_up(source, depth + 1) for key in source.sample(keys, source.randrange(4))})
    return source.choice(kinds)()


def test_what_hydra_reads_of_an_override_is_the_value_again() -> None:
    source, parser = random.Random(0), OverridesParser.create()
    values = [made_up(source) for _ in range(1500)]
    values += ["", "a=b,c [d]", "it's", "a\\", "a\\'b", "$x {y}: #z", "null", "True", "1", "-1.5", "inf", "2026-01-01"]
    for value in values:
        written = as_override(value)
        read = parser.parse_override(f"+key={written}")
        assert not read.is_sweep_override()
        assert repr(read.value()) == repr(value), written  # which tells 1 from True and from 1.0
    assert math.isnan(parser.parse_override(f"key={as_override(math.nan)}").value())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("network_b", "network_b"),
        ("/data/MNIST", "/data/MNIST"),
        ("null", "'null'"),
        ([64, 128, 64], "[64,128,64]"),
        ({"low": 1e-05, "log": True}, "{low:1e-05,log:true}"),
        (Path("a b"), "'a b'"),
        (OmegaConf.create({"a": [1, None]}), "{a:[1,null]}"),
    ],
)
def test_an_override_has_quotes_where_it_needs_them(value: Any, written: str) -> None:
    assert as_override(value) == written
