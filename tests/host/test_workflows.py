"""Every workflow: offered by the template browser, opened by the page, run to a picture."""

import os
from pathlib import Path

import numpy as np
import pytest
from comfy_host import PACK, ROOT

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
OPENED = "name => window.app.extensionManager.workflow.activeWorkflow?.filename === name"
UNKNOWN = "app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types))"
RED = "app.graph.nodes.filter(n => n.has_errors)"
TYPES = ".map(n => n.type)"


@pytest.fixture
def page(host, browser):
    """The host's page, empty, as a user has it from the second day on."""
    host.fetch("/settings/Comfy.TutorialCompleted", True)
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(f"http://{host.address}")
    page.wait_for_function("window.app?.extensionManager?.workflow?.activeWorkflow", timeout=60_000)
    yield page
    page.close()


def save(page, name: str) -> None:
    """A screenshot, for whoever asks for them."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"))


def test_the_host_offers_every_workflow_with_a_thumbnail(host):
    assert set(host.get("/workflow_templates")[PACK]) == set(WORKFLOWS) != set()
    for name in WORKFLOWS:
        assert host.fetch(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_opens_and_runs(host, page, name):
    page.locator(".comfy-menu-button-wrapper").click()
    page.get_by_role("menuitem", name="Browse Templates").click()
    page.get_by_text(PACK, exact=True).click()
    page.get_by_test_id(f"template-workflow-{name}").wait_for()
    save(page, "templates")

    errors = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function(OPENED, arg=name)
    page.wait_for_timeout(2000)  # its checks of nodes and models come after
    save(page, name)
    assert page.evaluate(UNKNOWN + TYPES) == []
    assert page.evaluate(RED + TYPES) == []
    assert not page.get_by_test_id("error-overlay").is_visible()
    assert not page.get_by_role("dialog").is_visible()
    assert errors == []

    prompt = page.evaluate("app.graphToPrompt()")["output"]
    outcome = host.run(prompt)
    assert outcome.error is None
    assert outcome.pictures
    for picture in outcome.pictures:
        assert np.asarray(picture).std() > 1  # not a flat colour
        if folder := os.environ.get("SCREENSHOTS"):
            picture.save(Path(folder, f"{name}-{outcome.pictures.index(picture)}.png"))
