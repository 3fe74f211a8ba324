"""What the page says of the nodes: help and translations, as the host serves them."""

import re
from io import BytesIO

import pytest
from comfy_host import PACK, ROOT
from PIL import Image

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
    for table in re.findall(r"^\| widget .*\n.*\n((?:\|.*\n)+)", text, re.M):
        named = {name for row in table.splitlines() for name in row.split("|")[1].split(",")}
        assert {name.strip() for name in named} <= known


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
