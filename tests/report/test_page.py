"""The results page of runs that are made up."""

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
from helpers import Command, write_run
from made_paper import make_paper

from mnist_mlp.report import page
from mnist_mlp.report.claims import judge
from mnist_mlp.report.command import keep, write_page
from mnist_mlp.report.evidence import Evidence
from mnist_mlp.report.html import to_html
from mnist_mlp.report.readme import BEGIN, END, write_readme
from mnist_mlp.report.sheet import VERDICTS, p_text
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
    overrides = (f"experiment={experiment}", f"model={model}", f"seed={seed}", f"trainer.max_epochs={epochs}")
    config = compose_config([*overrides, "run_dir=somewhere", *changed])
    best = max(rows, key=lambda row: row["val/accuracy"])
    test = {name: random.random() for name in ("accuracy", "precision", "recall", "f1", "loss")}
    record: dict[str, Any] = {"experiment": experiment, "model": model, "seed": seed, "wall_seconds": 60.0 + seed}
    record |= {"test": {"last": test, "best": test}}
    record |= {"best": {"epoch": best["epoch"], "val/accuracy": best["val/accuracy"]}, "threads": 1}
    record |= {"device": "cpu (Abacus)", "git": {"commit": "0123456789abcdef", "dirty": True}}
    write_run(path, rows, config, record | entries)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as `make paper` lays them out, too short to judge by."""
    return make_paper(tmp_path_factory.mktemp("small"), seeds=2, long=12, short=6)


@pytest.fixture(scope="module")
def kept(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mnist-report small --output kept --readme README.md --claims` writes."""
    directory = tmp_path_factory.mktemp("kept")
    (directory / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(small, directory / "record", directory / "README.md", claims=True)
    return directory / "record"


@pytest.fixture(scope="module")
def judged(paper: Path) -> page.Page:
    """The page of runs that are long enough."""
    return page.compose(read_runs(paper), "paper")


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


def test_numbers_are_those_of_the_runs(paper: Path, judged: page.Page) -> None:
    table = rows_after(judged.markdown, "## The report's runs, and ours")
    row = next(cells for cells in table if cells[1] == "`baseline`, 500 epochs, n = 3")
    cells = dict(zip(table[0], row, strict=True))
    runs = [metrics(run.path) for run in read_runs(paper) if run.name.startswith("long/baseline-A")]
    assert len(runs) == 3
    for name, column, unit, digits in (
        ("final accuracy, %", "val/accuracy", 100, 2),
        ("final validation loss", "val/loss", 1, 4),
        ("final training loss", "train/loss", 1, 4),
    ):
        last = [unit * float(run[-1][column]) for run in runs]
        assert cells[name] == f"{statistics.fmean(last):.{digits}f} ± {statistics.stdev(last):.{digits}f}"
    best = [100 * max(float(row["val/accuracy"]) for row in run) for run in runs]
    assert cells["best accuracy, %"] == f"{statistics.fmean(best):.2f} ± {statistics.stdev(best):.2f}"
    assert cells["training, s"] == "61 ± 1"  # of 60, 61 and 62
    text, record = table[2], table[3]
    assert text[:4] == ["1 A", "the report's text", "97.86", "98.22"]
    assert record[1:6] == ["the report's record", "97.93", "98.28", "387", "0.7117"]


def test_every_run_is_in_the_table_and_can_be_repeated(judged: page.Page) -> None:
    rows = rows_after(judged.markdown, "## All completed runs")[2:]
    assert len(rows) == 2 * (3 + 1 + 8 + 3)
    assert {row[2] for row in rows} == {"3"}
    assert ["dropout\\_as\\_intended, B", "100", "3"] in [row[:3] for row in rows]
    assert "\nmnist-train -m experiment=dropout_as_intended model=network_a seed=0,1,2\n" in judged.markdown
    assert judged.markdown.count("\nmnist-rerun DIR/") == len(rows)
    assert "90 runs took 1 h 32 min of training" in judged.markdown  # 30 each of 60, 61 and 62 s: 5,490 s


def test_the_verdicts_are_those_of_the_claims(paper: Path, judged: page.Page) -> None:
    rows = rows_after(judged.markdown, "## Verdicts")[2:]
    claims = judge(Evidence(read_runs(paper)))
    assert judged.title == page.JUDGED
    assert len(rows) == len(claims)
    kind = ""
    for verdict, link, *_, p, adjusted in rows:
        kind = re.sub(r"\*\*(.*)\*\* \(\d+\)", r"\1", verdict) or kind
        number = int(re.findall(r"\[(\d+)\. ", link)[0])
        claim = claims[number - 1]
        assert claim.verdict == kind
        row = claim.deciding
        assert row is not None
        tested = row.numbers is not None and row.verdict is not None
        assert (p, adjusted) == (
            (p_text(row.numbers.p), p_text(row.adjusted or 0)) if tested and row.numbers else ("", "")
        )
        section = judged.markdown.partition(f"\n### {number}. ")[2].partition("\n### ")[0]
        assert f"\n**{claim.verdict}** The report:" in section
        assert claim.explanation in section
        assert claim.test in section
    assert [VERDICTS.index(claims[int(re.findall(r"\[(\d+)", row[1])[0]) - 1].verdict) for row in rows] == sorted(
        VERDICTS.index(claim.verdict) for claim in claims
    )
    counts = judged.markdown.partition("\n\n## ")[0]
    for verdict in {claim.verdict for claim in claims}:
        assert f"{sum(claim.verdict == verdict for claim in claims)} “{verdict}”" in counts


def test_what_was_found_stands_in_five_sentences_beside_the_main_figure(judged: page.Page) -> None:
    top = judged.markdown.partition("\n## ")[0]
    assert top.count("\n- ") == 5
    assert "(figures/curves_val_loss.svg)" in top
    assert judged.markdown.count("curves_val_loss.svg") > 1  # claims point at it
    assert "**" in judged.markdown.partition("## Dropout, initialisation or schedule?")[2].partition("\n## ")[0]


def test_factors_and_more_dropout_may_be_missing(small: Path, kept: Path) -> None:
    shown = (kept / "report.md").read_text()
    assert (
        "Missing, and so undecided: Network A: 0 of the 8 treatments have two seeds or more; Network B: 0 of" in shown
    )
    runs = [run for run in read_runs(small) if run.name.startswith("long")]
    made = page.compose(runs, "small", claims=True)
    assert "Figure 14" in made.markdown
    assert "dropout_as_run with dropout 0.4 B with 100 epochs (there are none)" in made.markdown


def test_the_kept_record_gives_the_same_report_byte_for_byte(small: Path, kept: Path) -> None:
    assert not (small / "report.md").exists()
    files = {path.relative_to(kept): path for path in kept.rglob("*") if path.is_file()}
    for path in files.values():
        assert str(small) not in path.read_text(errors="replace")
    before = {name: path.read_bytes() for name, path in files.items()}
    (kept / "figures" / "figure_99_of_an_earlier_report.png").touch()
    (kept / "figures" / "my_own.png").touch()
    write_page(kept, claims=True)
    assert not (kept / "figures" / "figure_99_of_an_earlier_report.png").exists()
    (kept / "figures" / "my_own.png").unlink()
    assert {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before
    for run in read_runs(small):
        for name in ("run.json", "config.yaml", "metrics.csv"):
            assert (kept / run.name / name).read_bytes() == (run.path / name).read_bytes()


def test_the_figures_are_those_of_the_report_and_more(kept: Path) -> None:
    names = {path.stem for path in (kept / "figures").iterdir()}
    assert {path.suffix for path in (kept / "figures").iterdir()} == {".png", ".svg"}
    for number in (8, *range(10, 18)):  # 8 and 9 are one
        assert any(name.startswith(f"figure_{number:02}") for name in names)
    assert {"curves_val_loss", "curves_val_accuracy", "curves_gap", "figure_14_by_text_network_a"} <= names
    linked = set(re.findall(r"!\[.*?\]\(figures/(.*?)\.svg\)", (kept / "report.md").read_text()))
    assert linked == names


def test_the_readme_has_the_results_between_its_marks(kept: Path, judged: page.Page) -> None:
    text = (kept.parent / "README.md").read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n")
    assert text.endswith(f"\n\n{END}\nafter\n")
    assert "old" not in text.split()
    for place in re.findall(r"\]\((record/[^)]*)\)", text):
        assert (kept.parent / place).exists()
    assert "| Experiment 1, A (`baseline`) | 97.93 |" in text
    lines = judged.readme.splitlines()
    assert len([line for line in lines if line.startswith("| Experiment")]) == 5
    assert lines[0].startswith("| After 500 epochs, 3 seeds, unless said otherwise |")
    assert "19 claims" in judged.readme
    assert len(judged.readme.encode()) < 1750  # README has no more room


@pytest.mark.parametrize("before", [None, "", "# Mine\n\ntext\n"])
def test_a_readme_without_marks_gets_them_and_one_that_is_not_there_is_made(tmp_path: Path, before: str | None) -> None:
    file = tmp_path / "mine.md"
    if before is not None:
        file.write_text(before)
    for text in ("one ({directory}/report.md)", "two ({directory}/report.md)"):  # again: in the same place
        write_readme(text, tmp_path / "logs" / "kept", file)
    expected = f"{BEGIN}\n\ntwo (logs/kept/report.md)\n\n{END}\n"
    assert file.read_text() == (f"{before.rstrip()}\n\n{expected}" if before else expected)


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
    assert not [link for link in links if link.startswith("figures/")]  # to a figure on the page
    assert shown.tags.count("h1") == shown.tags.count("nav") == 1
    assert shown.tags.count("details") > 20
    assert "<details>" not in "".join(shown.words)


def test_what_a_name_holds_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    make_run(tmp_path / "a <b> `c` | d", "baseline", "network_a", 3)
    run = json.loads((tmp_path / "a <b> `c` | d" / "run.json").read_text())
    (tmp_path / "e").mkdir()
    failed = run | {"status": "failed", "experiment": HOSTILE, "error": HOSTILE}
    (tmp_path / "e" / "run.json").write_text(json.dumps(failed))
    make_run(tmp_path / "f", "baseline", "network_a", 3, experiment=HOSTILE, device=HOSTILE)
    runs = read_runs(tmp_path)
    made = page.compose(runs, HOSTILE, claims=True)
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
    made = page.compose(read_runs(tmp_path), "mine", claims=True)
    top = made.markdown.partition("\n## ")[0]
    assert "<details><summary>What is missing:" in top
    assert "1 of 6 runs failed: `c` (RuntimeError: why)." in top
    assert "`d` is left out of the figures and verdicts: its metrics.csv is damaged." in top
    assert "`e` is left out of the figures and verdicts: it has no metrics.csv, or one without epochs." in top
    assert "`f` is left out of the figures and verdicts: its metrics.csv has 2 epochs, its run.json 3." in top
    for experiment in ("dropout_as_run", "dropout_scheduler"):
        assert f"Figure 14 of `{experiment}`: no completed run of `network_a` has its settings." in top
    assert "Figure 10" not in top
    names = [picture.name for picture in made.pictures]
    assert "figure_10_network_a" in names
    assert not [name for name in names if name.startswith("figure_14")]


def test_a_run_with_another_rate_does_not_speak_for_the_report(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.01)):
        make_run(tmp_path / str(number), "baseline", "network_a", 3, 0, f"optimizer.lr={rate}")
    made = page.compose(read_runs(tmp_path), "rates")
    assert made.title == "Runs of rates"
    assert "## Verdicts" not in made.markdown
    assert [row[0] for row in rows_after(made.markdown, "## All completed runs")[2:]] == [
        "baseline, A, lr=0.1",
        "baseline, A, lr=0.01",
    ]
    assert (
        "mnist-train experiment=baseline model=network_a seed=0 trainer.max_epochs=3 optimizer.lr=0.1\n"
        in made.markdown
    )
    assert "curves_val_loss" in [picture.name for picture in made.pictures]


def test_a_sweep_of_ones_own_has_a_page_about_that_sweep(tmp_path: Path) -> None:
    for seed in range(2):
        for model in ("network_a", "network_b"):
            make_run(tmp_path / f"{model}{seed}", "baseline", model, 3, seed)
    made = page.compose(read_runs(tmp_path), "mine")
    assert made.title == "Runs of mine"
    assert "- 4 runs: baseline; Network A, Network B; seeds 0, 1; 3 epochs.\n" in made.markdown
    assert "report's" not in made.markdown.lower()
    assert "judged" not in made.markdown
    assert not [picture.name for picture in made.pictures if picture.name.startswith("figure")]
    assert "| baseline, A | 3 | 2 |" in made.readme
    assert page.compose(read_runs(tmp_path), "mine", claims=True).title == page.JUDGED


def test_of_many_settings_some_are_drawn_and_the_document_stays_small(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "baseline", "network_a", 1)
    config = (tmp_path / "0" / "config.yaml").read_text()
    for number in range(1, 70):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
        (tmp_path / str(number) / "config.yaml").write_text(config.replace("lr: 0.001", f"lr: 0.1{number:03}"))
    made = page.compose(read_runs(tmp_path), "many")
    assert "The 8 with the highest validation accuracy of 70." in made.markdown
    assert "10 more rows are left out here; `results.csv` has every run." in made.markdown
    assert len(rows_after(made.markdown, "## All completed runs")) == 62


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--output", "runs/inside"], "must lie beside runs, neither in it nor around it"),
        (["--output", "."], "must lie beside runs, neither in it nor around it"),
        (["--output", "other"], "holds a run that runs does not, strange: remove that, or give another directory"),
        (["--readme", "none/r.md"], "cannot be read or made (No such file or directory)"),
        (["--readme", "runs.csv"], "must be a Markdown file"),
        (["--readme", "runs/report.md"], "is the report itself"),
        (["--readme", "half.md"], "has one mark without the other"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_sentence_and_nothing_written(
    command: Command, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    make_run(tmp_path / "runs" / "a", "baseline", "network_a", 1)
    make_run(tmp_path / "other" / "strange", "baseline", "network_a", 1)
    (tmp_path / "half.md").write_text(f"{END}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = command("mnist-report", "runs", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{arguments[0]}={arguments[1]}: ")
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_has_not_ended_is_no_record_to_keep(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "baseline", "network_a", 1)
    make_run(tmp_path / "runs" / "b", "baseline", "network_b", 1, status="running")
    keep(tmp_path / "runs", tmp_path / "kept")
    assert [run.name for run in read_runs(tmp_path / "kept")] == ["a"]
    shutil.rmtree(tmp_path / "runs" / "a")
    with pytest.raises(SettingError, match="holds no run that has ended"):
        keep(tmp_path / "runs", tmp_path / "other")


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("[1]")
    with pytest.raises(SettingError, match=r"has a damaged run.json \(no JSON object\)"):
        write_page(tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_the_committed_record_is_what_its_runs_say() -> None:
    """logs/paper and the README: made anew from the runs' records, all but the drawing."""
    readme = (ROOT / "README.md").read_text()
    section = readme.partition(BEGIN)[2].partition(END)[0].strip()
    record = ROOT / "logs" / "paper"
    runs = read_runs(record)
    made = page.compose(runs, record.name)
    # What repeats each row: a setting that is newer than the record must not take the command away.
    assert made.title == page.JUDGED
    assert made.markdown.count("\nmnist-train ") == made.markdown.count("\nmnist-rerun ") > 5
    assert (record / "report.md").read_text() == made.markdown
    assert section == made.readme.replace("{directory}", "logs/paper")
    figures = {f"figures/{path.name}": path.read_bytes() for path in (record / "figures").iterdir()}
    assert sorted(figures) == sorted(
        f"figures/{picture.name}{kind}" for picture in made.pictures for kind in (".png", ".svg")
    )
    assert (record / "report.html").read_text() == to_html(made.markdown, made.title, figures)
    rows = list(csv.DictReader((record / "results.csv").read_text().splitlines()))
    assert [row["weights_sha256"] for row in rows] == [row["weights_sha256"] for row in results(runs)]
