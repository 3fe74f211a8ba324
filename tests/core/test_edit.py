"""Editing by instruction: batches, forks, files and the command line."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import state_dict
from comfy_host import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.errors import UserError
from diversevar_core.images import into_square, out_of_square, to_pil
from diversevar_core.methods.ssr_sar import DiverseVAR
from diversevar_core.methods.starts import Starts, choose_starts
from diversevar_core.models.attention import sdpa
from diversevar_core.sampling.method import Method
from diversevar_core.sampling.sampler import sample
from diversevar_core.settings import Settings
from diversevar_core.text.encoder import load_text_encoder
from training.edits import Teacher, forward


@pytest.fixture(scope="module")
def edit_case(cases):
    return cases["varedit_plain"]


@pytest.fixture(scope="module")
def pair(edit_case):
    return load_model(edit_case.model), load_vae(edit_case.vae)


def text_of(case, *runs) -> Text:
    """Prompts of these runs, each with its source."""
    prompts = [case.expected[f"run{i}.text"] for i in runs]
    return Text(prompts, source=torch.cat([case.expected[f"run{i}.source_features"] for i in runs]))


def logits(pair, text, seeds, methods=(), exact_batch=False):
    model, vae = pair
    schedule, settings = model.schedule(), replace(model.defaults(), tau=(0.5,))
    parts = (model, vae, text, schedule, settings, seeds)
    return [step.logits for step in sample(*parts, methods=methods, exact_batch=exact_batch)]


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


@pytest.mark.parametrize("i", range(3))
def test_a_batch_of_one_source_is_each_edit_alone(edit_case, i, trace, tmp_path):
    run, expected = edit_case.runs[i], edit_case.expected
    text = {"text": expected[f"run{i}.text"], "lens": torch.tensor(run["lens"])}
    if "neg_lens" in run:
        text["negative_text"] = expected[f"run{i}.negative_text"]
        text["negative_lens"] = torch.tensor(run["neg_lens"])
    save_file(text, tmp_path / "text")
    save_file({"features": expected[f"run{i}.source_features"]}, tmp_path / "source")
    shared = ["--model", edit_case.model, "--vae", edit_case.vae, "--tau", run["tau"]]
    shared += ["--text-features", tmp_path / "text", "--source-features", tmp_path / "source"]
    shared += ["--cfg", run["cfg"], "--top-k", run.get("top_k", 0), "--top-p", run.get("top_p", 0)]

    def traced(seed, batch):
        out = ["--trace", tmp_path / "trace.safetensors", "--out", tmp_path / "image.png"]
        done = trace(*shared, "--seed", seed, "--batch", batch, *out)
        assert done.returncode == 0, done.stderr
        return load_file(tmp_path / "trace.safetensors")

    together = traced(run["seed"], 3)
    for row in range(3):
        for name, alone in traced(run["seed"] + row, 1).items():
            ours = together[name][row : row + 1]
            if name.startswith("bits"):
                assert torch.equal(ours, alone)
                assert row or torch.equal(ours, expected[f"run{i}.{name}"].long())
            else:
                atol = 1 / 255 if name == "image" else 2e-4
                torch.testing.assert_close(ours, alone, atol=atol, rtol=0)


def test_a_batch_of_different_sources_is_each_edit_alone(edit_case, pair):
    both = logits(pair, text_of(edit_case, 0, 1), [4, 5])
    exact = logits(pair, text_of(edit_case, 0, 1), [4, 5], exact_batch=True)
    close(both, exact)
    for i in range(2):
        alone = logits(pair, text_of(edit_case, i), [4 + i])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(exact, alone, strict=True))


def test_two_instructions_for_one_source_are_each_edit_alone(edit_case, pair):
    first, second = text_of(edit_case, 0), text_of(edit_case, 1)
    both = logits(pair, Text([*first.positive, *second.positive], source=first.source), [4, 5])
    close([rows[1:] for rows in both], logits(pair, replace(second, source=first.source), [5]))


def test_one_source_and_one_prompt_are_read_once_for_a_batch(edit_case, pair):
    seen = []

    def watching(q, k, v, mask, scale):
        seen.append((q.shape[0], q.shape[2], k.shape[2]))
        return sdpa(q, k, v, mask, scale)

    model = load_model(edit_case.model, attention=watching)
    last, text = model.schedule()[-1].tokens, text_of(edit_case, 0)
    text = Text(text.positive * 4, source=text.source)
    logits((model, pair[1]), text, range(4))
    assert [rows for rows, *tokens in seen if tokens == [last, last]] == [2] * model.depth


def test_a_fork_goes_on_as_its_origin_would(edit_case, pair):
    class Twice(Method):
        def step(self, advance, run, scale, at):
            if scale.k > 0:
                advance(run.fork(), scale, at)
            return advance(run, scale, at)

    class Restart(Method):
        def step(self, advance, run, scale, at):
            return advance(run.fork() if scale.k > 0 else run, scale, at)

    text = text_of(edit_case, 2)
    plain = logits(pair, text, [1])
    again = logits(pair, text, [1], [Restart()])
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert torch.equal(plain[1], logits(pair, text, [1], [Twice()])[1])


def test_source_and_instruction_and_diversity_change_the_edit(edit_case, pair):
    text, other = text_of(edit_case, 0), text_of(edit_case, 1)
    plain = logits(pair, text, [1])
    for changed in (replace(text, source=other.source), replace(text, positive=other.positive)):
        assert not torch.equal(plain[0], logits(pair, changed, [1])[0])
    diverse = logits(pair, text, [1], [DiverseVAR(sar=2.0)])
    assert all(torch.equal(a, b) for a, b in zip(plain[:2], diverse[:2], strict=True))
    assert not torch.equal(plain[2], diverse[2])


def test_chosen_starts_are_the_edits_of_their_seeds(edit_case, pair):
    model, vae = pair
    text, settings = text_of(edit_case, 0), replace(model.defaults(), guidance_start=4)
    how = (model, vae, text.repeat(2), model.schedule(), settings)
    seeds = choose_starts(Starts(6, side=4), 2, *how, 10)
    assert set(seeds) <= set(range(10, 16))
    cut = list(sample(*how, seeds, exact_batch=True, maps=2))
    whole = list(sample(*how, seeds, exact_batch=True))
    assert len(cut) == 2
    for short, full in zip(cut, whole, strict=False):
        torch.testing.assert_close(short.tokens, full.tokens, atol=0, rtol=0)


def test_source_of_another_size_is_resized_by_area(edit_case, pair):
    text = text_of(edit_case, 0)
    large = text.source.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    close(logits(pair, replace(text, source=large), [1]), logits(pair, text, [1]))


def test_a_model_with_its_own_sides_positions_the_source_next_to_the_maps(edit_case):
    facts = {"patch_nums": [1, 2, 4, 8], "task": "edit"}
    tensors = state_dict(edit_case.about["shapes"]["infinity"])
    path = edit_case.model.with_name("own_sides.safetensors")
    save_file(tensors, path, {name: json.dumps(value) for name, value in facts.items()})
    model = load_model(path)
    last = model.schedule()[-1]
    want = torch.tensor([(8 * r + 64, 8 * s + 64) for r in range(8) for s in range(8)])
    positions = model.positions_of_edit(last)
    assert torch.equal(positions[:64], want.float())
    assert torch.equal(positions[-64:], model.grid_positions(last))


def test_task_is_what_the_user_says_then_what_the_file_says(edit_case, infinity_case):
    assert load_model(edit_case.model).edits
    assert not load_model(edit_case.model, task="generate").edits
    assert not load_model(infinity_case.model).edits
    model = load_model(infinity_case.model, task="edit")
    assert model.edits
    assert (model.defaults().cfg, model.defaults().tau) == ((3.0,), (0.1,))


def test_a_missing_source_is_refused(edit_case, pair):
    with pytest.raises(UserError, match="This model edits images and was given none"):
        logits(pair, replace(text_of(edit_case, 0), source=None), [0])


@pytest.fixture
def image(tmp_path):
    """An image file, wider than high."""
    pixels = np.random.RandomState(0).randint(0, 256, (6, 10, 3), np.uint8)
    Image.fromarray(pixels).resize((300, 180)).save(tmp_path / "source.png")
    return tmp_path / "source.png"


def test_an_image_file_becomes_an_edit_of_its_size(edit_case, text_encoder, command_line, image):
    out = image.with_name("edit.png")
    files = ["--model", edit_case.model, "--vae", edit_case.vae]
    files += ["--text-encoder", text_encoder, "--prompt", "a red apple", "--out", out]
    done = command_line("sample", *files, "--source", image)
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (300, 180)
    done = command_line("sample", *files)
    assert "This model edits images and was given none" in done.stderr
    done = command_line("sample", *files, "--source", image, "--task", "generate")
    assert "cannot edit an image" in done.stderr
    done = command_line("sample", *files, "--source", image, "--aspect", 1.5)
    assert "leave --aspect at 1:1" in done.stderr
    assert "Traceback" not in done.stderr


INCLUDED = included.FOLDER / "emoji-edit"
EDITING = ("--model", INCLUDED / "transformer.safetensors")
EDITING += ("--text-encoder", INCLUDED / "text_encoder.safetensors", "--cfg", 2, "--tau", 0.5)


@pytest.mark.parametrize(
    ("instruction", "hues"), [("make it blue", (200, 260)), ("make it green", (80, 150))]
)
def test_the_included_model_makes_an_apple_blue_or_green(instruction, hues, command_line, tmp_path):
    apple, edited = tmp_path / "apple.png", tmp_path / "edited.png"
    command_line("sample", "--prompt", "red apple", "--out", apple)
    command_line("sample", *EDITING, "--source", apple, "--prompt", instruction, "--out", edited)
    before, after = (np.asarray(Image.open(path).convert("HSV")) for path in (apple, edited))
    middle = slice(48, 96)  # of 128 pixels: within the apple
    for image, (low, high) in ((before, (0, 30)), (after, hues)):
        hue, saturation = (image[middle, middle, i].astype(float) for i in (0, 1))
        assert low <= np.median(hue) * 360 / 255 <= high
        assert np.median(saturation) > 100
    # white around it stays white, and the figure fills the same place
    figures = [image[..., 1] > 60 for image in (before, after)]
    assert (figures[0] == figures[1]).mean() > 0.9


def test_the_square_has_white_where_the_image_ends_and_gives_it_back(image):
    source = Image.open(image)
    square = into_square(source, 256)
    assert square.shape == (1, 3, 256, 256)
    assert (square[:, :, 160:] == 1).all() and (square[:, :, :150] < 1).any()
    back = out_of_square((square + 1) / 2, *source.size)
    assert back.shape == (1, 3, 180, 300)
    want = torch.from_numpy(np.array(source)).permute(2, 0, 1) / 255
    assert (back[0] - want).abs().mean() < 0.01


def whole_square(image: Image.Image, side: int) -> np.ndarray:
    """``infer.py`` of HiDream-ai/VAREdit: white around the image, then one resize."""
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), (255, 255, 255))
    square.paste(image, (0, 0))
    return np.array(square.resize((side, side), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("side", [16, 64, 256])
@pytest.mark.parametrize("size", [(1, 9), (64, 64), (300, 7), (257, 900), (900, 256), (513, 511)])
def test_the_square_is_the_originals_to_the_bit(size, side):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    found = into_square(image, side)[0].add(1).mul(127.5).round().movedim(0, -1).numpy()
    np.testing.assert_array_equal(found, whole_square(image, side))
    small = image.resize((side, side))
    pixels = torch.from_numpy(np.array(small)).movedim(-1, 0) / 255
    back = out_of_square(pixels[None], *size)[0].mul(255).round().movedim(0, -1).numpy()
    whole = np.array(small.resize((max(size), max(size)), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(back, whole[: size[1], : size[0]])


MEMORY = """
import resource, torch
from diversevar_core.images import into_square, out_of_square, to_pil
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for height, width in ((128, 8192), (8192, 128)):
    into_square(to_pil(torch.rand(3, height, width)), 64)
    out_of_square(torch.rand(4, 3, 64, 64), width, height)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes are Linux's unit")
def test_a_long_image_takes_memory_by_its_pixels():
    """Four of them are 50 MB in float32; one of their squares would be 800 MB."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256 * 1024


def test_an_image_out_of_range_is_clamped_and_not_wrapped():
    beyond = torch.tensor([-0.2, 0.0, 0.5, 1.0, 1.1]).expand(3, 1, 5)
    assert np.array(to_pil(beyond))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_training_sees_what_the_sampler_computes():
    """Teacher forcing of all maps at once equals the sampler's maps one by one."""
    path = INCLUDED / "transformer.safetensors"
    model, vae = load_model(path), load_vae(included.FOLDER / "emoji-small" / "vae.safetensors")
    rows = load_text_encoder(INCLUDED / "text_encoder.safetensors")(["make it blue"])
    image = torch.linspace(-1, 1, 128).expand(1, 3, 128, 128)
    source, schedule = vae.features(image), model.schedule()
    settings = Settings((1.0,), "flat", (1.0,), 0, 0.0)
    text = Text(rows, source=source)
    steps = list(sample(model, vae, text, schedule, settings, [0]))
    f_hat, inputs = None, []
    for step in steps:
        f_hat, features = vae.accumulate(f_hat, step.tokens, step.scale)
        inputs.append(features)
    trained = load_model(path, task="generate")  # its source comes by the teacher
    teacher = Teacher.of(trained, schedule)
    with torch.no_grad():
        found = forward(trained, teacher, rows, source, torch.cat(inputs[:-1], dim=1))
    expected = torch.cat([step.logits for step in steps], dim=1)
    torch.testing.assert_close(found.view_as(expected), expected, atol=1e-3, rtol=0)


def test_a_model_of_classes_takes_no_source(command_line, var_case, image):
    files = ["--model", var_case.model, "--vae", var_case.vae, "--labels", 3]
    done = command_line("sample", *files, "--source", image)
    assert "VAR cannot edit images" in done.stderr
