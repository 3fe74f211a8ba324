"""Exploring prompts: lists of prompts, contact sheets, picked images, and how an image grew."""

import copy
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from prompts import graph, pixels

SHEET, PICK = "DiverseVARContactSheet", "DiverseVARPick"
SIDES = [1, 2, 4, 6, 8]  # the included model's token maps
TEXT = "{red|green} apple\n\n  fox \nfox"
PROMPTS = ["red apple", "green apple", "fox"]


def exploring(text: str = TEXT, batch_size: int = 2, **pick) -> dict:
    """A prompt that draws every line of a text, shows a sheet, and saves the pick."""
    prompt = graph("emoji", batch_size=batch_size, seed=5)
    inputs = {"clip": ["clip", 0], "text": text}
    prompt["text"] = {"class_type": "DiverseVAREncodePrompts", "inputs": inputs}
    prompt["decode"]["class_type"] = "DiverseVARDecode"
    rows = {"images": ["decode", 0], "prompts": ["text", 1], "seeds": ["sampler", 1]}
    prompt["sheet"] = {"class_type": SHEET, "inputs": rows}
    prompt["pick"] = {"class_type": PICK, "inputs": rows | pick}
    prompt["save"]["inputs"]["images"] = ["pick", 0]
    return prompt


def shown(host, prompt: dict, source: list) -> list[str]:
    """The texts that an output gives."""
    prompt = prompt | {"show": {"class_type": "PreviewAny", "inputs": {"source": source}}}
    return host.run(prompt).text_of("show").splitlines()


def images_of(host, prompt: dict, node: str) -> list[np.ndarray]:
    """The images that a node shows."""
    (output,) = [
        data["output"] for data in run(host, prompt).of("executed") if data["node"] == node
    ]
    files = host.images({"outputs": {node: output}})
    return [np.asarray(Image.open(BytesIO(file))) for file in files]


def run(host, prompt: dict):
    outcome = host.run(prompt)
    assert outcome.error is None
    return outcome


def ran(outcome) -> set[str]:
    """The nodes that were computed."""
    return {data["node"] for data in outcome.of("executing")} - {None}


def test_each_line_is_drawn_with_the_same_seeds(host):
    assert shown(host, exploring(), ["text", 1]) == PROMPTS
    assert shown(host, exploring(), ["sampler", 1]) == ["5, 6"] * 3
    for row, number in ((1, 2), (3, 1)):
        (picked,) = images_of(host, exploring(row=row, number=number), "save")
        (alone,) = pixels(host.run(graph("emoji", PROMPTS[row - 1], seed=4 + number)))
        np.testing.assert_allclose(picked, alone.astype(int), atol=1)
        about = exploring(row=row, number=number)
        assert shown(host, about, ["pick", 1]) == [PROMPTS[row - 1]]
        assert shown(host, about, ["pick", 2]) == [str(4 + number)]


def test_one_line_is_what_clip_text_encode_makes_of_it(host):
    stock = pixels(host.run(graph("emoji", "octopus", batch_size=2)))
    prompt = graph("emoji", "octopus", batch_size=2)
    prompt["text"]["class_type"] = "DiverseVAREncodePrompts"
    np.testing.assert_array_equal(pixels(host.run(prompt)), stock)
    prompt["text"]["inputs"]["text"] = " \n"
    assert "prompt is empty" in host.run(prompt).error


def test_what_is_left_out_is_shown_under_the_text_before_anything_is_drawn(host):
    outcome = host.run(exploring("fox\nwooden owl"))
    lines = outcome.text_of("text").splitlines()
    assert lines[0] == "drawn: owl; new to this model and left out: wooden"
    assert lines[1:] == ["2 prompts: fox | wooden owl"]
    executed = [data["node"] for data in outcome.of("executed")]
    assert executed.index("text") < executed.index("sampler")
    assert host.run(exploring("fox")).text_of("text") == ""


@pytest.mark.parametrize(
    ("line", "knows"),
    [("accordion", "near in meaning it knows"), ("the", "it knows, for example,")],
)
def test_a_line_that_the_model_does_not_know_is_left_out_and_said(host, line, knows):
    prompt = exploring(f"fox\n{line}\nwooden owl", row=2)
    outcome = run(host, prompt)
    said, *lines = outcome.text_of("text").splitlines()
    assert said.startswith(f"This model does not know '{line}'; {knows} '")
    assert said.endswith("'. This prompt is left out.")
    assert lines[0] == "drawn: owl; new to this model and left out: wooden"
    assert lines[1:] == ["2 prompts: fox | wooden owl"]
    assert shown(host, prompt, ["text", 1]) == ["fox", "wooden owl"]
    assert shown(host, prompt, ["sampler", 1]) == ["5, 6"] * 2
    (picked,) = images_of(host, prompt, "save")
    (alone,) = pixels(host.run(graph("emoji", "owl", seed=5)))
    np.testing.assert_allclose(picked, alone.astype(int), atol=1)


def test_only_a_text_without_a_line_that_the_model_knows_is_an_error(host):
    outcome = host.run(exploring("accordion\nabacus"))
    assert outcome.error.startswith("This model does not know 'accordion'; ")
    assert "\n" not in outcome.error and not outcome.of("executed")


@pytest.mark.parametrize("changed", [{"row": 2}, {"number": 2}])
def test_another_pick_computes_only_what_follows(host, changed):
    prompt = exploring()
    inputs = {"pixels": ["pick", 0], "vae": ["vae", 0], "model": ["model", 0]}
    prompt["encode"] = {"class_type": "DiverseVAREncode", "inputs": inputs}
    prompt["again"] = copy.deepcopy(prompt["text"])
    prompt["again"]["inputs"]["text"] = ["pick", 1]
    prompt["variations"] = copy.deepcopy(prompt["sampler"])
    inputs = {"latent_image": ["encode", 0], "positive": ["again", 0], "keep_side": 2}
    prompt["variations"]["inputs"] |= inputs
    prompt["more"] = copy.deepcopy(prompt["decode"])
    prompt["more"]["inputs"]["samples"] = ["variations", 0]
    prompt["save"]["inputs"]["images"] = ["more", 0]
    first = images_of(host, prompt, "save")
    prompt["pick"]["inputs"] |= changed
    assert ran(run(host, prompt)) == {"pick", "encode", "again", "variations", "more", "save"}
    assert not np.array_equal(first, images_of(host, prompt, "save"))


COLOUR = 0xC86432


def other_images(batches, prompts=(), seeds: str | None = None, **pick) -> dict:
    """A sheet and a pick of another model's images: (count, height, width) of every batch."""
    sources, rows = {}, {"images": ["images", 0]}
    for i, (count, height, width) in enumerate(batches):
        inputs = {"batch_size": count, "height": height, "width": width, "color": COLOUR}
        sources[f"image {i}"] = {"class_type": "EmptyImage", "inputs": inputs}
    prompt = sources | {"images": in_a_list(sources)}
    if prompts:
        texts = {
            text: {"class_type": "PrimitiveString", "inputs": {"value": text}} for text in prompts
        }
        prompt |= texts | {"prompts": in_a_list(texts)}
        rows["prompts"] = ["prompts", 0]
    if seeds is not None:
        prompt["seeds"] = {"class_type": "PrimitiveString", "inputs": {"value": seeds}}
        rows["seeds"] = ["seeds", 0]
    prompt["sheet"] = {"class_type": SHEET, "inputs": rows}
    if pick:
        prompt["pick"] = {"class_type": PICK, "inputs": rows | pick}
    return prompt


def in_a_list(names) -> dict:
    """A list of these nodes' outputs."""
    inputs = {f"inputs.input{i}": [name, 0] for i, name in enumerate(names)}
    return {"class_type": "CreateList", "inputs": inputs}


def cells(sheet: np.ndarray) -> int:
    """How many images of ``COLOUR`` a sheet has: their upper left corners."""
    there = (sheet == list(COLOUR.to_bytes(3, "big"))).all(axis=-1)
    return int((there[1:, 1:] & ~there[:-1, 1:] & ~there[1:, :-1]).sum())


@pytest.mark.parametrize(
    ("batches", "prompts", "columns", "count"),
    [
        ([(3, 64, 64)] * 2, "", 3, 6),  # a batch is a row
        ([(1, 64, 64)] * 6, "", 6, 6),  # single images are one
        ([(1, 64, 64)] * 6, "abc", 2, 6),
        ([(10, 64, 64)], "a", 8, 10),  # goes on below
        ([(2, 900, 300), (3, 32, 64)], "ab", 3, 5),
    ],
)
def test_a_sheet_takes_the_images_of_any_model(host, batches, prompts, columns, count):
    (sheet,) = pixels(host.run(other_images(batches, prompts)))
    assert cells(sheet) == count
    assert sheet.shape[1] in (396 * columns, 140 * columns)
    assert (sheet < 60).all(axis=-1).any() and (sheet[0] == 255).all()  # captions, on white


@pytest.mark.parametrize(
    ("batches", "more", "words"),
    [
        ([(3, 8, 8)], {"prompts": "ab"}, "3 images for 2 prompts"),
        ([(3, 8, 8)], {"prompts": "a", "seeds": "1, 2"}, "2 seeds for 3 images"),
        ([(3, 8, 8)], {"seeds": "1, 2, 3", "row": 2}, "no row 2 on the sheet, only 1"),
        ([(3, 8, 8)], {"number": 4}, "no image 4 in row 1, only 3"),
    ],
)
def test_numbers_that_do_not_fit_are_one_sentence(host, batches, more, words):
    error = host.run(other_images(batches, **more)).error
    assert words in error and "\n" not in error


def test_what_a_pick_does_not_know_is_an_error_only_where_it_is_used(host):
    prompt = other_images([(3, 8, 8)], number=2)
    assert host.run(prompt).error is None
    prompt["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["pick", 2]}}
    assert "does not know the seed; connect its seeds input" in host.run(prompt).error


def grown(**inputs) -> dict:
    """A prompt that shows how two images grew."""
    prompt = graph("emoji", "octopus", batch_size=2, **inputs)
    prompt["decode"]["class_type"] = "DiverseVARDecode"
    prompt["decode"]["inputs"]["maps"] = "every map"
    return prompt


def test_every_map_shows_how_each_image_grew(host):
    images = pixels(host.run(grown()))
    assert len(images) == 2 * len(SIDES)
    finished = pixels(host.run(graph("emoji", "octopus", batch_size=2)))
    np.testing.assert_array_equal(images[4::5], finished)
    spared = graph("emoji", "octopus", batch_size=2, method=["skip", 0])
    inputs = {"prune": 0.0, "skip": 1}
    spared["skip"] = {"class_type": "DiverseVARFastVAR", "inputs": inputs}
    np.testing.assert_array_equal(images[3::5], pixels(host.run(spared)))
    sides = shown(host, grown(), ["decode", 1])
    assert sides == ["side 1, side 2, side 4, side 6, side 8"] * 2


def test_after_a_second_pass_it_is_the_second_that_is_shown(host):
    prompt = grown(method=["travel", 0])
    prompt["travel"] = {"class_type": "DiverseVARTravel", "inputs": {"side": 2}}
    images = pixels(host.run(prompt))
    assert len(images) == 2 * len(SIDES)
    last = copy.deepcopy(prompt)
    last["decode"]["inputs"]["maps"] = "last"
    np.testing.assert_array_equal(images[4::5], pixels(host.run(last)))


STOCK = {
    "LatentFlip": {"flip_method": "y-axis: horizontally"},
    "RepeatLatentBatch": {"amount": 2},
    "LatentFromBatch": {},
}


@pytest.mark.parametrize("between", STOCK)
def test_a_changed_latent_does_not_say_how_it_grew(host, between):
    prompt = grown()
    inputs = STOCK[between] | {"samples": ["sampler", 0]}
    prompt["between"] = {"class_type": between, "inputs": inputs}
    prompt["decode"]["inputs"]["samples"] = ["between", 0]
    assert "does not say how it grew" in host.run(prompt).error
    prompt["decode"]["inputs"]["maps"] = "last"
    assert host.run(prompt).error is None


def test_only_a_var_model_s_latent_grew(host):
    prompt = grown()
    prompt["decode"]["inputs"]["samples"] = ["empty", 0]
    assert "does not say how it grew" in host.run(prompt).error
