"""The page of `lab view` in a headless Chromium: live figures, a packet replayed, a fault made and healed by keyboard.

Pictures of it are in build/view/ afterwards.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.view import View, viewed

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
from selenium.webdriver.chrome.webdriver import WebDriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402 - only where it is installed
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no Chromium with its driver (apt-get install chromium chromium-driver)",
    ),
]
PICTURES = Path(__file__).parents[2] / "build" / "view"
MOST_TABS = 100


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1000"]
    for argument in [*arguments, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE_S)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: WebDriver, view: View) -> Iterator[WebDriver]:
    """The page, freshly opened and drawn; nothing was wrong in the browser's eyes afterwards."""
    browser.get(view.url)
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#drawing svg"))
    yield browser
    assert browser.execute("getLog", {"type": "browser"})["value"] == []
    browser.get("about:blank")


def wait(browser: WebDriver, condition: Callable[[], object]) -> None:
    WebDriverWait(browser, PATIENCE_S, poll_frequency=0.1).until(lambda _: condition())


def text(browser: WebDriver, selector: str) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, selector).text)


def tab_to(browser: WebDriver, selector: str) -> None:
    """Go on with the Tab key until what is meant has the focus, and shows it."""
    for _ in range(MOST_TABS):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.execute_script("return document.activeElement.matches(arguments[0])", selector):
            outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"
            return
    raise AssertionError(f"no Tab leads to {selector}")


def press(browser: WebDriver, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


@contextmanager
def pings(lab: Lab) -> Iterator[None]:
    """Let packets pass between the pods for the block."""
    done = threading.Event()
    source, target = lab.pods()

    def send() -> None:
        while not done.wait(0.05):
            ping(source, [target.ip], timeout_s=0.5)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        done.set()
        sender.join()


def test_a_lesson_is_checked_at_a_click(lab: Lab, page: WebDriver) -> None:
    # First: whatever pings the pods makes the step done.
    assert text(page, "#lesson-title") == "Lesson 1: A packet's way"
    assert text(page, "#lesson-step") == "Step 1 of 3: ping"
    tab_to(page, "[data-learn='check']")
    press(page, Keys.ENTER)
    wait(page, lambda: text(page, "#lesson-found").startswith("Not yet:"))
    source, target = lab.pods()
    source.run(["ping", "-c", "3", "-i", "0.2", str(target.ip)])
    press(page, Keys.ENTER)
    wait(page, lambda: text(page, "#lesson-found").startswith("The step ping is done."))
    wait(page, lambda: text(page, "#lesson-step") == "Step 2 of 3: ttl")
    tab_to(page, "[data-learn='hint']")
    press(page, Keys.ENTER)
    wait(page, lambda: text(page, "#lesson-found").startswith("Hint 1 of 3:"))


def test_figures_are_live_in_the_tables_and_in_the_drawing(lab: Lab, page: WebDriver) -> None:
    row = "#links tr[data-name='h2/p1']"
    wait(page, lambda: text(page, f"{row} td:nth-of-type(3)") == "0 bit/s")
    with pings(lab):
        wait(page, lambda: "kbit/s" in text(page, f"{row} td:nth-of-type(3)"))
        wait(page, lambda: "kbit/s" in text(page, "[data-rates='h2/p1'].busy"))
    for host in lab.hosts:
        shown = text(page, f"#hosts tr[data-name='{host.name}']")
        assert f"ready (process {host.agent_pid()})" in shown
        assert str(host.subnet) in shown
    assert text(page, "#faults") == "all is as it was built"


def test_a_fault_is_made_and_healed_by_keyboard_alone(lab: Lab, page: WebDriver) -> None:
    tab_to(page, "#where")
    press(page, "h")  # the choices' first letters, as a keyboard chooses
    press(page, Keys.HOME)
    press(page, Keys.ARROW_DOWN)
    press(page, Keys.ARROW_DOWN)
    assert page.find_element(By.ID, "where").get_property("value") == "h2"
    tab_to(page, "[data-change='cut link']")
    assert page.switch_to.active_element.text == "Cut the link h2"
    press(page, Keys.ENTER)
    wait(page, lambda: text(page, "#faults") == "the link h2 is cut")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#drawing .f[data-link='h2']"))
    wait(page, lambda: "h2: the link is cut" in text(page, "#done"))
    assert f"flannel-udp lab cut h2 --name {lab.name}" in text(page, "#done")
    assert text(page, "#links tr[data-name='h2'] td") == "cut"
    tab_to(page, "[data-change='heal']")
    press(page, Keys.SPACE)
    wait(page, lambda: text(page, "#faults") == "all is as it was built")
    wait(page, lambda: "h2: the link is plugged in again" in text(page, "#done"))


def test_what_fails_is_said_in_the_page(page: WebDriver) -> None:
    tab_to(page, "[data-change='start host']")
    press(page, Keys.ENTER)
    wait(page, lambda: "failed: exit code 1: h1: the agent runs already" in text(page, "#done .error"))


def test_a_packet_is_replayed_step_by_step(page: WebDriver) -> None:
    tab_to(page, "#send")
    press(page, Keys.ENTER)
    wait(page, lambda: text(page, "#packet-end") == "it arrived")
    assert len(page.find_elements(By.CSS_SELECTOR, "#steps > li")) == 5
    assert text(page, "#position").startswith("step 1 of 5: h1/p1 eth0: ")
    assert page.find_elements(By.CSS_SELECTOR, "[data-node='h1/p1'].now")
    tab_to(page, "#next")
    for _ in range(4):
        press(page, Keys.ENTER)
    assert text(page, "#position").startswith("step 5 of 5: h2/p1 eth0: ")
    assert page.find_elements(By.CSS_SELECTOR, "[data-node='h2/p1'].now")
    assert "TTL 60" in text(page, "#steps [aria-current]")
    page.find_element(By.ID, "play").send_keys(Keys.ENTER)
    wait(page, lambda: text(page, "#position").startswith("step 2 of 5"))
    page.find_element(By.ID, "ask").send_keys(Keys.ENTER)
    wait(page, lambda: text(page, "#packet-end").startswith("delivered: "))
    page.find_element(By.CSS_SELECTOR, "#steps summary").send_keys(Keys.ENTER)
    assert "TTL: 64" in text(page, "#steps table")


def test_the_page_fits_a_narrow_screen_and_has_two_schemes(page: WebDriver) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    backgrounds = set()
    for name, width, scheme in (("light", 1300, "light"), ("dark", 1300, "dark"), ("narrow", 400, "light")):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wait(page, lambda: drawn_for_this_width(page))
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        backgrounds.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        page.save_screenshot(str(PICTURES / f"{name}.png"))
    assert len(backgrounds) == 2
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def drawn_for_this_width(page: WebDriver) -> bool:
    return bool(
        page.execute_script(
            "const place = document.getElementById('drawing'), picture = place.querySelector('svg');"
            "return picture && picture.getBoundingClientRect().width <= place.clientWidth"
        )
    )


def test_a_page_that_is_left_open_says_that_its_lab_is_gone(browser: WebDriver) -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab, viewed(lab.name) as view:
        browser.get(view.url)
        wait(browser, lambda: text(browser, "#connection") == "live, once a second")
        lab.down()
        wait(browser, lambda: text(browser, "#end") == f"the lab {lab.name} is gone")
        assert not browser.find_element(By.CSS_SELECTOR, "[data-change='heal']").is_enabled()
    browser.get("about:blank")
