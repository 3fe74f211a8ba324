"""VAR Edit Image through the HTTP API: sizes, masks, batches, cancel, wrong pairings."""

import numpy as np
import pytest
from prompts import HIGH, WIDE, pixels
from prompts import edit_graph as graph


def masked(value: float = 1.0, **edit) -> dict:
    """``graph`` with a mask on the left half."""
    prompt = graph(mask=["mask", 0], **edit)
    for name, number, width in (("left", value, WIDE // 2), ("none", 0.0, WIDE)):
        inputs = {"value": number, "width": width, "height": HIGH}
        prompt[name] = {"class_type": "SolidMask", "inputs": inputs}
    inputs = {"destination": ["none", 0], "source": ["left", 0], "x": 0, "y": 0, "operation": "add"}
    prompt["mask"] = {"class_type": "MaskComposite", "inputs": inputs}
    return prompt


def test_the_edit_has_the_images_size_and_its_seed(host):
    first, second = pixels(host.run(graph(seed=5, batch_size=2, temperature=1.0)))
    (alone,) = pixels(host.run(graph(seed=6, temperature=1.0)))
    assert first.shape == (HIGH, WIDE, 3)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(second, alone.astype(int), atol=1)  # same bits; a rounding


def test_the_seeds_of_edits_are_saved_with_them(host):
    prompt = graph(seed=5, batch_size=2)
    inputs = {"images": ["edit", 0], "seeds": ["edit", 2], "filename_prefix": "edits"}
    prompt["save"] = {"class_type": "DiverseVARSave", "inputs": inputs}
    seeds = [image.text["diversevar_seed"] for image in host.run(prompt).images]
    assert seeds == ["5", "6"]


def test_the_node_shows_its_seeds_and_what_the_model_does_not_know(host):
    prompt = graph(seed=5, batch_size=2)
    for name, file in (("model", "emoji-edit"), ("clip", "emoji-edit"), ("vae", "emoji-small")):
        prompt[name]["inputs"][f"{name}_name"] = file
    for words, said in (("make it blue", ""), ("make the car blue", "left out: car")):
        prompt["text"]["inputs"]["text"] = words
        text = host.run(prompt).text_of("edit")
        assert "seeds 5, 6" in text and said in text and (bool(said) == ("new to" in text))
    prompt["text"]["inputs"]["text"] = "turn it into a zeppelin"
    assert "does not know 'turn it into a zeppelin'" in host.run(prompt).error


def test_instruction_and_image_and_method_change_the_edit(host):
    prompts = [graph(), graph(), graph(), graph(method=["method", 0], guidance_start=4)]
    prompts[1]["text"]["inputs"]["text"] = "a cat"
    prompts[2]["image"]["inputs"]["color"] = 0xFF0000
    prompts[3]["method"] = {"class_type": "DiverseVARSSRSAR", "inputs": {}}
    plain, *others = (pixels(host.run(prompt))[0] for prompt in prompts)
    assert all(not np.array_equal(plain, other) for other in others)


def test_outside_the_mask_the_image_keeps_its_pixels(host):
    (whole,) = pixels(host.run(graph()))
    (half,) = pixels(host.run(masked()))
    assert (half[:, WIDE // 2 :] == (0x40, 0x80, 0xC0)).all()
    inside = np.s_[:, : WIDE // 2 - 5]  # the edge is soft within the mask
    np.testing.assert_array_equal(half[inside], whole[inside])
    assert not np.array_equal(half[:, : WIDE // 2], whole[:, : WIDE // 2])


def test_several_images_are_edited_with_a_seed_each(host):
    prompt = graph(seed=3, batch_size=2)
    prompt["other"] = {"class_type": "EmptyImage", "inputs": dict(prompt["image"]["inputs"])}
    prompt["other"]["inputs"]["color"] = 0xFF0000
    both = {"image1": ["image", 0], "image2": ["other", 0]}
    prompt["both"] = {"class_type": "ImageBatch", "inputs": both}
    prompt["edit"]["inputs"]["image"] = ["both", 0]
    first, second = pixels(host.run(prompt))
    (alone,) = pixels(host.run(graph(seed=3)))
    np.testing.assert_allclose(first, alone.astype(int), atol=1)
    assert not np.array_equal(first, second)


def test_the_latent_is_the_whole_square(host):
    prompt = graph()
    inputs = {"samples": ["edit", 1], "vae": ["vae", 0]}
    prompt["square"] = {"class_type": "VAEDecode", "inputs": inputs}
    prompt["save"]["inputs"]["images"] = ["square", 0]
    (square,) = pixels(host.run(prompt))
    assert square.shape == (256, 256, 3)


def test_cancel_stops_within_a_scale_and_the_next_edit_runs(host):
    seen, stopped = [], None
    for event in host.events(graph(seed=12, batch_size=16)):
        seen.append(event)
        if not stopped and sum(event["type"] == "progress" for event in seen) == 4:
            host.interrupt()
            stopped = True
    assert "execution_interrupted" in [event["type"] for event in seen]
    assert host.run(graph(seed=12)).error is None


def text_model_in_edit() -> dict:
    prompt = graph()
    prompt["model"]["inputs"]["model_name"] = "infinity_tiny.safetensors"
    return prompt


def classes_in_edit() -> dict:
    prompt = graph()
    prompt["model"]["inputs"]["model_name"] = "var_d16.pth"
    return prompt


def edit_model_with_task() -> dict:
    prompt = graph()
    prompt["model"]["inputs"]["task"] = "generate"
    return prompt


def edit_model_in_sampler(task: str = "auto", file: str = "edit_tiny.pth") -> dict:
    prompt = graph()
    prompt["model"]["inputs"] = {"model_name": file, "task": task}
    inputs = {name: prompt["edit"]["inputs"][name] for name in ("model", "vae", "positive")}
    latent = {"model": ["model", 0], "vae": ["vae", 0]}
    prompt["empty"] = {"class_type": "DiverseVAREmptyLatent", "inputs": latent}
    inputs["latent_image"] = ["empty", 0]
    prompt["edit"] = {"class_type": "DiverseVARSampler", "inputs": inputs}
    prompt["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["edit", 0]}}
    prompt["decode"]["inputs"]["vae"] = ["vae", 0]
    prompt["save"]["inputs"]["images"] = ["decode", 0]
    return prompt


def wrong_vae() -> dict:
    prompt = graph()
    prompt["vae"]["inputs"]["vae_name"] = "vae_ch160v4096z32.pth"
    return prompt


def two_images() -> dict:
    prompt = graph(batch_size=3)
    prompt["image"]["inputs"]["batch_size"] = 2
    return prompt


def no_instruction() -> dict:
    prompt = graph()
    prompt["text"]["inputs"]["text"] = " "
    return prompt


@pytest.mark.parametrize(
    "prompt, words",
    [
        (text_model_in_edit(), "cannot edit"),
        (classes_in_edit(), "cannot edit"),
        (edit_model_with_task(), "set task to edit"),
        (edit_model_in_sampler(), "use var edit image"),
        (edit_model_in_sampler("edit", "infinity_tiny.safetensors"), "use var edit image"),
        (wrong_vae(), "vae"),
        (two_images(), "image is a batch of 2 and batch_size is 3"),
        (masked(0.0), "the mask is empty"),
        (no_instruction(), "empty"),
        (graph(cfg=float("nan")), "nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_one_clear_sentence(host, prompt, words):
    error = host.run(prompt).error
    assert error and words in error.lower()
    assert len(error) < 300 and "\n" not in error


def test_the_user_may_say_that_a_model_edits(host):
    prompt = graph()
    prompt["model"]["inputs"] = {"model_name": "infinity_tiny.safetensors", "task": "edit"}
    (chosen,) = pixels(host.run(prompt))
    (known,) = pixels(host.run(graph()))
    np.testing.assert_array_equal(chosen, known)  # the same weights by rule
