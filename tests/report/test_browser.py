"""The page in a browser: headless Chromium, driven by playwright."""

import os
import re
import shutil
from dataclasses import replace

import pytest

from aa_flax.report import html as page
from aa_flax.report.rows import gather
from tests.report.some_results import OFFSETS, write_results

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium, or CHROMIUM="),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pytest.importorskip("plotly", reason="plotly is missing: pip install 'aa_flax[html]'")
    folder = tmp_path_factory.mktemp("report")
    rows = gather(write_results(folder)).rows
    long = replace(rows[0], model="a_" + 40 * "long" + "_name", label=90 * "label")
    return page.write_page(folder / "report.html", [long, *rows], [90 * "left_out"])


@pytest.fixture(scope="module")
def browser():
    reason = "playwright is missing: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module", params=[1280, 390], ids=["desk", "phone"])
def opened(request, browser, path):
    """Returns the page at a width in pixels, shared by the tests; its console must stay empty."""
    tab = browser.new_page(viewport={"width": request.param, "height": 800}, offline=True)
    messages = []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("requestfailed", lambda one: messages.append(one.url))
    tab.set_default_timeout(120_000)  # milliseconds, for busy machines
    tab.goto(path.as_uri())
    tab.wait_for_selector("body[data-drawn=yes]")
    yield tab
    tab.close()
    assert messages == []


def column(tab, number):
    cells = tab.locator(f"#results tbody tr > :nth-child({number})")
    return [re.split(" [±(]", text)[0] for text in cells.all_inner_texts()]


def test_a_click_on_a_head_sorts_by_its_column_and_a_second_click_reverses(opened):
    by_consistency = opened.locator("#results thead button").nth(2)
    for order in ("descending", "ascending"):
        by_consistency.click()
        numbers = [float(cell) for cell in column(opened, 3)]
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert opened.locator("#results th[aria-sort]").get_attribute("aria-sort") == order
    opened.locator("#results thead button").first.press("Enter")
    assert column(opened, 1) == sorted(column(opened, 1))


def test_the_slider_moves_the_image_and_the_mark_in_the_chart(opened):
    seen = []
    for offset in (0, OFFSETS - 1):
        opened.locator("#walk-offset").fill(str(offset))
        assert opened.locator("#walk-shift").inner_text() == f"{offset} pixels down and right"
        mark = opened.evaluate("document.getElementById('walk-chart').layout.shapes[0].x0")
        corner = opened.locator("#walk-photo").bounding_box()
        window = opened.locator("#walk-window").bounding_box()
        seen.append((mark, window["x"] - corner["x"], window["y"] - corner["y"]))
    pixel = opened.locator("#walk-photo").bounding_box()["width"] / 20  # of the image
    assert [mark for mark, _, _ in seen] == [0, OFFSETS - 1]
    for axis in (1, 2):
        moved = seen[1][axis] - seen[0][axis]
        assert moved == pytest.approx((OFFSETS - 1) * pixel, abs=0.5)


def test_the_chosen_models_and_image_are_drawn(opened):
    opened.locator("#walk-group").select_option(label="resnet18")
    opened.locator("#walk-image").select_option(label="image 2: two")
    names = opened.evaluate("document.getElementById('walk-chart').data.map((one) => one.name)")
    assert names == ["resnet18", "resnet18_lpf2", "resnet18_lpf4"]
    assert opened.locator("#walk-numbers tbody tr").count() == 3
    assert "image 2: two" in opened.locator("#walk-caption").inner_text()


def test_names_are_shown_at_the_pointer(opened):
    mark = opened.locator("[data-chart=consistency] .scatterlayer .trace .points path").last
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown = opened.locator("[data-chart=consistency] .hoverlayer .hovertext")
    shown.wait_for()
    assert "resnet18_lpf4" in shown.text_content()


def test_charts_follow_the_readers_dark_mode(opened):
    seen = []
    for scheme in ("dark", "light"):
        opened.emulate_media(color_scheme=scheme)
        opened.wait_for_function(
            "(colour) => document.querySelector('.chart').layout.plot_bgcolor === colour",
            arg={"dark": "#1c1c1c", "light": "#fff"}[scheme],
        )
        seen.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(18, 18, 18)", "rgb(250, 250, 250)"]


def test_nothing_is_wider_than_the_screen(opened):
    width = opened.viewport_size["width"]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    for chart in opened.locator(".chart").all():
        assert chart.bounding_box()["width"] <= width
