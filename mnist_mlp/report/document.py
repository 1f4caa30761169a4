"""`report.md` and `report.html`: what the runs under a directory say, and what they say of the report's claims."""

import os
import re
import shlex
import statistics
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from mnist_mlp.report.claims import Claim, judge, several_tests
from mnist_mlp.report.evidence import MODELS, Case, Evidence, deviations
from mnist_mlp.report.gallery import ALL, GAP, NETWORKS, RATE, SEEDS, THEIRS, Gallery, Picture, gallery
from mnist_mlp.report.original import Headline, Recorded, recorded, setup
from mnist_mlp.run.directory import durable_write
from mnist_mlp.run.groups import EXPERIMENTS, Variant, command, damage, length, variants
from mnist_mlp.run.records import Run
from mnist_mlp.settings import SettingError, spelled

MOST_NAMED = 20  # runs that a sentence names
MOST_ROWS = 60  # of a table
MOST_CHECKED = 500  # runs whose metrics.csv is read for damage alone
COMPARED = (1, 10, 50, 100, 500)  # of the report's recorded epochs
FIGURES = "figures"
# Of run.json, in the order of the tables: heading, how it is read, digits after the point.
Measure = Callable[[dict[str, Any]], float]
MEASURES: dict[str, tuple[Measure, int]] = {
    "final accuracy, %": (lambda record: 100 * record["final"]["val/accuracy"], 2),
    "best accuracy, %": (lambda record: 100 * record["best"]["val/accuracy"], 2),
    "in epoch": (lambda record: record["best"]["epoch"], 0),
    "final precision, %": (lambda record: 100 * record["final"]["val/precision"], 2),
    "final recall, %": (lambda record: 100 * record["final"]["val/recall"], 2),
    "final F1, %": (lambda record: 100 * record["final"]["val/f1"], 2),
    "final validation loss": (lambda record: record["final"]["val/loss"], 4),
    "final training loss": (lambda record: record["final"]["train/loss"], 4),
    "test accuracy, last weights, %": (lambda record: 100 * record["test"]["last"]["accuracy"], 2),
    "training time, s": (lambda record: record["wall_seconds"], 0),
}
IN_README = (
    "final accuracy, %",
    "best accuracy, %",
    "final validation loss",
    "final training loss",
    "test accuracy, last weights, %",
)
README_FIGURES = ("all_runs_val_loss", "over_seeds_val_accuracy")
# Around the results in a README.
BEGIN, END = "<!-- results: what `mnist-report DIR --readme FILE` writes -->", "<!-- end of results -->"


class Report(NamedTuple):
    """What is to be written of some runs.

    Args:
        title: of the document.
        markdown: the document.
        pictures: its figures, not yet drawn.
        readme: the results in short; `{directory}` stands where the document's place belongs.
    """

    title: str
    markdown: str
    pictures: list[Picture]
    readme: str


class Column(NamedTuple):
    """What one source says of one of the report's runs: a text for each of `MEASURES`, where it says anything."""

    heading: str
    cells: Mapping[str, str]


def compose(runs: Sequence[Run], varied: Mapping[str, Mapping[str, Any]]) -> Report:
    """The report of these runs: of the same runs the same text.

    Args:
        runs: at least one.
        varied: of each run by name, the settings that other runs of its experiment and model have otherwise.
    """
    groups = variants(runs, varied)
    theirs = [run for run in runs if is_the_reports(run)]
    usable = [run for run in theirs if run.completed and not damage(run)]
    evidence = Evidence(usable)
    shown = gallery(groups, evidence if theirs else None)
    claims = judge(evidence) if theirs else []
    title = "The report, reproduced and judged" if claims else "Runs"
    blocks = [
        f"# {title}",
        *_missing(runs, shown),
        *_verdicts(claims),
        *(_comparisons(evidence) if claims else []),
        *_table_of_variants(groups),
        *(_setup(theirs) if claims else []),
        *_claims_in_full(claims),
        *_figures(shown),
        *_circumstances(runs),
        *_commands(groups),
    ]
    markdown = "\n\n".join(blocks) + "\n"
    pictures = [picture for found in shown.pictures.values() for picture in found]
    return Report(title, markdown, pictures, _readme(evidence, claims, pictures))


def write(report: Report, directory: Path) -> None:
    """Writes `report.md`, `report.html` and the figures; figures of an earlier report that are not in this one go."""
    figures = directory / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for picture in report.pictures:
        for suffix, content in zip((".png", ".svg"), picture.draw(), strict=True):
            durable_write(figures / f"{picture.name}{suffix}", content)
            drawn[f"{FIGURES}/{picture.name}{suffix}"] = content
    for old in figures.iterdir():
        ours = re.match(r"(figure_\d\d|all_runs|over_seeds|learning_rate).*\.(png|svg)$", old.name)
        if ours and f"{FIGURES}/{old.name}" not in drawn:
            old.unlink()
    durable_write(directory / "report.md", report.markdown.encode())
    durable_write(directory / "report.html", to_html(report.markdown, report.title, drawn).encode())


def refuse_readme(readme: Path) -> None:
    """Raises: SettingError, where the file cannot be read or has not both marks, in their order."""
    _around(readme)


def write_readme(report: Report, directory: Path, readme: Path) -> None:
    """Puts the results between the file's two marks, with the figures of the report in `directory`."""
    before, after = _around(readme)
    place = Path(os.path.relpath(directory, readme.parent)).as_posix()
    section = report.readme.replace("{directory}", place)
    durable_write(readme, f"{before}\n\n{section}\n\n{after}".encode())


def _around(readme: Path) -> tuple[str, str]:
    """The file up to its first mark, and from its second mark on."""
    try:
        text = readme.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("--readme", readme, f"cannot be read ({error})") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SettingError("--readme", readme, f"needs a line {BEGIN} and after it a line {END}, to write between")
    return before + begin, end + after


def is_the_reports(run: Run) -> bool:
    """Whether it is compared with the report: it is one of its experiments, with their settings as they are."""
    return run.experiment in EXPERIMENTS and run.model in MODELS.values() and not deviations(run)


def _missing(runs: Sequence[Run], shown: Gallery) -> list[str]:
    """What the reader must not expect, first of all."""
    lines = []
    for status, count in Counter(run.record.get("status") for run in runs if not run.completed).most_common():
        of_them = [run for run in runs if run.record.get("status") == status]
        errors = [f"{named(run.name)}{_error(run)}" for run in of_them[:MOST_NAMED]]
        more = f", and {count - MOST_NAMED} more" if count > MOST_NAMED else ""
        lines.append(f"{count} of {len(runs)} runs {plain(status or 'without a status')}: {', '.join(errors)}{more}.")
    damaged = [(run, problem) for run in runs[:MOST_CHECKED] if run.completed and (problem := damage(run))]
    left_out = "is left out of the figures and verdicts"
    lines += [f"{named(run.name)} {left_out}: {problem}." for run, problem in damaged[:MOST_NAMED]]
    if len(damaged) > MOST_NAMED:
        lines.append(f"Each of {len(damaged) - MOST_NAMED} more {left_out}, for such a reason.")
    lengths = Counter(length(run) for run in runs if run.completed)
    if len(lengths) > 1:
        of = ", ".join(f"{count} of {epochs}" for epochs, count in sorted(lengths.items(), reverse=True)[:MOST_NAMED])
        lines.append(
            f"The completed runs have differing numbers of epochs: {of}. Curves end where their run ends, and means "
            "are over runs of one length."
        )
    lines += shown.missing
    if not lines:
        return [f"Nothing is missing: all {len(runs)} runs are completed."]
    return ["What is missing, or to be known first:", "\n".join(f"- {line}" for line in lines)]


def _error(run: Run) -> str:
    return f" ({plain(run.record['error'])})" if run.record.get("error") else ""


def _verdicts(claims: Sequence[Claim]) -> list[str]:
    if not claims:
        return []
    counts = Counter(claim.verdict for claim in claims)
    rows = [(f"{number}. {plain(claim.title)}", f"**{claim.verdict}**") for number, claim in enumerate(claims, 1)]
    return [
        "## Verdicts",
        f"Of the report's {len(claims)} claims {counts['holds']} hold, {counts['does not hold']} do not, and for "
        f"{counts['undecided']} these runs do not decide. Each verdict was computed from the runs; the tests and the "
        "measured values are [below](#the-claims). " + several_tests(claims),
        table(("claim", "verdict"), rows),
    ]


def _comparisons(evidence: Evidence) -> list[str]:
    """For each of the report's runs what its text, its records and our runs say; its recorded curve beside ours."""
    blocks = [
        "## The report's runs, and ours",
        "Metrics are of the validation set, the official 10,000 test images, unless they say `test`: the 3,000 images "
        "held out of the training set. Ours are mean ± standard deviation over n seeds; a single run, n = 1, has none.",
    ]
    for own in recorded():
        columns = sources(own, evidence)
        rows = [(measure, *(column.cells.get(measure, "") for column in columns)) for measure in MEASURES]
        blocks += [
            f"### Experiment {own.experiment}, Network {own.network}",
            table(("", *(column.heading for column in columns)), rows),
        ]
        blocks += _points(own, evidence)
    return blocks


def sources(own: Recorded, evidence: Evidence) -> list[Column]:
    """What is said of one of the report's runs: by its text, by its records, and by each of our experiments that stands
    for it, with its longest run and with the mean over seeds."""
    last = {column: values[-1] for column, values in own.points.items()}
    # The text gives one number for all four metrics.
    metrics = {f"final {name}, %": _digits(own.text.final_accuracy) for name in ("precision", "recall", "F1")}
    columns = [
        Column("report's text", _headline(own.text) | metrics),
        Column(
            "report's records",
            _headline(own.record)
            | {
                f"final {name}, %": f"{100 * last[column]:.2f}"
                for name, column in (("precision", "val/precision"), ("recall", "val/recall"), ("F1", "val/f1"))
            }
            | {"training time, s": str(own.seconds)},
        ),
    ]
    for experiment in EXPERIMENTS[1:] if own.experiment == 2 else EXPERIMENTS[:1]:
        case = Case(experiment, own.network)
        longest, seeds = evidence.longest(case), evidence.seeds(case)
        several = seeds[0] if seeds else []
        alone = [longest] if longest and not (several and length(several[0]) == length(longest)) else []
        for found in filter(None, (alone, several)):
            columns.append(Column(f"`{experiment}`, {length(found[0])} epochs, n = {len(found)}", measured(found)))
    return columns


def _headline(headline: Headline) -> dict[str, str]:
    return {
        "final accuracy, %": _digits(headline.final_accuracy),
        "best accuracy, %": _digits(headline.best_accuracy),
        "in epoch": _digits(headline.best_epoch),
        "final validation loss": _digits(headline.val_loss),
        "final training loss": _digits(headline.train_loss),
        "test accuracy, last weights, %": _digits(headline.test_accuracy),
    }


def _digits(value: object) -> str:
    """As it was printed."""
    return "" if value is None else str(value)


def measured(runs: Sequence[Run]) -> dict[str, str]:
    """`MEASURES` of completed runs: the value of one, mean ± standard deviation (n − 1) of several; nothing for what
    their run.json does not have."""
    cells = {}
    for heading, (measure, digits) in MEASURES.items():
        try:
            values = [float(measure(run.record)) for run in runs]
        except (KeyError, TypeError):
            continue
        cells[heading] = f"{statistics.fmean(values):.{digits}f}"
        cells[heading] += f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return cells


def _points(own: Recorded, evidence: Evidence) -> list[str]:
    """The report's recorded curve beside ours, where both have a point."""
    run = evidence.longest(Case(own.as_run, own.network))
    if run is None:
        return []
    rows = []
    for index, epoch in enumerate(map(int, own.points["epoch"])):
        if epoch in COMPARED and epoch <= len(run.epochs["epoch"]):
            accuracy, loss = own.points["val/accuracy"][index], own.points["val/loss"][index]
            our_accuracy, our_loss = (run.epochs[column][epoch - 1] for column in ("val/accuracy", "val/loss"))
            difference = f"{100 * (our_accuracy - accuracy):+.2f}".replace("-", "−")
            rows.append(
                (
                    str(epoch),
                    f"{100 * accuracy:.2f}",
                    f"{100 * our_accuracy:.2f}",
                    difference,
                    f"{loss:.4f}",
                    f"{our_loss:.4f}",
                )
            )
    heading = (
        "epoch",
        "accuracy, recorded, %",
        f"`{run.experiment}`, seed {run.seed}",
        "difference, points",
        "validation loss, recorded",
        f"`{run.experiment}`, seed {run.seed}",
    )
    return [table(heading, rows)] if rows else []


def _table_of_variants(groups: Sequence[Variant]) -> list[str]:
    """One row for each variant and length."""
    rows = [
        (plain(group.label), str(epochs), str(len(found)), *(measured(found).get(name, "") for name in MEASURES))
        for group, epochs, found in _lengths(groups)
    ]
    left_out = len(rows) - MOST_ROWS
    heading = ("run", "epochs", "n", *MEASURES)
    note = [f"{left_out} more rows are left out here; `results.csv` has every run."] if left_out > 0 else []
    return ["## All completed runs", table(heading, rows[:MOST_ROWS]), *note] if rows else []


def _lengths(groups: Sequence[Variant]) -> list[tuple[Variant, int, list[Run]]]:
    """The completed runs of each variant and length, one for each seed."""
    found = []
    for group in groups:
        by_length: dict[int, dict[Any, Run]] = {}
        for run in group.runs:
            if run.completed:
                by_length.setdefault(length(run), {}).setdefault(run.seed, run)
        found += [
            (group, epochs, list(by_seed.values())) for epochs, by_seed in sorted(by_length.items(), reverse=True)
        ]
    return found


def _setup(theirs: Sequence[Run]) -> list[str]:
    """Hyperparameters and split: of the report, and of our experiments."""
    ours = {experiment: run.settings for experiment in EXPERIMENTS for run in theirs if run.experiment == experiment}
    rows = []
    for what, read in (
        (
            "optimizer",
            lambda settings: f"{settings['optimizer._target_'].rpartition('.')[2]}, {settings['optimizer.lr']:g}",
        ),
        ("scheduler", _scheduler),
        ("dropout", lambda settings: f"{settings['model.dropout']:g}"),
        ("initialisation", lambda settings: settings["model.init"]),
        ("batch size", lambda settings: settings["data.batch_size"]),
        ("test images, of the 60,000 for training", lambda settings: settings["data.test_size"]),
        ("training images", lambda settings: 60_000 - settings["data.test_size"]),
        ("averaging of precision, recall, F1", lambda settings: settings["average"]),
    ):
        rows.append((what, *(plain(read(settings)) for settings in ours.values())))
    return [
        "## Hyperparameters and split",
        "How the report's runs were made, by its records:",
        table(
            ("", "Experiment 1", "Experiment 2"),
            [(plain(entry.what), entry.baseline, entry.dropout) for entry in setup()],
        ),
        "Ours; the loss is cross-entropy on logits, and the validation set the 10,000 official test images:",
        table(("", *(f"`{experiment}`" for experiment in ours)), rows),
    ]


def _scheduler(settings: Mapping[str, Any]) -> str:
    if "scheduler._target_" not in settings:
        return "none"
    name = settings["scheduler._target_"].rpartition(".")[2]
    rest = (f"{key.partition('.')[2]}={value}" for key, value in settings.items() if re.match(r"scheduler\.[^_]", key))
    return f"{name}, {', '.join(rest)}"


def _claims_in_full(claims: Sequence[Claim]) -> list[str]:
    blocks = ["## The claims"] if claims else []
    for number, claim in enumerate(claims, 1):
        heading = list(claim.values[0]) if claim.values else []
        blocks += [
            f"### {number}. {plain(claim.title)}",
            f"**{claim.verdict}**",
            f"The report: “{plain(claim.words)}”",
            f"Test: {claim.test}",
            *([table(heading, [_row(row) for row in claim.values])] if claim.values else []),
            claim.explanation,
            f"See {', '.join(map(_see, claim.figures))}.",
        ]
    return blocks


def _row(values: Mapping[str, str]) -> list[str]:
    return [f"**{text}**" if name == "verdict" and text else text for name, text in values.items()]


def _see(figure: str) -> str:
    """A link to a figure, by its number in the report or by what it shows."""
    places = {"all_runs": ALL, "seeds": SEEDS, "gap": GAP, "learning_rate": RATE}
    if figure in places:
        return f"[{places[figure].lower()}](#{_anchor(places[figure])})"
    return f"[Figure {figure}](#{_anchor(NETWORKS if figure in ('8', '9') else THEIRS)})"


def _figures(shown: Gallery) -> list[str]:
    blocks = ["## Figures"] if shown.pictures else []
    for heading, pictures in shown.pictures.items():
        blocks.append(f"### {heading}")
        for picture in pictures:
            blocks += [f"![{plain(picture.alt)}]({FIGURES}/{picture.name}.svg)", f"*{picture.caption}*"]
    return blocks


def _circumstances(runs: Sequence[Run]) -> list[str]:
    """On what the runs were made, and how long they took."""
    together: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        together.setdefault(_circumstance(run), []).append(run)
    rows = [(str(len(found)), *map(plain, what)) for what, found in together.items()]
    seconds = [run.record["wall_seconds"] for run in runs if isinstance(run.record.get("wall_seconds"), (int, float))]
    left_out = [f"{len(rows) - MOST_ROWS} more rows are left out."] if len(rows) > MOST_ROWS else []
    return [
        "## What it ran on",
        table(("runs", "device", "threads", "`trainer.steps`", "commit", "versions"), rows[:MOST_ROWS]),
        *left_out,
        f"{len(seconds)} runs took {_hours(sum(seconds))} of training in all, each by its own clock. A sweep runs as "
        "many at a time as there are cores, and what else the machine did meanwhile is not recorded: the seconds say "
        "what a run took, not what it would take alone.",
    ]


def _circumstance(run: Run) -> tuple[str, ...]:
    git, versions = run.record.get("git") or {}, run.record.get("versions") or {}
    commit = (
        f"{str(git.get('commit') or 'not recorded')[:12]}{', with uncommitted changes' if git.get('dirty') else ''}"
    )
    return (
        str(run.record.get("device", "not recorded")),
        str(run.record.get("threads", "not recorded")),
        str(spelled(run.settings.get("trainer.steps", "not recorded"))),
        commit,
        ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded",
    )


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def _commands(groups: Sequence[Variant]) -> list[str]:
    """What makes the runs of each row again, and what compares one with its record."""
    lines = []
    rows = _lengths(groups)
    for group, epochs, found in rows[:MOST_ROWS]:
        lines += [f"# {control(group.label)}: {epochs} epochs, n = {len(found)}"]
        lines += [control(again) for again in [command(found)] if again]
        lines += [control(f"mnist-rerun DIR/{shlex.quote(found[0].name)}")]
    left_out = [f"{len(rows) - MOST_ROWS} more rows are left out."] if len(rows) > MOST_ROWS else []
    return (
        [
            "## To repeat it",
            "For each row of the table of all runs: what trains its runs again, and what repeats the first of them "
            "from its record and compares every bit. DIR is this file's directory, as seen from where you are; the "
            "rerun goes to logs/runs there.",
            "```sh\n" + "\n".join(lines) + "\n```",
            *left_out,
        ]
        if lines
        else []
    )


def _readme(evidence: Evidence, claims: Sequence[Claim], pictures: Sequence[Picture]) -> str:
    """The results in short: the verdicts, the report's runs and ours in one table, and two figures."""
    rows = []
    for own in recorded():
        for column in sources(own, evidence):
            cells = dict(column.cells)
            if cells.get("in epoch"):
                cells["best accuracy, %"] += f" ({cells['in epoch']})"
            rows.append(
                (f"{own.experiment} {own.network}", column.heading, *(cells.get(name, "") for name in IN_README))
            )
    heading = ("", "", *(f"{name} (epoch)" if name.startswith("best") else name for name in IN_README))
    verdicts = [(plain(claim.title), f"**{claim.verdict}**") for claim in claims]
    return "\n\n".join(
        [
            "What the report claims, judged by code from the runs, and below it each of the report's runs (Experiments "
            "1 and 2, Networks A and B) by the report's text, by its records, and as repeated here: validation "
            "metrics, mean ± standard deviation over n seeds. The whole of it, with every figure, test and number: "
            "[report.md]({directory}/report.md), or `report.html` beside it.",
            *([table(("the report's claim", "verdict"), verdicts)] if verdicts else []),
            table(heading, rows),
            *(
                f"![{plain(picture.alt)}]({{directory}}/{FIGURES}/{picture.name}.png)\n\n*{picture.caption}*"
                for picture in pictures
                if picture.name in README_FIGURES
            ),
        ]
    )


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and, where they hold numbers, the others to the right."""
    numbers = [all(re.match(r"[\d.,±−+ ()]*$", row[index]) for row in rows) for index in range(len(heading))]
    rule = ["---:" if index and number else "---" for index, number in enumerate(numbers)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows))


def named(name: str) -> str:
    """A run's name: as code, or, with letters in it that end code or a table's cell, escaped."""
    return f"`{name}`" if re.fullmatch(r"[\w=,./+:@\[\]() -]+", name, re.ASCII) else plain(name)


def plain(value: object) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>&|~$!#])", r"\\\1", control(str(value)))


def control(text: str) -> str:
    """The text on one line: what a terminal or a browser would act on, such as a newline, as a space."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --page: #ffffff; --faint: #e3e8ee; --soft: #f4f6f8; --link: #0b5cad;
  --holds: #00714f; --not: #b03a00; --open: #5c5c5c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --page: #14181d; --faint: #37414c; --soft: #1d242c;
  --link: #7fbcff; --holds: #4fd3a5; --not: #ff9a62; --open: #b8c0c8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; margin: 2em 0 .6em; text-wrap: balance; }
h1 { margin-top: .4em; font-size: 1.8rem; } h2 { border-bottom: 1px solid var(--faint); padding-bottom: .2em; }
a { color: var(--link); }
code, pre { font: .875em/1.5 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
code { overflow-wrap: anywhere; background: var(--soft); padding: 0 .2em; border-radius: .2em; }
.scroll { overflow-x: auto; margin: 1em 0; } .scroll:focus-visible { outline: 2px solid var(--link); }
th:first-child, td:first-child { position: sticky; left: 0; min-width: 8em; background: var(--page); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35em .7em; border-bottom: 1px solid var(--faint); text-align: left; vertical-align: top; }
th { background: var(--soft); min-width: 5.5em; } td { min-width: 5.5em; } td code, th code { overflow-wrap: normal; }
pre { overflow-x: auto; background: var(--soft); padding: .8em; border-radius: .4em; } pre code { padding: 0; }
figure { margin: 1.5em 0; max-width: 44rem; } figcaption { font-size: .9rem; margin-top: .4em; }
img { display: block; width: 100%; height: auto; background: #ffffff; border-radius: .4em; padding: .4em; }
strong.holds { color: var(--holds); } strong.not { color: var(--not); } strong.open { color: var(--open); }
@media print {
  :root { --ink: #000; --page: #fff; --faint: #bbb; --soft: #f4f4f4; --link: #000; color-scheme: light; }
  body { max-width: none; font-size: 10pt; } h2, h3 { break-after: avoid; } .scroll { overflow: visible; }
  figure, tr { break-inside: avoid; } figure { max-width: 30rem; } img { padding: 0; } pre { white-space: pre-wrap; }
  table { font-size: 7.5pt; } th, td { padding: .2em .35em; min-width: 0 !important; } }
"""
VERDICTS = {"holds": "holds", "does not hold": "not", "undecided": "open"}


def to_html(markdown: str, title: str, figures: Mapping[str, bytes]) -> str:
    """The Markdown as a page that needs nothing but itself: figures are in it, and nothing is executed.

    Args:
        markdown: without HTML: what looks like it is shown as it is.
        title: of the page.
        figures: the content of every figure that the Markdown names.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = parser.render(markdown)
    body = re.sub(
        r'<img src="([^"]+)"',
        lambda image: f'<img src="data:image/svg+xml;base64,{b64encode(figures[image[1]]).decode()}"',
        body,
    )
    body = re.sub(
        r"<p>(<img [^>]*>)</p>\n<p><em>(.*)</em></p>", r"<figure>\1<figcaption>\2</figcaption></figure>", body
    )
    body = re.sub(
        r"<h([23])>(.*)</h\1>",
        lambda heading: f'<h{heading[1]} id="{_anchor(heading[2])}">{heading[2]}</h{heading[1]}>',
        body,
    )
    # A wide table scrolls in a box of its own, which a keyboard can reach.
    body = body.replace("<table>", '<div class="scroll" role="region" aria-label="table" tabindex="0"><table>')
    body = body.replace("</table>", "</table></div>").replace("<th></th>", "<td></td>")
    for verdict, kind in VERDICTS.items():
        body = body.replace(f"<strong>{verdict}</strong>", f'<strong class="{kind}">{verdict}</strong>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _anchor(heading: str) -> str:
    """As GitHub makes it, so that a link works in both."""
    return re.sub(r"[^\w -]", "", re.sub(r"<[^>]*>", "", heading)).strip().lower().replace(" ", "-")
