"""The results page, `report.md` and `report.html`: what the runs under a directory say, and what they say of the
original report's claims."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist_mlp.report.claims import judge
from mnist_mlp.report.comparison import HEADINGS, QUANTITIES, comparisons, measured, sources
from mnist_mlp.report.evidence import MODELS, Evidence, deviations
from mnist_mlp.report.gallery import ALL, GAP, NETWORKS, RATE, SEEDS, THEIRS, Gallery, Picture, gallery
from mnist_mlp.report.html import to_html
from mnist_mlp.report.markdown import anchor, control, markdown_table, named, plain
from mnist_mlp.report.original import original_runs, setup
from mnist_mlp.report.sheet import Claim, several_tests
from mnist_mlp.run.directory import durable_write, durable_write_all
from mnist_mlp.run.groups import EXPERIMENTS, Variant, by_length, command, completed, damage, variants
from mnist_mlp.run.records import Run
from mnist_mlp.settings import SettingError, spelled

MOST_NAMED = 20  # runs that a sentence names
MOST_ROWS = 60  # of a table
MOST_CHECKED = 500  # runs whose metrics.csv is read for damage alone
FIGURES = "figures"
README_FIGURES = ("all_runs_val_loss", "over_seeds_val_accuracy")
# Around the results in a README.
BEGIN, END = "<!-- results: what `mnist-report DIR --readme FILE` writes -->", "<!-- end of results -->"


class Page(NamedTuple):
    """What is to be written of some runs.

    Args:
        title: of the page.
        markdown: the page.
        pictures: its figures, not yet drawn.
        readme: the results in short; `{directory}` stands where the page's place belongs.
    """

    title: str
    markdown: str
    pictures: list[Picture]
    readme: str


class Repetitions(NamedTuple):
    """A row of the table of all runs: the completed runs of a variant and a length, one for each seed."""

    variant: Variant
    runs: list[Run]

    @property
    def epochs(self) -> str:
        """How many they have, such as `500`, or `12 to 20` where some stopped early."""
        lengths = sorted({run.length for run in self.runs})
        return " to ".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))


def compose(runs: Sequence[Run]) -> Page:
    """The page of these runs, at least one: of the same runs the same text."""
    groups = variants(runs)
    rows = _repetitions(groups)
    compared = [run for run in runs if is_compared(run)]
    usable = [run for run in compared if run.completed and not damage(run)]
    evidence = Evidence(usable)
    shown = gallery(groups, evidence if compared else None)
    claims = judge(evidence) if compared else []
    title = "The report, reproduced and judged" if claims else "Runs"
    blocks = [
        f"# {title}",
        *_missing(runs, shown),
        *_verdicts(claims),
        *(comparisons(evidence) if claims else []),
        *_table_of_all(rows),
        *(_setup(compared) if claims else []),
        *_claims_in_full(claims),
        *_figures(shown),
        *_circumstances(runs),
        *_commands(rows),
    ]
    markdown = "\n\n".join(blocks) + "\n"
    pictures = [picture for found in shown.pictures.values() for picture in found]
    return Page(title, markdown, pictures, _readme(evidence, claims, pictures))


def _repetitions(groups: Sequence[Variant]) -> list[Repetitions]:
    lengths = [(variant, completed(runs)) for variant in groups for runs in by_length(variant.runs).values()]
    return [Repetitions(variant, runs) for variant, runs in lengths if runs]


def write(page: Page, directory: Path) -> None:
    """Writes `report.md`, `report.html` and the figures; figures of an earlier page that are not in this one go."""
    figures = directory / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    drawn = {
        f"{FIGURES}/{picture.name}{suffix}": content
        for picture in page.pictures
        for suffix, content in zip((".png", ".svg"), picture.render(), strict=True)
    }
    html = to_html(page.markdown, page.title, drawn)
    # All of it or nothing: a full disk must not leave a page that shows another page's figures.
    durable_write_all(
        {directory / name: content for name, content in drawn.items()}
        | {directory / "report.md": page.markdown.encode(), directory / "report.html": html.encode()}
    )
    for old in figures.iterdir():
        ours = re.match(r"(figure_\d\d|all_runs|over_seeds|learning_rate).*\.(png|svg)$", old.name)
        if ours and f"{FIGURES}/{old.name}" not in drawn:
            old.unlink()


def refuse_readme(readme: Path) -> None:
    """Raises: SettingError, where the file cannot be read or has not both marks, in their order."""
    _around(readme)


def write_readme(page: Page, directory: Path, readme: Path) -> None:
    """Puts the results between the file's two marks, with the figures of the page in `directory`."""
    before, after = _around(readme)
    place = Path(os.path.relpath(directory, readme.parent)).as_posix()
    section = page.readme.replace("{directory}", place)
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


def is_compared(run: Run) -> bool:
    """Whether it is compared with the original report: it is of one of its experiments and changes none of its
    settings."""
    return run.experiment in EXPERIMENTS and run.model in MODELS.values() and not deviations(run)


def _missing(runs: Sequence[Run], shown: Gallery) -> list[str]:
    """What the reader must not expect, first of all."""
    lines = [*_not_completed(runs), *_damaged(runs)]
    lengths = Counter(run.length for run in runs if run.completed)
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


def _not_completed(runs: Sequence[Run]) -> list[str]:
    lines = []
    for status, count in Counter(run.record.get("status") for run in runs if not run.completed).most_common():
        of_them = [run for run in runs if run.record.get("status") == status]
        errors = [f"{named(run.name)}{_error(run)}" for run in of_them[:MOST_NAMED]]
        more = f", and {count - MOST_NAMED} more" if count > MOST_NAMED else ""
        lines.append(f"{count} of {len(runs)} runs {plain(status or 'without a status')}: {', '.join(errors)}{more}.")
    return lines


def _error(run: Run) -> str:
    return f" ({plain(run.record['error'])})" if run.record.get("error") else ""


def _damaged(runs: Sequence[Run]) -> list[str]:
    damaged = [(run, problem) for run in runs[:MOST_CHECKED] if run.completed and (problem := damage(run))]
    left_out = "is left out of the figures and verdicts"
    lines = [f"{named(run.name)} {left_out}: {problem}." for run, problem in damaged[:MOST_NAMED]]
    if len(damaged) > MOST_NAMED:
        lines.append(f"Each of {len(damaged) - MOST_NAMED} more {left_out}, for such a reason.")
    return lines


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
        markdown_table(("claim", "verdict"), rows),
    ]


def _table_of_all(rows: Sequence[Repetitions]) -> list[str]:
    """A line for each row."""
    cells = [(plain(row.variant.label), row.epochs, str(len(row.runs)), *measured(row.runs).values()) for row in rows]
    left_out = len(rows) - MOST_ROWS
    note = [f"{left_out} more rows are left out here; `results.csv` has every run."] if left_out > 0 else []
    heading = ("run", "epochs", "n", *HEADINGS)
    return ["## All completed runs", markdown_table(heading, cells[:MOST_ROWS]), *note] if rows else []


def _setup(compared: Sequence[Run]) -> list[str]:
    """Hyperparameters and split: of the original report, and of our experiments."""
    ours = {experiment: run.settings for experiment in EXPERIMENTS for run in compared if run.experiment == experiment}
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
        markdown_table(
            ("", "Experiment 1", "Experiment 2"),
            [(plain(entry.what), entry.baseline, entry.dropout) for entry in setup()],
        ),
        "Ours; the loss is cross-entropy on logits, and the validation set the 10,000 official test images:",
        markdown_table(("", *(f"`{experiment}`" for experiment in ours)), rows),
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
            *([markdown_table(heading, [_row(row) for row in claim.values])] if claim.values else []),
            claim.explanation,
            *_left_out(claim),
            f"See {', '.join(map(_see, claim.figures))}.",
        ]
    return blocks


def _left_out(claim: Claim) -> list[str]:
    if not claim.left_out:
        return []
    names = ", ".join(map(named, claim.left_out[:MOST_NAMED]))
    more = f", and {len(claim.left_out) - MOST_NAMED} more" if len(claim.left_out) > MOST_NAMED else ""
    return [f"Left out, for want of a column of {', '.join(claim.columns)} in metrics.csv: {names}{more}."]


def _row(values: Mapping[str, str]) -> list[str]:
    return [f"**{text}**" if name == "verdict" and text else text for name, text in values.items()]


def _see(figure: str) -> str:
    """A link to a figure, by its number in the original report or by what it shows."""
    places = {"all_runs": ALL, "seeds": SEEDS, "gap": GAP, "learning_rate": RATE}
    if figure in places:
        return f"[{places[figure].lower()}](#{anchor(places[figure])})"
    return f"[Figure {figure}](#{anchor(NETWORKS if figure in ('8', '9') else THEIRS)})"


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
        markdown_table(("runs", "device", "threads", "`trainer.steps`", "commit", "versions"), rows[:MOST_ROWS]),
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


def _commands(rows: Sequence[Repetitions]) -> list[str]:
    """What makes the runs of each row again, and what compares one with its record."""
    lines = []
    for row in rows[:MOST_ROWS]:
        again = command(row.runs)
        lines += [f"# {control(row.variant.label)}: {row.epochs} epochs, n = {len(row.runs)}"]
        lines += [control(again)] if again else []
        lines += [control(f"mnist-rerun DIR/{shlex.quote(row.runs[0].name)}")]
    if not lines:
        return []
    left_out = [f"{len(rows) - MOST_ROWS} more rows are left out."] if len(rows) > MOST_ROWS else []
    return [
        "## To repeat it",
        "For each row of the table of all runs: what trains its runs again, and what repeats the first of them "
        "from its record and compares every bit. DIR is this file's directory, as seen from where you are; the "
        "rerun goes to logs/runs there.",
        "```sh\n" + "\n".join(lines) + "\n```",
        *left_out,
    ]


def _readme(evidence: Evidence, claims: Sequence[Claim], pictures: Sequence[Picture]) -> str:
    """The results in short: the verdicts, the original runs and ours in one table, and two figures."""
    quantities = [quantity for quantity in QUANTITIES if quantity.in_readme]
    rows = []
    for own in original_runs():
        for source in sources(own, evidence):
            cells = dict(source.cells)
            if cells.get("in epoch"):
                cells["best accuracy, %"] += f" ({cells['in epoch']})"
            numbers = (cells.get(quantity.heading, "") for quantity in quantities)
            rows.append((f"{own.experiment} {own.network}", source.heading, *numbers))
    headings = [quantity.heading for quantity in quantities]
    heading = ("", "", *(f"{name} (epoch)" if name.startswith("best") else name for name in headings))
    verdicts = [(plain(claim.title), f"**{claim.verdict}**") for claim in claims]
    return "\n\n".join(
        [
            "What the report claims, judged by code from the runs, and below it each of the report's runs (Experiments "
            "1 and 2, Networks A and B) by the report's text, by its records, and as repeated here: validation "
            "metrics, mean ± standard deviation over n seeds. The whole of it, with every figure, test and number: "
            "[report.md]({directory}/report.md), or `report.html` beside it.",
            *([markdown_table(("the report's claim", "verdict"), verdicts)] if verdicts else []),
            markdown_table(heading, rows),
            *(
                f"![{plain(picture.alt)}]({{directory}}/{FIGURES}/{picture.name}.png)\n\n*{picture.caption}*"
                for picture in pictures
                if picture.name in README_FIGURES
            ),
        ]
    )
