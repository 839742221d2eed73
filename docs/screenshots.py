"""Takes the pictures of the documents: the real webserver, the real daemon, a real browser.

`make screenshots` embeds sample shards by a backfill of the UI, checks them, and writes docs/images/*.png.
It needs Chromium. With `--keep DIR` the project that it makes stays there, and is used again the next time.
"""

import argparse
import io
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from boring_assets.datasets import ASSET_KEY
from boring_assets.sample_data import write_sample_data
from tests.e2e.processes import Home, Webserver, wait_for
from tests.e2e.test_backfill import LAUNCH, backfill
from tests.seaweed import free_ports

IMAGES = Path(__file__).parent / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHARDS, CHOSEN, PICTURES, BROKEN = 22, 19, 48, 3
# One shard is cut off, and of one too many images are broken.
CUT_OFF, BAD = 16, 11
COLORS = 96
MOST_BYTES = 200_000
PATIENCE_MS = 120_000
SETTLE_MS = 3_000
WIDTH = 1280


def main() -> None:
    """Makes a project with something to see in it, and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="Folder of the project; a temporary one by default.")
    parser.add_argument("--only", nargs="*", help="Only these pictures.")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("There is no Chromium. Install it; on Debian: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary) / "photos"
        home = Home(root) if (root / "output").exists() else Home.make(root)
        with home.webserver() as server:
            if not home.committed():
                fill(home, server)
            with searching(home) as search_page:
                take(server, search_page, options.only)


def fill(home: Home, server: Webserver) -> None:
    """Embeds most of the shards by a backfill, and checks the output."""
    new = home.root / "new"
    write_sample_data(new, SHARDS, PICTURES, "webdataset", broken=BROKEN)
    write_sample_data(new, 1, PICTURES, "webdataset", broken=3 * BROKEN, first_shard=BAD)
    home.publish(new)
    with (home.input / f"{CUT_OFF:05d}.tar").open("r+b") as tar:
        tar.truncate(100_000)
    home.register()
    keys = [f"{number:05d}" for number in range(CHOSEN)]
    params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}], "title": "First shards"}
    launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
    with home.daemon():
        home.wait_for_runs(1)
        wait_for(lambda: is_over(server, launched["backfillId"]), "the backfill is complete")
    checked = home.run(
        "dagster", "job", "execute", "-m", "boring_assets.definitions", "-j", "check_embeddings"
    )
    assert checked.returncode == 0, checked.stderr


def is_over(server: Webserver, backfill_id: str) -> bool:
    """Whether a backfill has ended, as far as the webserver answers."""
    try:
        return bool(backfill(server, backfill_id)["status"].startswith("COMPLETED"))
    except (urllib.error.URLError, TimeoutError):
        return False


@contextmanager
def searching(home: Home) -> Iterator[str]:
    """Runs `boring-assets serve`; gives its address."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(url, timeout=60).status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    with home.start("boring-assets", "serve", "--port", str(port)):
        wait_for(answers, "the search page answers")
        yield url


def take(server: Webserver, search_page: str, only: list[str] | None) -> None:
    """Takes every picture, or only some."""
    asset = f"{server.url.removesuffix('/graphql')}/assets/{ASSET_KEY.path[0]}"
    pictures: dict[str, tuple[int, Callable[[Page], None]]] = {
        "asset": (940, lambda page: show(page, f"{asset}?view=partitions&partition={CUT_OFF:05d}", "Failed")),
        "materialization": (
            900,
            lambda page: contact_sheet(page, f"{asset}?view=partitions&partition=00003"),
        ),
        "checks": (800, lambda page: show(page, f"{asset}?view=checks&checkDetail=failure_rate", "Metadata")),
        "overview": (800, lambda page: show(page, f"{asset}?view=overview", "Latest materialization")),
        "search": (700, lambda page: show(page, f"{search_page}/?q=two+red+circles", "two red circles")),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, (height, open_it) in pictures.items():
            if only and name not in only:
                continue
            page = browser.new_page(viewport={"width": WIDTH, "height": height})
            page.set_default_timeout(PATIENCE_MS)
            open_it(page)
            page.wait_for_timeout(SETTLE_MS)
            save(name, page)
            page.close()
        browser.close()


def show(page: Page, url: str, text: str) -> None:
    """Opens a page, and waits until a text stands in it."""
    page.goto(url)
    page.get_by_text(text).first.wait_for()


def contact_sheet(page: Page, url: str) -> None:
    """A partition's materialization, with the pictures that it was made from opened."""
    show(page, url, "contact_sheet")
    row = page.locator("tr", has_text="contact_sheet").last
    row.scroll_into_view_if_needed()
    row.get_by_text(re.compile("Show Markdown", re.IGNORECASE)).click()


def save(name: str, page: Page) -> None:
    """Writes what the browser shows, in few colours."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = IMAGES / f"{name}.png"
    shot.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    assert size < MOST_BYTES, f"{path} is larger than {MOST_BYTES:,} bytes"


if __name__ == "__main__":
    main()
