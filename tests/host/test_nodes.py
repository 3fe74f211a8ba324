"""The nodes through the HTTP API: images, progress, cancel, and clear words for bad input."""

import copy
import json

import numpy as np
import pytest
import torch
from comfy_host import Refused
from PIL import Image
from prompts import PIXELS, VAES, encoded, graph, pixels
from safetensors.torch import load_file

from diversevar_core.checkpoints.included import FOLDER
from diversevar_core.checkpoints.loading import load_vae
from diversevar_core.schedule import square
from diversevar_core.vae.autoencoder import to_image

SIDES = [1, 2, 4, 6, 8, 12, 16]  # infinity_tiny's token maps
MAPS = {"emoji": [1, 2, 4, 6, 8], "var": [1, 2, 3, 4, 6]}


def advanced(family: str, **numbers) -> dict:
    """``graph`` with SSR and SAR in numbers."""
    prompt = graph(family, method=["method", 0])
    prompt["method"] = {"class_type": "DiverseVARSSRSAR", "inputs": numbers}
    return prompt


def test_every_node_explains_itself(host):
    nodes = {k: v for k, v in host.get("/object_info").items() if k.startswith("DiverseVAR")}
    assert len(nodes) >= 8
    for name, node in nodes.items():
        assert node["description"], name
        for kind in ("required", "optional"):
            for key, (_, options) in node["input"].get(kind, {}).items():
                assert options.get("tooltip"), f"{name}.{key}"
        assert all(node["output_tooltips"]), name


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_image_i_of_a_batch_is_seed_plus_i(host, family):
    both = pixels(host.run(graph(family, seed=5, batch_size=2)))
    (second,) = pixels(host.run(graph(family, seed=6)))
    assert len(both) == 2 and not np.array_equal(*both)
    np.testing.assert_allclose(both[1], second.astype(int), atol=1)  # same tokens; a rounding


def test_ssr_and_sar_change_the_image(host):
    (vanilla,) = pixels(host.run(graph("infinity")))
    (diverse,) = pixels(host.run(graph("infinity", ssr=0.5, sar=0.25)))
    (chained,) = pixels(host.run(advanced("infinity", ssr=0.5, sar=0.25)))
    (off,) = pixels(host.run(advanced("infinity", ssr=0.0, sar=0.0)))
    assert not np.array_equal(vanilla, diverse)
    np.testing.assert_array_equal(diverse, chained)
    np.testing.assert_array_equal(vanilla, off)


def test_a_preset_sets_the_numbers(host):
    (published,) = pixels(host.run(graph("infinity", preset="as published")))
    (off,) = pixels(host.run(graph("infinity", guidance_start=0)))
    (paper,) = pixels(host.run(graph("infinity", preset="SSR + SAR (DiverseVAR)")))
    np.testing.assert_array_equal(published, off)
    assert not np.array_equal(published, paper)


def saved(host, prompt: dict, name: str) -> dict[str, int]:
    """Save with Seeds under a name: the seed in the metadata of every file."""
    inputs = {"images": ["decode", 0], "seeds": ["sampler", 1], "filename_prefix": name}
    prompt["save"] = {"class_type": "DiverseVARSave", "inputs": inputs}
    about = {"workflow": {"nodes": []}}
    assert len(host.run(prompt, extra_pnginfo=about).images) > 0
    assert about == {"workflow": {"nodes": []}}
    seeds = {}
    for path in sorted((host.base / "output").glob(f"{name}_*.png")):
        text = Image.open(path).text
        assert json.loads(text["prompt"])["sampler"] and json.loads(text["workflow"])
        seeds[path.name] = int(text["diversevar_seed"])
    return seeds


def test_chosen_seeds_are_an_output_and_in_the_saved_image(host):
    prompt = graph("infinity", starts=12, batch_size=2, seed=100)
    prompt["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["sampler", 1]}}
    outcome = host.run(prompt)
    steps = [data["value"] for data in outcome.of("progress") if data["node"] == "sampler"]
    assert (steps[0], steps[-1]) == (12, sum(side**2 for side in SIDES))  # starts, then maps
    both = pixels(outcome)
    seeds = [int(seed) for seed in outcome.text_of("show").split(", ")]
    del prompt["show"]
    for name in ("once", "cached"):
        assert list(saved(host, prompt, name).values()) == seeds
    assert seeds != [100, 101] and all(100 <= seed < 112 for seed in seeds)
    (second,) = pixels(host.run(graph("infinity", seed=seeds[1])))
    np.testing.assert_allclose(both[1], second.astype(int), atol=1)


def test_images_of_a_list_are_saved_with_their_own_seeds(host):
    """Rebatch Latents makes a list of two; image i of the whole is seed + i, as with KSampler."""
    prompt = graph("emoji", batch_size=4, seed=11, latent_image=["parts", 0])
    inputs = {"latents": ["empty", 0], "batch_size": 2}
    prompt["parts"] = {"class_type": "RebatchLatents", "inputs": inputs}
    assert list(saved(host, prompt, "list").values()) == [11, 12, 13, 14]


METHODS = {
    "DiverseVARSeeds": {"candidates": 8, "side": 4, "compare": "small images"},
    "DiverseVARSSRSAR": {"ssr": 0.5, "sides": "4"},
    "DiverseVARRepulsion": {"strength": 8.0},
    "DiverseVARAdaptiveScaling": {},
    "DiverseVARPathSearch": {"candidates": 2},
    "DiverseVARTextNoise": {"strength": 1.0},
    "DiverseVARTravel": {"side": 4},
    "DiverseVARFastVAR": {"skip": 1},
    "DiverseVARScaleKV": {"budget": 0.1},
}


def chain(names, **sampler) -> dict:
    """``graph`` with these methods, one after the other."""
    prompt, before = graph("infinity", batch_size=2, **sampler), None
    for name in names:
        inputs = dict(METHODS[name])
        if before:
            inputs["method"] = [before, 0]
        if name == "DiverseVARSeeds":
            inputs["compare.vae"] = ["vae", 0]
        prompt[name], before = {"class_type": name, "inputs": inputs}, name
    if before:
        prompt["sampler"]["inputs"]["method"] = [before, 0]
    return prompt


def test_methods_act_and_chain_in_any_order(host):
    (_, plain) = pixels(host.run(chain([])))
    for name in METHODS:
        (_, changed) = pixels(host.run(chain([name])))
        assert not np.array_equal(plain, changed), name
    there, back = (pixels(host.run(chain(names))) for names in (METHODS, list(METHODS)[::-1]))
    np.testing.assert_array_equal(there, back)


def test_the_settings_that_were_used_are_shown(host):
    preset = {"guidance_start": 2, "starts": 4, "ssr": 0.25, "sar": 0.25}
    nodes = ("DiverseVARSeeds", "DiverseVARSSRSAR", "DiverseVARTextNoise")
    own, replaced = graph("infinity", batch_size=2, **preset), chain(nodes, **preset)
    replaced["DiverseVARSSRSAR"]["inputs"]["sar"] = 0.0
    first, second = (host.run(p).text_of("sampler").splitlines()[0] for p in (own, replaced))
    settings = "; cfg 4, temperature 0.5"
    assert first == "guidance_start 2, starts 4, ssr 0.25, sar 0.25" + settings
    connected = " with SSR and SAR, Text Noise, Diverse Seeds"
    assert second == "guidance_start 2, starts 8, ssr 0.5" + connected + settings
    published = chain(("DiverseVARTravel", "DiverseVARSeeds"), preset="as published")
    published["DiverseVARSeeds"]["inputs"] |= {"candidates": 1}
    line = host.run(published).text_of("sampler").splitlines()[0]
    assert line == "as published with Diverse Seeds, Scale Travel" + settings


def test_calibrate_finds_what_the_preset_then_uses(host):
    """On the included model, copied to another folder; the plot shows on the node."""
    with_preset = included(preset="my calibration", batch_size=2)
    assert "no finished calibration" in host.run(with_preset).error
    prompt = included()
    inputs = {name: [name, 0] for name in ("model", "vae", "clip")}
    inputs |= {"prompts": "octopus", "seeds": 2}
    prompt["calibrate"] = {"class_type": "DiverseVARCalibrate", "inputs": inputs}
    prompt = {name: prompt[name] for name in ("model", "vae", "clip", "calibrate")}
    outcome = host.run(prompt)
    assert outcome.error is None
    (plot,) = outcome.images
    assert plot.width > plot.height
    steps = [data["value"] for data in outcome.of("progress") if data["node"] == "calibrate"]
    assert len(steps) > 10 and steps == sorted(steps) and steps[-1] == 1000
    again = host.run(prompt)
    (cached,) = again.of("execution_cached")
    assert again.error is None and {"model", "calibrate"} <= set(cached["nodes"])
    assert len(pixels(host.run(with_preset))) == 2

    folder = host.base / "models" / "diffusion_models"
    calibration = folder / "emoji_copy.safetensors.diversity.json"

    def cached_with_preset() -> set[str]:
        return {
            name
            for event in host.run(with_preset).of("execution_cached")
            for name in event["nodes"]
        }

    assert {"model", "sampler"} <= cached_with_preset()
    saved = json.loads(calibration.read_text())
    calibration.write_text(json.dumps(saved | {"chosen": {"guidance_start": 2}}))
    assert "sampler" not in cached_with_preset()  # another choice: sampled again


def with_clip_vision(prompt: dict, kind: str, **inputs) -> dict:
    """A node that compares by CLIP vision, as ``vision`` in the prompt."""
    prompt["features"] = {"class_type": "TinyCLIPVision", "inputs": {}}
    inputs |= {"clip_vision": ["features", 0]}
    prompt["vision"] = {"class_type": kind, "inputs": inputs}
    return prompt


def test_starts_by_clip_vision_are_those_picked_of_finished_images(host):
    inputs = {"candidates": 8, "side": 8, "compare": "small images", "compare.vae": ["vae", 0]}
    started = graph("emoji", prompt="octopus", batch_size=3, method=["vision", 0])
    with_clip_vision(started, "DiverseVARSeeds", **inputs)
    given = started["vision"]["inputs"]
    given["compare.clip_vision"] = given.pop("clip_vision")
    started = pixels(host.run(started))
    finished = graph("emoji", prompt="octopus", batch_size=8)
    with_clip_vision(finished, "DiverseVARSelect", images=["decode", 0], count=3)
    finished["save"]["inputs"]["images"] = ["vision", 0]
    picked = pixels(host.run(finished))
    np.testing.assert_allclose(started, np.stack(picked).astype(int), atol=1)


def test_calibrate_compares_by_clip_vision(host):
    """Its first one, as published, says of the images what Measure Diversity says of them."""
    calibration = (
        host.base / "models" / "diffusion_models" / "emoji_copy.safetensors.diversity.json"
    )
    calibration.unlink(missing_ok=True)
    prompt = included()
    inputs = {name: [name, 0] for name in ("model", "vae", "clip")}
    inputs |= {"prompts": "octopus", "seeds": 3}
    with_clip_vision(prompt, "DiverseVARCalibrate", **inputs)
    del prompt["save"]
    assert host.run(prompt).error is None
    saved = json.loads(calibration.read_text())
    assert saved["chosen"]

    prompt = included(preset="as published", batch_size=3)
    with_clip_vision(prompt, "DiverseVARMeasure", images=["decode", 0])
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["vision", 1]}}
    report = host.run(prompt).text_of("report")
    (measured,) = saved["measured"][0]["diversity"]
    # 4e-7, so 9e-4 between features: float32's 1e-6 in those is 2e-3 of it
    assert float(report) == pytest.approx(measured, rel=1e-2)


def included(**sampler) -> dict:
    """``graph`` with a copy of the model that comes with the pack."""
    prompt = graph("infinity", prompt="octopus", **sampler)
    prompt["model"]["inputs"]["model_name"] = "emoji_copy.safetensors"
    prompt["vae"]["inputs"]["vae_name"] = "emoji-small"
    prompt["clip"]["inputs"]["clip_name"] = "emoji-small"
    return prompt


def test_the_spectrum_is_plotted_for_every_map_and_block(host):
    prompt = graph("var")
    inputs = {"model": ["model", 0], "vae": ["vae", 0], "positive": ["text", 0]}
    prompt["plot"] = {"class_type": "DiverseVARSpectrum", "inputs": inputs}
    prompt = {name: prompt[name] for name in ("model", "vae", "text", "plot")}
    (plot,) = pixels(host.run(prompt))
    orange = (plot == (0xD9, 0x54, 0x1E)).all(axis=-1)
    assert orange.any(axis=1).sum() > plot.shape[0] / 8  # lines in every row of panels


def test_aspects_reach_the_image(host):
    (image,) = host.run(graph("infinity", size={"aspect_ratio": "1:2 portrait"})).images
    assert image.height == 2 * image.width


def test_stock_conditioning_nodes_work(host):
    prompt = graph("infinity")
    inputs = {"clip": ["clip", 0], "text": "a blue pear on a table"}
    prompt["other"] = {"class_type": "CLIPTextEncode", "inputs": inputs}
    inputs = {"conditioning_to": ["text", 0], "conditioning_from": ["other", 0]}
    prompt["mixed"] = {"class_type": "ConditioningAverage", "inputs": inputs}
    prompt["zero"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["text", 0]}}
    prompt["sampler"]["inputs"] |= {"positive": ["mixed", 0], "negative": ["zero", 0]}
    (mixed,) = pixels(host.run(prompt))
    (plain,) = pixels(host.run(graph("infinity")))
    assert not np.array_equal(mixed, plain)


def through_tokens(host, family: str) -> np.ndarray:
    """That image, taken through the vae without the host: (H, W, 3)."""
    file = host.base / "models" / "vae" / VAES[family]
    vae = load_vae(FOLDER / "emoji-small" / "vae.safetensors" if family == "emoji" else file)
    schedule, side = square(MAPS[family]), PIXELS[family]
    red, blue = (torch.tensor(c).div(255)[:, None, None] for c in ((192, 64, 32), (32, 64, 192)))
    image = torch.where(torch.arange(side) < side // 2, red, blue).repeat(1, side, 1)[None]
    f_hat = None
    with torch.no_grad():
        maps = vae.quantize_maps(vae.features(image * 2 - 1), schedule)
        for scale, tokens in zip(schedule, maps, strict=True):
            f_hat, _ = vae.accumulate(f_hat, tokens, scale)
        image = to_image(vae.decode(f_hat))[0]
    return image.mul(255).movedim(0, -1).numpy()


@pytest.mark.parametrize("family", ["var", "emoji"])
def test_keeping_every_token_gives_the_encoded_image(host, family):
    (kept,) = pixels(host.run(encoded(family, keep_side=128)))
    (varied,) = pixels(host.run(encoded(family, keep_side=2)))
    np.testing.assert_allclose(kept, through_tokens(host, family), atol=2)
    assert not np.array_equal(varied, kept)


def test_stock_latent_nodes_do_to_the_image_what_they_say(host):
    def kept(kind: str | None = None, **inputs) -> list[np.ndarray]:
        prompt = encoded("emoji", keep_side=128)
        if kind == "VAEEncode":
            prompt["encode"]["class_type"] = "VAEEncode"
            prompt["encode"]["inputs"] = {"pixels": ["both", 0], "vae": ["vae", 0]}
        elif kind:
            prompt["stock"] = {"class_type": kind, "inputs": inputs}
            prompt["sampler"]["inputs"]["latent_image"] = ["stock", 0]
        return pixels(host.run(prompt))

    (plain,) = kept()
    (flipped,) = kept("LatentFlip", samples=["encode", 0], flip_method="y-axis: horizontally")
    (stock,) = kept("VAEEncode")
    two = kept("RepeatLatentBatch", samples=["encode", 0], amount=2)
    red = lambda image: image[..., 0].astype(int) - image[..., 2]  # noqa: E731
    np.testing.assert_array_equal(stock, plain)
    assert len(two) == 2
    for one in two:
        np.testing.assert_allclose(one, plain.astype(int), atol=1)  # same tokens; a rounding
    mirrored, as_it_was = (np.abs(red(flipped) - red(p)).mean() for p in (plain[:, ::-1], plain))
    assert mirrored < as_it_was


@pytest.mark.parametrize("socket", ["encode", "latent"])
def test_a_mask_is_cropped_with_its_image(host, socket):
    """Five to one, cropped to three to one; of the last map, the tokens on the right are drawn."""
    prompt = encoded("infinity", keep_side=12)
    for name in ("image", "blue"):
        prompt[name]["inputs"] |= {"width": 480, "height": 96}
    for name, value, width in (("none", 0.0, 480), ("all", 1.0, 168)):
        inputs = {"value": value, "width": width, "height": 96}
        prompt[name] = {"class_type": "SolidMask", "inputs": inputs}
    right = {"destination": ["none", 0], "source": ["all", 0], "x": 312, "y": 0}
    prompt["right"] = {"class_type": "MaskComposite", "inputs": right | {"operation": "add"}}
    inputs = {"samples": ["sampler", 0], "filename_prefix": socket}
    prompt["save"] = {"class_type": "SaveLatent", "inputs": inputs}
    spared = copy.deepcopy(prompt)
    spared["sampler"]["inputs"]["keep_side"] = 128
    if socket == "latent":
        inputs = {"samples": ["encode", 0], "mask": ["right", 0]}
        prompt["masked"] = {"class_type": "SetLatentNoiseMask", "inputs": inputs}
        prompt["sampler"]["inputs"]["latent_image"] = ["masked", 0]
    else:
        prompt[socket]["inputs"]["mask"] = ["right", 0]
    assert host.run(prompt).error is None and host.run(spared).error is None
    files = sorted((host.base / "output").glob(f"{socket}_*.latent"))
    drawn, kept = (load_file(file)["latent_tensor"] for file in files)
    different = (drawn != kept).any(dim=(0, 1, 2))  # 27 columns of tokens, of 288 pixels
    assert not different[:20].any() and different[20:].any()


def test_select_and_measure_a_batch(host):
    prompt = graph("var", batch_size=3)
    prompt["select"] = {"class_type": "DiverseVARSelect", "inputs": {"images": ["decode", 0]}}
    prompt["select"]["inputs"]["count"] = 2
    prompt["save"]["inputs"]["images"] = ["select", 0]
    prompt["measure"] = {"class_type": "DiverseVARMeasure", "inputs": {"images": ["decode", 0]}}
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["measure", 2]}}
    outcome = host.run(prompt)
    selected = pixels(outcome)
    assert len(selected) == 2 and not np.array_equal(*selected)
    report = outcome.text_of("report")
    assert report.startswith("3 images amount to") and outcome.text_of("measure") == report


def test_progress_and_previews_for_every_scale(host):
    outcome = host.run(graph("infinity", seed=11), preview="auto")
    steps = [data["value"] for data in outcome.of("progress") if data["node"] == "sampler"]
    assert steps == list(np.cumsum([side**2 for side in SIDES]))
    assert len(outcome.previews) >= len(SIDES)
    assert all(b"\xff\xd8\xff" in frame for frame in outcome.previews)  # JPEG


def test_cancel_stops_within_a_scale_and_the_next_prompt_runs(host):
    seen = []
    stopped = False
    for event in host.events(graph("infinity", seed=12, batch_size=16)):
        seen.append(event)
        if not stopped and len(values(seen)) == 4:
            host.interrupt()
            stopped = True
    assert [event["type"] for event in seen if "execution" in event["type"]][-1] == (
        "execution_interrupted"
    )
    assert len(values(seen)) <= 5 < len(SIDES)
    assert host.run(graph("infinity", seed=12)).error is None


def values(events: list[dict]) -> list[int]:
    return [event["data"]["value"] for event in events if event["type"] == "progress"]


def wrong_vae() -> dict:
    prompt = graph("infinity")
    prompt["vae"]["inputs"]["vae_name"] = VAES["var"]
    return prompt


def class_for_infinity() -> dict:
    prompt = graph("infinity")
    prompt["text"] = graph("var")["text"]
    return prompt


def prompt_for_var() -> dict:
    prompt = graph("var")
    prompt |= {name: graph("infinity")[name] for name in ("clip", "text")}
    return prompt


def truncated_model() -> dict:
    prompt = graph("infinity")
    prompt["model"]["inputs"]["model_name"] = "truncated.safetensors"
    return prompt


def latent(kind: str = "EmptyLatentImage", **inputs) -> dict:
    prompt = graph("infinity")
    prompt["empty"] = {"class_type": kind, "inputs": inputs}
    return prompt


def encoded_by_stock(width: int, height: int) -> dict:
    prompt = encoded("infinity")
    prompt["image"]["inputs"] |= {"width": width, "height": height}
    inputs = {"pixels": ["image", 0], "vae": ["vae", 0]}
    prompt["encode"] = {"class_type": "VAEEncode", "inputs": inputs}
    return prompt


def masks(count: int) -> dict:
    prompt = encoded("infinity")
    prompt["two"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["both", 0]}}
    prompt["two"]["inputs"]["amount"] = 2
    prompt["encode"]["inputs"] |= {"pixels": ["two", 0], "mask": ["masks", 0]}
    prompt["one"] = {"class_type": "SolidMask", "inputs": {}}
    prompt["images"] = {"class_type": "MaskToImage", "inputs": {"mask": ["one", 0]}}
    inputs = {"image": ["images", 0], "amount": count}
    prompt["several"] = {"class_type": "RepeatImageBatch", "inputs": inputs}
    inputs = {"image": ["several", 0], "channel": "red"}
    prompt["masks"] = {"class_type": "ImageToMask", "inputs": inputs}
    return prompt


def negative_for_var() -> dict:
    return graph("var", negative=["text", 0])


def text_in_an_area() -> dict:
    prompt = graph("infinity")
    prompt["sampler"]["inputs"]["positive"] = ["area", 0]
    inputs = {"conditioning": ["text", 0]}
    prompt["area"] = {"class_type": "ConditioningSetArea", "inputs": inputs}
    return prompt


def two_prompts() -> dict:
    prompt = graph("infinity")
    prompt["sampler"]["inputs"]["positive"] = ["both", 0]
    inputs = {"conditioning_1": ["text", 0], "conditioning_2": ["text", 0]}
    prompt["both"] = {"class_type": "ConditioningCombine", "inputs": inputs}
    return prompt


@pytest.mark.parametrize(
    "prompt, words",
    [
        (wrong_vae(), "vae"),
        (class_for_infinity(), "classes"),
        (prompt_for_var(), "classes"),
        (truncated_model(), "truncated"),
        (latent(), "4 channels"),
        (encoded_by_stock(96, 96), "6 x 6 tokens"),
        (masks(3), "3 masks for 2 images"),
        (negative_for_var(), "no negative prompt"),
        (graph("var", size={"aspect_ratio": "2:1 landscape"}), "square images"),
        (graph("var", size={"megapixels": "1M"}), "square images"),
        (text_in_an_area(), "an area"),
        (two_prompts(), "2 conditionings"),
        (graph("infinity", prompt=" "), "empty"),
        (graph("infinity", prompt="cat " * 600), "601 tokens"),
        (advanced("infinity", sides="4,7"), "7"),
        (advanced("infinity", sides="four"), "not 'four'"),
        (advanced("infinity", ssr=float("nan")), "nan"),
        (graph("var", top_p=float("nan")), "nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_clear_sentence(host, prompt, words):
    error = host.run(prompt).error
    assert error and words in error.lower()
    assert len(error) < 300 and "\n" not in error


@pytest.mark.parametrize("bad", ["batch_size", "aspect_ratio", "preset.ssr"])
def test_the_host_checks_ranges_and_choices(host, bad):
    prompt = graph("var", batch_size=0 if bad == "batch_size" else 1)
    if bad == "aspect_ratio":
        prompt["empty"]["inputs"]["aspect_ratio"] = "9:1"
    if bad == "preset.ssr":
        prompt["sampler"]["inputs"]["preset.ssr"] = -1.0
    with pytest.raises(Refused, match=bad):
        host.run(prompt)
