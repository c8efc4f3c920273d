"""A real browser, without a window: Debian's Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from .oracles import missing

FLAGS = (
    "--headless",
    "--no-sandbox",  # for root, as in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--lang=en-GB",
    "--window-size=1200,1000",
)


@contextmanager
def running_browser(profile: Path) -> Iterator[Chrome]:
    """Start Chromium with an empty profile, and end it."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        missing("chromium or its chromedriver")
    options = ChromeOptions()
    options.binary_location = str(browser)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, Service(str(driver)))
    try:
        yield chrome
    finally:
        chrome.quit()


def command(chrome: Chrome, name: str, **parameters: Any) -> None:
    """Give Chromium a command of its DevTools protocol."""
    chrome.execute_cdp_cmd(name, parameters)


def dark(chrome: Chrome, on: bool) -> None:
    """Have the browser prefer dark pages, or light ones."""
    feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
    command(chrome, "Emulation.setEmulatedMedia", features=[feature])


def phone(chrome: Chrome) -> None:
    """Have the browser be as wide as a phone."""
    command(chrome, "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)


def speak(chrome: Chrome, language: str) -> None:
    """Have the browser prefer a language, from the next page on."""
    agent = chrome.execute_script("return navigator.userAgent")
    command(chrome, "Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
