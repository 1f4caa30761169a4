"""What a browser shows of a real sweep: headless Chromium opens the page that `mnist-tensorboard` serves.

`--screenshots DIR` keeps pictures of the tabs; `--logs DIR` looks at other runs, trained with TensorBoard's defaults.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from helpers import served
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.run.records import find_runs, read_record
from mnist_mlp.tensorboard.content import HPARAMS_METRICS

pytestmark = pytest.mark.browser

CHARTS = {  # in their order on the page
    "validation accuracy": {"val/accuracy"},
    "validation loss": {"val/loss"},
    "training loss": {"train/loss"},
    "loss": {"train/loss", "val/loss"},
    "error": {"train/error", "val/error"},
}
SETTINGS = {
    *("experiment", "model", "hidden widths", "parameters", "dropout", "optimizer", "learning rate", "scheduler"),
    *("batch size", "seed", "epochs"),
}
LOOKS = ("weights/first_layer", "val/most_confidently_wrong", "val/reliability", "val/confusion_matrix")
PICTURES = ("run/architecture", *(f"best/{tag}" for tag in LOOKS), *LOOKS)
WAIT = 60_000  # milliseconds, for a machine with other things to do


@pytest.fixture(scope="module")
def logs(request: pytest.FixtureRequest, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that are looked at: four, of a sweep by the command, where no others are given."""
    if given := request.config.getoption("logs"):
        return Path(given)
    directory = tmp_path_factory.mktemp("sweep")
    sweep = ["experiment=baseline,dropout_scheduler", "model=network_a,network_b", "trainer.max_epochs=2"]
    script = Path(sys.executable).with_name("mnist-train")
    tiny = [override for override in tiny if not override.startswith("trainer.max_epochs")]
    subprocess.run([script, "-m", *tiny, *sweep, "sweep=browser"], cwd=directory, check=True, capture_output=True)
    return directory / "logs"


@pytest.fixture(scope="module")
def runs(logs: Path) -> dict[str, int]:
    """What TensorBoard calls each run -> its epochs."""
    return {str(run.relative_to(logs)): read_record(run)["epochs"] for run in find_runs(logs)}


@pytest.fixture(scope="module")
def address(logs: Path) -> Iterator[str]:
    with served(logs) as (_, url, _):
        yield url


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    """A new browser's only page; nothing but the server can be reached from it."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    assert browser, "there is no Chromium: apt-get install chromium, or leave these tests out with -m 'not browser'"
    with sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.getuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=browser, args=as_root)
        page = chromium.new_page(viewport={"width": 1480, "height": 960})
        page.set_default_timeout(WAIT)
        # Else a chart cuts off the highest parts of curves, and their points are not drawn.
        page.add_init_script("if (location.host) localStorage.setItem('_ignoreYOutliers', 'false')")
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda route: route.abort())
        yield page
        chromium.close()


@pytest.fixture
def screenshot(request: pytest.FixtureRequest, page: Page, tmp_path: Path) -> Callable[[str], None]:
    def save(name: str) -> None:
        directory = Path(request.config.getoption("screenshots") or tmp_path)
        directory.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        picture.save(directory / f"tensorboard_{name}.png", optimize=True)

    return save


def open_tab(page: Page, address: str, tab: str) -> None:
    page.goto("about:blank")  # from one fragment to another is no new page
    page.goto(f"{address}#{tab}")


def titled(cards: Locator, title: str) -> Locator:
    exactly = re.compile(rf"^\s*{re.escape(title)}\s*$")
    return cards.filter(has=cards.page.locator(".heading-label.name", has_text=exactly))


def found_by(page: Page, expression: str) -> Locator:
    """The cards of the tags that match, which come before all others."""
    page.locator("tf-tag-filterer input").first.fill(expression)
    found = page.locator("tf-category-paginated-view").first
    expect(found.locator(".heading")).to_contain_text("Tags matching", timeout=WAIT)
    return found


def points(line: str) -> int:
    """Of a line in an SVG path; a part of it that is no number has none."""
    number = r"-?[\d.]+(?:e-?\d+)?"
    return len(re.findall(rf"[ML]{number},{number}(?=[ML]|$)", line))


def lines(card: Locator, count: int) -> list[str]:
    drawn = card.locator(".line-plot path.line")
    expect(drawn).to_have_count(count, timeout=WAIT)
    return [line or "" for line in drawn.evaluate_all("paths => paths.map(path => path.getAttribute('d'))")]


def test_it_opens_on_accuracy_and_loss(
    page: Page, address: str, runs: dict[str, int], screenshot: Callable[[str], None]
) -> None:
    page.goto(address)
    cards = page.locator("tf-custom-scalar-multi-line-chart-card")
    cards.first.wait_for()
    titles = [title.strip() for title in cards.locator(".heading-label.name").all_inner_texts()]
    assert titles[: len(CHARTS)] == list(CHARTS)
    for title, tags in CHARTS.items():
        card = titled(cards, title)
        drawn = lines(card, len(tags) * len(runs))
        assert sorted(map(points, drawn)) == sorted(epochs for epochs in runs.values() for _ in tags)
        matches = [text.split() for text in card.locator(".match-list-entry").all_text_contents()]
        # One marker for training and another for validation, whatever the run; a colour for each run.
        marked = zip("◼◆▲★", sorted(tags), strict=False)
        assert sorted(matches) == sorted([marker, tag, f"({run})"] for marker, tag in marked for run in runs)
    screenshot("custom_scalars")


@pytest.mark.parametrize("opened", ["by a click", "by its address"])
def test_nothing_is_smoothed(page: Page, address: str, opened: str) -> None:
    for tab, slider in (
        ("Scalars", "tf-scalar-dashboard tf-smoothing-input input"),
        ("Custom Scalars", "tf-custom-scalar-dashboard tf-smoothing-input input"),
        ("Time Series", ".scalars-smoothing input[type=number]"),
    ):
        if opened == "by a click":
            page.goto("about:blank")
            page.goto(address)
            page.locator("[role=tab]", has_text=re.compile(rf"^\s*{tab}\s*$", re.IGNORECASE)).click()
        else:
            open_tab(page, address, tab.lower().replace("custom ", "custom_").replace(" ", ""))
        page.locator(slider).first.wait_for()
        assert page.locator(slider).first.input_value() == "0", tab


def test_every_metric_is_a_chart(
    page: Page, address: str, runs: dict[str, int], screenshot: Callable[[str], None]
) -> None:
    open_tab(page, address, "scalars")
    cards = found_by(page, f"^({'|'.join(COLUMNS[1:])})$").locator("tf-scalar-card")
    for tag in COLUMNS[1:]:
        assert sorted(map(points, lines(titled(cards, tag), len(runs)))) == sorted(runs.values())
    screenshot("scalars")


def test_a_row_of_the_table_is_a_run(
    page: Page, address: str, runs: dict[str, int], screenshot: Callable[[str], None]
) -> None:
    open_tab(page, address, "hparams")
    table = page.locator("tf-hparams-table-view")
    table.get_by_text(next(iter(runs))).first.wait_for()
    query = page.locator("tf-hparams-query-pane")
    boxes = query.locator("paper-checkbox")
    names = [name.strip() for name in boxes.all_inner_texts()]
    assert set(names) >= SETTINGS | set(HPARAMS_METRICS)
    assert "hp_metric" not in " ".join(names)
    for shown, name in enumerate(names):  # every column; TensorBoard itself shows the first five of each kind
        if name in SETTINGS | set(HPARAMS_METRICS) and boxes.nth(shown).get_attribute("aria-checked") != "true":
            boxes.nth(shown).click()
    cells = {name.strip() for name in table.locator(".table-cell").all_inner_texts()}
    assert cells >= set(runs)
    screenshot("hparams")


def test_the_pictures_are_there(
    page: Page, address: str, runs: dict[str, int], screenshot: Callable[[str], None]
) -> None:
    tags: dict[str, list[str]] = page.request.get(f"{address}data/plugin/images/tags").json()
    once = "run/training_images"  # shown with the first of the runs that share them
    assert {run: set(found) - {once} for run, found in tags.items()} == {run: set(PICTURES) for run in runs}
    assert sum(once in found for found in tags.values()) == 1
    for run, epochs in runs.items():
        for tag in LOOKS:  # as the server has them: EventAccumulator keeps steps that it drops
            query = urlencode({"run": run, "tag": tag, "sample": 0})
            shown = page.request.get(f"{address}data/plugin/images/images?{query}").json()
            assert [picture["step"] for picture in shown][-1] == epochs, (run, tag)
    open_tab(page, address, "images")
    for tag in PICTURES:
        pictures = found_by(page, f"^{tag}$").locator("tf-image-loader img")
        expect(pictures).to_have_count(len(runs), timeout=WAIT)
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture.element_handle())
    screenshot("images")
