"""A new user's view: nodes are found by search, few clicks, no widget without effect."""

import hashlib
import json

import numpy as np
import pytest
from comfy_host import PACK, ROOT

EXPLORE = "2 Explore prompts"
FIRST, APP = "1 Text to image, works at once", "9 Text to image as an app"
# what people type -> the node that is then among the first three
PHRASES = {
    "DiverseVAR Sampler": "seed variety|same image every seed|all seeds look the same|variation|"
    "different images|similar images|identical images|unique images|all images look the same|"
    "more variety|more random|random seed|seed variation|seed variance|seed variance enhancer|"
    "batch variety|different poses|same composition|same face|mode collapse|emoji|"
    "next scale prediction|种子多样性|每个种子都一样|文生图|種子多樣性|"
    "シードの多様性|テキストから画像",
    "VAR Edit Image": "edit image|edit by text|编辑图像|編輯圖像|画像編集",
    "VAR Encode Prompts": "prompt list|flan t5",
    "Load VAR CLIP (T5)": "flan t5|t5 loader",
    "VAR VQ Decode": "vq decode",
    "Contact Sheet": "contact sheet|compare seeds|xy plot|labelled grid|image grid",
    "Pick Image": "pick image",
    # of a word alone, as qwen, nodes with it in their title come first, whatever the aliases are
    "Measure Diversity": "z-image same image|qwen same image|sdxl same image|flux same image|"
    "cfg override|late guidance|guidance interval",
}
# the host has nodes of its own under the first of these words
TEMPLATES = {
    "text to image": FIRST,
    "variation": "5 Variations of an image",
    "edit image": "7 Edit an image, works at once",
}
SEARCH = "app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
# the value and the text of widgets that were given numbers by hand
TYPED = """([type, numbers]) => {
    const node = LiteGraph.createNode(type), shown = {};
    app.graph.add(node);
    for (const widget of node.widgets.filter(widget => widget.name in numbers)) {
        widget.callback(numbers[widget.name]);
        shown[widget.name] = [widget.value, widget._displayValue];
    }
    return shown;
}"""


def test_own_prompt_to_eight_different_images_in_four_clicks(host, page):
    page.evaluate("app.graph.clear()")
    clicks = 0

    def click(place) -> None:
        nonlocal clicks
        place.click()
        clicks += 1

    before = set(host.get("/history"))
    click(page.get_by_role("button", name="Templates", exact=True))
    click(page.get_by_text(PACK, exact=True))
    click(page.get_by_test_id(f"template-workflow-{FIRST}"))
    page.wait_for_function("app.graph.nodes.length > 0")
    field = page.locator("textarea.comfy-multiline-input").first
    click(field)
    field.fill("birthday cake")
    field.press("Control+Enter")
    history = wait_for_one_more(host, page, before)
    assert clicks <= 4
    assert "birthday cake" in json.dumps(history["prompt"])
    images = host.images(history)
    assert len({hashlib.sha256(image).hexdigest() for image in images}) == 8
    page.wait_for_timeout(1000)  # what a newer page shows during a run is gone by now
    shown = page.get_by_text("guidance_start 4, starts 256; cfg 4, temperature 0.5")
    assert "\nseeds " in shown.inner_text() and shown.is_visible()
    saved = page.evaluate("JSON.stringify([app.graph.serialize(), app.graph.extra])")
    assert "starts 256; cfg 4" not in saved


# where the arrow is that increases a widget of the only node of a type
ARROW = """([type, name]) => {
    const node = app.graph.nodes.find(node => node.type === type);
    const widget = node.widgets.find(widget => widget.name === name);
    const place = [node.pos[0] + node.size[0] - 25, node.pos[1] + widget.y + 10];
    const [x, y] = app.canvas.ds.convertOffsetToCanvas(place);
    const {left, top} = app.canvas.canvas.getBoundingClientRect();
    return [left + x, top + y];
}"""


def test_own_prompts_to_a_sheet_and_two_clicks_to_variations_of_another_image(host, page):
    before = set(host.get("/history"))
    page.get_by_role("button", name="Templates", exact=True).click()
    page.get_by_text(PACK, exact=True).click()
    page.get_by_test_id(f"template-workflow-{EXPLORE}").click()
    page.wait_for_function("app.graph.nodes.length > 0")
    page.wait_for_timeout(2000)
    field = page.locator("textarea.comfy-multiline-input").first
    field.click()
    field.fill("wooden owl\nrocket\nmushroom")
    field.press("Control+Enter")
    first = wait_for_one_more(host, page, before)
    (sheet,) = first["outputs"]["8"]["images"]
    variations = first["outputs"]["15"]["images"]
    assert len(variations) == 8
    page.wait_for_timeout(1000)
    assert page.get_by_text("left out: wooden").first.is_visible()

    before = set(host.get("/history"))
    page.mouse.click(*page.evaluate(ARROW, ["DiverseVARPick", "number"]))
    page.get_by_test_id("queue-button").first.click()
    second = wait_for_one_more(host, page, before)
    about = dict(second["status"]["messages"])["execution_cached"]
    assert {"1", "2", "3", "4", "5", "6", "7", "8"} <= set(about["nodes"])
    assert second["outputs"]["8"]["images"] == [sheet]
    assert len(second["outputs"]["15"]["images"]) == 8
    seeds = [entry["prompt"][2]["9"]["inputs"]["number"] for entry in (first, second)]
    assert seeds == [1, 2]


def wait_for_one_more(host, page, before: set[str]) -> dict:
    """The history's new entry, once it is finished."""
    for _ in range(600):
        for number in set(host.get("/history")) - before:
            entry = host.get(f"/history/{number}")[number]
            assert entry["status"]["status_str"] == "success"
            return entry
        page.wait_for_timeout(200)
    raise TimeoutError("The prompt did not finish.")


def test_search_finds_us_in_the_first_three(page):
    page.evaluate("app.graph.clear()")
    page.evaluate(SEARCH)
    page.locator("input:focus").wait_for()
    missed = {}
    for name, phrases in PHRASES.items():
        for phrase in phrases.split("|"):
            page.locator("input:focus").fill(phrase)
            page.wait_for_timeout(700)
            found = page.get_by_role("option").all_inner_texts()[:3]
            titles = [text.splitlines()[0] for text in found]
            if name not in titles or (phrase == "same face" and name != titles[0]):
                missed[phrase] = titles
    assert missed == {}


@pytest.mark.parametrize("phrase", TEMPLATES)
def test_the_template_search_finds_us_in_the_first_three(page, phrase):
    page.get_by_role("button", name="Templates", exact=True).click()
    page.get_by_text(PACK, exact=True).click()
    page.get_by_test_id(f"template-workflow-{FIRST}").wait_for()
    page.get_by_role("dialog").locator("input").first.fill(phrase)
    page.wait_for_function(
        """name => {
            const cards = [...document.querySelectorAll("[data-testid^=template-workflow-]")];
            const first = cards.slice(0, 3).map(card => card.dataset.testid);
            return cards.length < 8 && first.includes(`template-workflow-${name}`);
        }""",
        arg=TEMPLATES[phrase],
    )


def test_a_template_opens_as_an_app(host, page):
    graph = json.loads((ROOT / "workflows" / f"{APP}.json").read_text())
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, APP])
    for label in ("Prompt", "How different", "How many"):
        page.get_by_text(label, exact=True).first.wait_for()
    before = set(host.get("/history"))
    page.get_by_role("button", name="Run", exact=True).last.click()
    assert len(host.images(wait_for_one_more(host, page, before))) == 8
    page.locator("img[src*='filename=text_']").first.wait_for()


@pytest.mark.parametrize(
    ("name", "labels"), [(FIRST, ("Prompt", "batch_size")), (EXPLORE, ("text", "row", "number"))]
)
def test_the_first_templates_are_apps_too(page, name, labels):
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
    page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    for label in labels:
        page.get_by_text(label, exact=True).first.wait_for()


def test_the_strengths_of_the_paper_are_shown_and_kept(page):
    page.evaluate("app.graph.clear()")
    shown = page.evaluate(TYPED, ["DiverseVARSSRSAR", {"ssr": 0.25, "sar": 0.125}])
    assert shown == {"ssr": [0.25, "0.250"], "sar": [0.125, "0.125"]}


def test_the_subgraph_is_added_from_the_search_and_runs(host, page):
    page.evaluate("app.graph.clear()")
    page.evaluate(SEARCH)
    page.locator("input:focus").fill("eight different ideas")
    page.get_by_role("option").first.click()
    page.mouse.click(700, 400)
    page.wait_for_function("app.graph.nodes.length > 0")
    widgets = page.evaluate("app.graph.nodes[0].widgets.map(w => w.label ?? w.name)")
    assert widgets[0] == "Prompt"
    prompt = page.evaluate("app.graphToPrompt().then(graph => graph.output)")
    decode = next(name for name in prompt if prompt[name]["class_type"] == "VAEDecode")
    prompt["show"] = {"class_type": "PreviewImage", "inputs": {"images": [decode, 0]}}
    outcome = host.run(prompt)
    assert outcome.error is None and len(outcome.images) == 8


# what is visible once a preset, or sampling, is chosen -> another value than its own
PRESETS = ["balanced", "most different", "SSR + SAR (DiverseVAR)", "as published"]
VISIBLE = {
    "infinity": [
        {"preset": "custom", "preset.guidance_start": 0},
        {"preset": "custom", "preset.starts": 1},
        {"preset": "custom", "preset.ssr": 2.0},
        {"preset": "custom", "preset.sar": 2.0},
        *({"preset": preset, "seed": 1000} for preset in PRESETS),
        {"preset": "balanced", "guidance_end": 6},
        {"preset": "balanced", "sampling": "custom", "sampling.cfg": 8.0},
        {"preset": "balanced", "sampling": "custom", "sampling.temperature": 3.0},
        {"preset": "balanced", "sampling": "custom", "sampling.top_p": 0.5},
    ],
    "var": [
        {"preset": "balanced", "sampling": "custom", "sampling.top_k": 2},
        {"preset": "balanced", "sampling": "custom", "sampling.top_p": 0.1},
    ],
}


def prompt_of(family: str, **sampler) -> dict:
    """A prompt for two images of a tiny model."""
    model, vae = {
        "infinity": ("infinity_tiny.safetensors", "infinity_tiny.safetensors"),
        "var": ("var_d16.pth", "vae_ch160v4096z32.pth"),
    }[family]
    both = {"model": ["model", 0], "vae": ["vae", 0]}
    inputs = {**both, "positive": ["text", 0], "latent_image": ["empty", 0], **sampler}
    nodes = {
        "model": ("DiverseVARLoadModel", {"model_name": model}),
        "vae": ("DiverseVARLoadVAE", {"vae_name": vae}),
        "clip": ("DiverseVARLoadCLIP", {"clip_name": "t5_tiny"}),
        "text": ("CLIPTextEncode", {"clip": ["clip", 0], "text": "a red apple"}),
        "empty": ("DiverseVAREmptyLatent", {**both, "batch_size": 2}),
        "sampler": ("DiverseVARSampler", inputs),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 0]}),
        "save": ("PreviewImage", {"images": ["decode", 0]}),
    }
    if family == "var":
        del nodes["clip"]
        nodes["text"] = ("DiverseVARImageNetClass", {})
    return {name: {"class_type": kind, "inputs": given} for name, (kind, given) in nodes.items()}


def hashes(host, prompt: dict) -> list[str]:
    outcome = host.run(prompt)
    assert outcome.error is None
    return [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in outcome.images]


@pytest.mark.parametrize("family", VISIBLE)
def test_every_visible_widget_has_an_effect(host, family):
    plain = {}
    for changed in VISIBLE[family]:
        choices = {key: changed[key] for key in ("preset", "sampling") if key in changed}
        chosen = tuple(choices.items())
        if chosen not in plain:
            plain[chosen] = hashes(host, prompt_of(family, **choices))
        assert hashes(host, prompt_of(family, **changed)) != plain[chosen], changed


def test_presets_differ_from_each_other(host):
    found = [tuple(hashes(host, prompt_of("infinity", preset=preset))) for preset in PRESETS]
    assert len(set(found)) == len(PRESETS)
