"""Files that are damaged or somebody else's, in every place where a command reads one: each command ends with one
sentence that names the run, none with a traceback, none waits, and none takes what is wrong for right.

The first half has the kinds of damage, by name. The second makes damage up: `pytest tests/test_damaged.py --fuzz 50
--fuzz-seed 1` makes up more, and other.
"""

import io
import json
import math
import os
import random
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.errors import HydraException
from made_up import JUNK, impatient, one_sentence, with_noise
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from mnist_mlp import compare, rerun
from mnist_mlp.classes import check_classes
from mnist_mlp.cli import arranged
from mnist_mlp.digits import NoDigitError, field_of, read_image
from mnist_mlp.evaluate import evaluate, load_classifier
from mnist_mlp.report import command as report
from mnist_mlp.report import page
from mnist_mlp.run.checkpoint import read_resumable
from mnist_mlp.run.directory import LAST, refuse_other_settings
from mnist_mlp.run.groups import damage
from mnist_mlp.run.notebook import settings_of
from mnist_mlp.run.records import load_settings, read_runs
from mnist_mlp.settings import SettingError, compose_config, flatten
from mnist_mlp.sweeps import table
from mnist_mlp.sweeps.study import STUDY, close, conclude, open_study
from mnist_mlp.tensorboard.serve import contents

Finished = tuple[Path, dict[str, Any]]
RECORD = ("run.json", "config.yaml", "metrics.csv")
DEEP = 100_000 * "[" + 100_000 * "]"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`told(compare.main, ...)`: a command in this process: its status, what it printed, and what it said of errors.
    What `mnist-rerun` would train is looked at, and not trained."""

    def looked_at(config: Any) -> None:
        refuse_other_settings(Path(config.run_dir), settings_of(config))
        raise SettingError("train", "reached", "is all that this test is for")

    import mnist_mlp.train

    monkeypatch.setattr(mnist_mlp.train, "train", looked_at)
    monkeypatch.setattr(rerun, "prepare_process", lambda *_: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def start(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mnist", *map(str, arguments)])
        out, err, status = io.StringIO(), io.StringIO(), 0
        with impatient(), redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                status = int(end.code or 0)
        return status, out.getvalue(), err.getvalue()

    return start


def copied(finished: Finished, path: Path) -> Path:
    path.mkdir(parents=True)
    for name in RECORD:
        shutil.copy(finished[0] / name, path)
    return path


def put(path: Path, content: Any) -> None:
    """Puts something in the place of a file: bytes or a text, or what is no file."""
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "a directory":
        path.mkdir()
    elif content == "a pipe":
        os.mkfifo(path)
    elif content == "a loop":
        path.symlink_to(path)
    elif content == "a link to nothing":
        path.symlink_to(path.parent / "nothing")
    else:
        path.write_text(content)


NO_FILE = ("a directory", "a pipe", "a loop", "a link to nothing")
BAD: dict[str, tuple[Any, ...]] = {
    "run.json": (
        *NO_FILE,
        b"",
        b"\xff\xfe",
        DEEP,
        "[1]",
        '"x"',
        "{" * 50,
        '{"a": 1' + "0" * 5000 + "}",
        '{"status": []}',
        '{"status": "finished"}',
        '{"status": "completed", "final": "x"}',
        '{"status": "completed", "best": null}',
        '{"status": "completed", "best": {"epoch": "2"}}',
        '{"status": "completed", "best": {"epoch": 0}}',
        '{"status": "completed", "final": {"val/accuracy": 98.2}}',
        '{"status": "completed", "test": {"last": {"accuracy": NaN}}}',
        '{"status": "completed", "test": [1]}',
        '{"status": "completed", "epochs": 2.5}',
        '{"status": "completed", "epochs": true}',
        '{"status": "completed", "wall_seconds": Infinity}',
        '{"status": "completed", "git": "x"}',
        '{"status": "completed", "versions": {"torch": {}}}',
        '{"status": "completed", "seed": {}}',
        '{"status": "completed", "model": ["network_a"]}',
        '{"status": "failed", "error": {"a": 1}}',
        r'{"status": "failed", "error": "\ud800"}',
    ),
    "config.yaml": (
        *NO_FILE,
        b"",
        b"\xff\xfe\x00",
        DEEP,
        "a",
        "a: [",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"b{n}: &b{n} [{','.join(10 * [f'*b{n - 1}' if n else '*a'])}]\n" for n in range(12)),
        "!!bool x",
        "a: !!timestamp x",
        "a: !!python/object/apply:os.mkdir [executed]",
        "trainer: 3",
        "model: [1]",
        "data: null",
        "optimizer: x",
        "trainer: {max_epochs: x}",
        "trainer: {max_epochs: null}",
        "seed: []",
    ),
    "metrics.csv": (
        *NO_FILE[:3],
        b"\xff\xfe",
        "epoch\n1\n3\n",
        "epoch,lr\n1,0.5\n2",
        "epoch,lr\n1,x\n",
        "epoch,lr\n1,\n",
        "epoch,lr\n1,0.5,3\n",
        "epoch,epoch\n1,1\n",
        'epoch,lr\n"1","0.5"\n',
        f"epoch,lr\n1,{'9' * 200_000}\n",
        f"epoch,lr\n1,{'x' * 200_000}\n",
        "epoch,val/accuracy\n1,98\n",
        "epoch,val/loss\n1,nan\n",
        "epoch\n\0\n",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_other_runs_are_reported(
    finished: Finished, told: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str
) -> None:
    whole = copied(finished, tmp_path / "runs" / "whole")
    for number, content in enumerate(BAD[name]):
        damaged = copied(finished, tmp_path / "runs" / f"damaged{number}")
        put(damaged / name, content)
        status, out, err = told(report.main, tmp_path / "runs", "--table")
        said = (content, status, out, err)
        assert (status, err) == (0, ""), said
        assert f"  damaged{number}: " in out, said
        assert "dropout_as_run" in out, said
        if number % 10 == 0:  # a page takes long
            assert f"`damaged{number}`" in page.compose(read_runs(tmp_path / "runs"), "runs").markdown, said
        shutil.rmtree(damaged)
    put(whole / name, BAD[name][0])
    status, out, err = told(report.main, tmp_path / "runs", "--table")
    if name == "metrics.csv":  # its run.json has what the table shows
        assert status == 0
        assert "whole: " in out
    else:
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert str(whole) in err


@pytest.mark.parametrize("name", BAD)
def test_what_compares_or_repeats_a_run_ends_with_one_sentence(
    finished: Finished, told: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str
) -> None:
    for number, content in enumerate(BAD[name]):
        damaged = copied(finished, tmp_path / f"damaged{number}")
        put(damaged / name, content)
        for main, arguments in ((compare.main, [finished[0], damaged]), (rerun.main, [damaged, "--run-dir", "again"])):
            status, out, err = told(main, *arguments)
            assert (status, out, err.count("\n")) == (1, "", 1), (content, out, err)
            assert str(damaged) in err
            assert "train=reached" not in err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_run_does_not_go_on_from_a_damaged_record(finished: Finished, tmp_path: Path, name: str) -> None:
    for number, content in enumerate(BAD[name]):
        damaged = copied(finished, tmp_path / f"damaged{number}")
        (damaged / LAST).parent.mkdir()
        (damaged / LAST).touch()
        config = load_settings(damaged, "run_dir")
        put(damaged / name, content)
        with impatient(), pytest.raises(SettingError) as refused:
            refuse_other_settings(damaged, config)
        assert str(damaged) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("what", NO_FILE)
def test_what_is_no_file_is_not_waited_for(finished: Finished, tmp_path: Path, what: str) -> None:
    config = load_settings(finished[0], "run_dir")
    for name in ("train.log", "metrics.csv", "checkpoints/best.ckpt", str(LAST)):
        path = tmp_path / name.replace("/", "_")
        shutil.copytree(finished[0], path)
        (path / name).touch()
        put(path / name, what)
        with impatient(), pytest.raises(SettingError, match=f"has a {name} that is no ordinary file"):
            refuse_other_settings(path, config)
        if name.endswith("ckpt"):
            with impatient(), pytest.raises(SettingError, match=r"CHECKPOINT=.*: cannot be read"):
                load_classifier(path / name)
    events = tmp_path / "train.log" / "tensorboard"
    for path in list(events.rglob("*tfevents*")):
        put(path, what)
    with impatient():
        assert "without event files, not shown" in contents(tmp_path / "train.log")
    (tmp_path / STUDY).touch()
    put(tmp_path / STUDY, what)
    with impatient(), pytest.raises(SettingError, match=r"sweep=.*study\.db: is no ordinary file"):
        conclude(tmp_path)


LOST: dict[str, Any] = {
    "callbacks": {},
    "callbacks/Recorder": ...,
    "callbacks/Recorder/rows": [],
    "callbacks/Recorder/rows/0": ...,
    "callbacks/Recorder/rows/1/epoch": 1,
    "callbacks/Recorder/rows/2/val|accuracy": "0.9",
    "callbacks/Recorder/best": {},
    "callbacks/Recorder/wall_seconds": None,
    "callbacks/Recorder/random_states": {},
    "callbacks/Recorder/stopped": "no",
    "loops": ...,
    "loops/fit_loop/epoch_progress": {},
    "optimizer_states": [],
    "optimizer_states/0": 3,
    "lr_schedulers": ...,
    "epoch": -1,
    "state_dict": [],
}


def test_a_checkpoint_that_lost_something_loses_no_epoch(finished: Finished, tmp_path: Path) -> None:
    content = torch.load(finished[0] / LAST, weights_only=True)
    assert len(read_resumable(finished[0] / LAST, "run_dir")["callbacks"]["Recorder"]["rows"]) == 3
    for place, value in LOST.items():
        keys = place.split("/")
        other, node = dict(content), content
        parent = other
        for key in keys[:-1]:
            inner = node[int(key)] if isinstance(node, list) else node[key]
            copy = list(inner) if isinstance(inner, list) else dict(inner)
            parent[int(key) if isinstance(parent, list) else key] = copy
            parent, node = copy, inner
        last: Any = int(keys[-1]) if isinstance(parent, list) else keys[-1].replace("|", "/")
        if value is ...:
            del parent[last]
        else:
            parent[last] = value
        torch.save(other, tmp_path / "last.ckpt")
        with pytest.raises(SettingError, match=r"run_dir=.*last\.ckpt: is ") as refused:
            read_resumable(tmp_path / "last.ckpt", "run_dir")
        assert "\n" not in str(refused.value), place


HYPERPARAMETERS: dict[str, Any] = {
    "data": 3,
    "data.mean": "x",
    "data.std": 0,
    "data.dataset": ["MNIST"],
    "data.test_size": None,
    "data.split_seed": 1.5,
    "data.eval_batch_size": torch.ones(2),
    "data.eval_batch_size.": 2**63,  # PyTorch splits images by a number of 63 bits
    "model": [],
    "model.hidden": "x",
    "model.hidden.": [10**12],
    "model.dropout": math.nan,
    "model.in_features": 3,
    "model.num_classes": 9,
    "model._target_": 3,
    "average": ["macro"],
    "trainer.devices": torch.ones(2),
    "loss.weight": "x",
}


def test_hyperparameters_of_wrong_types_and_weights_that_are_no_numbers(finished: Finished, tmp_path: Path) -> None:
    content = torch.load(finished[0] / "checkpoints" / "best.ckpt", weights_only=True)
    path = tmp_path / "c.ckpt"
    for place, value in HYPERPARAMETERS.items():
        group, _, leaf = place.rstrip(".").rpartition(".")
        settings = content["hyper_parameters"]
        other = settings | ({group: settings[group] | {leaf: value}} if group else {leaf: value})
        torch.save(content | {"hyper_parameters": other}, path)
        with pytest.raises(SettingError, match=r"CHECKPOINT=.*c\.ckpt: ") as refused:
            load_classifier(path)
        assert "\n" not in str(refused.value), place
    name, weights = next(iter(content["state_dict"].items()))
    torch.save(content | {"state_dict": content["state_dict"] | {name: torch.full_like(weights, math.nan)}}, path)
    with pytest.raises(SettingError, match="has weights that are NaN or infinite"):
        load_classifier(path)


def test_one_bit_of_a_weight_is_seen(finished: Finished, tmp_path: Path) -> None:
    content = bytearray((finished[0] / LAST).read_bytes())
    weights = torch.load(finished[0] / LAST, weights_only=True)["state_dict"]["backbone.layers.1.weight"]
    content[content.index(weights.numpy().tobytes()[:64])] ^= 1
    (tmp_path / "c.ckpt").write_bytes(content)
    with pytest.raises(SettingError, match="is damaged"):
        load_classifier(tmp_path / "c.ckpt")


def test_a_damaged_study_is_one_sentence(tmp_path: Path) -> None:
    _, storage = open_study(tmp_path / "whole.db", "maximize")
    close(storage)
    whole = (tmp_path / "whole.db").read_bytes()
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("create table a (b)")
    cases = {
        "empty": b"",
        "text": b"no database",
        "cut": whole[: len(whole) // 2],
        "zeros": whole[:4096] + bytes(len(whole) - 4096),
        "another": (tmp_path / "other.db").read_bytes(),
        "without a search": whole,
    }
    for what, content in cases.items():
        (tmp_path / STUDY).write_bytes(content)
        with pytest.raises(SettingError, match=r"sweep=.*study\.db: is damaged") as refused:
            conclude(tmp_path)
        assert "\n" not in str(refused.value), what


# Made up.


def nodes(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every node in nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from nodes(inner, (*place, key))


def with_junk(value: Any, chance: random.Random) -> tuple[Any, tuple[Any, ...], Any]:
    """A deep copy with one node replaced or removed, the node's place, and what stands there now; ... for nothing."""
    copy = json.loads(json.dumps(value))
    place = chance.choice(list(nodes(copy)))
    parent = copy
    for key in place[:-1]:
        parent = parent[key]
    junk = chance.choice((*JUNK, ...))
    if junk is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = junk
    return copy, place, junk


def alike(before: Any, now: Any) -> bool:
    """Whether a value of this type may stand in place of the other: the oracle of what may be accepted."""
    if isinstance(before, bool) or isinstance(now, bool):
        return isinstance(before, bool) and isinstance(now, bool)
    if isinstance(before, int | float):
        return isinstance(now, int | float)
    return type(before) is type(now)


def read_as_commands_do(directory: Path, other: Path, page_too: bool) -> bool:
    """Whether `mnist-report` and `mnist-compare` read the run `directory/run` without a word of damage."""
    runs = read_runs(directory)
    (run,) = (run for run in runs if run.name == "run")
    if page_too:  # which takes long
        assert not run.damaged or "`run`" in page.compose(runs, "runs").markdown
    table.view(runs)
    words = json.dumps([list(row.items()) for row in table.results(runs) if row["error"] and row["run"] == "run"])
    try:
        pair = compare.Pair(compare.Recorded(directory / "run"), compare.Recorded(other))
        _ = [pair.verdict, *pair.circumstances(), *pair.largest()]
        compared = True
    except SettingError as error:
        one_sentence(error)
        compared = False
    assert compared or run.damaged or damage(run) or not len(run.epochs), (
        "the page does not say what mnist-compare says"
    )
    return compared and words == "[]"


# What a column may be; a loss of the user's own may be negative.
FREE = {"train/loss": ("7", "-1"), "val/loss": ("7", "-1"), "lr": ("7",), "seconds": ("7",)}


def test_records_made_up(finished: Finished, tmp_path: Path, rounds: Callable[[int], Iterator[random.Random]]) -> None:
    whole = copied(finished, tmp_path / "whole")
    for number, chance in enumerate(rounds(60)):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory / "whole")
        run = copied(finished, directory / "run")
        name = chance.choice(RECORD)
        content, wrong = (run / name).read_bytes(), False
        if name == "metrics.csv" and chance.random() < 0.7:
            lines = [line.split(",") for line in content.decode().splitlines()]
            row, column = chance.randrange(1, len(lines)), chance.randrange(len(lines[0]))
            lines[row][column] = chance.choice(("", "x", "nan", "-1", "1e999", '"1"', "7", " ", "0x1", "1;2"))
            wrong = lines[row][column] not in FREE.get(lines[0][column], ())
            (run / name).write_text("\n".join(map(",".join, lines)) + "\n")
        elif name != "metrics.csv" and chance.random() < 0.7:
            before = json.loads(content) if name == "run.json" else yaml.safe_load(content)
            changed, place, junk = with_junk(before, chance)
            (run / name).write_text(json.dumps(changed))
            old = before
            for key in place:
                old = old[key]
            null = place[0] == "git" and junk is None
            wrong = name == "run.json" and junk is not ... and not alike(old, junk) and not null
        else:
            (run / name).write_bytes(with_noise(content, chance))
        with impatient():
            try:
                accepted = read_as_commands_do(directory, finished[0], number % 20 == 0)
            except Exception as error:
                raise AssertionError(f"{number}: {name}: {(run / name).read_bytes()[:3000]!r}") from error
            assert not (wrong and accepted), (number, (run / name).read_text()[:3000])
        shutil.rmtree(directory)


def test_configurations_made_up(
    finished: Finished,
    told: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    rounds: Callable[[int], Iterator[random.Random]],
) -> None:
    for number, chance in enumerate(rounds(25)):
        run = copied(finished, tmp_path / "run")
        config = yaml.safe_load((run / "config.yaml").read_text())
        changed, place, junk = with_junk(config, chance)
        (run / "config.yaml").write_text(json.dumps(changed))
        status, out, err = told(rerun.main, run, "--run-dir", "again", *(["--trust"] if chance.random() < 0.5 else []))
        assert (status, out, err.count("\n")) == (1, "", 1), (number, place, junk, out, err)
        assert not (tmp_path / "again").exists()
        shutil.rmtree(run)


def test_checkpoints_made_up(
    finished: Finished, tmp_path: Path, rounds: Callable[[int], Iterator[random.Random]]
) -> None:
    content = (finished[0] / LAST).read_bytes()
    whole = torch.load(finished[0] / LAST, weights_only=True)
    plain = {key: value for key, value in whole.items() if key in ("epoch", "hyper_parameters", "lr_schedulers")}
    path = tmp_path / "c.ckpt"
    for number, chance in enumerate(rounds(40)):
        by_bytes = chance.random() < 0.5
        if by_bytes:
            path.write_bytes(with_noise(content, chance))
        else:
            torch.save(whole | with_junk(plain, chance)[0], path)
        with impatient():
            try:
                classifier = load_classifier(path)
                read_resumable(path, "run_dir")
                if not by_bytes and number % 4 == 0:
                    evaluate(classifier, "test", str(whole["hyper_parameters"]["data"]["root"]))
            except SettingError as error:
                one_sentence(error)
                continue
            except Exception as error:
                raise AssertionError(f"{number}: {torch.load(path)['hyper_parameters']}") from error
        for name, tensor in whole["state_dict"].items():
            assert torch.equal(classifier.state_dict()[name], tensor), number


def test_images_made_up(tmp_path: Path, rounds: Callable[[int], Iterator[random.Random]]) -> None:
    for number, chance in enumerate(rounds(40)):
        size = chance.choice(((1, 1), (1, 90), (3, 2), (28, 28), (40, 30), (300, 4)))
        generator = np.random.default_rng(chance.randrange(2**32))
        mode = chance.choice(("L", "RGB", "RGBA", "1", "I;16", "P"))
        pixels = generator.integers(0, chance.choice((2, 200, 256)), (*size, 4), dtype=np.uint8)
        if chance.random() < 0.5:
            pixels[size[0] // 4 : size[0] // 2 + 1, size[1] // 3 : size[1] // 2 + 1] = 255
        made = Image.fromarray(pixels, "RGBA") if mode == "I;16" else Image.fromarray(pixels, "RGBA").convert(mode)
        if mode == "I;16":
            made = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
        content = io.BytesIO()
        made.save(content, "JPEG" if mode in ("L", "RGB") and chance.random() < 0.5 else "PNG")
        path = tmp_path / f"{number}.png"
        path.write_bytes(with_noise(content.getvalue(), chance) if chance.random() < 0.7 else content.getvalue())
        with impatient():
            try:
                field = field_of(read_image(path))
            except (SettingError, NoDigitError) as error:
                one_sentence(error)
            except Exception as error:
                raise AssertionError(f"{number}: {size}, {mode}") from error
            else:
                assert field.shape == (28, 28)
                assert np.isfinite(field).all()


VALUES = (
    *("null", "true", "-1", "0", "2", "0.5", "1e308", "nan", "inf", "abc", "''", "[]", "[1,2]", "{}", "{a:1}", "[[1]]"),
    *(str(2**70), "${seed}", "${nothing}", "${oc.env:HOME}", "{_target_:os.getcwd}", "a/b", "'a b'", "1:2", "~"),
)


def test_overrides_made_up(tiny: list[str], rounds: Callable[[int], Iterator[random.Random]]) -> None:
    known = list(flatten(compose_config([])))
    options = ["scheduler=step", "scheduler=plateau", "scheduler=cosine", "callbacks=early_stopping", "logger=csv"]
    for number, chance in enumerate(rounds(40)):
        setting = chance.choice(known)
        if chance.random() < 0.2:
            setting = (
                f"{setting.rpartition('.')[0]}.{chance.choice(('momentum', 'betas', 'eps', 'x', 'max_time'))}".lstrip(
                    "."
                )
            )
        sign = chance.choice(("", "", "", "+", "++"))
        given = f"~{setting}" if chance.random() < 0.1 else f"{sign}{setting}={chance.choice(VALUES)}"
        if chance.random() < 0.1:
            at = chance.randrange(len(given))
            given = given[:at] + chance.choice("=,[]{}'\"$:\\ \t~+") + given[at:]
        overrides = [*tiny, *chance.sample(options, chance.randrange(2)), given]
        with impatient(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check_classes(settings_of(compose_config(arranged(overrides))))
            except (SettingError, HydraException, OmegaConfBaseException) as error:
                one_sentence(error)
            except Exception as error:
                raise AssertionError(f"{number}: {given}") from error
