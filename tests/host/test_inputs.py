"""Linked inputs: the host checks only the types' names, so the nodes check the values."""

import json
import math

import numpy as np
import pytest
import torch
from comfy_host import Refused
from prompts import CLASSES, MODELS, VAES, edit_graph, encoded, graph, pixels

HALF = "\ud800"  # half of a character, which no output can encode


def with_node(prompt: dict, place: str, kind: str, **inputs) -> dict:
    """The prompt with a node, called ``new``, at an input: ``node.input``."""
    node, _, name = place.partition(".")
    prompt["new"] = {"class_type": kind, "inputs": inputs}
    prompt[node]["inputs"][name] = ["new", 0]
    return prompt


def linked(place: str, value: object, **sampler) -> dict:
    """A prompt with a number or text of a stock node at an input."""
    kind = {int: "PrimitiveInt", float: "PrimitiveFloat", str: "PrimitiveString"}[type(value)]
    return with_node(graph("emoji", **sampler), place, kind, value=value)


def fails(host, prompt: dict) -> str:
    """The one clear sentence that a prompt ends with."""
    error = host.run(prompt).error
    assert error and len(error) < 300 and "\n" not in error, error
    return error


def stock_text(text: str, kind: str = "CLIPTextEncode", **inputs) -> dict:
    prompt = graph("emoji")
    prompt["text"] = {"class_type": kind, "inputs": {"clip": ["clip", 0], "text": text, **inputs}}
    return prompt


@pytest.mark.parametrize(
    "prompt",
    [
        with_node(graph("emoji"), "sampler.method", "DiverseVARSSRSAR", sides=HALF),
        with_node(graph("emoji"), "sampler.method", "DiverseVARSSRSAR", sides="4," * 50_000),
        graph("emoji", prompt=f"a cat {HALF}"),
        stock_text(HALF),
        linked("sampler.preset", HALF),
    ],
    ids=["sides", "long", "prompt", "stock", "choice"],
)
def test_no_text_ends_the_queue(host, prompt):
    error = host.run(prompt, seconds=30).error
    assert error and len(error) < 1000
    assert host.run(graph("emoji"), seconds=30).error is None
    assert "Exception in thread" not in host.log


@pytest.mark.parametrize(
    "place, value, words",
    [
        ("empty.batch_size", 0, "batch_size must be a whole number from 1 to 64, not '0'"),
        ("sampler.seed", -1, "seed must be a whole number from 0 to 18446744073709551615, not"),
        ("sampler.preset.starts", 2000, "starts must be a whole number from 1 to 1024, not '2000'"),
        ("sampler.sampling.cfg", math.nan, "cfg must be a number from 0.0 to 30.0, not 'nan'"),
        ("sampler.sampling.temperature", -1.0, "temperature must be a number from 0.01 to 5.0"),
        ("sampler.preset", "wild", "'wild' is not a valid preset; choose one of 'balanced'"),
        ("sampler.preset", "custom", "'custom' has inputs of its own; choose it on the node"),
        ("sampler.sampling", "Custom", "'Custom' is not a valid sampling; choose one of 'official"),
    ],
)
def test_linked_numbers_and_choices_are_checked_against_the_schema(host, place, value, words):
    assert words in fails(host, linked(place, value, cfg=4.0))


def test_a_choice_without_inputs_can_be_linked(host):
    (chosen,) = pixels(host.run(graph("emoji", preset="balanced")))
    (text,) = pixels(host.run(linked("sampler.preset", "balanced")))
    np.testing.assert_array_equal(chosen, text)


def without(prompt: dict, *names: str, **inputs) -> dict:
    """The prompt as a client may send it: without some of the sampler's inputs, others changed."""
    sampler = prompt["sampler"]["inputs"]
    for name in names:
        del sampler[name]
    sampler |= inputs
    return prompt


def test_numbers_of_custom_that_a_client_leaves_out_have_their_defaults(host, monkeypatch):
    whole = host.filled(graph("emoji", starts=64, batch_size=2) | {})
    expected = pixels(host.run(whole))
    monkeypatch.setattr(host, "filled", lambda prompt: prompt)
    names = [name for name in whole["sampler"]["inputs"] if name.startswith("preset.")]
    few = without(json.loads(json.dumps(whole)), *names)
    np.testing.assert_array_equal(pixels(host.run(few)), expected)
    for changes, words in (
        ({"starts": 4}, "starts is an input of preset; call it preset.starts"),
        ({"preset": "Balanced"}, "'Balanced' is not a valid preset; choose one of 'balanced'"),
        ({"preset": {"starts": 4}}, "{'starts': 4}' is not a valid preset"),
        ({"preset": None}, "preset is missing; choose one of 'balanced'"),
    ):
        assert words in fails(host, without(json.loads(json.dumps(few)), **changes)), changes


@pytest.mark.parametrize("name", ["preset", "preset.starts", "sampling"])
def test_a_link_to_a_node_that_is_not_there_does_not_end_the_queue(host, name):
    prompt = graph("emoji", cfg=4.0)
    prompt["sampler"]["inputs"][name] = ["nowhere", 0]
    try:
        assert f"{name} is missing" in fails(host, prompt)
    except Refused as error:
        assert name in str(error)
    assert host.run(graph("emoji", seed=8), seconds=60).error is None
    assert "Exception in thread" not in host.log


def test_windows_separators_in_a_name_are_read_on_every_system(host):
    folder, name = host.base / "models" / "diffusion_models", MODELS["infinity"]
    (folder / "sub").mkdir()
    for file in (folder / name, (folder / name).with_suffix(".json")):
        (folder / "sub" / file.name).symlink_to(file)
    prompt = graph("infinity")
    (plain,) = pixels(host.run(prompt))
    prompt["model"]["inputs"]["model_name"] = f"sub\\{name}"
    np.testing.assert_array_equal(pixels(host.run(prompt))[0], plain)


def not_a_number() -> dict:
    """A prompt with a latent, an image and a mask of NaN."""
    prompt = with_node(
        encoded("emoji"), "decode.samples", "LatentMultiply", samples=["encode", 0], multiplier=0.0
    )
    prompt["new"]["inputs"]["multiplier"] = math.nan
    prompt["mask"] = {"class_type": "ImageToMask", "inputs": {"image": ["decode", 0]}}
    prompt["mask"]["inputs"]["channel"] = "red"
    return prompt


@pytest.mark.parametrize(
    "place, source, kind",
    [
        ("sampler.latent_image", "new", None),
        ("encode.pixels", "decode", "DiverseVAREncode"),
        ("encode.mask", "mask", "DiverseVAREncode"),
        ("measure.images", "decode", "DiverseVARMeasure"),
        ("save.images", "decode", "DiverseVARSave"),
    ],
)
def test_what_is_not_finite_is_named_by_every_node(host, place, source, kind):
    prompt = not_a_number()
    node, _, name = place.partition(".")
    if node == "encode":
        prompt["other"] = json.loads(json.dumps(prompt["encode"]))
        node = "other"
        prompt["sampler"]["inputs"]["latent_image"] = ["other", 0]
    elif kind:
        prompt[node] = {"class_type": kind, "inputs": {}}
    if kind == "DiverseVARSave":
        prompt["seeds"] = {"class_type": "PrimitiveString", "inputs": {"value": "1"}}
        prompt[node]["inputs"] = {"seeds": ["seeds", 0], "filename_prefix": "nan"}
    prompt[node]["inputs"][name] = [source, 0]
    if node in ("sampler", "other"):
        prompt["end"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0]}}
        del prompt["save"]
    assert f"{name} contains NaN or infinity" in fails(host, prompt)


def edited(inside, image: torch.Tensor, **inputs) -> torch.Tensor:
    """An edit of images (B, H, W, C)."""
    (model,), (vae,) = (
        inside.node("LoadModel", model_name="emoji-edit", weight_dtype="default", task="auto"),
        inside.node("LoadVAE", vae_name="emoji-small"),
    )
    chosen = {"sampling": {"sampling": "official (cfg 3)"}, "batch_size": 1, "seed": 1}
    chosen |= {"guidance_start": 0, "guidance_end": 0, "exact_batch": False} | inputs
    positive = inside.text("emoji-edit")
    return inside.node("Edit", model=model, vae=vae, positive=positive, image=image, **chosen)[0]


def test_grey_is_colour_and_transparency_is_left_out(inside):
    shades = torch.linspace(0, 1, 64)[:, None, None]
    colour, *others = (edited(inside, shades.expand(1, 64, 64, count)) for count in (3, 1, 4))
    for other in others:
        torch.testing.assert_close(colour, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match="has 2 channels, and an image has 1"):
        edited(inside, shades.expand(1, 64, 64, 2))
    with pytest.raises(ValueError, match=r"is empty \(shape \[0, 64, 64, 3\]\)"):
        edited(inside, torch.ones(0, 64, 64, 3))


def test_an_edit_reads_images_beyond_the_range_as_clamped(inside):
    """What a bicubic resize overshoots stays black and white."""
    stripes = (torch.arange(64) // 16 % 2).float()[None, None, :, None].expand(1, 64, 64, 3)
    plain, beyond = edited(inside, stripes), edited(inside, stripes * 1.4 - 0.2)
    torch.testing.assert_close(plain, beyond, rtol=0, atol=0)


def test_a_mask_is_clamped_and_must_say_where(inside):
    image, half = torch.full((1, 64, 64, 3), 0.5), torch.tensor([0.0, 1.0]).repeat_interleave(32)
    clamped, beyond = (
        edited(inside, image, mask=mask.expand(1, 64, 64)) for mask in (half, half * 10 - 3)
    )
    torch.testing.assert_close(clamped, beyond, rtol=0, atol=0)
    with pytest.raises(ValueError, match="The mask is empty"):
        edited(inside, image, mask=torch.zeros(1, 64, 64))


def test_a_latent_of_a_video_is_named(host):
    sizes = {"width": 64, "height": 64, "length": 1, "batch_size": 1}
    prompt = with_node(graph("emoji"), "sampler.latent_image", "EmptyHunyuanLatentVideo", **sizes)
    assert "in 5 dimensions, where images have 4" in fails(host, prompt)


@pytest.mark.parametrize(
    "kind, inputs, words",
    [
        ("ConditioningSetAreaStrength", {"strength": 0.5}, "a strength"),
        ("InpaintModelConditioning", {}, "an image to inpaint"),
        ("ReferenceLatent", {"latent": ["empty", 0]}, "reference images"),
    ],
)
def test_what_a_conditioning_asks_for_in_vain_is_refused(host, kind, inputs, words):
    prompt = graph("emoji")
    inputs = {"conditioning": ["text", 0]} | inputs
    if kind == "InpaintModelConditioning":
        prompt["image"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64}}
        prompt["mask"] = {"class_type": "SolidMask", "inputs": {"width": 64, "height": 64}}
        inputs = {"positive": ["text", 0], "negative": ["text", 0], "vae": ["vae", 0]}
        inputs |= {"pixels": ["image", 0], "mask": ["mask", 0], "noise_mask": False}
    assert words in fails(host, with_node(prompt, "sampler.positive", kind, **inputs))


def ranged(start: float, end: float) -> dict:
    inputs = {"conditioning": ["text", 0], "start": start, "end": end}
    return with_node(graph("emoji"), "sampler.positive", "ConditioningSetTimestepRange", **inputs)


def test_the_full_range_of_steps_is_accepted(host):
    (plain,) = pixels(host.run(graph("emoji")))
    (full,) = pixels(host.run(ranged(0.0, 1.0)))
    np.testing.assert_array_equal(plain, full)
    for narrow in (ranged(0.0, 0.5), ranged(0.2, 1.0)):
        assert "a range of steps" in fails(host, narrow)


def mixed(kind: str, **inputs) -> dict:
    """Two classes into one positive."""
    prompt = graph("var")
    prompt["other"] = {
        "class_type": "DiverseVARImageNetClass",
        "inputs": {"class_name": CLASSES[5]},
    }
    return with_node(prompt, "sampler.positive", kind, **inputs)


@pytest.mark.parametrize("way", ["Combine", "Concat", "Average"])
def test_two_classes_are_refused(host, way):
    sockets = ("conditioning_1", "conditioning_2")
    if way != "Combine":
        sockets = ("conditioning_to", "conditioning_from")
    inputs = dict(zip(sockets, (["text", 0], ["other", 0]), strict=True))
    if way == "Average":
        inputs["conditioning_to_strength"] = 0.5
    assert "one" in fails(host, mixed(f"Conditioning{way}", **inputs))


def test_prompts_joined_past_the_models_length_are_refused(host):
    inputs = {"conditioning_to": ["text", 0], "conditioning_from": ["text", 0]}
    prompt = graph("infinity", prompt="cat " * 300)
    prompt = with_node(prompt, "sampler.positive", "ConditioningConcat", **inputs)
    assert "602 tokens" in fails(host, prompt)


@pytest.mark.parametrize(
    "kind, texts",
    [
        ("CLIPTextEncodeFlux", ("clip_l", "t5xxl")),
        ("CLIPTextEncodeSD3", ("clip_l", "clip_g", "t5xxl")),
        ("CLIPTextEncodeSDXL", ("text_g", "text_l")),
        ("CLIPTextEncodeHiDream", ("clip_l", "clip_g", "t5xxl", "llama")),
    ],
)
def test_text_nodes_for_other_encoders_say_so(host, kind, texts):
    prompt = graph("emoji")
    inputs = {"clip": ["clip", 0]} | dict.fromkeys(texts, "a cat")
    prompt["text"] = {"class_type": kind, "inputs": inputs}
    error = host.run(prompt).error
    assert "CLIP Text Encode" in error and "\n" not in error


def test_a_zeroed_negative_is_read_as_zeros(host):
    """As the original reads features that it is given; unconnected is the model's own."""
    inputs = {"conditioning": ["text", 0]}
    zeros = with_node(graph("emoji"), "sampler.negative", "ConditioningZeroOut", **inputs)
    (zeroed,) = pixels(host.run(zeros))
    (own,) = pixels(host.run(graph("emoji")))
    assert zeroed.std() > 0 and not np.array_equal(zeroed, own)


def two_images(**sampler) -> dict:
    """Variations of two images."""
    prompt = encoded("emoji", **sampler)
    both = {"image1": ["both", 0], "image2": ["blue", 0]}
    return with_node(prompt, "encode.pixels", "ImageBatch", **both)


def repeated(**sampler) -> dict:
    """Two variations of one image."""
    prompt = encoded("emoji", **sampler)
    return with_node(prompt, "encode.pixels", "RepeatImageBatch", image=["both", 0], amount=2)


def test_starts_compare_images_of_the_same(host):
    assert "set starts to 1" in fails(host, two_images(keep_side=2, starts=8))
    assert "set starts to 1" in fails(host, two_images(keep_side=2, preset="most different"))
    for ways in (two_images(keep_side=2), repeated(keep_side=2, starts=8)):
        assert len(pixels(host.run(ways))) == 2


def started_edit(images: int) -> dict:
    prompt = edit_graph(batch_size=2)
    prompt["image"]["inputs"]["batch_size"] = images
    return with_node(prompt, "edit.method", "DiverseVARSeeds", candidates=4)


def test_edits_of_several_images_have_no_starts(host):
    assert "set starts to 1" in fails(host, started_edit(2))
    assert len(pixels(host.run(started_edit(1)))) == 2


def test_small_images_need_the_models_own_tokenizer(host):
    inputs = {"candidates": 8, "compare": "small images", "compare.vae": ["other", 0]}
    prompt = with_node(graph("emoji", batch_size=2), "sampler.method", "DiverseVARSeeds", **inputs)
    inputs = {"vae_name": VAES["var"]}
    prompt["other"] = {"class_type": "DiverseVARLoadVAE", "inputs": inputs}
    assert "load the VAE that it was trained with" in fails(host, prompt)


def test_a_text_encoder_without_its_tokenizer_is_refused(host):
    folder = host.base / "models" / "text_encoders"
    alone = folder / "alone"
    alone.mkdir()
    (alone / "model.safetensors").write_bytes((folder / "flan-t5-xl.safetensors").read_bytes())
    prompt = graph("infinity")
    prompt["clip"]["inputs"]["clip_name"] = "alone"
    assert "own tokenizer.json next to it" in fails(host, prompt)


def shown(host, prompt: dict) -> str:
    """What the sampler says are the seeds."""
    prompt["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["sampler", 1]}}
    return host.run(prompt).text_of("show")


def test_seeds_past_the_last_start_over(host):
    prompt = graph("emoji", seed=2**64 - 1, batch_size=2)
    assert shown(host, prompt) == f"{2**64 - 1}, 0"
    (_, second), (first,) = pixels(host.run(prompt)), pixels(host.run(graph("emoji", seed=0)))
    np.testing.assert_allclose(second, first.astype(int), atol=1)
    assert json.loads(f"[{shown(host, graph('emoji', seed=5, batch_size=2))}]") == [5, 6]


@pytest.mark.parametrize("odd", [None, [], "x", 5, {"diversevar_seed": "x"}])
def test_seeds_are_saved_whatever_else_a_client_sends(host, odd):
    prompt = graph("emoji", seed=9)
    inputs = {"images": ["decode", 0], "seeds": ["sampler", 1], "filename_prefix": "odd"}
    prompt["save"] = {"class_type": "DiverseVARSave", "inputs": inputs}
    (image,) = host.run(prompt, extra_pnginfo=odd).images
    assert image.text["diversevar_seed"] == "9"


def saved(host, prefix: str, seeds: object = None, seed: int = 5):
    """Save four images under a prefix, with these seeds, or the sampler's own."""
    prompt = graph("emoji", batch_size=4, seed=seed)
    inputs = {"images": ["decode", 0], "seeds": ["sampler", 1], "filename_prefix": prefix}
    prompt["save"] = {"class_type": "DiverseVARSave", "inputs": inputs}
    if seeds is not None:
        with_node(prompt, "save.seeds", "PrimitiveString", value=seeds)
    return host.run(prompt)


@pytest.mark.parametrize("prefix", ["", "folder/", "folder/deeper//", "folder/.", "%batch_num%"])
def test_every_image_is_saved_whatever_the_prefix(host, prefix):
    output = host.base / "output"
    for seed in (5, 9):
        before = set(output.rglob("*.png"))
        images = saved(host, prefix, seed=seed).images
        assert [int(image.text["diversevar_seed"]) for image in images] == [*range(seed, seed + 4)]
        new = set(output.rglob("*.png")) - before
        assert len(new) == 4 and not any(path.name.startswith(".") for path in new)


def test_seeds_of_other_images_are_not_saved(host):
    for seeds in ("5", "5, six, 7, 8", "5, 6, 7, 8, 9", "", "1, 2, 3, " + "9" * 5000):
        outcome = saved(host, "wrong", seeds)
        assert "seeds must be 4 comma-separated integers" in outcome.error
    assert not list((host.base / "output").glob("wrong*"))


def test_an_image_taken_from_the_batch_is_the_one_of_its_place(host):
    whole = pixels(host.run(graph("emoji", batch_size=4, seed=10)))
    prompt = graph("emoji", batch_size=4, seed=10)
    inputs = {"samples": ["empty", 0], "batch_index": 2, "length": 1}
    prompt = with_node(prompt, "sampler.latent_image", "LatentFromBatch", **inputs)
    (third,) = pixels(host.run(prompt))
    np.testing.assert_allclose(third, whole[2].astype(int), atol=1)  # same tokens; a rounding
    assert shown(host, prompt) == "12"


def test_the_node_says_what_of_the_text_is_drawn(host):
    assert "drawn" not in host.run(graph("emoji", prompt="An octopus. ")).text_of("sampler")
    moon = host.run(graph("emoji", prompt="a cat on the moon"))
    said = "drawn: cat; new to this model and left out: moon"
    assert moon.text_of("sampler").splitlines()[0] == said
    (cat,) = pixels(host.run(graph("emoji", prompt="cat")))
    assert np.array_equal(pixels(moon)[0], cat)


@pytest.mark.parametrize("socket", ["positive", "negative"])
def test_a_text_that_is_all_new_is_refused(host, socket):
    inputs = {"clip": ["clip", 0], "text": "a zeppelin"}
    prompt = with_node(graph("emoji"), f"sampler.{socket}", "CLIPTextEncode", **inputs)
    assert "does not know 'a zeppelin'; it knows" in fails(host, prompt)


def test_weights_stay_where_all_of_the_text_is_drawn(host):
    plain, heavy, spaced, new = (
        pixels(host.run(graph("emoji", prompt=text)))[0]
        for text in ("octopus", "(octopus:1.9)", " (Octopus:1.9) ", "(octopus:1.9) on the moon")
    )
    assert np.array_equal(heavy, spaced) and not np.array_equal(heavy, plain)
    assert np.array_equal(new, plain)
