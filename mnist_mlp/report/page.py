"""The results page, `report.md` and `report.html`: what the runs under a directory say, and what they say of the
original report's claims."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mnist_mlp.report import factorial
from mnist_mlp.report.claims import judge
from mnist_mlp.report.comparison import (
    BEST_ACCURACY,
    FINAL_ACCURACY,
    FINAL_LOSS,
    OTHERS,
    QUANTITIES,
    Quantity,
    comparisons,
    group,
    in_short,
    measured,
)
from mnist_mlp.report.evidence import MODELS, Evidence
from mnist_mlp.report.gallery import Gallery, Picture, gallery, network_name
from mnist_mlp.report.html import to_html
from mnist_mlp.report.markdown import anchor, control, folded, markdown_table, named, plain, some, spanned
from mnist_mlp.report.original import original_run, setup
from mnist_mlp.report.sheet import HEADINGS, VERDICTS, Claim, p_text, several_tests
from mnist_mlp.run.directory import durable_write_all
from mnist_mlp.run.groups import EXPERIMENTS, Variant, by_length, command, completed, damage, variants
from mnist_mlp.run.metrics import METRIC
from mnist_mlp.run.records import Run
from mnist_mlp.settings import counted, spelled

MOST_NAMED = 20  # runs that a sentence names
MOST_ROWS = 60  # of a table
MOST_CHECKED = 500  # runs whose metrics.csv is read for damage alone
FIGURES = "figures"
JUDGED = "The original report, repeated and judged"  # the title of a page about its claims
THEIRS = ("deeper", "rate_decayed", "metrics_agree", "training_accuracy")  # claims that a few runs or none decide


class Page(NamedTuple):
    """What is to be written of some runs.

    Args:
        title: of the page.
        markdown: the page.
        pictures: its figures, not yet drawn.
        readme: the results in short, for a README; `{directory}` stands where the page's place belongs.
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
        return spanned([run.length for run in self.runs])


def compose(runs: Sequence[Run], name: str, claims: bool = False) -> Page:
    """The page of these runs, at least one: of the same runs the same text.

    Args:
        runs: any.
        name: of the directory, for the title.
        claims: judges the original report's claims, even if these runs decide few of them; else a page has them where
            it decides most.
    """
    groups = variants(runs)
    rows = _repetitions(groups)
    evidence = Evidence([run for run in runs if run.completed and not damage(run)])
    found = judge(evidence)
    resting = [claim for claim in found if claim.key not in THEIRS]
    judged = claims or sum(claim.verdict != "undecided" for claim in resting) > len(resting) / 2
    shown = gallery(groups, evidence if judged and evidence else None)
    missing = _missing(runs, shown)
    first, *others = [*_figure(shown.pictures[0])] if shown.pictures else [""]
    if judged:
        title, lead = JUDGED, _found(evidence, found)
        body = [
            *_verdicts(found),
            *comparisons(evidence),
            *factorial.section(evidence),
            *_figures(shown),
            *_claims_in_full(found, shown),
            *_table_of_all(rows),
            *_setup(evidence),
        ]
    else:
        title, lead = f"Runs of {control(name)}", _summary([run for run in runs if not run.damaged], rows)
        body = [*_table_of_all(rows), *_figures(shown)]
    blocks = [
        f"# {plain(title)}",
        first,
        *others,
        _bullets(lead),
        *missing,
        *body,
        *_circumstances(runs),
        *_commands(rows),
    ]
    markdown = "\n\n".join(block for block in blocks if block) + "\n"
    return Page(title, markdown, shown.pictures, _in_short(evidence, found, lead, rows, judged))


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
        ours = re.match(r"(figure_\d\d|all_runs|over_seeds|curves_|learning_rate).*\.(png|svg)$", old.name)
        if ours and f"{FIGURES}/{old.name}" not in drawn:
            old.unlink()


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _found(evidence: Evidence, claims: Sequence[Claim]) -> list[str]:
    """What was found, in five sentences or fewer."""

    def ours(experiment: str, quantity: Quantity) -> str:
        """Of A's runs and of B's, where there are any: mean ± standard deviation."""
        unit = " %" if quantity.metric.form == "fraction" else ""
        found = ((network, quantity.mean(group(evidence, experiment, network))) for network in MODELS)
        return " and ".join(f"{text}{unit} ({network})" for network, text in found if text)

    def theirs(number: int, quantity: Quantity, source: Literal["text", "record"] = "record") -> str:
        printed = (getattr(original_run(number, network), source) for network in MODELS)
        return " and ".join(str(getattr(headline, quantity.printed or "")) for headline in printed)

    right, lost = FINAL_ACCURACY, FINAL_LOSS
    sentences = {
        "baseline": "Experiment 1 ends at a validation accuracy of {right} (the report's runs: "
        f"{theirs(1, right)} %); its validation loss rises after the first epochs, to {{lost}} ({theirs(1, lost)}).",
        "dropout_as_run": "Experiment 2 as it was run, with dropout and a constant rate, ends at a loss of {lost} "
        f"({theirs(2, lost)}) and an accuracy of {{right}} ({theirs(2, right)} %).",
        "dropout_scheduler": "The settings in the report's text, from a rate of 0.01, give {right} in place of its "
        f"{theirs(2, right, 'text')} %: its runs began at 0.001, and their scheduler never lowered that.",
        "dropout_as_intended": "With that scheduler working, from 0.001, Experiment 2 ends at a loss of {lost} and an "
        "accuracy of {right}.",
    }
    return [
        _counts(claims),
        *(
            sentence.format(right=ours(experiment, right), lost=ours(experiment, lost))
            for experiment, sentence in sentences.items()
            if ours(experiment, right)
        ),
    ]


def _counts(claims: Sequence[Claim]) -> str:
    """How many claims have which verdict."""
    counts = Counter(claim.verdict for claim in claims)
    parts = [f"{counts[verdict]} “{verdict}”" for verdict in VERDICTS if counts[verdict]]
    return f"Of the original report's {len(claims)} claims, judged by code: {', '.join(parts)}."


def _summary(runs: Sequence[Run], rows: Sequence[Repetitions]) -> list[str]:
    """What a sweep of the user's own is and found."""
    experiments = ", ".join(dict.fromkeys(plain(run.experiment) for run in runs))
    models = ", ".join(dict.fromkeys(plain(network_name(run.model)) for run in runs))
    seeds = sorted({run.seed for run in runs if isinstance(run.seed, int)})
    several = (
        f"seeds {', '.join(map(str, seeds[:MOST_NAMED]))}" if len(seeds) > 1 else f"seed {seeds[0] if seeds else '?'}"
    )
    epochs = spanned([run.length for run in runs if run.completed]) or "no"
    count = counted(len(runs), "run")
    unfinished = sum(not run.completed for run in runs)
    count += f", {unfinished} not completed" if unfinished else ""
    length = f"{epochs} epoch{'s' * (epochs != '1')}"
    return [f"{count}: {experiments}; {models}; {several}; {length}.", *_highest(rows)]


def _highest(rows: Sequence[Repetitions]) -> list[str]:
    """Which row has the highest validation accuracy, on average over its runs."""
    best = BEST_ACCURACY
    scored = [
        (sum(values) / len(values), row)
        for row in rows
        if (values := [v for r in row.runs if (v := best.read(r)) is not None])
    ]
    if not scored:
        return []
    row = max(scored, key=lambda pair: pair[0])[1]
    loss = FINAL_LOSS.mean(row.runs) or "not recorded"
    return [
        f"{plain(row.variant.label)} has the highest validation accuracy, {best.mean(row.runs)} % in its best epoch "
        f"(n = {len(row.runs)}); in its last epoch the validation loss is {loss}."
    ]


def _missing(runs: Sequence[Run], shown: Gallery) -> list[str]:
    """What the reader must not expect."""
    lines = [*_not_completed(runs), *_damaged(runs), *shown.missing]
    if not lines:
        return []
    return folded(f"What is missing: {counted(len(lines), 'point')}", [_bullets(lines)])


def _not_completed(runs: Sequence[Run]) -> list[str]:
    lines = []
    for status, count in Counter(run.record.get("status") for run in runs if not run.completed).most_common():
        of_them = [run for run in runs if run.record.get("status") == status]
        errors = some([f"{named(run.name)}{_error(run)}" for run in of_them], MOST_NAMED)
        lines.append(f"{count} of {len(runs)} runs {plain(status or 'without a status')}: {errors}.")
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
    """The claims by kind of verdict, each with what decides it."""
    rows = []
    for verdict in VERDICTS:
        of_it = [(number, claim) for number, claim in enumerate(claims, 1) if claim.verdict == verdict]
        for place, (number, claim) in enumerate(of_it):
            row = claim.deciding
            p = p_text(row.numbers.p) if row and row.numbers and row.verdict else ""
            adjusted = p_text(row.adjusted) if row and row.adjusted is not None else ""
            kind = f"**{verdict}** ({len(of_it)})" if place == 0 else ""
            link = f"[{number}. {plain(claim.title)}](#{_anchor(number, claim)})"
            rows.append((kind, link, _decides(claim), p, adjusted))
    return [
        "## Verdicts",
        markdown_table(("verdict", "claim", "what decides", "p", "p of all"), rows),
        several_tests(claims),
    ]


def _decides(claim: Claim) -> str:
    row = claim.deciding
    if claim.verdict == "cannot be tested" or row is None:
        return "no run can tell"
    if claim.verdict == "undecided" and claim.missing:
        return f"needs {claim.missing[0]}" + (f", and {len(claim.missing) - 1} more" if len(claim.missing) > 1 else "")
    return row.in_short()


def _anchor(number: int, claim: Claim) -> str:
    return anchor(f"{number}. {claim.title}")


def _table_of_all(rows: Sequence[Repetitions]) -> list[str]:
    """A line for each row; precision, recall and F1 in a table of their own."""
    if not rows:
        return []
    shown = rows[:MOST_ROWS]
    heads = [(plain(row.variant.label), row.epochs, str(len(row.runs))) for row in shown]
    cells = [(*head, *measured(row.runs)) for head, row in zip(heads, shown, strict=True)]
    others = [(*head, *measured(row.runs, OTHERS)) for head, row in zip(heads, shown, strict=True)]
    left_out = len(rows) - MOST_ROWS
    heading = ("run", "epochs", "n")
    return [
        "## All completed runs",
        markdown_table((*heading, *(quantity.heading for quantity in QUANTITIES)), cells),
        *([f"{left_out} more rows are left out here; `results.csv` has every run."] if left_out > 0 else []),
        *folded(
            "Precision, recall and F1, which repeat the accuracy",
            [markdown_table((*heading, *(quantity.heading for quantity in OTHERS)), others)],
        ),
    ]


def _setup(evidence: Evidence) -> list[str]:
    """Hyperparameters and split: of the original report, and of our experiments."""
    ours = {name: runs[0].settings for name in EXPERIMENTS for net in MODELS if (runs := group(evidence, name, net))}
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
        ("averaging of precision, recall, F1", lambda settings: settings["average"]),
    ):
        rows.append((what, *(plain(read(settings)) for settings in ours.values())))
    return [
        "## How the runs were made",
        *folded(
            "The report's runs, by its records",
            [
                markdown_table(
                    ("", "Experiment 1", "Experiment 2"),
                    [(plain(entry.what), entry.baseline, entry.dropout) for entry in setup()],
                )
            ],
        ),
        *folded("Ours", [markdown_table(("", *(f"`{experiment}`" for experiment in ours)), rows)]),
    ]


def _scheduler(settings: Mapping[str, Any]) -> str:
    if "scheduler._target_" not in settings:
        return "none"
    name = settings["scheduler._target_"].rpartition(".")[2]
    rest = (f"{key.partition('.')[2]}={value}" for key, value in settings.items() if re.match(r"scheduler\.[^_]", key))
    return f"{name}, {', '.join(rest)}"


def _claims_in_full(claims: Sequence[Claim], shown: Gallery) -> list[str]:
    blocks = ["## The claims"]
    names = {picture.key: picture for picture in shown.pictures}
    for number, claim in enumerate(claims, 1):
        used = [place for place in range(len(HEADINGS)) if any(row.cells()[place] for row in claim.rows)]
        table = [[row.cells()[place] for place in used] for row in claim.rows]
        seen = [_see(names[key]) for key in claim.figures if key in names]
        blocks += [
            f"### {number}. {plain(claim.title)}",
            f"**{claim.verdict}** The report: “{plain(claim.words)}”",
            *folded(
                "Test, numbers and explanation",
                [
                    f"Test: {claim.test}",
                    markdown_table([HEADINGS[place] for place in used], table) if table else "",
                    claim.explanation,
                    f"Missing: {'; '.join(claim.missing)}." if claim.missing else "",
                    *_left_out(claim),
                    f"See {', '.join(seen)}." if seen else "",
                ],
            ),
        ]
    return blocks


def _left_out(claim: Claim) -> list[str]:
    if not claim.left_out:
        return []
    names = some([named(name) for name in claim.left_out], MOST_NAMED)
    return [f"Left out, for want of a column of {', '.join(claim.columns)} in metrics.csv: {names}."]


def _see(picture: Picture) -> str:
    """A link to a figure: to its file, and on the HTML page to its place there."""
    name = (
        f"Figure {picture.key}"
        if picture.key[0].isdigit()
        else METRIC[picture.key].title
        if picture.key in METRIC
        else picture.key
    )
    return f"[{name}]({FIGURES}/{picture.name}.svg)"


def _figure(picture: Picture) -> list[str]:
    return [f"![{plain(picture.alt)}]({FIGURES}/{picture.name}.svg)", f"*{picture.caption}*"]


def _figures(shown: Gallery) -> list[str]:
    """All but the first, which opens the page."""
    rest = shown.pictures[1:]
    near = [picture for picture in rest if picture.folded]
    return [
        *(["## Figures"] if rest else []),
        *(block for picture in rest if not picture.folded for block in _figure(picture)),
        *(
            folded(f"{len(near)} more, much like these", [b for picture in near for b in _figure(picture)])
            if near
            else []
        ),
    ]


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
        "For each row of the table of all runs: what trains its runs again, and what repeats the first of them from "
        "its record and compares every bit. DIR is this file's directory, as seen from where you are.",
        *folded("The commands", ["```sh\n" + "\n".join(lines) + "\n```", *left_out]),
    ]


def _in_short(
    evidence: Evidence, claims: Sequence[Claim], lead: Sequence[str], rows: Sequence[Repetitions], judged: bool
) -> str:
    """The results for a README: the original runs and ours in one table, or the sweep's own rows."""
    where = "[results page]({directory}/report.md)"
    if judged:
        return "\n\n".join(
            [
                in_short(evidence, [run for row in rows for run in row.runs]),
                "Accuracy and loss are of the validation set, ours mean ± standard deviation over the seeds. "
                f"{_counts(claims)} The {where} gives for each the test and the number that decide it; and every "
                "figure.",
            ]
        )
    shown = [FINAL_ACCURACY, BEST_ACCURACY, FINAL_LOSS]
    cells = [(plain(row.variant.label), row.epochs, str(len(row.runs)), *measured(row.runs, shown)) for row in rows]
    table = markdown_table(("run", "epochs", "n", *(quantity.heading for quantity in shown)), cells[:MOST_ROWS])
    return "\n\n".join([*lead, *([table] if cells else []), f"Curves and every number: {where}."])
