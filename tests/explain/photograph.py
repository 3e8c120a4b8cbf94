"""Photograph the page for the README: `python tests/explain/photograph.py` writes docs/explain.png and -edit.png."""

import shutil
import tempfile
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import sync_playwright

from manual_mlp.explain import draw_network, explain

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main():
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1000}, device_scale_factor=1.5)
        path = Path(folder) / "explain.html"
        explain(draw_network()).save(path)
        page.goto(path.as_uri())

        # An entry of ∂J/∂W and where it comes from.
        product = "#step-5 .parts:has(caption:has-text('∂J/∂W'))"
        page.locator(product).last.evaluate("(parts) => parts.scrollIntoView({block: 'start', behavior: 'instant'})")
        page.evaluate("window.scrollBy({top: -320, behavior: 'instant'})")
        page.locator(f"{product} table").last.locator("td").nth(2).hover()
        page.screenshot(path=DOCS / "explain.png")

        # An edit: the numbers before, 2 for one H, and the slope of f forgotten.
        page.keyboard.press("Escape")
        page.mouse.move(5, 5)
        page.add_style_tag(content=".tools { position: static !important; }")  # it would lie upon a frame
        frames = []

        def frame():
            page.evaluate("document.activeElement.blur()")
            page.evaluate("document.getElementById('why').hidden = true")
            for selector in (product, "#step-5 p.check"):
                name = Path(folder) / f"{len(frames)}.png"
                page.locator(selector).last.screenshot(path=name)
                frames.append(ImageOps.expand(Image.open(name).convert("RGB"), 12, "white"))

        frame()
        page.locator(f"{product} td input").first.fill("2")
        frame()
        page.evaluate("explained.set({mistakes: ['slope-forgotten']})")
        frame()
        strip = Image.new("RGB", (max(f.width for f in frames), sum(f.height for f in frames)), "white")
        top = 0
        for picture in frames:
            strip.paste(picture, (0, top))
            top += picture.height
        strip.save(DOCS / "explain-edit.png")
        browser.close()


if __name__ == "__main__":
    main()
