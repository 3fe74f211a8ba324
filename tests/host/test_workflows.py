"""Every workflow: offered by the template browser, opened by the page, run to a picture."""

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from comfy_host import PACK, ROOT
from PIL import Image

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
OPENED = "name => window.app.extensionManager.workflow.activeWorkflow?.filename === name"
UNKNOWN = "app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types))"
RED = "app.graph.nodes.filter(n => n.has_errors)"
TYPES = ".map(n => n.type)"
# boxes (left, top, right, bottom) of the nodes with their titles, and of the groups
BOXES = """() => {
    const box = ([x, y, w, h]) => [x, y, x + w, y + h];
    const nodes = app.graph.nodes.map(n => [n.title, box([...n.pos, ...n.size])]);
    nodes.forEach(([_, b]) => b[1] -= LiteGraph.NODE_TITLE_HEIGHT);
    return [nodes, app.graph.groups.map(g => [g.title, box([...g.pos, ...g.size])])];
}"""
PROMPT = "app.graphToPrompt().then(graph => graph.output)"
DROPPED = """bytes => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "saved.png", {type: "image/png"}));
    return transfer;
}"""


def save(page, name: str) -> None:
    """A screenshot, for whoever asks for them."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"))


def browse_templates(page) -> None:
    page.locator(".comfy-menu-button-wrapper").click()
    page.get_by_role("menuitem", name="Browse Templates").click()
    page.get_by_text(PACK, exact=True).click()


def open_template(page, name: str) -> None:
    browse_templates(page)
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function(OPENED, arg=name)
    page.wait_for_timeout(2000)  # its checks of nodes and models come after


def test_the_host_offers_every_workflow_with_a_thumbnail(host, page):
    assert set(host.get("/workflow_templates")[PACK]) == set(WORKFLOWS) != set()
    for name in WORKFLOWS:
        thumbnail = host.fetch(f"/api/workflow_templates/{PACK}/{name}.jpg")
        assert Image.open(BytesIO(thumbnail)).format == "JPEG"
    browse_templates(page)
    for name in WORKFLOWS:
        page.get_by_test_id(f"template-workflow-{name}").wait_for()
    page.wait_for_timeout(1000)
    save(page, "templates")


def overlap(a: list[float], b: list[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def holds(outer: list[float], inner: list[float]) -> bool:
    left, top, right, bottom = outer
    return left <= inner[0] and top <= inner[1] and right >= inner[2] and bottom >= inner[3]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_covers_anything_else(page, name):
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.wait_for_timeout(500)
    nodes, groups = page.evaluate(BOXES)
    for i, (title, box) in enumerate(nodes):
        assert not [other for other, b in nodes[:i] if overlap(box, b)], title
        touched = [(group, b) for group, b in groups if overlap(box, b)]
        assert all(holds(b, box) for _, b in touched), (title, touched)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_opens_and_runs(host, page, name):
    errors = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_template(page, name)
    save(page, name)
    assert page.evaluate(UNKNOWN + TYPES) == []
    assert page.evaluate(RED + TYPES) == []
    assert not page.get_by_test_id("error-overlay").is_visible()
    assert not page.get_by_role("dialog").is_visible()
    assert errors == []

    prompt = page.evaluate(PROMPT)
    assert prompt == json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    outcome = host.run(prompt)
    assert outcome.error is None
    assert outcome.pictures
    for picture in outcome.pictures:
        assert np.asarray(picture).std() > 1  # not a flat colour
        if folder := os.environ.get("SCREENSHOTS"):
            picture.save(Path(folder, f"{name}-{outcome.pictures.index(picture)}.png"))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("class_to_image", 2),
        ("text_to_image_infinity_2b", 3),
        ("edit_by_instruction_varedit_8b", 3),
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


def test_a_saved_picture_brings_its_workflow_back(host, page):
    open_template(page, "text_to_image")
    prompt = page.evaluate(PROMPT)
    saved = run_on_page(host, page)
    page.evaluate("app.graph.clear()")
    host.fetch("/free", {"unload_models": True, "free_memory": True})

    transfer = page.evaluate_handle(DROPPED, list(saved))
    page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer})
    page.wait_for_function("app.graph.nodes.length > 0")
    page.wait_for_timeout(1000)
    assert page.evaluate(PROMPT) == prompt
    again = run_on_page(host, page)
    np.testing.assert_array_equal(*(np.asarray(Image.open(BytesIO(p))) for p in (saved, again)))


def run_on_page(host, page) -> bytes:
    """Press run; the first picture's file once it is there."""
    before = set(host.get("/history"))
    page.evaluate("app.queuePrompt(0)")
    look = lambda: set(host.get("/history")) - before  # noqa: E731
    (number,) = host.wait("The page's prompt did not finish", look)
    entry = host.get("/history")[number]
    assert entry["status"]["status_str"] == "success"
    return host.pictures(entry)[0]
