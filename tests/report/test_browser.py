"""The page in a real headless Chromium."""

import base64
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from leadspan.report.content import build_report
from leadspan.report.inputs import read_inputs
from leadspan.report.write import write_report
from leadspan.results import RunResult, load_run, save_run

pytestmark = pytest.mark.slow
MakeRun = Callable[..., RunResult]
HOSTILE = '<script>alert(1)</script><img src=x onerror="document.body.dataset.hacked=1">'
PHONE, DESK = 375, 1280
FIGURES = {
    "frontier-0", "rates-0", "split-flops", "split-seconds", "split-memory", "tenths-0", "sections-0", "validation-0"
}  # fmt: skip

OVERLAPPING = """
  const nodes = [...document.querySelectorAll(arguments[0])];
  if (nodes.length < 2) return "too few to tell";
  const boxes = nodes.map((node) => node.getBoundingClientRect());
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b))).length;
"""
DRAWN = """
  return Object.fromEntries([...document.querySelectorAll("[data-figure]")].map((node) => [node.id, [
    node.querySelectorAll(".plot path[d]:not([d=''])").length, node.scrollWidth <= node.clientWidth,
  ]]));
"""


def executable(*names: str) -> str:
    """A program, or a skip that says on CI, where a skip would pass unseen, that nothing was tested."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = f"the report was NOT opened in a browser: no {' or '.join(names)} on PATH"
        if os.environ.get("CI"):
            warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = executable("chromium", "chromium-browser", "google-chrome")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Service(executable("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def real_page(real_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of real runs, of which the cut ones have a label that would run a script."""
    folder = tmp_path_factory.mktemp("page")
    paths = [shutil.copytree(path, folder / path.name) for path in real_runs]
    for path in paths[1::2]:
        save_run(load_run(path).model_copy(update={"label": HOSTILE}), path)
    (page,) = write_report(build_report(read_inputs(paths)), folder / "report.html")
    return page


def open_page(browser: Chrome, page: Path, width: int, is_dark: bool = False) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what was logged before is another page's
    browser.get(page.as_uri())
    settled(browser)


def settled(browser: Chrome) -> None:
    """Wait until every figure is drawn."""
    drawn = "return [...document.querySelectorAll('[data-figure]')].every((node) => node.querySelector('.plot .point'))"
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(drawn))


def requests(browser: Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = [params["request"]["url"] for params in sent]
    return [
        url for url in urls if not url.startswith(("chrome:", "chrome-untrusted:", "data:"))
    ]  # of the browser itself, from no network


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_all_figures_are_drawn_without_errors_or_requests(
    browser: Chrome, real_page: Path, width: int, is_dark: bool
) -> None:
    open_page(browser, real_page, width, is_dark)
    assert browser.get_log("browser") == []
    assert requests(browser) == [real_page.as_uri()]
    drawn = browser.execute_script(DRAWN)
    assert set(drawn) == FIGURES
    assert all(count > 3 and fits for count, fits in drawn.values()), drawn
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script("return document.body.dataset.hacked") is None
    ink, page = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert (brightness(ink) > brightness(page)) == is_dark
    ticks = "return getComputedStyle(document.querySelector('#tenths-0 .xtick text')).fill"
    assert abs(brightness(browser.execute_script(ticks)) - brightness(page)) > 60


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / 3


def test_a_narrow_page_names_the_column_beside_each_value(
    browser: Chrome, page_of: Callable, study: list[RunResult]
) -> None:
    names = "return [...arguments[0].cells].map((cell) => getComputedStyle(cell, '::before').content)"
    for width, shown in ((PHONE, ['"Accuracy"', '"Terminated"']), (DESK, ["none", "none"])):
        open_page(browser, page_of(study).path, width)
        row = browser.execute_script("return document.querySelector('#frontier tbody tr')")
        assert browser.execute_script(names, row)[1:3] == shown


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_is_wider_than_the_page_when_all_is_opened(browser: Chrome, real_page: Path, width: int) -> None:
    open_page(browser, real_page, width)
    browser.execute_script("for (const node of document.querySelectorAll('details')) node.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script("return document.querySelectorAll('.pair').length") == 3


def test_a_table_sorts_both_ways_with_empty_cells_last(
    browser: Chrome, page_of: Callable, study: list[RunResult]
) -> None:
    open_page(browser, page_of(study).path, DESK)

    def press(column: str) -> list[str]:
        script = """
          const table = document.querySelector("#frontier table.sortable");
          [...table.querySelectorAll("thead button")].find((node) => node.textContent.startsWith(arguments[0])).click();
          return [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
        """
        return browser.execute_script(script, column)

    assert press("FLOPs") == ["lead 0.5", "full", "teacher", "base"]
    assert press("FLOPs") == ["full", "lead 0.5", "teacher", "base"]
    assert press("Policy") == ["base", "full", "lead 0.5", "teacher"]
    assert press("Accuracy") == ["base", "lead 0.5", "full", "teacher"]
    heads = "return [...document.querySelectorAll('[aria-sort]')].map((node) => [node.textContent, node.ariaSort])"
    assert browser.execute_script(heads) == [["Accuracy", "ascending"]]


def test_choices_and_legend_change_the_figures(browser: Chrome, page_of: Callable, study: list[RunResult]) -> None:
    open_page(browser, page_of(study).path, DESK)

    def state() -> tuple[str, str, int]:
        return tuple(
            browser.execute_script("""
              const text = (name) => document.querySelector(`#frontier-0 .${name}`).textContent;
              return [text("xtitle"), text("ytitle"), document.querySelectorAll("#frontier-0 .point").length];
            """)
        )

    def press(selector: str) -> None:
        browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    assert state() == ("Training time (s)", "Strict accuracy (%)", 2)
    press("input[name=cost-0][value=flops]")
    press("input[name=quality-0][value=termination]")
    assert state() == ("FLOPs (FLOP)", "Terminated (% of samples)", 2)
    press(".legend button[data-policy='lead 0.5']")
    assert state()[2] == 1
    assert browser.execute_script("return document.querySelectorAll('#rates-0 .ytick text').length") == 3
    press(".legend button[data-policy='lead 0.5']")
    assert state()[2] == 2
    press("input[name=quality-0][value=retention]")
    assert state()[1:] == ("Share of the uncut student's accuracy (%)", 1)


def test_the_line_of_unbeaten_policies_passes_controls_by(
    browser: Chrome, page_of: Callable, make_run: MakeRun, study: list[RunResult]
) -> None:
    page = page_of(
        [*study, make_run("lead 0.5", 39, name="longer", control="equal_tokens", settings={"seed": 0}, cost=0.9)]
    )
    open_page(browser, page.path, DESK)
    joined = "return document.querySelector('#frontier-0 .js-plotly-plot, #frontier-0.js-plotly-plot').data[0].y"
    assert browser.execute_script(joined) == [37.5, 75]


def test_curves_follow_their_choices_and_their_own_legend(browser: Chrome, real_page: Path) -> None:
    open_page(browser, real_page, DESK)

    def lines(figure: str) -> int:
        return browser.execute_script(f"return document.querySelectorAll('#{figure} .js-line').length")

    def press(selector: str) -> None:
        browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def title() -> str:
        return browser.execute_script("return document.querySelector('#tenths-0 .ytitle').textContent")

    assert (lines("tenths-0"), title()) == (4, "Divergence (nat)")
    points = "return document.querySelectorAll('#sections-0 .point').length"
    on_validation = browser.execute_script(points)
    press("input[name=measured_on][value='training batches']")
    assert browser.execute_script(points) == 16 > on_validation
    press("input[name=measure][value=agreement]")
    assert title() == "Agreement (share of positions)"
    press(".legend[data-group=curves] [data-policy=full]")
    assert (lines("tenths-0"), lines("sections-0"), lines("validation-0")) == (2, 2, 4)


def test_figures_round_as_the_tables_do_and_draw_the_only_section(
    browser: Chrome, gathered_of: Callable, make_run: MakeRun, tmp_path: Path
) -> None:
    """5 of 40 are 12.5 %, with an interval from 6.5 to 18.5."""
    inputs = gathered_of([make_run("full", 30, {"kind": "full"}), make_run("lead 0.5", 5, cost=0.5)])
    for directory in inputs.directories:
        lines = [{"step": step, "divergence/answer": 1.0, "divergence/tenth_9": 1.0} for step in (1, 2)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (page,) = write_report(build_report(inputs), tmp_path / "report.html")
    open_page(browser, page, DESK)
    text = browser.execute_script("return document.getElementById('rates-0').data[0].hovertemplate[1]")
    assert "accuracy 12 [6, 18] %" in text and "12 [6, 18]" in page.read_text(encoding="utf-8")
    assert browser.execute_script("return document.querySelectorAll('#sections-0 .js-line').length") == 2
    shown = "return [...document.querySelectorAll('.choices')].map((node) => node.offsetParent !== null)"
    assert browser.execute_script(shown) == [True, True, False, False, False]


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_labels_of_many_policies_never_overlap(
    browser: Chrome, page_of: Callable, make_run: MakeRun, width: int
) -> None:
    runs = [make_run("teacher", 40, role="teacher"), make_run("base", 6, role="base")]
    runs += [make_run("full", 30, {"kind": "full"}, seed=seed) for seed in (0, 1)]
    runs += [
        make_run(f"cut {i}", 10 + i % 12, {"kind": "lead", "p": 0.05 * i}, cost=0.4 + i % 5 / 40, seed=seed)
        for i in range(1, 19)
        for seed in (0, 1)
    ]  # fmt: skip
    open_page(browser, page_of(runs).path, width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('#frontier-0 .annotation').length") > 2
    for kind in (
        "#frontier-0 .annotation-text-g",
        "#rates-0 .ytick text",
        "#split-flops .ytick text",
        "#frontier-0 .xtick text",
    ):
        assert browser.execute_script(OVERLAPPING, kind) == 0, kind
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    tables = "return [...document.querySelectorAll('.scroll')].map((node) => node.clientHeight)"
    assert max(browser.execute_script(tables)) <= 0.85 * 900  # of the window: many rows scroll
    browser.execute_script("document.querySelector('.legend[data-group=task-0] [data-every=false]').click()")
    assert browser.execute_script("return document.querySelectorAll('#frontier-0 .point').length") == 0
    browser.execute_script("document.querySelector('.legend[data-group=task-0] [data-every=true]').click()")
    assert browser.execute_script("return document.querySelectorAll('#frontier-0 .point').length") == 19 * 3


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_tick_labels_never_overlap(browser: Chrome, real_page: Path, width: int) -> None:
    open_page(browser, real_page, width)
    for figure in FIGURES:
        for axis in ("xtick text", "ytick text"):
            assert browser.execute_script(OVERLAPPING, f"#{figure} .{axis}") == 0, (figure, axis)


def test_it_prints(browser: Chrome, real_page: Path) -> None:
    open_page(browser, real_page, PHONE, is_dark=True)
    width = "document.getElementById('frontier-0')._fullLayout.width"
    browser.execute_script(f"addEventListener('beforeprint', () => {{ document.body.dataset.width = {width}; }})")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF-") and pdf.count(b"/Type /Page\n") > 3
    assert browser.execute_script("return document.body.dataset.width") == "660"
    assert browser.execute_script("return 'print' in document.documentElement.dataset") is False
    assert browser.execute_script(f"return {width}") < PHONE
