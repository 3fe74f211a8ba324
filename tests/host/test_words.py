"""What the page says of the nodes: help and translations, as the host serves them."""

import re
from io import BytesIO

import pytest
from comfy_host import PACK, ROOT
from PIL import Image

SELECT = """type => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [300, 200];
    app.canvas.selectNode(node);
}"""
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
LANGUAGES = ("zh", "zh-TW", "ja")


def ours(host) -> dict[str, dict]:
    return {name: node for name, node in host.nodes.items() if name.startswith("DiverseVAR")}


def test_every_node_has_a_help_page_and_every_page_a_node(host):
    assert {page.stem for page in PAGES} == set(ours(host))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_help_page_shows_its_pictures_and_names_only_inputs_that_exist(host, page):
    text = host.fetch(f"/extensions/{PACK}/docs/{page.name}").decode()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert pictures
    for picture in pictures:
        Image.open(BytesIO(host.fetch(f"/extensions/{PACK}/docs/{picture}"))).verify()
    inputs = ours(host)[page.stem]["input"]
    known = set(inputs.get("required", {})) | set(inputs.get("optional", {}))
    for line in re.findall(r"^- ((?:\*\*[a-z_]+\*\*(?:, )?)+):", text, re.M):
        assert set(re.findall(r"[a-z_]+", line)) <= known


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_translated(host, language):
    translated = host.get("/i18n")[language]["nodeDefs"]
    assert set(translated) == set(ours(host))
    for name, node in ours(host).items():
        found = translated[name]
        inputs = node["input"].get("required", {}) | node["input"].get("optional", {})
        assert set(found["inputs"]) == set(inputs)
        assert list(found["outputs"]) == [str(i) for i in range(len(node["output"]))]
        entries = [*found["inputs"].values(), *found["outputs"].values()]
        words = [found["display_name"], found["description"], *(e["tooltip"] for e in entries)]
        assert all(re.search(r"[\u3040-\u9fff]", text) for text in words)
        assert all(entry["name"] for entry in entries)


def test_search_finds_the_sampler(page):
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    sampler = page.get_by_role("option").filter(has_text="DiverseVAR Sampler")
    for phrase in ("var", "infinity", "diverse", "ssr", "same face", "all seeds look alike"):
        page.locator("input:focus").fill("no node has this name")
        sampler.wait_for(state="detached")
        page.locator("input:focus").fill(phrase)
        sampler.wait_for()


def test_help_opens_beside_every_node(host, page):
    for name, node in ours(host).items():
        page.evaluate(SELECT, name)
        page.get_by_test_id("info-button").first.click()
        page.get_by_role("heading", name=node["display_name"], exact=True).wait_for()
        picture = page.locator(f'img[src*="images/{name}.png"]')
        picture.wait_for()
        page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=picture.element_handle()
        )
