"""The report in a real Chromium without network."""

import base64
import dataclasses

import pytest

from d2_smallobj.report.html import write_report
from d2_smallobj.statistics.comparison import compare_runs

PHONE, DESKTOP = 390, 1280
OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"


@pytest.fixture(scope="module")
def report(scenes, tmp_path_factory):
    """Three methods with intervals, a comparison and pictures."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, scenes, comparison=compare_runs(scenes, samples=50))
    return path


@pytest.fixture(scope="module")
def single(scenes, tmp_path_factory):
    """One method."""
    path = tmp_path_factory.mktemp("report") / "single.html"
    write_report(path, scenes[:1], max_thumbnails=4)
    return path


def column(browser, number):
    return browser.run(
        "[...document.querySelectorAll('#class-table tbody tr')]"
        f".map(row => row.cells[{number}].getAttribute('data-value'))"
    )


def heading(browser, number):
    return browser.run(
        f"document.querySelectorAll('#class-table thead th')[{number}].getAttribute('aria-sort')"
    )


def assert_sorted(values, *, up):
    """Numbers are in order, undefined ones at the end either way."""
    numbers = [float(value) for value in values if value]
    assert numbers == sorted(numbers, reverse=not up)
    assert not any(values[len(numbers) :])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_loads_without_a_word_and_without_network(browser, report, single, width, scheme):
    for path in (single, report):
        browser.open(path, width=width, scheme=scheme)
        browser.run(OPEN_ALL)
        # Pictures load when they come into view; decode() fails on one that is broken.
        pictures = "[...document.images].map(i => (i.loading = 'eager', i.decode()))"
        browser.run(f"Promise.all({pictures}).then(() => 1)")
        assert browser.run("document.images.length") > 0
        assert browser.problems() == []
        assert browser.requests() == [path.as_uri()]
        # Nothing sticks out at the side: wide tables scroll in their own boxes.
        assert browser.run("document.documentElement.scrollWidth") == width
    ratio, where = browser.least_contrast()
    assert 4.5 <= ratio < 99, where


def test_a_click_on_a_heading_sorts(browser, single):
    rows = (
        "[...document.querySelectorAll('#class-table tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent).join('|'))"
    )
    browser.open(single)
    before, figures, whole = column(browser, 0), column(browser, 4), browser.run(rows)
    # The background has no sizes, a class may have no large objects.
    assert "" in figures
    head = "#class-table thead th:nth-child(5) button"
    browser.click(head)
    assert heading(browser, 4) == "descending"
    assert_sorted(column(browser, 4), up=False)
    assert column(browser, 0) != before
    # Rows stay whole.
    assert sorted(browser.run(rows)) == sorted(whole)
    browser.click(head)
    assert heading(browser, 4) == "ascending"
    assert_sorted(column(browser, 4), up=True)
    assert sorted(column(browser, 4)) == sorted(figures)
    browser.click("#class-table thead th:nth-child(1) button")
    assert (heading(browser, 0), heading(browser, 4)) == ("ascending", "none")
    assert column(browser, 0) == sorted(before)
    assert browser.problems() == []


@pytest.mark.parametrize(("key", "code"), [("Enter", 13), (" ", 32)])
def test_the_keyboard_sorts_too(browser, single, key, code):
    browser.open(single)
    browser.run("document.querySelector('#class-table thead th:nth-child(1) button').focus()")
    browser.key("Tab", 9)
    assert browser.run("document.activeElement.closest('th').cellIndex") == 1
    browser.key(key, code)
    assert heading(browser, 1) == "descending"
    assert_sorted(column(browser, 1), up=False)


def test_one_figure_at_a_time_and_sizes_sort_by_size(browser, report):
    shown = (
        "[...document.querySelectorAll('#class-table thead th')].filter(th => th.checkVisibility())"
        ".map(th => th.querySelector('button').innerText.replace(/\\s+/g, ' ').trim())"
    )
    browser.open(report)
    assert browser.run(shown)[1:4] == ["IA-IoU Coarse", "IA-IoU Fine", "IA-IoU Weak"]
    choose = (
        "(s => {{s.value = '{}'; s.dispatchEvent(new Event('change'))}})"
        "(document.querySelector('[data-table=class-table]'))"
    )
    browser.run(choose.format("IA-IoU_S"))
    assert all(name.startswith("IA-IoU_S ") for name in browser.run(shown)[1:4])
    browser.run(choose.format(""))
    assert len(browser.run(shown)) == 1 + 6 * 3 + 4
    browser.click("#size-table thead th:nth-child(1) button")
    names = "[...document.querySelectorAll('#size-table tbody th')].map(cell => cell.textContent)"
    assert " ".join(dict.fromkeys(browser.run(names))) == "all S (small) M (medium) L (large)"


def test_the_theme_follows_the_system_until_it_is_chosen(browser, report):
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(report, scheme="light")
    light = browser.run(ground)
    browser.scheme("dark")
    dark = browser.run(ground)
    assert light != dark
    browser.scheme("light")
    browser.click("#theme")
    assert browser.run(ground) == dark
    assert browser.run("document.getElementById('theme').textContent") == "☀ Light"
    browser.scheme("dark")
    browser.click("#theme")
    assert browser.run(ground) == light
    browser.run("localStorage.clear()")


def test_everything_is_there_without_scripts(browser, report):
    browser.open(report, scripts=False)
    try:
        # Scripts of the page are off; the test's own still run.
        assert not browser.run("document.documentElement.classList.contains('scripted')")
        assert browser.run("document.querySelectorAll('#class-table thead th').length") == 23
        hidden = "[...document.querySelectorAll('td, th')].filter(c => c.hidden).length"
        assert browser.run(hidden) == 0
        assert not browser.run("document.getElementById('theme').checkVisibility()")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_names_do_nothing(browser, hostile, tmp_path):
    path = tmp_path / "hostile.html"
    write_report(path, hostile, comparison=compare_runs(hostile, samples=50), title="<script>")
    browser.open(path)
    browser.run(OPEN_ALL)
    for kind in ("load", "mouseover"):
        event = f"new Event('{kind}')"
        browser.run(f"document.querySelectorAll('*').forEach(e => e.dispatchEvent({event}))")
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.problems() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.run("document.title") == "<script>"


def test_an_injected_script_would_be_stopped(browser, report, tmp_path):
    # The policy is the second line of defence: see that it holds.
    path = tmp_path / "injected.html"
    injected = "</main><img src=x onerror='window.pwned=1'><script>window.pwned=1</script>"
    path.write_text(report.read_text("utf-8").replace("</main>", injected), "utf-8")
    browser.open(path)
    assert browser.run("typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in str(problem) for problem in browser.problems())
    assert browser.blocked() == len(browser.requests()) - 1 == 1


def test_prints_light_and_without_controls(browser, report):
    browser.open(report, scheme="dark")
    browser.scheme("dark", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not browser.run("document.querySelector('nav').checkVisibility()")
    assert not browser.run("document.getElementById('theme').checkVisibility()")
    ratio, where = browser.least_contrast()
    assert ratio >= 4.5, where
    pdf = browser.call("Page.printToPDF", printBackground=False)["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")
    browser.scheme("light")


def test_many_methods_with_long_names_fit(browser, scenes, tmp_path):
    runs = [
        dataclasses.replace(run, name=f"{run.name}_with_a_name_that_does_not_end_{index}" * 2)
        for index in range(3)
        for run in scenes
    ]
    path = tmp_path / "many.html"
    write_report(path, runs, max_thumbnails=2, title="a_title_without_any_space" * 5)
    for width in (DESKTOP, PHONE):
        browser.open(path, width=width)
        assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.problems() == []
