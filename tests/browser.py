"""Opens a page from disk in headless Chromium and says what the page did there."""

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
REMEDY = "install them, e.g. apt-get install chromium chromium-driver"


def _program(*names: str) -> str | None:
    found = (shutil.which(name) or shutil.which(name, path="/usr/bin") for name in names)
    return next(filter(None, found), None)


@dataclass
class Page:
    """A page that is open in a browser."""

    driver: Any

    def show(self, page: Path, *, width: int, dark: bool = False) -> None:
        """Open a file at a width (in CSS pixels), in a light or dark theme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        self.driver.get("about:blank")
        self.console(), self.requests()  # what the browser's own start page did is not the page's
        self.driver.get(page.resolve().as_uri())

    def ask(self, script: str) -> Any:
        """Return what an expression of JavaScript gives on the page."""
        return self.driver.execute_script(f"return {script};")

    def console(self) -> list[str]:
        """Return what the console has said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since this was last asked."""
        logged = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        sent = (m["params"] for m in logged if m["method"] == "Network.requestWillBeSent")
        return [params["request"]["url"] for params in sent]

    def screenshot(self, path: Path) -> Path:
        """Write a picture of the whole page."""
        whole = {"captureBeyondViewport": True, "format": "png"}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path


@contextmanager
def browser() -> Iterator[Page]:
    """Start a browser with a fresh profile; skip the test where there is none.

    With ``EQUIPOISE_REQUIRE_BROWSER`` set, as in CI, the test fails instead.
    """
    chromium = _program("chromium", "chromium-browser", "google-chrome")
    chromedriver = _program("chromedriver")
    if not chromium or not chromedriver:
        missing = f"Chromium or chromedriver is not installed; {REMEDY}"
        if os.environ.get("EQUIPOISE_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=chromedriver)
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield Page(driver)
        finally:
            driver.quit()
