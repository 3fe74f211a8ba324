"""What the page says of the nodes: help and translations, as the host serves them."""

import json
import re
from io import BytesIO

import pytest
from comfy_host import PACK, ROOT, opened
from PIL import Image

SELECT = """type => {
    [...app.graph.nodes].forEach(node => app.graph.remove(node));
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [300, 200];
    app.canvas.selectNode(node);
}"""
# the help under this heading: its images, and what reaches past its right edge
LOOK = """heading => {
    const help = heading.parentElement, right = help.getBoundingClientRect().right + 1;
    const past = part => part.getBoundingClientRect().right > right;
    const cut = [...help.querySelectorAll('*')].filter(past);
    const images = [...help.querySelectorAll('img')];
    return {
        cut: cut.map(part => part.outerHTML.slice(0, 120)),
        loaded: images.every(image => image.complete && image.naturalWidth > 0),
        images: images.map(image => new URL(image.src).pathname.split('/').pop()),
    };
}"""
# a node's title and its inputs' labels, also of those that a DynamicCombo's last option shows
WORDS = """type => {
    [...app.graph.nodes].forEach(node => app.graph.remove(node));
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    const kinds = node.constructor.nodeData.inputs;
    for (const widget of [...node.widgets ?? []]) {
        if (kinds[widget.name]?.type == 'COMFY_DYNAMICCOMBO_V3') {
            widget.value = widget.options.values.at(-1);
        }
    }
    const inputs = node.inputs.map(input => [input.name, input.label ?? input.localized_name]);
    const widgets = (node.widgets ?? []).map(widget => [widget.name, widget.label]);
    return {title: node.title, labels: Object.fromEntries([...inputs, ...widgets])};
}"""
LANGUAGES = ("zh", "zh-TW", "ja")  # English stands in the nodes, and serves every other language
DOCS = ROOT / "web" / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def ours(host) -> dict[str, dict]:
    return {name: node for name, node in host.nodes.items() if name.startswith("DiverseVAR")}


def inputs_of(node: dict) -> list[str]:
    """The names of a node's inputs, ``preset.starts`` for one that an option of preset shows."""
    return [name for kind in ("required", "optional") for name in named(node["input"].get(kind))]


def named(inputs: dict | None) -> list[str]:
    names = []
    for name, (kind, *more) in (inputs or {}).items():
        names.append(name)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            for option in more[0]["options"]:
                for nested in option["inputs"].values():
                    names += [f"{name}.{inner}" for inner in named(nested)]
    return names


def key(name: str) -> str:
    """An input's name as the page looks it up in a language's words."""
    return name.replace(".", "_")


def test_every_node_has_help_in_four_languages_and_nothing_else_has(host):
    nodes = ours(host)
    files = (".md", *(f"/{language}.md" for language in LANGUAGES))
    assert set(PAGES) == {name + file for name in nodes for file in files}


@pytest.mark.parametrize("page", PAGES)
def test_help_shows_its_images_and_names_only_inputs_that_exist(host, page):
    name, _, language = page.removesuffix(".md").partition("/")
    text = host.fetch(f"/extensions/{PACK}/docs/{page}").decode()
    images = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert images[0] == f"images/{name}.png"
    for image in images:
        Image.open(BytesIO(host.fetch(f"/extensions/{PACK}/docs/{image}"))).verify()
    if language:
        words = host.get("/i18n")[language]["nodeDefs"][name]
        title, known = words["display_name"], {e["name"] for e in words["inputs"].values()}
    else:
        node = ours(host)[name]
        title, known = node["display_name"], {i.rpartition(".")[2] for i in inputs_of(node)}
    assert text.startswith(f"# {title}\n")
    for line in re.findall(r"^- (\*\*.+?\*\*(?:(?:, |、)\*\*.+?\*\*)*)[:：]", text, re.M):
        assert set(re.findall(r"\*\*(.+?)\*\*", line)) <= known


def test_tooltips_and_descriptions_are_short(host):
    for name, node in ours(host).items():
        texts = re.findall(r'"tooltip": "(.*?)(?<!\\)"', json.dumps(node))
        texts += [node["description"], *node["output_tooltips"]]
        assert [text for text in texts if len(text) > 200] == [], name


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_translated(host, language):
    translated = host.get("/i18n")[language]
    assert set(translated["nodeDefs"]) == set(ours(host))
    assert set(translated["nodeCategories"]) == {"methods", "analysis"}  # the host knows the others
    for name, node in ours(host).items():
        found = translated["nodeDefs"][name]
        assert set(found["inputs"]) == {key(i) for i in inputs_of(node)}
        assert list(found["outputs"]) == [str(i) for i in range(len(node["output"]))]
        entries = [*found["inputs"].values(), *found["outputs"].values()]
        words = [found["display_name"], found["description"], *(e["tooltip"] for e in entries)]
        assert all(re.search(r"[\u3040-\u9fff]", text) for text in words)
        assert all(entry["name"] for entry in entries)


@pytest.fixture(scope="module", params=("en", *LANGUAGES))
def translated(host, browser, request):
    """A language, and the page in it."""
    with opened(host, browser, {"Locale": request.param}) as page:
        yield request.param, page


def test_the_page_shows_the_words_of_its_language(host, translated):
    language, page = translated
    words = host.get("/i18n").get(language, {"nodeDefs": {}, "nodeCategories": {}})
    categories = {
        name: node["category"] for name, node in page.evaluate("app.getNodeDefs()").items()
    }
    for name, node in ours(host).items():
        own = words["nodeDefs"].get(name, node)
        shown = page.evaluate(WORDS, name)
        assert shown["title"] == own["display_name"]
        last = node["category"].rpartition("/")[2]
        if last in ("methods", "analysis"):
            assert categories[name] == f"DiverseVAR/{words['nodeCategories'].get(last, last)}"
        for each in inputs_of(node):
            english = {"name": each.rpartition(".")[2]}
            assert shown["labels"][each] == own.get("inputs", {}).get(key(each), english)["name"]


def test_help_opens_for_every_node_and_fits(host, translated):
    language, page = translated
    words = host.get("/i18n").get(language, {"nodeDefs": {}})["nodeDefs"]
    for name, node in ours(host).items():
        page.evaluate(SELECT, name)
        page.get_by_test_id("info-button").first.click()
        title = words.get(name, node)["display_name"]
        heading = page.get_by_role("heading", name=title, exact=True, level=1)
        heading.wait_for()
        page.wait_for_function(f"heading => ({LOOK})(heading).loaded", arg=heading.element_handle())
        seen = heading.evaluate(LOOK)
        assert seen["images"][0] == f"{name}.png"
        assert seen["cut"] == []
