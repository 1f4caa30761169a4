import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Command
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_mlp.backprop.command import quote_for_hydra
from mnist_mlp.settings import BACKPROP_RULES, check_rules, compose_config

FILES = {"derivation.md", "derivation.tex", "graph.dot", "graph.png", "graph.svg"}


def shell(line: str, where: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A line as a user types it, through a shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=where,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_without_arguments_it_is_the_reports_example(command: Command, tmp_path: Path) -> None:
    done = command("mnist-backprop")
    assert done.returncode == 0, done.stderr
    for number in (
        *("q = x1 · w1 = 0.7 · (−1.5) = −1.05", "t = x2 · w2 = 0.34 · (−0.35) = −0.119", "= −0.05", "= −0.18"),
        *("p = q + t = (−1.05) + (−0.119) = −1.169", "= −0.23", "f = p · r = (−1.169) · (−0.23) = 0.26887"),
        *("∂f/∂p = r = −0.23", "∂f/∂r = p = −1.169"),
        "df/dx1 = df/dq · ∂q/∂x1 = ∂f/∂p · ∂p/∂q · ∂q/∂x1 = r · 1 · w1 = (−0.23) · 1 · (−1.5) = 0.345",
        *("df/dx1 = 0.345", "df/dx2 = 0.0805", "df/dx3 = 0.29225", "df/dx4 = −0.2338"),
        *("df/dw1 = −0.161", "df/dw2 = −0.0782", "df/dw3 = −0.2338", "df/dw4 = 1.0521"),
    ):
        assert f"{number}\n" in done.stdout
    assert "15 values and 15 gradients agree with torch.autograd in float64, but for rounding: the" in done.stdout
    (run_dir,) = (tmp_path / "logs" / "backprop").iterdir()
    assert done.stderr == f"19 files in {run_dir.relative_to(tmp_path)}\n"
    assert {path.name for path in run_dir.iterdir()} == FILES | {"frames"}
    assert {path.name for path in (run_dir / "frames").iterdir()} == {
        f"frame_00{number}.{kind}" for number in range(1, 8) for kind in ("png", "svg")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


# As a user types them, and a line of what comes.
LINES = {
    "mnist-backprop expression='tanh(a*b + c)**2' values.a=0.5 values.b=-2 values.c=0.1": "df/dc = −0.697556",
    "mnist-backprop 'expression=\"q = x1*w1; f = q + 1\"' values.x1=2 values.w1=3": "df/dx1 = 3",
    "mnist-backprop expression='q = x1*w1; f = q + 1' values.x1=2 values.w1=3": "df/dx1 = 3",
    "mnist-backprop values.w=3 expression='max(x, w) - 1' values.x=2": "df/dw = 1",
    "mnist-backprop +expression='x × x ÷ 2' '+values={x: 4}'": "df/dx = 4",
    "mnist-backprop values.x1=1.4": "df/dw1 = −0.322",
    "mnist-backprop expression=$'q = x*x\\nf = q*q' values.x=2": "df/dx = 32",
    "python -m mnist_mlp.backprop expression='x^3' values.x=2": "df/dx = 12",
}


@pytest.mark.parametrize("line", LINES)
def test_commands_as_they_are_typed(command: Command, tmp_path: Path, line: str) -> None:
    of_shell = line.startswith("python") or "$'" in line
    done = shell(f"{line} draw=false", tmp_path) if of_shell else command(*shlex.split(line), "draw=false")
    assert done.returncode == 0, done.stderr
    assert f"  {LINES[line]}\n" in done.stdout


BAD = {
    "expression='a*(b + c' values.a=1": "expression: this parenthesis is never closed\n  a*(b + c\n    ^",
    "expression='foo(a)'": "expression: there is no function foo; there are cos, exp, log, max, min, relu, sigmoid, "
    "sin, sqrt, tanh\n  foo(a)\n  ^",
    "expression='a*b' values.a=1": "expression: b has no value: give it one with values.b=NUMBER\n  a*b\n    ^",
    "expression='x1*w1' values.w1=1": "expression: x1 has no value: give it one with values.x1=NUMBER\n  x1*w1\n  ^",
    "expression='a*b' values.a=1 values.b=two": "values.b=two: must be a finite number",
    "expression='a' values.a=1 values.b=2": "values.b=2: the expression has no variable b; its variables are a",
    "expression='a/b' values.a=1 values.b=0": "expression: f = a / b divides by zero at a = 1, b = 0\n  a/b\n   ^",
    "expression='log(a)' values.a=-1": "expression: f = log(a) has no value (its argument must be above 0) at a = -1\n"
    "  log(a)\n  ^",
    "expression='exp(a)' values.a=1e3": "expression: f = exp(a) overflows at a = 1000\n  exp(a)\n  ^",
    "expression='a.__class__'": "expression: '.' is not arithmetic\n  a.__class__\n   ^",
    "expression='__import__(\"os\")'": 'expression: \'"\' is not arithmetic\n  __import__("os")\n             ^',
    "expression='[a for a in b]'": "expression: '[' is not arithmetic\n  [a for a in b]\n  ^",
    "expression='a\\'": "expression: '\\\\' is not arithmetic\n  a\\\n   ^",
    "expression=": "expression: it is empty: write one such as 'q = x*w; f = q + 1'\n  \n  ^",
    "values=3": "values=3: must be a group of settings, such as values.x=1",
    "print=pdf": "print=pdf: must be one of terminal, markdown, latex, dot",
    "draw=1": "draw=1: must be true or false",
    "network=network_c": "network=network_c: there is no such network; choose one of network_a, network_b, tiny",
    "run_dirs=r": "run_dirs=r: there is no setting run_dirs; did you mean run_dir?",
    "run_dir=/dev/null/r draw=false": "run_dir=/dev/null/r: cannot be written (Not a directory): choose a directory "
    "that you can write to",
    "network=tiny sample=10000": "sample=10000: must be below the 10,000 validation images",
    "tensorboard=true draw=false": "tensorboard=true: needs the pictures: leave draw=true",
    "network=tiny sample=-1": "sample=-1: must be a whole number of at least 0",
    "expression=x values.x=1 ~draw": "draw=null: cannot be removed: give it another value",
    "network=tiny draw=false print=latex": "print=latex: must be terminal or markdown for a network",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(command: Command, tmp_path: Path, arguments: str) -> None:
    done = command("mnist-backprop", *shlex.split(arguments))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", BAD[arguments] + "\n")
    assert not list(tmp_path.iterdir())


def test_flags_stand_anywhere_and_unknown_ones_are_told_of(command: Command, tmp_path: Path) -> None:
    swept = command("mnist-backprop", "expression=x*y", "-m", "values.x=1,2", "values.y=3", "draw=false", "run_dir=r")
    assert swept.returncode == 0, swept.stderr
    assert [path.parent.name for path in sorted(tmp_path.rglob("derivation.md"))] == ["0", "1"]
    shown = command("mnist-backprop", "expression=x", "--cfg", "job", "values.x=3")
    assert "values:\n  x: 3\n" in shown.stdout, shown.stderr
    refused = command("mnist-backprop", "expression=x", "values.x=${y}", "-m", "run_dir=q")
    assert refused.returncode == 1
    assert refused.stderr == "values.x: Interpolation key 'y' not found\n"
    assert not (tmp_path / "q").exists()
    refused = command("mnist-backprop", "expression=x", "--draw=false")
    said = "--draw=false: there is no such flag; a setting is written draw=false\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", said)


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["expression=a*("], ["values.x=1"]])
def test_torch_is_not_imported_before_it_is_needed(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from mnist_mlp.backprop.command import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'lightning', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert "AssertionError" not in done.stderr
    assert done.stdout or "expression: " in done.stderr or "values.x=1: the expression has no variable x" in done.stderr


def test_the_defaults_follow_every_rule() -> None:
    config = compose_config([], "backprop")
    check_rules(config, BACKPROP_RULES)
    assert not [name for name in BACKPROP_RULES if name.partition(".")[0] not in config]


def test_hydra_gets_a_quoted_expression() -> None:
    assert quote_for_hydra(["values.a=1", "expression=a, b"]) == ["~values", "++values.a=1", 'expression="a, b"']
    assert quote_for_hydra(["expression='a'", "+values={b: 1}", "seed=1"]) == [
        *("~values", "expression='a'", "++values={b: 1}", "seed=1")
    ]
    assert quote_for_hydra(["network=tiny", "network.hidden=[4]"]) == ["model@network=tiny", "network.hidden=[4]"]


def test_a_directory_used_again_holds_the_new_pictures_only(command: Command, tmp_path: Path) -> None:
    assert command("mnist-backprop", "run_dir=r", "network=tiny").returncode == 0
    assert command("mnist-backprop", "run_dir=r").returncode == 0
    done = command("mnist-backprop", "run_dir=r", "expression=x*x", "values.x=3", "print=latex")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\documentclass")
    assert done.stdout == (tmp_path / "r" / "derivation.tex").read_text()
    assert {path.name for path in (tmp_path / "r").iterdir()} == FILES | {"frames"}
    assert len(list((tmp_path / "r" / "frames").iterdir())) == 4
    assert "3 + 3 = 6" in (tmp_path / "r" / "derivation.md").read_text()


def test_tensorboard_gets_a_frame_a_step(command: Command, tmp_path: Path) -> None:
    arguments = ("run_dir=r", "expression=x*x", "values.x=3", "tensorboard=true")
    for _ in range(2):  # the second time in place of the first
        done = command("mnist-backprop", *arguments)
        assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("backprop")
    assert [image.step for image in images] == [1, 2, 3]
    with Image.open(tmp_path / "r" / "graph.png") as picture:
        assert (images[-1].width, images[-1].height) == picture.size


def test_a_large_graph_is_not_drawn_and_says_so(command: Command, tmp_path: Path) -> None:
    done = command("mnist-backprop", f"expression={'+'.join(['x*y'] * 5000)}", "values.x=1", "values.y=2", "run_dir=r")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ("10,001 nodes are more than 60: not drawn; derivation.md has every step\n3 files in r\n")
    assert done.stdout.startswith("Final gradients\n  df/dx = 10000\n  df/dy = 5000\n\n10,001 values and")
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"derivation.md", "derivation.tex", "graph.dot"}


def test_who_has_seen_enough_ends_nothing(tmp_path: Path) -> None:
    expression = "+".join(["x"] * 2000)
    done = shell(
        f"set -o pipefail; mnist-backprop expression={expression} values.x=1 run_dir=r print=latex | head -1", tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "\\documentclass{article}\n"), done.stderr
    assert "Error" not in done.stderr
    assert (tmp_path / "r" / "graph.dot").exists()


def test_a_sweep_has_a_directory_for_each(command: Command, tmp_path: Path) -> None:
    done = command("mnist-backprop", "-m", "expression=x*x", "values.x=1,2", "draw=false", "run_dir=s")
    assert done.returncode == 0, done.stderr
    assert "= 4\n" in (tmp_path / "s" / "1" / "derivation.md").read_text()
    assert (tmp_path / "s" / "0" / "derivation.md").exists()


def test_a_network(command: Command, tmp_path: Path) -> None:
    done = command("mnist-backprop", "network=network_a", "sample=3", "run_dir=r", "tensorboard=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("untrained MLP, validation image 3: the digit 0, loss ")
    assert "| layers.6 ReLU    |" in done.stdout
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "network.md",
        "network.png",
        "network.svg",
        "tensorboard",
    }
    assert (tmp_path / "r" / "network.md").read_text() == done.stdout


def test_a_users_own_network(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "flat.yaml").write_text(
        "_target_: torch.nn.Sequential\n_args_:\n  - {_target_: torch.nn.Flatten}\n"
        "  - {_target_: torch.nn.Linear, in_features: 784, out_features: 10}\n"
    )
    done = command("mnist-backprop", "--config-dir", "mine", "network=flat", "draw=false")
    assert done.returncode == 0, done.stderr
    assert "| 1 Linear  |" in done.stdout


@pytest.mark.parametrize(
    ("does", "problem"),
    [
        ("sys.exit(0)", "sys.exit=0: a class of the configuration ends the process (mine.py, line 4): let it raise\n"),
        ("raise KeyError(3)", "network=Own: cannot take an image of 28x28 (3)\n"),
    ],
)
def test_a_users_own_network_that_fails(command: Command, tmp_path: Path, does: str, problem: str) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text("_target_: mine.Own\n")
    (tmp_path / "mine.py").write_text(
        f"import sys\nfrom torch import nn\nclass Own(nn.Module):\n    def forward(self, images): {does}\n"
    )
    done = command("mnist-backprop", "--config-dir", "mine", "network=own", "draw=false", "run_dir=r")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", problem)
    assert not (tmp_path / "r").exists()


def test_a_terminal_without_unicode_gets_question_marks(script: Command) -> None:
    done = script("mnist-backprop", "expression=x*x", "values.x=3", "draw=false", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "?f/?x??? = x = 3" in done.stdout
