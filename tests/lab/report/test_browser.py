"""The report in a real browser: drawn, without errors, without requests, readable everywhere."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from isoflop.lab.report import write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "page.html"
    write_report(trained, out)
    return out


def opened(browser, page, theme, width):
    """Open the page and wait until it is drawn; return the number of plots."""
    from selenium.webdriver.support.ui import WebDriverWait

    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    drawn = "return document.documentElement.dataset.drawn"
    return int(WebDriverWait(browser, 120).until(lambda driver: driver.execute_script(drawn)))


def screenshot(browser):
    return np.array(Image.open(io.BytesIO(base64.b64decode(browser.get_screenshot_as_base64()))))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_is_drawn_without_errors_and_requests(browser, page, theme, width):
    plots = opened(browser, page, theme, width)
    counts = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(div => "
        "div.querySelectorAll('.trace path, .points path, .bars path, .hm image').length)"
    )
    assert len(counts) == plots > 8
    assert min(counts) > 0
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in urls
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    # Nothing sticks out to the side but tables in their own scrolling boxes.
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    scroll, inner = browser.execute_script(wide)
    assert scroll <= inner
    picture = screenshot(browser)[..., :3]
    assert picture.shape[1] == width
    background = np.median(picture.reshape(-1, 3), axis=0)
    assert (background > 240).all() if theme == "light" else (background < 40).all()
    assert picture.std() > 5  # something is on it


def test_a_change_of_the_theme_is_followed(browser, page):
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, page, "light", 1280)
    color = (
        "return getComputedStyle(document.querySelector('.plot .xtick text')).fill.match(/\\d+/g)"
    )
    before = browser.execute_script(color)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(color) != before)
    after = browser.execute_script(color)
    assert int(before[0]) < 100 < 200 < int(after[0])


def test_hostile_names_run_nothing(browser, make_run, tmp_path):
    hostile = "</script><script>window.broken=1</script><img src=x onerror=window.broken=2>"
    run = make_run("run", 0, 90.0, sparsity=0.5, transform="wide", method=hostile, recipe=hostile)
    write_report([run], tmp_path / "page.html", title=hostile)
    opened(browser, tmp_path / "page.html", "light", 1280)
    assert browser.execute_script("return window.broken") is None
    assert browser.execute_script("return document.title") == hostile
    assert browser.get_log("browser") == []
    title = browser.execute_script("return document.querySelector('.annotation-text').textContent")
    assert title.startswith("</script>")  # shown as it is written
