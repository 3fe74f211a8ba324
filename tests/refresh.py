"""Renew what is made from the workflows: ``python tests/refresh.py`` with COMFYUI_PATH set.

workflows/api/NAME.json is what the page would queue; workflows/NAME.jpg shows what comes of it.
"""

import json
import tempfile
from pathlib import Path

from comfy_host import HOW_TO, ROOT, Host, Refused, chromium, find
from PIL import Image
from playwright.sync_api import sync_playwright

SIDE = 512  # pixels of a thumbnail
PAPER = (244, 244, 242)


def thumbnail(pictures: list[Image.Image]) -> Image.Image:
    """The last batch of pictures, four at most, filling a square."""
    last = [picture for picture in pictures if picture.size == pictures[-1].size][-4:]
    columns = 2 if len(last) == 4 else 1
    shown = last if columns == 2 else last[-1:]
    cell = SIDE // columns
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    for i, picture in enumerate(shown):
        scale = cell / max(picture.size)
        size = [max(round(side * scale), 1) for side in picture.size]
        fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        row, column = divmod(i, columns)
        left, top = ((cell - side) // 2 for side in size)
        square.paste(fitted, (column * cell + left, row * cell + top))
    return square


def main() -> None:
    found = find()
    if found is None or chromium() is None:
        raise SystemExit(HOW_TO)
    (ROOT / "workflows" / "api").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, sync_playwright() as running:
        host = Host(*found, Path(base))
        browser = running.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://{host.address}")
        page.wait_for_function("window.app?.extensionManager?.workflow?.activeWorkflow")
        for path in sorted((ROOT / "workflows").glob("*.json")):
            page.evaluate("graph => app.loadGraphData(graph)", json.loads(path.read_text()))
            prompt = page.evaluate("app.graphToPrompt().then(graph => graph.output)")
            text = json.dumps(prompt, indent=1, ensure_ascii=False) + "\n"
            (path.parent / "api" / path.name).write_text(text)
            try:
                outcome = host.run(prompt)
            except Refused:
                print(f"{path.stem} needs models that are not here; its thumbnail stays")
            else:
                thumbnail(outcome.pictures).save(path.with_suffix(".jpg"), quality=88)
                print(path.stem)
        browser.close()
        host.stop()


if __name__ == "__main__":
    main()
