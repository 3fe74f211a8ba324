"""Renew what is made by the host and its page: ``python tests/refresh.py`` with COMFYUI_PATH set.

workflows/api/NAME.json is what the page would queue, workflows/NAME.jpg what comes of it;
web/docs/images/NODE.png is the node on the page, NODE_result.png what comes of its template.
"""

import json
import tempfile
from pathlib import Path

from comfy_host import HOW_TO, ROOT, START_SECONDS, Host, Refused, chromium, find
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

SIDE = 512  # pixels of a thumbnail
IMAGES = ROOT / "web" / "docs" / "images"
# the templates whose images a node's help page shows
RESULTS = {
    "DiverseVARSampler": "1 Text to image, works at once",
    "DiverseVAREncode": "5 Variations of an image",
    "DiverseVAREdit": "7 Edit an image, works at once",
    "DiverseVARSelect": "8 Measure and select the most diverse",
}
# the templates whose contact sheet a node's help page shows
SHEETS = {
    "DiverseVARContactSheet": "2 Explore prompts",
    "DiverseVARDecode": "5 Variations of an image",
}
# the only node on the page, one and a half times as large; where its box is on the screen
ALONE = """type => {
    [...app.graph.nodes].forEach(node => app.graph.remove(node));
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [0, 0];
    node.setSize([Math.max(node.computeSize()[0], 300), node.computeSize()[1]]);
    app.canvas.ds.scale = 1.5;
    app.canvas.ds.offset = [200, 120];
    app.canvas.setDirty(true, true);
    return {x: 290, y: 132, width: 1.5 * node.size[0] + 20, height: 1.5 * node.size[1] + 60};
}"""


def thumbnail(name: str, images: list[Image.Image]) -> Image.Image:
    """A square of four of the images, or a sheet's upper left part."""
    square, cell = Image.new("RGB", (SIDE, SIDE)), SIDE // 2
    if name == SHEETS["DiverseVARContactSheet"]:
        side = min(sheet(images).size)
        part = sheet(images).convert("RGB").crop((0, 0, side, side))
        square.paste(part.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    else:
        shown = [i for i in images if name not in SHEETS.values() or i is not sheet(images)]
        for i in range(4):
            image = shown[i * len(shown) // 4].convert("RGB")
            row, column = divmod(i, 2)
            square.paste(
                image.resize((cell, cell), Image.Resampling.LANCZOS), (column * cell, row * cell)
            )
    return square


def add_number(square: Image.Image, number: int) -> None:
    """Draw the template's place among all into the corner of its thumbnail."""
    draw, middle = ImageDraw.Draw(square), SIDE // 14
    draw.circle((middle + 8, middle + 8), middle, "#d9541e")
    font = ImageFont.load_default(size=1.4 * middle)
    draw.text((middle + 8, middle + 8), str(number), "white", font, anchor="mm")


def sheet(images: list[Image.Image]) -> Image.Image:
    """The contact sheet among a template's images."""
    return max(images, key=lambda image: image.width)


def strip(images: list[Image.Image]) -> Image.Image:
    """The last batch of images side by side."""
    last = [image for image in images if image.size == images[-1].size]
    width, height = last[0].size
    row = Image.new("RGB", (len(last) * width, height))
    for i, image in enumerate(last):
        row.paste(image, (i * width, 0))
    return row


def spectrum(prompt: dict) -> dict:
    """A prompt that plots singular values, from one that samples."""
    nodes = dict(prompt)
    name = next(n for n in nodes if nodes[n]["class_type"] == "DiverseVARSampler")
    inputs = {key: nodes[name]["inputs"][key] for key in ("model", "vae", "positive")}
    plot = {"class_type": "DiverseVARSpectrum", "inputs": inputs | {"seed": 0}}
    kept = (
        "DiverseVARLoadModel",
        "DiverseVARLoadVAE",
        "DiverseVARLoadCLIP",
        "DiverseVAREncodePrompts",
    )
    return {n: node for n, node in nodes.items() if node["class_type"] in kept} | {name: plot}


def portray(page, nodes: list[str]) -> None:
    """An image of every node as it is on the page."""
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
        page.set_default_timeout(1000 * START_SECONDS)
        host.fetch("/settings/Comfy.TutorialCompleted", True)
        page.goto(f"http://{host.address}")
        page.wait_for_function("window.app?.extensionManager?.workflow?.activeWorkflow")
        for number, path in enumerate(sorted((ROOT / "workflows").glob("*.json")), 1):
            page.evaluate("graph => app.loadGraphData(graph)", json.loads(path.read_text()))
            prompt = page.evaluate("app.graphToPrompt().then(graph => graph.output)")
            text = json.dumps(prompt, indent=1, ensure_ascii=False) + "\n"
            (path.parent / "api" / path.name).write_text(text)
            try:
                outcome = host.run(prompt)
            except Refused:
                print(f"{path.stem} needs models that are not here; its thumbnail stays")
            else:
                picture = thumbnail(path.stem, outcome.images)
                add_number(picture, number)
                picture.save(path.with_suffix(".jpg"), quality=88)
                for node in (node for node, name in SHEETS.items() if name == path.stem):
                    sheet(outcome.images).reduce(2).save(IMAGES / f"{node}_result.png")
                for node in (node for node, name in RESULTS.items() if name == path.stem):
                    strip(outcome.images).save(IMAGES / f"{node}_result.png")
                if path.stem == RESULTS["DiverseVARSampler"]:
                    plot = host.run(spectrum(prompt)).images[0]
                    plot.save(IMAGES / "DiverseVARSpectrum_result.png")
                print(path.stem)
        portray(page, [name for name in host.nodes if name.startswith("DiverseVAR")])
        browser.close()
        host.stop()


if __name__ == "__main__":
    main()
