"""Linked inputs: the host checks only the types' names, so the nodes check the values."""

import json

import numpy as np
import pytest
from prompts import CLASSES, VAES, edit_graph, encoded, graph, pixels

HALF = "\ud800"  # half of a character, which no output can encode


def given(prompt: dict, place: str, code: str, kind: str = "AnyObject") -> dict:
    """The prompt with a Python object at an input: ``node.input``."""
    node, _, name = place.partition(".")
    prompt["object"] = {"class_type": kind, "inputs": {"code": code}}
    prompt[node]["inputs"][name] = ["object", 0]
    return prompt


def with_node(prompt: dict, place: str, kind: str, **inputs) -> dict:
    """The prompt with a node, called ``new``, at an input: ``node.input``."""
    node, _, name = place.partition(".")
    prompt["new"] = {"class_type": kind, "inputs": inputs}
    prompt[node]["inputs"][name] = ["new", 0]
    return prompt


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
        given(graph("emoji"), "sampler.preset", "chr(0xd800)"),
        given(graph("emoji"), "model.model_name", "chr(0xd800)"),
    ],
    ids=["sides", "long", "prompt", "stock", "choice", "name"],
)
def test_no_text_ends_the_queue(host, prompt):
    error = host.run(prompt, seconds=30).error
    assert error and len(error) < 1000
    assert host.run(graph("emoji"), seconds=30).error is None
    assert "Exception in thread" not in host.log


@pytest.mark.parametrize(
    "place, code, words",
    [
        ("empty.batch_size", "0", "batch_size must be from 1 to 64, not 0"),
        ("empty.batch_size", "-1", "batch_size must be from 1 to 64, not -1"),
        ("empty.batch_size", "10**30", "batch_size must be from 1 to 64"),
        ("empty.batch_size", "1.5", "batch_size must be a whole number, not '1.5'"),
        ("empty.batch_size", "'two'", "batch_size must be a whole number, not 'two'"),
        ("sampler.seed", "2**64", "seed must be from 0 to 18446744073709551615"),
        ("sampler.sampling.cfg", "math.nan", "cfg must be from 0.0 to 30.0, not nan"),
        ("sampler.sampling.temperature", "-1", "temperature must be from 0.01 to 5.0, not -1"),
        ("empty.aspect_ratio", "'9:1'", "aspect_ratio has no '9:1', only '1:1 square'"),
        ("sampler.preset", "'wild'", "preset has no 'wild', only 'balanced'"),
        ("sampler.exact_batch", "'no'", "exact_batch must be true or false, not 'no'"),
        ("sampler.method", "('a',)", "method takes DIVERSEVAR_METHOD"),
        ("sampler.model", "3", "model takes DIVERSEVAR_MODEL"),
        ("sampler.vae", "3", "Load VAR VAE"),
        ("sampler.positive", "[]", "positive takes CONDITIONING"),
        ("sampler.latent_image", "torch.ones(1, 8, 8, 3)", "latent_image takes LATENT"),
    ],
)
def test_linked_inputs_are_checked_against_the_schema(host, place, code, words):
    assert words in fails(host, given(graph("emoji", cfg=4.0), place, code))


def test_an_optional_input_that_is_given_nothing_is_unconnected(host):
    (plain,) = pixels(host.run(graph("emoji")))
    for name in ("method", "negative"):
        (same,) = pixels(host.run(given(graph("emoji"), f"sampler.{name}", "None")))
        np.testing.assert_array_equal(plain, same)


def grey(channels: int, place: str) -> dict:
    """Images with this number of channels into Edit or Encode."""
    code = f"torch.linspace(0, 1, 64)[:, None, None].expand(1, 64, 64, {channels})"
    if place == "edit":
        return given(edit_graph(), "edit.image", code)
    return given(encoded("emoji", keep_side=128), "encode.pixels", code)


@pytest.mark.parametrize("place", ["edit", "encode"])
def test_grey_is_colour_and_transparency_is_left_out(host, place):
    colour, *others = (pixels(host.run(grey(count, place)))[0] for count in (3, 1, 4))
    for other in others:
        np.testing.assert_array_equal(colour, other)
    assert "has 2 channels, and an image has 1" in fails(host, grey(2, place))
    empty = grey(3, place)
    empty["object"]["inputs"]["code"] = "torch.ones(0, 64, 64, 3)"
    assert "is empty (shape [0, 64, 64, 3])" in fails(host, empty)


def test_an_edit_reads_images_beyond_the_range_as_clamped(host):
    """What a bicubic resize overshoots stays black and white."""
    code = (
        "(torch.arange(64) // 16 % 2).float().expand(64, 64)[None, :, :, None].expand(1, 64, 64, 3)"
    )
    (plain,) = pixels(host.run(given(edit_graph(), "edit.image", code)))
    (beyond,) = pixels(host.run(given(edit_graph(), "edit.image", f"({code}) * 1.4 - 0.2")))
    np.testing.assert_array_equal(plain, beyond)


@pytest.mark.parametrize("place", ["encode", "edit"])
def test_a_mask_must_say_where(host, place):
    def prompt(code: str) -> dict:
        if place == "edit":
            return given(edit_graph(), "edit.mask", code)
        return given(encoded("emoji"), f"{place}.mask", code)

    assert "The mask is empty" in fails(host, prompt("torch.zeros(1, 64, 64)"))
    assert "contains NaN" in fails(host, prompt("torch.full((1, 64, 64), math.nan)"))
    clamped, beyond = (
        pixels(
            host.run(
                prompt(f"torch.tensor([{low}, {high}]).repeat_interleave(32).expand(1, 64, 64)")
            )
        )
        for low, high in ((0.0, 1.0), (-3.0, 7.0))
    )
    np.testing.assert_array_equal(clamped, beyond)


def test_a_latent_of_a_video_is_named(host):
    code = "{'samples': torch.zeros(1, 16, 1, 8, 8)}"
    assert "of a video" in fails(host, given(graph("emoji"), "sampler.latent_image", code))


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


def a_image_each(**sampler) -> dict:
    code = "torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))"
    return given(encoded("emoji", **sampler), "encode.pixels", code)


def repeated(**sampler) -> dict:
    """Two variations of one image."""
    prompt = encoded("emoji", **sampler)
    return with_node(prompt, "encode.pixels", "RepeatImageBatch", image=["both", 0], amount=2)


def test_starts_compare_images_of_the_same(host):
    assert "set starts to 1" in fails(host, a_image_each(keep_side=2, starts=8))
    assert "set starts to 1" in fails(host, a_image_each(keep_side=2, preset="most different"))
    masks = "torch.stack((torch.ones(64, 64), torch.eye(64)))"
    prompt = given(repeated(starts=8), "encode.mask", masks)
    assert "set starts to 1" in fails(host, prompt)
    for ways in (a_image_each(keep_side=2), repeated(keep_side=2, starts=8)):
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
    assert "connect the same VAE to both" in fails(host, prompt)


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


def test_seeds_of_other_images_are_not_saved(host):
    prompt = given(graph("emoji", batch_size=2), "decode.samples", "None")
    prompt["decode"]["inputs"]["samples"] = ["sampler", 0]
    inputs = {"images": ["decode", 0], "seeds": ["object", 0], "filename_prefix": "wrong"}
    prompt["save"] = {"class_type": "DiverseVARSave", "inputs": inputs}
    for seeds in ("5", "5, six", "5, 6, 7", ""):
        prompt["object"]["inputs"]["code"] = repr(seeds)
        assert "seeds must be 2 numbers" in fails(host, prompt)
    assert not list((host.base / "output").glob("wrong*"))


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
