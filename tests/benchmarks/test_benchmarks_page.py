"""The published page in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_samples import PROVENANCE, full_report

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
    assert column(page, "Top-1")[0] == "83.0%"
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
    shares = [float(text.rstrip("%")) for text in column(page, "Top-1") if text != "–"]
    assert shares == sorted(shares, reverse=True)
    page.keyboard.press("Space")
    shares = [float(text.rstrip("%")) for text in column(page, "Top-1") if text != "–"]
    assert shares == sorted(shares)


def test_points_lead_to_their_rows(open_page: OpenPage) -> None:
    page = open_page(full_report())
    points = page.locator(".scatter.wide .point")
    assert points.count() == 6
    page.locator(".scatter.wide .point[aria-label^='OpenVINO INT8']").click()
    assert page.url.endswith("#row-3")
    row = page.locator("#row-3")
    assert "OpenVINO" in row.inner_text()
    page.wait_for_function("document.getElementById('row-3').getBoundingClientRect().top < innerHeight")


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
