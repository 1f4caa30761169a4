"""The report of runs that are made up: 12 epochs of four experiments, and three seeds of 6."""

import csv
import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers import Command
from omegaconf import OmegaConf

from mnist_mlp.report import page
from mnist_mlp.report.command import write_page
from mnist_mlp.report.evidence import MODELS, Evidence
from mnist_mlp.report.html import to_html
from mnist_mlp.run.directory import metrics_csv
from mnist_mlp.run.groups import EXPERIMENTS
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import read_runs
from mnist_mlp.settings import SettingError, compose_config
from mnist_mlp.sweeps.table import results

ROOT = Path(__file__).parents[2]
HOSTILE = "x](y)<img src=z onerror=a>`|**b**\n# c"


def make_run(
    path: Path, experiment: str, model: str, epochs: int, seed: int = 0, /, *changed: str, **entries: Any
) -> None:
    """A run with random metrics."""
    random = Random(f"{path.name}{epochs}{seed}")
    rows = [
        {"epoch": epoch} | {column: random.uniform(0.1, 0.9) for column in COLUMNS[1:]}
        for epoch in range(1, epochs + 1)
    ]
    for row in rows:
        row["lr"] = 0.001
    path.mkdir(parents=True)
    (path / "metrics.csv").write_text(metrics_csv(rows))
    overrides = (f"experiment={experiment}", f"model={model}", f"seed={seed}", f"trainer.max_epochs={epochs}")
    (path / "config.yaml").write_text(OmegaConf.to_yaml(compose_config([*overrides, "run_dir=somewhere", *changed])))
    best = max(rows, key=lambda row: row["val/accuracy"])
    test = {name: random.random() for name in ("accuracy", "precision", "recall", "f1", "loss")}
    record: dict[str, Any] = {"status": "completed", "experiment": experiment, "model": model, "seed": seed}
    record |= {"epochs": epochs, "final": rows[-1], "test": {"last": test, "best": test}, "wall_seconds": 60.0 + seed}
    record |= {"best": {"epoch": best["epoch"], "val/accuracy": best["val/accuracy"]}, "threads": 1}
    record |= {"device": "cpu (Abacus)", "git": {"commit": "0123456789abcdef", "dirty": True}}
    (path / "run.json").write_text(json.dumps(record | entries))


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as `make paper` lays them out."""
    directory = tmp_path_factory.mktemp("paper")
    for experiment in EXPERIMENTS:
        for model in MODELS.values():
            name = f"experiment={experiment},model={model}"
            make_run(directory / "long" / name, experiment, model, 12)
            if model == "network_a":
                for seed in range(3):
                    make_run(directory / "seeds" / f"{name},seed={seed}", experiment, model, 6, seed)
    return directory


@pytest.fixture(scope="module")
def kept(paper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mnist-report paper --output kept --readme README.md` writes."""
    directory = tmp_path_factory.mktemp("kept")
    (directory / "README.md").write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    write_page(paper, directory / "record", directory / "README.md")
    return directory / "record"


def metrics(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def rows_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    lines = text.partition(f"\n{heading}\n")[2].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def test_numbers_are_those_of_the_runs(paper: Path, kept: Path) -> None:
    table = rows_after((kept / "report.md").read_text(), "### Experiment 1, Network A")
    assert table[0][1:] == [
        "report's text",
        "report's records",
        "`baseline`, 12 epochs, n = 1",
        "`baseline`, 6 epochs, n = 3",
    ]
    cells = {row[0]: row[1:] for row in table[2:]}
    long = metrics(paper / "long" / "experiment=baseline,model=network_a")
    seeds = [metrics(paper / "seeds" / f"experiment=baseline,model=network_a,seed={seed}") for seed in range(3)]
    for name, column, unit, digits in (
        ("final accuracy, %", "val/accuracy", 100, 2),
        ("final precision, %", "val/precision", 100, 2),
        ("final F1, %", "val/f1", 100, 2),
        ("final validation loss", "val/loss", 1, 4),
        ("final training loss", "train/loss", 1, 4),
    ):
        last = [unit * float(run[-1][column]) for run in seeds]
        assert cells[name][2] == f"{unit * float(long[-1][column]):.{digits}f}"
        assert cells[name][3] == f"{statistics.fmean(last):.{digits}f} ± {statistics.stdev(last):.{digits}f}"
    best = max(range(12), key=lambda index: float(long[index]["val/accuracy"]))
    assert cells["in epoch"][2] == str(best + 1)
    assert cells["best accuracy, %"][2] == f"{100 * float(long[best]['val/accuracy']):.2f}"
    assert cells["training time, s"] == ["", "8233", "60", "61 ± 1"]  # of 60, 61 and 62
    assert cells["final accuracy, %"][:2] == ["97.86", "97.93"]
    assert cells["final validation loss"][:2] == ["0.65", "0.7117"]


def test_the_recorded_curve_stands_beside_ours(paper: Path, kept: Path) -> None:
    text = (kept / "report.md").read_text().partition("### Experiment 2, Network B\n")[2]
    ours = metrics(paper / "long" / "experiment=dropout_as_run,model=network_b")
    difference = 100 * float(ours[9]["val/accuracy"]) - 98
    assert f"| 10 | 98.00 | {100 * float(ours[9]['val/accuracy']):.2f} | −{-difference:.2f} | 0.0716 |" in text


def test_every_run_is_in_the_table_and_can_be_repeated(paper: Path, kept: Path) -> None:
    text = (kept / "report.md").read_text()
    rows = rows_after(text, "## All completed runs")[2:]
    assert [row[:3] for row in rows[:3]] == [
        ["baseline, A", "12", "1"],
        ["baseline, A", "6", "3"],
        ["baseline, B", "12", "1"],
    ]
    assert len(rows) == 12
    assert "mnist-rerun DIR/seeds/experiment=dropout_as_run,model=network_a,seed=0\n" in text
    again = re.search(r"^mnist-train (-m experiment=dropout_as_intended .*)$", text, re.MULTILINE)
    assert again is not None
    assert again[1] == "-m experiment=dropout_as_intended model=network_a seed=0,1,2 trainer.max_epochs=6"
    assert "| 20 | cpu (Abacus) | 1 | auto | 0123456789ab, with uncommitted changes |" in text
    assert "20 runs took 20.2 min of training" in text  # 8 of 60 s and 4 of each of 60, 61 and 62 s


def test_the_verdicts_are_those_of_the_claims(kept: Path) -> None:
    from mnist_mlp.report.claims import judge

    text = (kept / "report.md").read_text()
    rows = rows_after(text, "## Verdicts")[2:]
    claims = judge(Evidence(read_runs(kept)))
    assert [row[1] for row in rows] == [f"**{claim.verdict}**" for claim in claims]
    for number, claim in enumerate(claims, 1):
        section = text.partition(f"\n### {number}. ")[2].partition("\n### ")[0]
        assert f"\n**{claim.verdict}**\n" in section
        assert claim.explanation in section
        assert claim.test in section


def test_the_kept_record_gives_the_same_report_byte_for_byte(paper: Path, kept: Path) -> None:
    assert not (paper / "report.md").exists()
    files = {path.relative_to(kept): path for path in kept.rglob("*") if path.is_file()}
    for path in files.values():
        assert str(paper) not in path.read_text(errors="replace")
    before = {name: path.read_bytes() for name, path in files.items()}
    (kept / "figures" / "figure_99_of_an_earlier_report.png").touch()
    (kept / "figures" / "my_own.png").touch()
    write_page(kept)
    assert not (kept / "figures" / "figure_99_of_an_earlier_report.png").exists()
    (kept / "figures" / "my_own.png").unlink()
    assert {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before
    for run in read_runs(paper):
        for name in ("run.json", "config.yaml", "metrics.csv"):
            assert (kept / run.name / name).read_bytes() == (run.path / name).read_bytes()


def test_the_figures_are_those_of_the_report_and_more(kept: Path) -> None:
    names = {path.stem for path in (kept / "figures").iterdir()}
    assert {path.suffix for path in (kept / "figures").iterdir()} == {".png", ".svg"}
    for number in range(8, 18):
        assert any(name.startswith(f"figure_{number:02}") for name in names)
    assert {"all_runs_val_loss", "over_seeds_val_loss", "all_runs_gap", "over_seeds_gap", "learning_rate"} <= names
    linked = set(re.findall(r"\(figures/(.*?)\.svg\)", (kept / "report.md").read_text()))
    assert linked == names


def test_the_readme_has_the_results_between_its_marks(kept: Path) -> None:
    text = (kept.parent / "README.md").read_text()
    assert text.startswith(f"before\n{page.BEGIN}\n\n")
    assert text.endswith(f"\n\n{page.END}\nafter\n")
    assert "old" not in text.split()
    for place in re.findall(r"\]\((record/[^)]*)\)", text):
        assert (kept.parent / place).exists()
    assert "record/figures/all_runs_val_loss.png" in text
    assert "| 1 A | report's records | 97.93 | 98.28 (387) | 0.7117 | 0.0023 | 97.67 |" in text


class Page(HTMLParser):
    """What a page opens and closes, what it would load, and its images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_but_itself(kept: Path) -> None:
    text = (kept / "report.html").read_text()
    shown = Page(text)
    assert shown.open == []
    assert "script" not in shown.tags
    assert "link" not in shown.tags
    assert "url(" not in text.partition("</style>")[0]
    assert {value.partition(",")[0] for name, value in shown.attributes if name == "src"} == {
        "data:image/svg+xml;base64"
    }
    assert all(len(image["alt"] or "") > 20 for image in shown.images)
    assert len(shown.images) == len(list((kept / "figures").glob("*.svg")))
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    assert ("lang", "en") in shown.attributes
    assert ("name", "viewport") in shown.attributes
    ids = [value for name, value in shown.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value for name, value in shown.attributes if name == "href"}
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= set(ids)
    assert shown.tags.count("h1") == 1


def test_what_a_name_holds_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    make_run(tmp_path / "a <b> `c` | d", "baseline", "network_a", 3)
    run = json.loads((tmp_path / "a <b> `c` | d" / "run.json").read_text())
    (tmp_path / "e").mkdir()
    failed = run | {"status": "failed", "experiment": HOSTILE, "error": HOSTILE}
    (tmp_path / "e" / "run.json").write_text(json.dumps(failed))
    make_run(tmp_path / "f", "baseline", "network_a", 3, experiment=HOSTILE, device=HOSTILE)
    runs = read_runs(tmp_path)
    made = page.compose(runs)
    figures = {f"figures/{picture.name}.svg": b"<svg/>" for picture in made.pictures}
    shown = Page(to_html(made.markdown, made.title, figures))
    assert shown.open == []
    assert all((image["src"] or "").startswith("data:image/svg+xml;base64,") for image in shown.images)
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    assert shown.tags.count("h1") == 1
    text = "".join(shown.words)
    assert text.count(HOSTILE.replace("\n", " ")) >= 3  # the error, the device, the table's label
    assert "a <b> `c` | d" in text


def test_what_is_missing_stands_first(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "baseline", "network_a", 4)
    make_run(tmp_path / "b", "baseline", "network_b", 3)
    make_run(tmp_path / "c", "dropout_as_run", "network_a", 3, status="failed", error="RuntimeError: why")
    make_run(tmp_path / "d", "dropout_as_run", "network_b", 3)
    (tmp_path / "d" / "metrics.csv").write_text("epoch,lr\n1,2,3\n")
    make_run(tmp_path / "e", "dropout_scheduler", "network_a", 3)
    (tmp_path / "e" / "metrics.csv").unlink()
    make_run(tmp_path / "f", "dropout_scheduler", "network_b", 3)
    shorter = (tmp_path / "f" / "metrics.csv").read_text().splitlines()[:-1]
    (tmp_path / "f" / "metrics.csv").write_text("\n".join(shorter) + "\n")
    runs = read_runs(tmp_path)
    made = page.compose(runs)
    top = made.markdown.partition("\n## ")[0]
    assert "1 of 6 runs failed: `c` (RuntimeError: why)." in top
    assert "`d` is left out of the figures and verdicts: its metrics.csv is damaged." in top
    assert "`e` is left out of the figures and verdicts: it has no metrics.csv, or one without epochs." in top
    assert "`f` is left out of the figures and verdicts: its metrics.csv has 2 epochs, its run.json 3." in top
    assert "differing numbers of epochs: 1 of 4, 4 of 3." in top
    assert "Figures 10 and 11" not in top
    assert "Figures 12 and 13" not in top
    for experiment in ("dropout_as_run", "dropout_scheduler"):
        assert f"Figures 14 and 15: there is no completed run of `{experiment}` with `network_a`" in top
    assert "Means and bands over seeds" in top
    names = [picture.name for picture in made.pictures]
    assert "figure_10_baseline_network_a_loss" in names
    assert not [name for name in names if name.startswith(("figure_14", "over_seeds"))]


def test_a_run_with_another_rate_does_not_speak_for_the_report(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.01)):
        make_run(tmp_path / str(number), "baseline", "network_a", 3, 0, f"optimizer.lr={rate}")
    runs = read_runs(tmp_path)
    made = page.compose(runs)
    assert made.title == "Runs"
    assert "Nothing is missing" not in made.markdown
    assert "## Verdicts" not in made.markdown
    assert [row[0] for row in rows_after(made.markdown, "## All completed runs")[2:]] == [
        "baseline, A, lr=0.1",
        "baseline, A, lr=0.01",
    ]
    assert (
        "mnist-train experiment=baseline model=network_a seed=0 trainer.max_epochs=3 optimizer.lr=0.1\n"
        in made.markdown
    )
    assert "all_runs_val_loss" in [picture.name for picture in made.pictures]


def test_of_many_settings_some_are_drawn_and_the_document_stays_small(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "baseline", "network_a", 1)
    config = (tmp_path / "0" / "config.yaml").read_text()
    for number in range(1, 70):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
        (tmp_path / str(number) / "config.yaml").write_text(config.replace("lr: 0.001", f"lr: 0.1{number:03}"))
    runs = read_runs(tmp_path)
    made = page.compose(runs)
    assert "The 8 with the highest validation accuracy of 70." in made.markdown
    assert "10 more rows are left out here; `results.csv` has every run." in made.markdown
    assert len(rows_after(made.markdown, "## All completed runs")) == 62


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--output", "runs/inside"], "must lie beside runs, neither in it nor around it"),
        (["--output", "."], "must lie beside runs, neither in it nor around it"),
        (["--output", "other"], "holds a run that runs does not, strange: remove that, or give another directory"),
        (["--readme", "none.md"], "cannot be read"),
        (["--readme", "plain.md"], "needs a line <!--"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_sentence_and_nothing_written(
    command: Command, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    make_run(tmp_path / "runs" / "a", "baseline", "network_a", 1)
    make_run(tmp_path / "other" / "strange", "baseline", "network_a", 1)
    (tmp_path / "plain.md").write_text("nothing\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = command("mnist-report", "runs", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{arguments[0]}={arguments[1]}: ")
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("[1]")
    with pytest.raises(SettingError, match=r"has a damaged run.json \(no JSON object\)"):
        write_page(tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_the_committed_record_is_what_its_runs_say() -> None:
    """logs/paper and the README: made anew from the runs' records, all but the drawing."""
    readme = (ROOT / "README.md").read_text()
    section = readme.partition(page.BEGIN)[2].partition(page.END)[0].strip()
    record = ROOT / "logs" / "paper"
    runs = read_runs(record)
    made = page.compose(runs)
    # What repeats each of the 16 rows: a setting that is newer than the record must not take the command away.
    assert made.markdown.count("\nmnist-train ") == made.markdown.count("\nmnist-rerun ") == 16
    assert (record / "report.md").read_text() == made.markdown
    assert section == made.readme.replace("{directory}", "logs/paper")
    figures = {f"figures/{path.name}": path.read_bytes() for path in (record / "figures").iterdir()}
    assert sorted(figures) == sorted(
        f"figures/{picture.name}{kind}" for picture in made.pictures for kind in (".png", ".svg")
    )
    assert (record / "report.html").read_text() == to_html(made.markdown, made.title, figures)
    rows = list(csv.DictReader((record / "results.csv").read_text().splitlines()))
    assert [row["weights_sha256"] for row in rows] == [row["weights_sha256"] for row in results(runs)]
