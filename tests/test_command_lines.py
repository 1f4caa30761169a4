"""Command lines that are made up, given to whole commands: each works or ends with one sentence, none leaves half of
something, and none is taken for something else. `pytest tests/test_command_lines.py --fuzz 50 --fuzz-seed 1` makes up
more, and other."""

import json
import os
import random
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from forked import Server
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_up import with_noise
from PIL import Image

from mnist_mlp.settings import compose_config, flatten, groups, options

Rounds = Callable[[int], Iterator[random.Random]]

VALUES = (
    *("null", "true", "-1", "0", "2", "0.5", "1e308", "nan", "inf", "abc", "''", "[]", "[1,2]", "{}", "{a:1}", "[[1]]"),
    *(str(2**70), "${seed}", "${nothing}", "${oc.env:HOME}", "{_target_:os.getcwd}", "a/b", "'a b'", "1:2", "~", "???"),
    *("1,2", "1,1", "range(2)", "choice(1,2)", "interval(0,1)", "glob(*)", "shuffle(1,2)", "tag(a,1)", "sort(2,1)"),
    *("", "int(3)", "float(1)", "str(1)", "bool(1)", "json_str([1])", "extend_list(1)", "é", "a=b", "$x", "\\"),
)
LEAVES = (
    *("x", "a.b", "0", "name", "_target_", "_partial_", "_args_", "_convert_", "momentum", "betas", "eps", "patience"),
    *("T_max", "weight_decay", "max_time", "precision", "profiler"),
)
OF_HYDRA = (
    *("hydra", "hydra.mode", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir"),
    *("hydra.verbose", "hydra.searchpath", "hydra.job_logging", "hydra.hydra_logging.root", "hydra.overrides.task"),
    *("hydra.job.name", "hydra.job.chdir", "hydra.job.num", "hydra.job.env_set.A", "hydra.job.env_copy", "hydra.help"),
    *("hydra.launcher", "hydra.launcher.jobs", "hydra.launcher.retries", "hydra.sweeper", "hydra.sweeper.params"),
    *("hydra.sweeper.params.seed", "hydra.sweeper.max_batch_size", "hydra.callbacks", "hydra.callbacks.x", "run_dir"),
    *("hydra.callbacks.check", "hydra.runtime.output_dir", "hydra/launcher", "hydra/sweeper", "hydra/output"),
    *("hydra/job_logging", "hydra/hydra_logging", "hydra/help", "sweep", "search", "search.trials", "search.space.lr"),
)
FLAGS = (
    *("-m", "--multirun", "--cfg", "--cfg=job", "--cfg=hydra", "--info", "--info=all", "--resolve", "--package=model"),
    *("--help", "--hydra-help", "--version", "--config-dir", "--config-dir=mine", "--config-name=own", "-cn", "-cd"),
    *("-sc", "-p", "-c", "--run", "-r", "-e", "--epochs=2", "-", "--", "-x", "--seed=1"),
)
OWN = {
    "model/own.yaml": "_target_: mnist_mlp.backbone.MLP\nhidden: [16]\ndropout: 0.1\ninit: default\n",
    "experiment/own.yaml": "# @package _global_\ndefaults:\n  - override /scheduler: step\ntrainer:\n  max_epochs: 1\n",
    "callbacks/own.yaml": "own:\n  _target_: lightning.pytorch.callbacks.EarlyStopping\n  monitor: val/loss\n",
    "loss/own.yaml": "_target_: torch.nn.CrossEntropyLoss\nlabel_smoothing: 0.1\n",
    "optimizer/own.yaml": "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\nmomentum: 0.9\n",
    "own.yaml": "defaults:\n  - train\n  - _self_\nseed: 3\n",
}
LINES = (
    *("", "- a", "a: [", "x: 1", "defaults: [x]", "? a", "trainer: 3", "\tb: 1", "null", "hydra: {mode: MULTIRUN}"),
    *("model: network_a", "seed: x", "  - override /model: own", "  - /model: nothing", "_target_: no.such.Class"),
)


def ended(commands: Server, name: str, arguments: list[str], here: Path) -> tuple[int, str]:
    """What every command owes to every command line; returns its status and what it said."""
    before = set(here.rglob("*"))
    process = commands.start(name, arguments, here, dict(os.environ))
    out, err = process.communicate(timeout=120)
    status, what = process.wait(0), f"{shlex.join([name, *arguments])}\n{out[-1500:]}\n{err[-3000:]}"
    assert "Traceback (most recent call last)" not in out + err, what
    assert "UserWarning: Callback" not in err, what
    assert status in (0, 1, 2), (status, what)
    left = sorted(set(here.rglob("*")) - before)
    runs = [path for path in left if path.name == "run.json"]
    for run in runs:
        assert json.loads(run.read_text())["status"] in ("completed", "failed"), what
    if status and not runs:
        assert err.strip(), what
        assert not left, (left, what)
        assert "warnings.warn" not in err, what
        lines = [line for line in err.strip().splitlines() if "Defaults list is missing `_self_`" not in line]
        assert status == 2 or len(lines) == 1 or lines[0].startswith(("expression: ", "IMAGE=")), what
    return status, what


def with_typo(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] + chance.choice("=,[]{}'\"$:\\ \t~+.@()!#%*é\n0a") + text[at + chance.randrange(2) :]


def given_to_train(chance: random.Random, known: list[str]) -> str:
    """One setting, group or line of Hydra's, with some value."""
    kind, sign = chance.random(), chance.choice(("", "", "", "+", "++"))
    if kind < 0.25:
        group = chance.choice(list(groups()))
        name = group + chance.choice(("", "", "", "", "@x", "@model", "@_global_", f"@{group}"))
        value = chance.choice((*options(group), *options(group), "own", chance.choice(VALUES), "none,own"))
    else:
        name = chance.choice(known if kind < 0.85 else OF_HYDRA)
        if 0.25 < kind < 0.4:
            name = f"{name.rpartition('.')[0]}.{chance.choice(LEAVES)}".lstrip(".")
        value = chance.choice(VALUES)
    return f"~{name}" if chance.random() < 0.08 else f"{sign}{name}={value}"


def own_files(directory: Path, chance: random.Random) -> str:
    """Files of the user's own, of which one is damaged, or not quite; the override or flag that chooses that one."""
    chosen = chance.choice(list(OWN))
    for name, content in OWN.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    lines = OWN[chosen].splitlines()
    at = chance.randrange(len(lines))
    same = (lines[at], f"{lines[at]}\n{lines[at]}", f"{lines[at].partition(':')[0]}: {chance.choice(VALUES)}")
    lines[at] = chance.choice((*LINES, *same, *same, with_typo(lines[at], chance)))
    content = "\n".join(lines).encode() + b"\n"
    (directory / chosen).write_bytes(content if chance.random() < 0.7 else with_noise(content, chance))
    return f"{chosen.partition('/')[0]}=own" if "/" in chosen else "--config-name=own"


def check_record(here: Path, arguments: list[str], what: str) -> None:
    """A run was accepted with these arguments: what it recorded is what was asked for."""
    (path,) = here.rglob("run.json")
    recorded = flatten(yaml.safe_load((path.parent / "config.yaml").read_text()))
    names = [argument.lstrip("+~").partition("=")[0] for argument in arguments]
    for argument in arguments:
        if argument.startswith(("-", "~")):
            continue
        override = OverridesParser.create().parse_override(argument)  # what is accepted is an override
        name, value = override.key_or_group, override.value()
        changed = sum(name == other or name.startswith(f"{other}.") for other in names) > 1
        elsewhere = override.package or name in (*groups(), "callbacks", "metrics", "run_dir")
        if name.startswith("hydra") or changed or elsewhere or isinstance(value, dict | list) or "${" in str(value):
            continue
        assert str(recorded.get(name, "nowhere")) == str(getattr(value, "text", value)), (argument, what)


def test_trainings_made_up(commands: Server, tiny_root: Path, tmp_path: Path, rounds: Rounds) -> None:
    known = [name for name in flatten(compose_config([])) if name != "data.root"]
    small = ("data.test_size=200", "data.eval_batch_size=100", "data.batch_size=100", "trainer.max_epochs=1")
    base = [f"data.root={tiny_root}", "data.sha256=null", *small]
    for number, chance in enumerate(rounds(12)):
        here = tmp_path / str(number)
        here.mkdir()
        given = [given_to_train(chance, known) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
        if chance.random() < 0.35:
            given += ["--config-dir=mine", own_files(here / "mine", chance)]
        given += [chance.choice(FLAGS)] * (chance.random() < 0.1) + ["-m"] * (chance.random() < 0.2)
        if chance.random() < 0.15:
            at = chance.randrange(len(given))
            given[at] = with_typo(given[at], chance)
        if any("=/" in argument for argument in given):  # anywhere on this machine
            continue
        arguments = [*base, *given] if chance.random() < 0.5 else [*given, *base]
        status, what = ended(commands, "mnist-train", arguments, here)
        if status == 0 and not {"-m", "--multirun"} & set(given) and list(here.rglob("run.json")):
            check_record(here, arguments, what)
        shutil.rmtree(here)


EXPRESSIONS = (
    *("x*y + sin(x)", "q = x**2; f = q/y", "max(x, y)", "1/x", "log(x)", "x", "3", "", "x +", "f(x)", "x@y", "'x'"),
    *("x=1", "a,b", "x;;y", "x\ny", "é", 50 * "x ", "(", "1e999*x", "x^y^x", "-x**-x", "x1*x_1", "__import__('os')"),
    *("x if y else z", "$x", "{x}", "x\\"),
)
OF_BACKPROP = (
    *("network=tiny", "network=x", "network=null", "network=tiny,network_a", "model=tiny", "values={x:1}", "values=3"),
    *("print=latex", "print=dot", "~values", "tensorboard=true"),
)


def given_to_backprop(chance: random.Random, known: list[str]) -> str:
    kind, sign = chance.random(), chance.choice(("", "", "+", "++", "~"))
    if kind < 0.35:
        text = chance.choice(EXPRESSIONS)
        text = with_typo(text, chance) if chance.random() < 0.4 else text
        return f"expression={text}" if chance.random() < 0.7 else f'expression="{text}"'
    if kind < 0.7:
        return f"{sign}values.{chance.choice(('x', 'y', 'q', 'f', 'x_1', '1', '', 'x.y', 'é'))}={chance.choice(VALUES)}"
    if kind < 0.9:
        return f"{sign}{chance.choice(known)}={chance.choice(VALUES)}"
    return chance.choice((*FLAGS, *OF_BACKPROP))


def test_derivations_made_up(commands: Server, tiny_root: Path, tmp_path: Path, rounds: Rounds) -> None:
    known = list(flatten(compose_config([], "backprop")))
    for number, chance in enumerate(rounds(10)):
        here = tmp_path / str(number)
        here.mkdir()
        given = [given_to_backprop(chance, known) for _ in range(chance.choice((1, 2, 2, 3, 4)))]
        if not any("=/" in argument for argument in given):
            ended(commands, "mnist-backprop", ["draw=false", f"data.root={tiny_root}", *given], here)
        shutil.rmtree(here)


# Of each command: what it takes first, its flags, and those that take a value.
OTHERS = {
    "mnist-report": ("runs", "--claims --table", "--output --readme"),
    "mnist-compare": ("runs/one runs/two", "", "--epochs"),
    "mnist-rerun": ("runs/one", "--trust", "--epochs --run-dir"),
    "mnist-evaluate": ("runs/one/checkpoints/best.ckpt", "--json", "--split --data-root --model"),
    "mnist-predict": ("runs/one/checkpoints/best.ckpt digit.png", "--show --json", "--model --pictures"),
    "mnist-benchmark": ("peers", "", "--device --threads --output"),
    "mnist-tensorboard": ("runs", "", "--port"),
}
NEVER = {"mnist-benchmark": ["--epochs", "x"], "mnist-tensorboard": ["--port", "x"]}  # takes minutes, or has no end
WORDS = (
    *("runs", "runs/one", "runs/two", "runs/one/", "runs/../runs/one", "runs/*", "runs/one/checkpoints/last.ckpt"),
    *("runs/one/run.json", "digit.png", "empty", "text.md", "own.yaml", "nothing", "", ".", "..", "~", "a=b", "seed=3"),
    *("-", "--", 300 * "x", "é", "/dev/null", "[x]", "a\nb", "trainer.max_epochs=1", "data.seed=x", "+x=1", "~model"),
    *("--x", "--help", "-m", "hydra.verbose=3"),
)
NUMBERS = ("1", "0", "-1", "2", "1e9", str(10**20), "x", "nan", "22.5", "70000")
NAMES = ("train", "test", "validation", "network_a", "tiny")


def test_other_commands_made_up(commands: Server, finished: Any, tmp_path: Path, rounds: Rounds) -> None:
    for number, chance in enumerate(rounds(10)):
        here = tmp_path / str(number)
        for name in ("one", "two"):
            shutil.copytree(finished[0], here / "runs" / name)
        (here / "empty").mkdir()
        (here / "text.md").write_text("# x\n")
        (here / "own.yaml").write_text(OWN["model/own.yaml"])
        Image.new("L", (40, 40), 255).save(here / "digit.png")
        name = chance.choice(list(OTHERS))
        first, plain, valued = map(str.split, OTHERS[name])
        given = first if chance.random() < 0.5 else chance.choices(WORDS, k=chance.choice((0, 1, 1, 2, 3)))
        given += chance.choices([WORDS[0], *plain], k=chance.randrange(2))
        for flag in chance.choices(valued, k=chance.randrange(3)):
            given += [flag, chance.choice((*NUMBERS, *NAMES, *WORDS))]
        status, what = ended(commands, name, [*given, *NEVER.get(name, [])], here)
        assert status or name not in NEVER or "--help" in given, what
        shutil.rmtree(here)
