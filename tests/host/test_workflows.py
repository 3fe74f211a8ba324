"""Every template: offered by the template browser, opened by the page, run to an image."""

import json
import os
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from comfy_host import PACK, ROOT, opened
from PIL import Image
from prompts import on_small_model

ANY_MODEL = "Any model, as it is and with late guidance"
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
GRAPHS = [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]
OPENED = "name => window.app.extensionManager.workflow.activeWorkflow?.filename === name"
UNKNOWN = "app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types))"
RED = "app.graph.nodes.filter(n => n.has_errors)"
TYPES = ".map(n => n.type)"
# boxes (left, top, right, bottom) of the nodes with their titles, and of the groups; the elements
# are those of Nodes 2.0
BOXES = """() => {
    const box = ([x, y, w, h]) => [x, y, x + w, y + h];
    const size = n => n.collapsed ? [n.size[0], 0] : n.size;
    const nodes = app.graph.nodes.map(n => [n.title, box([...n.pos, ...size(n)])]);
    nodes.forEach(([_, b]) => b[1] -= LiteGraph.NODE_TITLE_HEIGHT);
    for (const element of document.querySelectorAll("[data-node-id]")) {
        const {left, top, right, bottom} = element.getBoundingClientRect();
        const i = app.graph.nodes.findIndex(n => n.id == element.dataset.nodeId);
        nodes[i][1] = [left, top, right, bottom].map(place => place / app.canvas.ds.scale);
    }
    return [nodes, app.graph.groups.map(g => [g.title, box([...g.pos, ...g.size])])];
}"""
# the greatest part of an image node's area that the page's minimap covers
COVERED = """() => {
    const SHOWING = ["SaveImage", "PreviewImage", "DiverseVARSave", "DiverseVARContactSheet"];
    const map = document.querySelector(".minimap-main-container").getBoundingClientRect();
    const part = n => {
        const [x, y] = app.canvas.ds.convertOffsetToCanvas(n.pos);
        const [w, h] = [...n.size].map(side => side * app.canvas.ds.scale);
        const [right, bottom] = [x + w - Math.max(map.left, x), y + h - Math.max(map.top, y)];
        return (Math.max(0, right) * Math.max(0, bottom)) / w / h;
    };
    const shows = n => SHOWING.includes(n.type);
    return Math.max(...app.graph.nodes.filter(shows).map(part));
}"""
# all inputs that a preset and the sampling settings can show
CUSTOM = """() => app.graph.nodes.forEach(n => n.widgets?.forEach(widget => {
    if (["preset", "sampling"].includes(widget.name)) widget.value = "custom";
}))"""
PROMPT = "app.graphToPrompt().then(graph => graph.output)"
DROPPED = """bytes => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "saved.png", {type: "image/png"}));
    return transfer;
}"""


def save(page, name: str) -> None:
    """Save a screenshot where they are asked for."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"))


def browse_templates(page) -> None:
    page.get_by_role("button", name="Templates", exact=True).click()
    page.get_by_role("dialog").get_by_text(PACK, exact=True).click()


def open_template(page, name: str) -> None:
    browse_templates(page)
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function(OPENED, arg=name)
    page.wait_for_timeout(2000)  # its checks of nodes and models come after


def test_the_host_offers_every_workflow_with_a_thumbnail(host, page):
    assert set(host.get("/workflow_templates")[PACK]) == set(WORKFLOWS) != set()
    for name in WORKFLOWS:
        thumbnail = host.fetch(f"/api/workflow_templates/{PACK}/{quote(name)}.jpg")
        assert Image.open(BytesIO(thumbnail)).format == "JPEG"
    browse_templates(page)
    for name in WORKFLOWS:
        card = page.get_by_test_id(f"template-workflow-{name}")
        card.wait_for()
        card.scroll_into_view_if_needed()
        page.wait_for_function(
            "card => card.querySelector('img')?.naturalWidth > 0", arg=card.element_handle()
        )
    save(page, "templates")


def overlap(a: list[float], b: list[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def holds(outer: list[float], inner: list[float]) -> bool:
    left, top, right, bottom = outer
    return left <= inner[0] and top <= inner[1] and right >= inner[2] and bottom >= inner[3]


def without_versions(prompt: dict) -> dict:
    """A prompt without what a newer page says of each node's pack."""
    for node in prompt.values():
        node["_meta"] = {"title": node["_meta"]["title"]}
    return prompt


def assert_apart(page) -> None:
    """No node covers another one, and groups hold the nodes that they touch."""
    nodes, groups = page.evaluate(BOXES)
    for i, (title, box) in enumerate(nodes):
        assert not [other for other, b in nodes[:i] if overlap(box, b)], title
        touched = [(group, b) for group, b in groups if overlap(box, b)]
        assert all(holds(b, box) for _, b in touched), (title, touched)


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "Nodes 2.0"])
def growing(host, browser, request):
    """A page with classic nodes or Nodes 2.0, and previews on the samplers; for all templates."""
    settings = {"VueNodes.Enabled": request.param, "Execution.PreviewMethod": "auto"}
    with opened(host, browser, settings) as page:
        yield page


def post_for_small_model(route) -> None:
    """What the page posts, for the small diffusion model."""
    body = route.request.post_data_json
    route.continue_(post_data=body | {"prompt": on_small_model(body["prompt"])})


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_the_places_of_links_have_no_empty_fields(path):
    """A newer page refuses null there."""
    text = path.read_text()
    assert '"parentId": null' not in text and '"floating": null' not in text


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_node_says_which_pack_it_is_from(name):
    version = re.search('^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    for node in json.loads((ROOT / "workflows" / f"{name}.json").read_text())["nodes"]:
        ours, facts = node["type"].startswith("DiverseVAR"), node["properties"]
        assert facts["cnr_id"] == ("diversevar" if ours else "comfy-core")
        assert facts["ver"] == version or not ours
        assert facts["Node name for S&R"] == node["type"]


def is_readable(page, name: str, height: int) -> bool:
    """Whether the page draws a template's text, and its minimap covers no image.

    The page fits it into three quarters of the view; below 0.57 it draws no text.
    """
    from playwright.sync_api import TimeoutError

    page.set_viewport_size({"width": 1280, "height": height})
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    graph["extra"] |= {"linearMode": False}
    page.evaluate("app.graph.clear()")
    page.evaluate(
        "([graph, name]) => app.loadGraphData(graph, true, true, name, {openSource: 'template'})",
        [graph, name],
    )
    shown = f"""() => app.graph.nodes.length > 0
        && 0.58 < app.canvas.ds.scale && app.canvas.ds.scale < 1 && ({COVERED})() === 0"""
    try:
        page.wait_for_function(shown)
    except TimeoutError:
        return False
    return True


def test_templates_are_readable_on_a_small_screen(page):
    page.set_default_timeout(20_000)
    heights = {name: 720 if name.startswith(("2 ", "4 ")) else 800 for name in WORKFLOWS}
    assert [name for name in WORKFLOWS if not is_readable(page, name, heights[name])] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_opens_and_runs_and_nothing_covers_anything_else(host, growing, name):
    page, errors = growing, []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_template(page, name)
    save(page, name)
    assert page.evaluate(UNKNOWN + TYPES) == []
    assert page.evaluate(RED + TYPES) == []
    assert not page.get_by_test_id("error-overlay").is_visible()
    assert not page.get_by_role("dialog").is_visible()
    assert [error for error in errors if "sentry.io" not in error] == []  # a newer page's reports
    prompt = without_versions(page.evaluate(PROMPT))
    assert prompt == json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())

    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    graph["extra"] |= {"linearMode": False}
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.wait_for_timeout(500)
    assert_apart(page)
    if name == ANY_MODEL:
        page.route("**/api/prompt", post_for_small_model, times=1)
    images = run_on_page(host, page)
    page.evaluate(CUSTOM)
    page.wait_for_timeout(2000)
    save(page, f"{name}-run")
    assert_apart(page)
    assert images
    for i, image in enumerate(images):
        assert np.asarray(Image.open(BytesIO(image))).std() > 1  # not a flat colour
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder, f"{name}-{i}.png").write_bytes(image)


def test_inpainting_ends_with_the_images_own_pixels_outside_the_mask(host):
    prompt = json.loads((ROOT / "workflows" / "api" / "6 Inpaint an image.json").read_text())
    image, *drawn = [np.asarray(image).astype(int) for image in host.run(prompt).images]
    half = image.shape[1] // 2
    assert len(drawn) == 4
    for again in drawn:
        assert (again[:, :half] == image[:, :half]).all()
        assert abs(again[:, half:] - image[:, half:]).mean() > 10


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("VAR d16, class to image (1.2 GB)", 2),
        ("Infinity-2B, large images (9 GB)", 3),
        ("VAREdit-8B, edit photographs (large)", 3),
        (ANY_MODEL, 1),
    ],
)
def test_missing_models_are_offered_for_download(page, name, files):
    elsewhere = (ROOT / "workflows" / f"{name}.json").read_text()
    for suffix in (".pth", ".safetensors"):
        elsewhere = elsewhere.replace(suffix, f"_v2{suffix}")
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(elsewhere))
    page.get_by_role("button", name="View details").click()
    page.get_by_role("button", name="Download all").wait_for()
    save(page, f"{name}-missing")
    assert page.get_by_text("Download", exact=True).count() == files


def test_a_saved_image_brings_its_workflow_back(host, page):
    open_template(page, "5 Variations of an image")
    prompt = page.evaluate(PROMPT)
    saved = run_on_page(host, page)[0]
    page.evaluate("app.graph.clear()")
    host.fetch("/free", {"unload_models": True, "free_memory": True})

    transfer = page.evaluate_handle(DROPPED, list(saved))
    page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer})
    page.wait_for_function("app.graph.nodes.length > 0")
    page.wait_for_timeout(1000)
    assert page.evaluate(PROMPT) == prompt
    again = run_on_page(host, page)[0]
    np.testing.assert_array_equal(*(np.asarray(Image.open(BytesIO(p))) for p in (saved, again)))


def run_on_page(host, page) -> list[bytes]:
    """Press run; the images' files once they are there."""
    before = set(host.get("/history"))
    page.evaluate("app.queuePrompt(0)")
    look = lambda: set(host.get("/history")) - before  # noqa: E731
    (number,) = host.wait("The page's prompt did not finish", look)
    entry = host.get("/history")[number]
    assert entry["status"]["status_str"] == "success"
    return host.images(entry)
