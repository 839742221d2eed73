"""Takes the pictures of the documents: the real webserver, the real daemon, a real browser.

`make screenshots` embeds sample shards by a backfill of the UI, checks them, and writes docs/images/*.png.
It needs Chromium. With `--keep DIR` the project that it makes stays there, and is used again the next time.
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from boring_assets.catalogue import ASSET_KEY
from boring_assets.sample_data import write_sample_data
from tests.e2e.processes import Home, Webserver, wait_for
from tests.e2e.test_backfill import LAUNCH, backfill

IMAGES = Path(__file__).parent / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHARDS, CHOSEN, PICTURES, BROKEN = 24, 20, 48, 3
SIZE = {"width": 1280, "height": 800}
COLORS = 192
MOST_BYTES = 200_000
PATIENCE_MS = 120_000


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
        root = options.keep or Path(temporary) / "project"
        home = Home(root) if root.exists() else Home.make(root)
        with home.webserver(preview_images="12") as server:
            if not home.committed():
                fill(home, server)
            take(home, server, options.only)


def fill(home: Home, server: Webserver) -> None:
    """Embeds most of the shards by a backfill, one of them damaged, and checks the output."""
    home.set_max_retries(0)
    new = home.root / "new"
    write_sample_data(new, SHARDS, PICTURES, "webdataset", broken=BROKEN)
    home.publish(new)
    with (home.input / "00017.tar").open("r+b") as tar:
        tar.truncate(100_000)
    home.register()
    keys = [f"{number:05d}" for number in range(CHOSEN)]
    params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}], "title": "First shards"}
    launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
    with home.daemon():
        wait_for(
            lambda: backfill(server, launched["backfillId"])["status"].startswith("COMPLETED"),
            "the backfill is complete",
            lambda: backfill(server, launched["backfillId"]),
        )
    checked = home.run(
        "dagster", "job", "execute", "-m", "boring_assets.definitions", "-j", "check_embeddings"
    )
    assert checked.returncode == 0, checked.stderr


def take(home: Home, server: Webserver, only: list[str] | None) -> None:
    """Takes every picture, or only some."""
    asset = f"{server.url.removesuffix('/graphql')}/assets/{ASSET_KEY.path[0]}"
    pictures: dict[str, Callable[[Page], None]] = {
        "asset": lambda page: page.goto(f"{asset}?view=partitions"),
        "materialization": lambda page: page.goto(f"{asset}?view=partitions&partition=00003"),
        "checks": lambda page: page.goto(f"{asset}?view=checks"),
        "backfill": lambda page: page.goto(f"{asset}?view=overview"),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, show in pictures.items():
            if only and name not in only:
                continue
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(PATIENCE_MS)
            show(page)
            page.wait_for_timeout(5000)
            save(name, page)
            page.close()
        browser.close()


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
