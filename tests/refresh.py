"""Renew what is made by the host and its page: ``python tests/refresh.py`` with COMFYUI_PATH set.

workflows/api/NAME.json is what the page would queue; workflows/NAME.jpg and the help pages'
web/docs/images/NAME.png show what comes of it; web/docs/images/NODE.png is the node on the page.
"""

import json
import tempfile
from pathlib import Path

from comfy_host import HOW_TO, ROOT, Host, Refused, chromium, find
from PIL import Image
from playwright.sync_api import sync_playwright

SIDE = 512  # pixels of a thumbnail
PAPER = (244, 244, 242)
WIDEST = 1.52  # width to height of what is shown of a row; the rest of it is cut off
IMAGES = ROOT / "web" / "docs" / "images"
# the only node on the page, one and a half times as large; where its box is on the screen
ALONE = """type => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [0, 0];
    node.setSize([Math.max(node.computeSize()[0], 300), node.computeSize()[1]]);
    app.canvas.ds.scale = 1.5;
    app.canvas.ds.offset = [200, 120];
    app.canvas.setDirty(true, true);
    return {x: 290, y: 132, width: 1.5 * node.size[0] + 20, height: 1.5 * node.size[1] + 60};
}"""


def thumbnail(pictures: list[Image.Image]) -> Image.Image:
    """The last batch of pictures, four at most, filling a square."""
    last = [picture for picture in pictures if picture.size == pictures[-1].size][-4:]
    columns = 2 if len(last) == 4 else 1
    shown = last if columns == 2 else last[-1:]
    cell = SIDE // columns
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    for i, picture in enumerate(shown):
        picture = picture.crop((0, 0, min(picture.width, WIDEST * picture.height), picture.height))
        scale = cell / max(picture.size)
        size = [max(round(side * scale), 1) for side in picture.size]
        fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        row, column = divmod(i, columns)
        left, top = ((cell - side) // 2 for side in size)
        square.paste(fitted, (column * cell + left, row * cell + top))
    return square


def strip(pictures: list[Image.Image]) -> Image.Image:
    """The last batch of pictures side by side."""
    last = [picture for picture in pictures if picture.size == pictures[-1].size]
    width, height = last[0].size
    row = Image.new("RGB", (len(last) * width, height))
    for i, picture in enumerate(last):
        row.paste(picture, (i * width, 0))
    return row


def spectrum(prompt: dict) -> dict:
    """A prompt that plots singular values, from one that samples."""
    nodes = dict(prompt)
    name = next(n for n in nodes if nodes[n]["class_type"] == "DiverseVARSampler")
    inputs = {key: nodes[name]["inputs"][key] for key in ("model", "vae", "positive")}
    nodes[name] = {"class_type": "DiverseVARSpectrum", "inputs": inputs | {"diversity": 1.0}}
    save = next(n for n in nodes if nodes[n]["class_type"] == "SaveImage")
    nodes[save] = {"class_type": "PreviewImage", "inputs": {"images": [name, 0]}}
    return {n: nodes[n] for n in nodes if nodes[n]["class_type"] != "VAEDecode"}


def portray(page, nodes: list[str]) -> None:
    """A picture of every node as it is on the page."""
    for name in nodes:
        box = page.evaluate(ALONE, name)
        page.wait_for_timeout(500)
        page.screenshot(path=IMAGES / f"{name}.png", clip=box)


def main() -> None:
    found = find()
    if found is None or chromium() is None:
        raise SystemExit(HOW_TO)
    (ROOT / "workflows" / "api").mkdir(exist_ok=True)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, sync_playwright() as running:
        host = Host(*found, Path(base))
        browser = running.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1400})
        host.fetch("/settings/Comfy.TutorialCompleted", True)
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
                strip(outcome.pictures).save(IMAGES / f"{path.stem}.png")
                if path.stem == "text_to_image":
                    host.run(spectrum(prompt)).pictures[0].save(IMAGES / "spectrum.png")
                print(path.stem)
        portray(page, [name for name in host.nodes if name.startswith("DiverseVAR")])
        browser.close()
        host.stop()


if __name__ == "__main__":
    main()
