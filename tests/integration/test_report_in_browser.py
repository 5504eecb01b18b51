"""The page of a recording, in a real browser."""

from __future__ import annotations

import pytest

from browser import CHROMIUM, browser
from prefork import Pool

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)


def fail(number):
    raise ValueError(f"<b>no</b> {number}")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    with Pool(2) as pool, pool.record() as recording:
        for number in range(10):
            pool.apply(abs, (number,))
        pool.apply_async(fail, (1,)).wait()
    recording.save(path)
    return path


@pytest.fixture
def page(report, tmp_path):
    with browser(tmp_path) as page:
        page.open(report)
        yield page
        assert page.told("Runtime.exceptionThrown", "Log.entryAdded") == []
        assert page.told("Runtime.consoleAPICalled") == []
        urls = [event["request"]["url"] for event in page.told("Network.requestWillBeSent")]
        assert {url for url in urls if not url.startswith("data:")} == {report.as_uri()}


def test_it_opens_and_draws(page):
    assert page.evaluate("document.title").endswith("report")
    assert page.evaluate("document.querySelectorAll('svg').length") >= 4
    # A bar that is there is as wide as it is long, has a colour of its own, and can be seen.
    look = "document.querySelector('#gantt rect')"
    assert page.evaluate(f"{look}.getBoundingClientRect().width") > 0
    fill = page.evaluate(f"getComputedStyle({look}).fill")
    assert fill not in (page.evaluate("getComputedStyle(document.body).backgroundColor"), "none")
    assert page.evaluate("document.querySelectorAll('#gantt rect').length") == 11
    assert page.evaluate("document.querySelectorAll('#gantt rect.bad').length") == 1
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(fits)
    assert len(page.call("Page.captureScreenshot")["data"]) > 10_000


def test_light_and_dark(page):
    def colours(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        style = "getComputedStyle(document.body)"
        return [page.evaluate(f"{style}.{name}") for name in ("backgroundColor", "color")]

    assert colours("light") == ["rgb(255, 255, 255)", "rgb(28, 36, 48)"]
    assert colours("dark") == ["rgb(20, 24, 31)", "rgb(228, 232, 238)"]


def test_everything_can_be_reached_by_the_keyboard(page):
    reached = []
    for _ in range(40):
        page.press("Tab")
        where = page.evaluate(
            "(({id, tagName, hash}) => id || hash || tagName)(document.activeElement)"
        )
        if where in reached and where == reached[0]:
            break
        reached.append(where)
    names = ["timeline", "times", "waiting", "memory", "failures", "functions", "workers"]
    assert reached[0] == "#main"
    assert [f"#{name}" for name in names] == reached[1 : len(names) + 1]
    assert "gantt" in reached
    assert "SUMMARY" in reached


def test_runs_can_be_walked_through(page):
    """Each worker's are a row; how many of the runs each has is not known."""
    told = "document.getElementById('told').textContent"
    page.evaluate("document.getElementById('gantt').focus()")
    page.press("ArrowRight")
    texts = []
    for row in ("ArrowUp", "ArrowDown"):
        page.press(row)
        page.press("Home")
        for _ in range(11):
            texts.append(page.evaluate(told))
            page.press("ArrowRight")
    assert len(set(texts)) == 11
    assert sum("builtins.abs job " in text for text in set(texts)) == 10
    assert any(text.endswith("it has failed") for text in texts)
    page.press("ArrowLeft")
    page.press("End")
    assert page.evaluate(told) == texts[-1]
    assert page.evaluate("document.querySelectorAll('#gantt rect.on').length") == 1


def test_a_stack_can_be_opened(page):
    look = "document.querySelector('details')"
    assert page.evaluate(f"{look}.open") is False
    page.evaluate(f"{look}.querySelector('summary').focus()")
    page.press("Enter")
    assert page.evaluate(f"{look}.open") is True
    text = page.evaluate(f"{look}.innerText")
    assert "<b>no</b> 1" in text
    assert "raise ValueError" in text
