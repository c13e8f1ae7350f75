"""The published page in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_samples import PROVENANCE, everything_report, full_report

from edgevision_benchmarks.report import Report

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[OpenPage]:
    """Open a report; the test fails at its end where the page logged, raised or fetched anything."""
    trouble: list[str] = []
    contexts: list[Any] = []

    def open_it(report: Report, **options: Any) -> Any:
        index = report.save(tmp_path / f"report{len(contexts)}").resolve()
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url == index.as_uri() else trouble.append(f"fetch: {request.url}"),
        )
        page.goto(index.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert trouble == []


def column(page: Any, heading: str) -> list[str]:
    headings = [text.split("\n")[0] for text in page.locator("#table thead th").all_inner_texts()]
    position = headings.index(heading) + 1
    return [text.split("\n")[0] for text in page.locator(f"#table tbody tr > :nth-child({position})").all_inner_texts()]


def test_the_table_says_what_was_measured_fastest_first(open_page: OpenPage) -> None:
    page = open_page(full_report())
    assert page.title() == "Benchmark of mobilenet_v2"
    assert column(page, "Latency") == [
        "4.60 ±0.046", "5.90 ±0.059", "9.20 ±0.092", "11.2 ±0.112", "16.9 ±0.169", "20.2 ±0.202", "–",
    ]  # fmt: skip
    assert column(page, "Engine")[0] == "OpenVINO"
    assert column(page, "Top-1")[0] == "83.0% ±3.5"
    assert page.locator("#table tbody tr.failed").count() == 1


def test_headings_sort_by_click(open_page: OpenPage) -> None:
    page = open_page(full_report())
    button = page.locator("#table thead button", has_text="Latency")
    button.click()
    assert column(page, "Latency")[0] == "20.2 ±0.202"
    # what has no value stays at the end
    assert column(page, "Latency")[-1] == "–"
    assert page.locator("#table th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Engine", exact=True).click()
    assert column(page, "Engine") == sorted(column(page, "Engine"), key=str.lower)
    assert page.locator("#table th[aria-sort]").count() == 1
    assert page.locator("#sorted").inner_text() == "Sorted by Engine, ascending."


def test_headings_sort_by_keyboard(open_page: OpenPage) -> None:
    page = open_page(full_report())
    page.locator("#table thead button", has_text="Threads").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.firstChild.textContent") == "Top-1"
    page.keyboard.press("Enter")
    # more is better, so the best comes first
    shares = [float(text.split("%")[0]) for text in column(page, "Top-1") if text != "–"]
    assert shares == sorted(shares, reverse=True)
    page.keyboard.press("Space")
    shares = [float(text.split("%")[0]) for text in column(page, "Top-1") if text != "–"]
    assert shares == sorted(shares)


def test_points_lead_to_their_rows(open_page: OpenPage) -> None:
    page = open_page(full_report())
    points = page.locator(".scatter.wide .point")
    assert points.count() == 6
    page.locator(".scatter.wide .point[aria-label^='OpenVINO INT8']").click()
    assert page.url.endswith("#row-3")
    row = page.locator("#row-3")
    assert "OpenVINO" in row.inner_text()
    wait_until(page, "document.getElementById('row-3').getBoundingClientRect().top < innerHeight")


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_fits_its_width(open_page: OpenPage, width: int) -> None:
    page = open_page(full_report(), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shown = "narrow" if width < 640 else "wide"
    assert page.locator(f".scatter.{shown}").is_visible()
    assert page.locator(".scatter:visible").count() == 1
    # letters of the drawing stay readable: at least 9 pixels
    height = page.locator(f".scatter.{shown} .tick").first.evaluate("node => node.getBoundingClientRect().height")
    assert height >= 9


def luminance(color: str) -> float:
    # relative luminance, WCAG 2.2
    channels = [int(value) / 255 for value in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_readable(open_page: OpenPage, scheme: str) -> None:
    page = open_page(full_report(), color_scheme=scheme)
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    # WCAG 2.2: 4.5 for text, 3 for marks
    for selector, attribute, least in (
        ("h1", "color", 4.5),
        (".lead", "color", 4.5),
        (".errors h2", "color", 4.5),
        (".good", "color", 4.5),
        (".scatter.wide .tick", "fill", 4.5),
        (".scatter.wide .point.c0 path", "fill", 3.0),
        (".scatter.wide .point.c1 path", "fill", 3.0),
        (".scatter.wide .point.c2 path", "fill", 3.0),
    ):
        color = page.locator(selector).first.evaluate("(node, key) => getComputedStyle(node)[key]", attribute)
        ink = luminance(color)
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast >= least, f"{selector} has a contrast of {contrast:.1f}"


def test_markup_in_names_is_text(open_page: OpenPage) -> None:
    evil = '<script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)'
    report = full_report()
    rows = [replace(row, model=evil, target=evil, bundle=evil, error=evil) for row in report.results]
    page = open_page(Report.single(rows, report.runs[0].environment, {**PROVENANCE, "command": evil, "data": evil}))
    assert page.locator("h1").inner_text() == f"Benchmark of {evil}"
    assert column(page, "Model")[0].startswith("<script>alert(1)</script><img")
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    page.locator("#table tbody tr").first.hover()


def test_a_page_without_accuracy_still_sorts(open_page: OpenPage) -> None:
    nothing = {"accuracy": None, "accuracy_ci95": None, "top5": None, "agreement": None, "agreement_ci95": None}
    report = full_report()
    page = open_page(replace(report, results=tuple(replace(row, **nothing) for row in report.results)))
    assert page.locator(".scatter").count() == 0
    assert "Accuracy was not measured" in page.locator("main").inner_text()
    page.locator("#table thead button", has_text="Model").click()
    assert len(column(page, "Model")) == 7


def test_the_page_prints_and_works_without_a_script(open_page: OpenPage) -> None:
    page = open_page(full_report(), java_script_enabled=False)
    assert len(column(page, "Latency")) == 7


def targets(page: Any, selector: str) -> list[str]:
    """Rows that links lead to."""
    links = page.locator(selector).evaluate_all("nodes => nodes.map(node => node.getAttribute('href'))")
    return [link.removeprefix("#") for link in links]


def wait_until(page: Any, expression: str) -> None:
    """Until an expression is true; the page forbids playwright's own way, which polls by ``eval`` inside it."""
    deadline = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} did not come true"
        page.wait_for_timeout(20)


def shown(page: Any) -> list[str]:
    """Rows, points and bars that can be seen, by their row."""
    rows = page.locator("#table tbody tr:visible").evaluate_all("nodes => nodes.map(node => node.id)")
    points = targets(page, ".scatter.wide .point:visible")
    bars = targets(page, ".bars li:visible a")
    # a row that failed has neither point nor bar
    assert set(points) == set(bars) == {row for row in rows if row != "row-6"}
    return sorted(rows)


def corners(page: Any) -> list[list[str]]:
    lines = page.locator(".scatter.wide polyline.front").evaluate_all(
        "nodes => nodes.map(node => node.getAttribute('points'))"
    )
    return [line.split() for line in lines]


def test_filters_choose_by_device_engine_precision_and_model(open_page: OpenPage) -> None:
    page = open_page(everything_report())
    assert page.locator("#filters legend").all_inner_texts() == ["Device", "Engine", "Precision", "Model"]
    assert len(shown(page)) == 10
    fronts = corners(page)
    assert [len(line) for line in fronts] == [2, 3]
    page.get_by_role("checkbox", name="Raspberry Pi 5 Model B", exact=True).uncheck()
    assert shown(page) == [f"row-{n}" for n in range(7)]
    assert page.locator("#shown").inner_text() == "7 of 10 configurations are shown."
    assert corners(page) == [fronts[0], []]
    # without OpenVINO the front runs over what it beat before
    page.get_by_role("checkbox", name="OpenVINO", exact=True).uncheck()
    assert shown(page) == ["row-0", "row-1", "row-4", "row-5", "row-6"]
    assert len(corners(page)[0]) == 2
    assert corners(page)[0] != fronts[0]
    assert sorted(targets(page, ".scatter.wide .point.on-front:visible")) == ["row-0", "row-1"]
    page.get_by_role("checkbox", name="FP32", exact=True).uncheck()
    assert shown(page) == ["row-1", "row-5", "row-6"]
    # sorting goes on working, and keeps what is hidden hidden
    page.locator("#table thead button", has_text="Latency").click()
    assert shown(page) == ["row-1", "row-5", "row-6"]
    page.get_by_role("button", name="Show all").click()
    wait_until(page, "document.getElementById('shown').textContent.startsWith('All 10')")
    assert len(shown(page)) == 10
    assert corners(page) == fronts
    page.get_by_role("checkbox", name="squeezenet", exact=True).uncheck()
    assert "row-9" not in shown(page)
    assert page.locator(".bars + h3:visible, h3:visible", has_text="squeezenet").count() == 0


def test_filters_work_by_keyboard(open_page: OpenPage) -> None:
    page = open_page(everything_report())
    page.locator("#filters input").first.focus()
    page.keyboard.press("Space")
    assert len(shown(page)) < 10
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "checkbox"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_without_a_choice_there_are_no_filters(open_page: OpenPage) -> None:
    page = open_page(replace(full_report(), results=full_report().results[:1]))
    assert page.locator("#filters").count() == 0


def test_without_a_script_all_is_shown_and_no_filter_pretends(open_page: OpenPage) -> None:
    page = open_page(everything_report(), java_script_enabled=False)
    assert not page.locator("#filters").is_visible()
    assert page.locator("#table tbody tr:visible").count() == 10


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (390, "light"), (1200, "dark")])
def test_everything_fits_and_can_be_read(open_page: OpenPage, width: int, scheme: str) -> None:
    page = open_page(everything_report(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = luminance(page.locator("#filters").evaluate("node => getComputedStyle(node).backgroundColor"))
    for selector in ("#filters legend", "#filters label", "#shown", "#filters button"):
        ink = luminance(page.locator(selector).first.evaluate("node => getComputedStyle(node).color"))
        assert (max(ink, background) + 0.05) / (min(ink, background) + 0.05) >= 4.5, selector
    # a thumb hits what is 24 pixels high (WCAG 2.2, target size)
    assert page.locator("#filters label").first.evaluate("node => node.getBoundingClientRect().height") >= 24


def test_scenarios_tails_flags_and_layers_are_on_the_page(open_page: OpenPage) -> None:
    page = open_page(everything_report())
    assert column(page, "Server")[-3:].count("–") == 2
    assert "97.0 (p99 ≤ 25 ms)" in column(page, "Server")
    assert "231" in column(page, "Offline")
    assert "missed" in column(page, "Quality")
    assert "12.3" in column(page, "Energy")
    told = [text for text in column(page, "p99") if text != "–"]
    assert told == ["52.0 (7.20–9.00)"]
    assert len([text for text in column(page, "p90") if text != "–"]) == 9
    text = page.locator("main").inner_text()
    assert "frequency fell: from 2400 to 1500 MHz <while> it ran" in text
    assert "Server: the network's batch is fixed to 4" in text
    assert "2400 MHz (3 ×) → 1500 MHz (3 ×)" in text
    assert "not available: no thermal zone" in text
    assert page.locator("em", has_text="flagged").get_attribute("title") is not None
    page.locator("summary").click()
    assert "conv1<b>" in page.locator("details").inner_text()
    assert "75.0%" in page.locator("details").inner_text()
    # what can be hit by mouse has a name to be read aloud
    unnamed = page.locator("svg.scatter:not([aria-label]), .point:not([aria-label]), input:not([id]):not(label input)")
    assert unnamed.count() == 0


def test_the_course_of_a_history_is_a_page(browser: Any, tmp_path: Path) -> None:
    from edgevision_benchmarks.report.course import save_course

    trouble: list[str] = []
    written = save_course(everything_report(), tmp_path).resolve()
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto(written.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # of mobilenet_v2 and squeezenet latency and accuracy
    assert page.locator("svg.scatter:visible").count() == 4
    assert page.locator("svg.scatter:visible .point").count() == 18
    assert page.locator("table tbody tr").count() == 9
    context.close()
    assert trouble == []
