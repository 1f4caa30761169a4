"""Command lines that are made up, given to whole commands: each works or ends with one sentence, and none is taken for
something else. `pytest tests/test_command_lines.py --fuzz 50 --fuzz-seed 1` makes up more, and other."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from forked import Server
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_up import with_noise

from mnist_mlp.settings import compose_config, flatten, groups, options

VALUES = (
    *("null", "true", "-1", "0", "2", "0.5", "1e308", "nan", "inf", "abc", "''", "[]", "[1,2]", "{}", "{a:1}", "[[1]]"),
    *(str(2**70), "${seed}", "${nothing}", "${oc.env:HOME}", "{_target_:os.getcwd}", "a/b", "'a b'", "1:2", "~", "???"),
    *(
        "1,2",
        "range(0,2)",
        "range(2)",
        "choice(1,2)",
        "interval(0,1)",
        "glob(*)",
        "shuffle(1,2)",
        "tag(a,1)",
        "sort(2,1)",
    ),
    *("", "int(3)", "float(1)", "str(1)", "bool(1)", "json_str([1])", "extend_list(1)", "1,1", "é", "a=b", "$x", "\\"),
)
NAMES = (
    "x",
    "momentum",
    "betas",
    "eps",
    "max_time",
    "_target_",
    "_partial_",
    "_args_",
    "name",
    "precision",
    "profiler",
    "patience",
    "T_max",
    "weight_decay",
    "a.b",
    "0",
    "_convert_",
)
FLAGS = (
    "-m",
    "--multirun",
    "--cfg",
    "--cfg=job",
    "--cfg=hydra",
    "--info",
    "--info=all",
    "--resolve",
    "--package=model",
    "--help",
    "--hydra-help",
    "--version",
    "--config-dir",
    "--config-dir=mine",
    "--config-name=own",
    "-cn",
    "-cd",
    "-sc",
    "-p",
    "-c",
    "--run",
    "-r",
    "-e",
    "--epochs=2",
    "-",
    "--",
    "-x",
    "--seed=1",
)
OWN = {
    "model/own.yaml": "_target_: mnist_mlp.backbone.MLP\nhidden: [16]\ndropout: 0.1\ninit: default\n",
    "experiment/own.yaml": "# @package _global_\ndefaults:\n  - override /scheduler: step\nexperiment: own\ntrainer:\n  max_epochs: 1\n",
    "callbacks/own.yaml": "own:\n  _target_: lightning.pytorch.callbacks.EarlyStopping\n  monitor: val/loss\n  patience: 2\n",
    "loss/own.yaml": "_target_: torch.nn.CrossEntropyLoss\nlabel_smoothing: 0.1\n",
    "optimizer/own.yaml": "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\nmomentum: 0.9\n",
    "metrics/own.yaml": "own:\n  _target_: torchmetrics.CohenKappa\n  task: multiclass\n  num_classes: 10\n",
    "own.yaml": "defaults:\n  - train\n  - _self_\nseed: 3\n",
}
TINY = [
    "data.sha256=null",
    "data.test_size=200",
    "data.eval_batch_size=100",
    "data.batch_size=100",
    "trainer.max_epochs=1",
]


def with_typo(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] + chance.choice("=,[]{}'\"$:\\ \t~+.@()!#%*é\n0a") + text[at + chance.randrange(2) :]


def override(chance: random.Random, known: list[str], hydras: list[str]) -> str:
    kind = chance.random()
    if kind < 0.45:
        name = chance.choice(known)
    elif kind < 0.6:
        name = f"{chance.choice(known).rpartition('.')[0]}.{chance.choice(NAMES)}".lstrip(".")
    elif kind < 0.75:
        name = chance.choice(hydras)
    else:
        group = chance.choice(list(groups()))
        name = group + chance.choice(("", "", "", "", "@x", "@model", "@_global_", f"@{group}"))
        value = chance.choice((*options(group), *options(group), "own", "own", chance.choice(VALUES), "none,own"))
        if chance.random() < 0.1:
            return f"~{name}" + chance.choice(("", f"={value}"))
        return f"{chance.choice(('', '', '', '+', '++'))}{name}={value}"
    sign = chance.choice(("", "", "", "+", "++"))
    return f"~{name}" if chance.random() < 0.08 else f"{sign}{name}={chance.choice(VALUES)}"


def own_files(directory: Path, chance: random.Random) -> str | None:
    """The user's own files; often with one damaged, whose name is returned."""
    damaged = chance.choice(list(OWN)) if chance.random() < 0.6 else None
    for name, content in OWN.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == damaged:
            if chance.random() < 0.4:
                path.write_bytes(with_noise(content.encode(), chance))
                continue
            lines = content.splitlines()
            at = chance.randrange(len(lines))
            lines[at] = chance.choice(
                (
                    with_typo(lines[at], chance),
                    "",
                    "- a",
                    "a: [",
                    "x: 1",
                    "defaults: [x]",
                    "? a",
                    "trainer: 3",
                    "\tb: 1",
                    f"{lines[at].partition(':')[0]}: {chance.choice(VALUES)}",
                    f"{lines[at]}\n{lines[at]}",
                    "null",
                    "hydra: {mode: MULTIRUN}",
                    "model: network_a",
                    "seed: x",
                    "  - override /model: own",
                    "  - /model: nothing",
                    "_target_: no.such.Class",
                    "lr: fast",
                )
            )
            content = "\n".join(lines) + "\n"
        path.write_text(content)
    return damaged


def leaves(config: Any) -> dict[str, Any]:
    return dict(flatten(config))


def test_command_lines_made_up(
    commands: Server, tiny_root: Path, tmp_path: Path, rounds: Callable[[int], Iterator[random.Random]]
) -> None:
    known = [name for name in flatten(compose_config([])) if name not in ("data.root",)]
    hydras = [
        "hydra.mode",
        "hydra.run.dir",
        "hydra.sweep.dir",
        "hydra.sweep.subdir",
        "hydra.launcher",
        "hydra.sweeper",
        "hydra.verbose",
        "hydra.output_subdir",
        "hydra.job.name",
        "hydra.job.chdir",
        "hydra.job.num",
        "hydra.job_logging",
        "hydra/job_logging",
        "hydra/launcher",
        "hydra/sweeper",
        "hydra/output",
        "hydra/help",
        "hydra/hydra_logging",
        "hydra.launcher.jobs",
        "hydra.launcher.retries",
        "hydra.sweeper.params",
        "hydra.sweeper.params.seed",
        "hydra.sweeper.max_batch_size",
        "hydra.job.env_set",
        "hydra.job.env_set.A",
        "hydra.job.config.override_dirname.kv_sep",
        "hydra.searchpath",
        "hydra.callbacks",
        "hydra.callbacks.x",
        "hydra.runtime.output_dir",
        "hydra.overrides.task",
        "hydra.job.env_copy",
        "hydra",
        "sweep",
        "search",
        "search.trials",
        "search.space",
        "search.space.lr",
        "search.space.optimizer.lr",
        "run_dir",
    ]
    failures = []
    for number, chance in enumerate(rounds(40)):
        here = tmp_path / str(number)
        here.mkdir()
        given = [override(chance, known, hydras) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
        damaged = None
        if chance.random() < 0.35:
            damaged = own_files(here / "mine", chance)
            given.append("--config-dir=mine")
            names = [damaged] if damaged else []
            names += chance.sample(list(OWN), chance.randrange(2))
            for name in names:
                group, _, option = name.removesuffix(".yaml").rpartition("/")
                given.append(
                    f"{group}=own"
                    if group not in ("callbacks", "metrics")
                    else f"{'+' * chance.randrange(2)}{group}=own"
                    if group
                    else "--config-name=own"
                )
        if chance.random() < 0.12:
            given.append(chance.choice(FLAGS))
        if chance.random() < 0.2:
            given.append("-m")
        if chance.random() < 0.15:
            at = chance.randrange(len(given))
            given[at] = with_typo(given[at], chance)
        if any("=/" in word or "..' in word" in word for word in given):
            continue
        if "hydra.mode" in str(given) and chance.random() < 0.5:
            given.append("-m")
        base = [f"data.root={tiny_root}", *TINY]
        if chance.random() < 0.5:
            base, given = [], [*given, *base, *([f"data.root={tiny_root}", *TINY])]
        arguments = [*base, *given]
        environment = {k: v for k, v in os.environ.items()}
        process = commands.start("mnist-train", arguments, here, environment)
        try:
            out, err = process.communicate(timeout=120)
            problem = judged(process.wait(0), out, err, here, arguments)
        except AssertionError as error:
            problem = f"{error}"
            out = err = ""
        if problem:
            failures.append(
                f"{number}: {problem}\n   {' '.join(map(repr, given))}\n   damaged: {damaged and (here / 'mine' / damaged).read_bytes()!r}"
            )
            with open("/tmp/fuzz_cmd_found.log", "a") as log:
                log.write(failures[-1] + "\n--- out\n" + out[-1500:] + "\n--- err\n" + err[-3000:] + "\n=====\n")
        shutil.rmtree(here, ignore_errors=True)
    assert not failures, "\n".join(failures)


def judged(status: int, out: str, err: str, here: Path, arguments: list[str]) -> str | None:
    if "Traceback (most" in out + err:
        return "traceback"
    if status not in (0, 1, 2):
        return f"status {status}"
    records = {path: json.loads(path.read_text()) for path in here.rglob("run.json")}
    if any(record["status"] not in ("completed", "failed", "interrupted") for record in records.values()):
        return "a run is left " + str([r["status"] for r in records.values()])
    left = [p for p in here.rglob("*") if p.relative_to(here).parts[0] != "mine"]
    if status:
        if not err.strip():
            return "no word"
        lines = err.strip().splitlines()
        if not records:
            if left:
                return f"refused, and left {left}"
            if len(lines) > 1 and status == 1 and "-m" not in arguments:
                return f"{len(lines)} lines"
        return None
    if not records and left:
        return f"left {left}"
    sweep = "-m" in arguments or "--multirun" in arguments
    if records and not sweep:
        for path in records:
            config = yaml.safe_load((path.parent / "config.yaml").read_text())
            flat = dict(flatten(compose_from(config)))
            for word in arguments:
                if word.startswith(("-", "~")):
                    continue
                try:
                    parsed = OverridesParser.create().parse_override(word)
                except Exception:
                    return f"accepted, but is no override: {word}"
                name = parsed.key_or_group
                if (
                    parsed.package
                    or name.startswith("hydra")
                    or name in groups()
                    or name in ("run_dir", "callbacks", "metrics")
                    or name in ("data.root",)
                ):
                    continue
                value = parsed.value()
                if isinstance(value, (dict, list)) or "${" in str(value):
                    continue
                others = [w.lstrip("+~").partition("=")[0] for w in arguments if w != word]
                if any(name.startswith(other + ".") for other in others):
                    continue
                recorded = flat.get(name, "nowhere")
                if (
                    str(recorded) != str(getattr(value, "text", value))
                    and word == [w for w in arguments if w.lstrip("+").startswith(name + "=")][-1]
                ):
                    return f"{word}: recorded {recorded!r}"
    return None


def compose_from(config: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create(config)


EXPRESSIONS = (
    "x*y + sin(x)",
    "q = x**2; f = q/y",
    "max(x, y)",
    "1/x",
    "log(x)",
    "x",
    "3",
    "",
    "x +",
    "f(x)",
    "x@y",
    "'x'",
    "x=1",
    "a,b",
    "x;;y",
    "x\ny",
    "é",
    "x " * 50,
    "(",
    "1e999*x",
    "x^y^x",
    "-x**-x",
    "x1*x_1",
    "__import__('os')",
    "x if y else z",
    "$x",
    "{x}",
    "x\\",
)


def test_backprop_command_lines_made_up(
    commands: Server, tiny_root: Path, tmp_path: Path, rounds: Callable[[int], Iterator[random.Random]]
) -> None:
    known = list(flatten(compose_config([], "backprop")))
    failures = []
    for number, chance in enumerate(rounds(15)):
        here = tmp_path / str(number)
        here.mkdir()
        given = []
        for _ in range(chance.choice((1, 2, 2, 3, 4))):
            kind = chance.random()
            if kind < 0.35:
                text = chance.choice(EXPRESSIONS)
                text = with_typo(text, chance) if chance.random() < 0.4 else text
                given.append(f"expression={text}" if chance.random() < 0.7 else f'expression="{text}"')
            elif kind < 0.7:
                name = chance.choice(("x", "y", "q", "f", "x_1", "1", "", "x.y", "é"))
                given.append(f"{chance.choice(('', '', '+', '++', '~'))}values.{name}={chance.choice(VALUES)}")
            elif kind < 0.9:
                given.append(f"{chance.choice(('', '', '+', '++', '~'))}{chance.choice(known)}={chance.choice(VALUES)}")
            else:
                given.append(
                    chance.choice(
                        (
                            *FLAGS,
                            "network=network_a",
                            "network=x",
                            "network=null",
                            "print=latex",
                            "print=dot",
                            "network=network_a,network_b",
                            "model=network_a",
                            "data=mnist",
                            "values={x:1}",
                            "values=3",
                            "~values",
                            "draw=true",
                            "tensorboard=true",
                        )
                    )
                )
        if any("=/" in word for word in given):
            continue
        arguments = (
            ["draw=false", "tensorboard=false", f"data.root={tiny_root}", *given] if chance.random() < 0.9 else given
        )
        if chance.random() < 0.1:
            arguments.append("-m")
        process = commands.start("mnist-backprop", arguments, here, dict(os.environ))
        try:
            out, err = process.communicate(timeout=120)
            status, problem = process.wait(0), None
            if "Traceback (most" in out + err:
                problem = "traceback"
            elif status not in (0, 1, 2):
                problem = f"status {status}"
            elif status and not err.strip():
                problem = "no word"
            elif status and len(err.strip().splitlines()) > (4 if status == 1 else 12) and "-m" not in arguments:
                problem = f"{len(err.splitlines())} lines"
            elif status and list(here.rglob("*")) and "-m" not in arguments:
                problem = f"left {list(here.rglob('*'))[:5]}"
        except AssertionError as error:
            problem, out, err = str(error), "", ""
        if problem:
            failures.append(f"backprop {number}: {problem}\n   {' '.join(map(repr, arguments))}")
            with open("/tmp/fuzz_cmd_found.log", "a") as log:
                log.write(failures[-1] + "\n--- out\n" + out[-1500:] + "\n--- err\n" + err[-3000:] + "\n=====\n")
        shutil.rmtree(here, ignore_errors=True)
    assert not failures, "\n".join(failures)


def test_other_command_lines_made_up(
    commands: Server, finished: Any, tmp_path: Path, rounds: Callable[[int], Iterator[random.Random]]
) -> None:
    failures = []
    for number, chance in enumerate(rounds(25)):
        here = tmp_path / str(number)
        here.mkdir()
        shutil.copytree(finished[0], here / "runs" / "one")
        shutil.copytree(finished[0], here / "runs" / "two")
        digit = here / "digit.png"
        from PIL import Image

        Image.new("L", (40, 40), 255).save(digit)
        (here / "empty").mkdir()
        (here / "text.md").write_text("# x\n")
        (here / "own.yaml").write_text("_target_: mnist_mlp.backbone.MLP\nhidden: [8]\ndropout: 0.0\ninit: default\n")
        before = {path for path in here.rglob("*")}
        words = (
            "runs",
            "runs/one",
            "runs/two",
            "runs/one/checkpoints/best.ckpt",
            "runs/one/checkpoints/last.ckpt",
            "runs/one/run.json",
            "digit.png",
            "empty",
            "text.md",
            "own.yaml",
            "nothing",
            "",
            ".",
            "..",
            "~",
            "a=b",
            "seed=3",
            "-",
            "--",
            "x" * 300,
            "runs/one/",
            "é",
            "runs/../runs/one",
            "/dev/null",
            "[x]",
            "runs/*",
            "0",
            "a\nb",
        )
        values = (
            "1",
            "0",
            "-1",
            "2",
            "1e9",
            "99999999999999999999",
            "x",
            "",
            "nan",
            "train",
            "test",
            "validation",
            "network_a",
            "network_b",
            "own.yaml",
            "tiny",
            *words,
        )
        flags = {
            "mnist-report": ("--output", "--readme", "--claims", "--table"),
            "mnist-compare": ("--epochs",),
            "mnist-rerun": ("--epochs", "--run-dir", "--trust"),
            "mnist-evaluate": ("--split", "--data-root", "--model", "--json"),
            "mnist-predict": ("--model", "--show", "--pictures", "--json"),
            "mnist-benchmark": ("--epochs", "--device", "--threads", "--output"),
            "mnist-tensorboard": ("--port",),
        }
        name = chance.choice(list(flags))
        arguments = [chance.choice(words) for _ in range(chance.choice((0, 1, 1, 2, 2, 3)))]
        if chance.random() < 0.5:
            first = {
                "mnist-report": "runs",
                "mnist-compare": "runs/one runs/two",
                "mnist-rerun": "runs/one",
                "mnist-evaluate": "runs/one/checkpoints/best.ckpt",
                "mnist-predict": "runs/one/checkpoints/best.ckpt digit.png",
            }.get(name)
            arguments = first.split() if first else arguments
        for _ in range(chance.choice((0, 1, 1, 2))):
            flag = chance.choice(flags[name])
            arguments.append(flag)
            if flag not in ("--claims", "--table", "--trust", "--json", "--show") or chance.random() < 0.1:
                arguments.append(chance.choice(values))
        if chance.random() < 0.1:
            arguments.append(
                chance.choice(
                    (
                        "--x",
                        "-h",
                        "--help",
                        "--epochs=",
                        "--e",
                        "-m",
                        "seed=1",
                        "trainer.max_epochs=1",
                        "data.seed=x",
                        "model=x",
                        "+x=1",
                        "~model",
                        "run_dir=x",
                        "hydra.verbose=3",
                    )
                )
            )
        if any(word.startswith("/") and word != "/dev/null" for word in arguments):
            continue
        if name == "mnist-benchmark":
            arguments = [word for word in arguments if word != "gpu"] + ["--epochs", "x"]
        if name == "mnist-tensorboard":
            arguments += ["--port", chance.choice(("x", "-1", "70000", "1e3", "", "22.5"))]
        process = commands.start(name, arguments, here, dict(os.environ))
        try:
            out, err = process.communicate(timeout=150)
            status, problem = process.wait(0), None
            if "Traceback (most" in out + err:
                problem = "traceback"
            elif status not in (0, 1, 2):
                problem = f"status {status}"
            elif status and not err.strip() and name != "mnist-compare":
                problem = "no word"
            elif status == 1 and len(err.strip().splitlines()) > 1 and name != "mnist-rerun":
                problem = f"{len(err.splitlines())} lines"
            elif (
                status
                and name not in ("mnist-rerun", "mnist-compare")
                and (left := {path for path in here.rglob("*")} - before)
            ):
                problem = f"left {left}"
        except AssertionError as error:
            problem, out, err = str(error), "", ""
        if problem:
            failures.append(f"{name} {number}: {problem}\n   {' '.join(map(repr, arguments))}")
            with open("/tmp/fuzz_cmd_found.log", "a") as log:
                log.write(failures[-1] + "\n--- out\n" + out[-1500:] + "\n--- err\n" + err[-3000:] + "\n=====\n")
        shutil.rmtree(here, ignore_errors=True)
    assert not failures, "\n".join(failures)
