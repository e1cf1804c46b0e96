"""Photographs TensorBoard's pages: `python docs/screenshot.py --logdir lightning_logs`.

`scalars` shows three runs, so its curves have three colors. The other pages show a single run:

    for s in 0.8 0.9 0.98; do
        lightning-prune fit --config configs/digits.yaml --pruning.sparsity $s \
            --trainer.logger.save_dir sparsities --trainer.logger.version sparsity_$s
    done
    python docs/screenshot.py --logdir sparsities/lightning_logs --pages scalars
"""

import argparse
import base64
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

CHARTS = ("val_acc and sparsity", "sparsity and target", "sparsity by layer: net")
_TIMEOUT = 60  # seconds to wait for a page
_SHARPNESS = 2  # pixels of a picture for each pixel of the window
_DRAWING = 3  # seconds that the curves take
_STOPPING = 10  # seconds that TensorBoard may take to stop


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A part of a page of TensorBoard.

    Args:
        page: Name of the page.
        texts: What the page says once it is there.
        tags: Regular expression of the tags; empty for all.
        window: Width and height of the window, in pixels.
        part: Left, top, width and height of the part, in pixels; None for the whole window.
    """

    page: str
    texts: Sequence[str]
    tags: str = ""
    window: tuple[int, int] = (1090, 1500)
    part: tuple[int, int, int, int] | None = None


PICTURES = {
    "tensorboard": Picture(page="custom_scalars", texts=CHARTS, part=(282, 72, 805, 690)),
    "scalars": Picture(
        page="timeseries",
        texts=("sparsity", "2 cards"),
        tags="^(sparsity|val_acc)$",
        window=(1560, 760),
        part=(316, 156, 980, 440),
    ),
    "picture": Picture(page="images", texts=("over_sparsity",), part=(282, 126, 385, 345)),
    "table": Picture(page="text", texts=("tensor", "sparsity"), part=(282, 742, 805, 400)),
}


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Yield the address of a TensorBoard on a free port of loopback, and stop it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _TIMEOUT
        while not _answers(f"{url}/data/runs"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"TensorBoard did not start on {logdir}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def browser(
    width: int = 1400, height: int = 880, chromium: str | None = None
) -> Iterator[webdriver.Chrome]:
    """Yield a headless Chromium that talks to nothing but loopback, and close it afterwards.

    Args:
        width: Of the window, in pixels.
        height: Of the window, in pixels.
        chromium: Path of the browser; by default the one on the search path.

    Raises:
        RuntimeError: If Chromium or its driver is missing; Selenium would download them.
    """
    chromium, driver_path = chromium or shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        raise RuntimeError(
            f"need Chromium and its driver, got chromium={chromium}, chromedriver={driver_path}"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            f"user-data-dir={profile}",
            f"window-size={width},{height}",
        ):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options, Service(driver_path))
        try:
            yield driver
        finally:
            driver.quit()


def open_page(driver: webdriver.Chrome, url: str, page: str, *texts: str, tags: str = "") -> str:
    """Return what a page of TensorBoard says, once it says all of these texts.

    Args:
        driver: The browser.
        url: Address of TensorBoard.
        page: Name of the page, such as ``"custom_scalars"``.
        *texts: What to wait for.
        tags: Regular expression of the tags that ``"timeseries"`` shows; empty for all.
    """
    query = f"?tagFilter={urllib.parse.quote(tags)}" if tags else ""

    def said(driver: webdriver.Chrome) -> str | None:
        text = driver.find_element(By.TAG_NAME, "body").text
        return text if all(wanted in text for wanted in texts) else None

    driver.get(f"{url}/{query}#{page}")
    driver.refresh()  # a new fragment alone does not change the page
    return WebDriverWait(driver, _TIMEOUT).until(said, f"{page} never said {texts}")


def main() -> None:
    """Photograph the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", type=Path, required=True, help="folder of the event files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--pages", nargs="+", choices=PICTURES, default=[*PICTURES])
    parser.add_argument("--chromium", help="path of the browser, if it is not on the search path")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (
        tensorboard(arguments.logdir) as url,
        browser(chromium=arguments.chromium) as driver,
    ):
        for name in arguments.pages:
            picture = PICTURES[name]
            driver.set_window_size(*picture.window)
            open_page(driver, url, picture.page, *picture.texts, tags=picture.tags)
            time.sleep(_DRAWING)
            (arguments.output / f"{name}.png").write_bytes(_photograph(driver, picture.part))


def _photograph(driver: webdriver.Chrome, part: tuple[int, int, int, int] | None) -> bytes:
    if part is None:
        return driver.get_screenshot_as_png()
    clip = dict(zip(("x", "y", "width", "height"), part, strict=True)) | {"scale": _SHARPNESS}
    found = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    return base64.b64decode(found["data"])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
