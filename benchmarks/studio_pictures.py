"""Takes the pictures of docs/studio.md: the page in Chromium, by clicks, with the model that ships.

    python benchmarks/studio_pictures.py                # all, into docs/, and notes their hashes in docs/figures.json
    python benchmarks/studio_pictures.py studio.png     # one of them
    python benchmarks/studio_pictures.py --out FOLDER   # elsewhere, without a note

Needs the extra `browser` and a Chromium of the system.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import figures  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from support.studio_browser import CHROMIUM, FLAGS, Window, served  # noqa: E402

WIDTH, HEIGHT = 1280, 900


def sampled(window: Window) -> None:
    """Four bags and shoes with guidance, and the path in its middle."""
    window.run("sample")
    window.page.wait_for_selector("#sample-charts svg")
    slider = window.page.locator("#sample-scrub input[type=range]")
    slider.focus()
    for _ in range(9):
        slider.press("ArrowLeft")
    window.page.wait_for_function("document.querySelector('#sample-live').innerText.includes('Step 11 of 20')")


def compared(window: Window) -> None:
    """The same noise without guidance and with much of it."""
    window.run("compare")
    window.page.wait_for_selector("#compare-charts svg")


BAG_AND_BOOT = "class=Bag&class=Ankle+boot&class=Coat&class=Dress"
PICTURES: dict[str, tuple[str, Callable[[Window], None]]] = {
    "studio.png": (f"?{BAG_AND_BOOT}&count=4&seed=3&solver=dpmpp-2m&steps=20&guidance=2", sampled),
    "studio-compare.png": (
        f"?{BAG_AND_BOOT}&count=4&seed=3&solver=dpmpp-2m&steps=20&tab=compare"
        "&b=solver%3Ddpmpp-2m%26steps%3D20%26guidance%3D6",
        compared,
    ),
}
"""The link that each begins with, and the clicks."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=", ".join(PICTURES))
    parser.add_argument("--out", type=Path, default=figures.DOCS, help="folder to write to (default: docs)")
    parser.add_argument("--url", help="address of a studio that is running (default: start one)")
    args = parser.parse_args()
    for name in args.pictures:
        if name not in PICTURES:
            parser.error(f"there is no picture {name}; expected {', '.join(PICTURES)}")
    if CHROMIUM is None:
        parser.error("needs a Chromium of the system (apt install chromium)")

    def take(url: str) -> None:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for name in args.pictures or PICTURES:
                query, clicks = PICTURES[name]
                window = Window(browser, url, query, WIDTH, HEIGHT)
                clicks(window)
                window.page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
                window.page.wait_for_timeout(500)
                window.page.screenshot(path=str(args.out / name), full_page=True)
                window.close()
                print(args.out / name, flush=True)
                if args.out == figures.DOCS:
                    figures.note(name)
            browser.close()

    if args.url is not None:
        take(args.url)
        return 0
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        take(url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
