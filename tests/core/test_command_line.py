"""The command line: results, and errors that a user sees."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diversevar_core.checkpoints import included
from diversevar_core.conditions import Text
from diversevar_core.errors import UserError
from diversevar_core.images import open_image
from diversevar_core.presets import Preset
from diversevar_core.sampling.sampler import sample

ROOT = Path(__file__).parents[2]


@pytest.fixture
def common(infinity_case, text_encoder, tmp_path):
    return {
        "--model": infinity_case.model,
        "--vae": infinity_case.vae,
        "--text-encoder": text_encoder,
        "--prompt": "a red apple",
        "--out": tmp_path / "image.png",
    }


def options(common, **changes):
    named = {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    merged = {**common, **named}
    return [part for name, value in merged.items() if value is not None for part in (name, value)]


def test_prompt_and_negative_make_an_image(command_line, common):
    done = command_line("sample", *options(common, negative="the moon", batch=3, ssr=1, sar=1))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(common["--out"])
    assert common["--out"].stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": "cat " * 600}, "The prompt is 601 tokens long and the model reads at most 512"),
        ({"prompt": None}, "give --prompt"),
        ({"text_encoder": "nowhere"}, "There is no file 'nowhere'"),
        ({"batch": 0}, "argument --batch: must be a whole number from 1 to 1024, not '0'."),
        ({"batch": 1025}, "must be a whole number from 1 to 1024, not '1025'."),
        ({"batch": "9" * 5000}, "must be a whole number from 1 to 1024, not '99"),
        ({"starts": 0}, "argument --starts: must be a whole number from 1 to 1024, not '0'."),
        ({"starts": 10**9}, "argument --starts: must be a whole number from 1 to 1024"),
        ({"cfg": "x"}, "argument --cfg: invalid numbers value: 'x'."),
        ({"ssr": "nan"}, "ssr must be a number of 0 or more, not nan"),
        ({"ssr": 1, "sides": "5"}, "no token map of side 5; its sides are 1, 2, 4, 6, 8, 12, 16"),
        ({"aspect": "-1"}, "argument --aspect: must be width to height, as in 16:9, not '-1'."),
        ({"aspect": "0"}, "must be width to height, as in 16:9, not '0'."),
        ({"aspect": "4:0"}, "must be width to height, as in 16:9, not '4:0'."),
        ({"aspect": "nan"}, "must be width to height"),
        ({"device": "gpu"}, "'gpu' is not a valid device; choose one of "),
        ({"device": "cuda:99"}, "'cuda:99' is not a valid device; choose one of "),
        ({"adaptive": 3}, "adaptive scaling must be a number from 0 to 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(command_line, common, changes, words):
    done = command_line("sample", *options(common, **changes))
    assert done.returncode != 0
    assert words in done.stderr
    assert done.stderr.rstrip().endswith(".")
    assert "Traceback" not in done.stderr
    assert not common["--out"].exists()


def test_wrong_vae_names_both(command_line, common, var_case):
    done = command_line("sample", *options(common, vae=var_case.vae))
    assert "needs Infinity's VAE with 16 bits" in done.stderr
    assert "was given VAR's with a codebook of 64 rows of 16" in done.stderr


def test_an_unknown_class_is_refused(command_line, var_case, tmp_path):
    files = ["--model", var_case.model, "--vae", var_case.vae, "--out", tmp_path / "p.png"]
    done = command_line("sample", *files, "--labels", "3,11")
    assert "There is no class 11; the last is 9, and 10 is none." in done.stderr


def test_text_features_of_another_width(pair):
    model, vae = pair
    text = Text([torch.zeros(4, 64)])
    with pytest.raises(UserError, match="text features are 64 wide"):
        list(sample(model, vae, text, model.schedule(), model.defaults(), [0]))


def test_encode_encodes_and_decodes_an_image(command_line, common, tmp_path):
    command_line("sample", *options(common))
    out = tmp_path / "again.png"
    sides = "1,2,4,6,8,12,16"
    done = command_line(
        "encode",
        "--vae",
        common["--vae"],
        "--image",
        common["--out"],
        "--sides",
        sides,
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_compare_shows_the_included_model_with_presets(command_line, tmp_path):
    out = tmp_path / "rows.png"
    presets = ["SSR + SAR (DiverseVAR)", "most different"]
    done = command_line("compare", "--batch", "3", "--out", out, "--presets", *presets)
    assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(out).convert("RGB")).astype(float)
    published, paper, different = image.reshape(3, 21 + 128, 3, 128, 3)[:, 21:]  # no captions
    assert (published != paper).any()
    assert different.std(axis=1).mean() > 1.5 * published.std(axis=1).mean()


def test_chosen_seeds_are_in_the_image_and_each_makes_its_own(command_line, tmp_path):
    out, files = tmp_path / "starts.png", ["--prompt", "octopus", "--exact-batch", "--out"]
    options = ["--batch", "2", "--starts", "12", "--starts-side", "4", "--guidance-start", "4"]
    done = command_line("sample", *files, out, *options)
    assert done.returncode == 0, done.stderr
    sheet = Image.open(out)
    seeds = sheet.text["seeds"].split(", ")
    assert seeds != ["0", "1"]
    for i, seed in enumerate(seeds):
        command_line(
            "sample", *files, tmp_path / "one.png", "--seed", seed, "--guidance-start", "4"
        )
        one = np.asarray(Image.open(tmp_path / "one.png")).astype(int)
        own = np.asarray(sheet)[:, 128 * i : 128 * (i + 1)]
        np.testing.assert_allclose(one, own, atol=1)  # the same f_hat; the decoder rounds


def test_calibrate_saves_its_choice_where_the_preset_reads_it(command_line, tmp_path):
    for file in (included.MODEL, included.VAE, included.TEXT_ENCODER):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    prompts, plot, model = tmp_path / "p.txt", tmp_path / "plot.png", tmp_path / included.MODEL.name
    files = ["--model", model, "--out", plot]
    one = ["--prompt", "octopus", "--preset", "my calibration"]
    assert "no finished calibration" in command_line("sample", *files, *one).stderr
    assert "No such file" in command_line("calibrate", *files, "--prompts", prompts).stderr
    prompts.write_text("telephone\n\n")
    done = command_line("calibrate", *files, "--prompts", prompts, "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert "s left" in done.stderr
    assert Image.open(plot).width > 600
    chosen = json.loads((tmp_path / "transformer.safetensors.diversity.json").read_text())["chosen"]
    assert chosen != asdict(Preset())
    assert command_line("sample", *files, *one).returncode == 0


def test_starts_compare_images_of_one_class(command_line, var_case, tmp_path):
    files = ["--model", var_case.model, "--vae", var_case.vae, "--out", tmp_path / "p.png"]
    done = command_line("sample", *files, "--labels", "1,2", "--batch", "2", "--starts", "8")
    assert "Diverse starts" in done.stderr and "set starts to 1" in done.stderr


@pytest.mark.parametrize(
    ("out", "made"),
    [
        ("new/folder/a.png", "new/folder/a.png"),
        ("a", "a.png"),
        ("v1.2", "v1.2.png"),
        ("A.PNG", "A.PNG"),
        ("a.jpg", "a.jpg"),
        ("name\udcff.png", "name\udcff.png"),
    ],
)
def test_an_image_is_never_lost_at_the_end(command_line, tmp_path, out, made):
    done = command_line("sample", "--prompt", "octopus", "--out", tmp_path / out)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / made).size == (128, 128)


def test_explore_writes_a_sheet_and_one_file_an_image(command_line, tmp_path):
    """Every image is the one that its prompt and seed make alone; unknown prompts have no row."""
    out = tmp_path / "fruit.png"
    texts = "{red|green} apple", "accordion", "wooden fox"
    done = command_line("explore", *texts, "--seeds", 3, "--seed", 7, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "does not know 'accordion'; near in meaning" in done.stderr
    assert done.stderr.count("new to this model") == done.stderr.count("left out: wooden") == 1
    names = [f"fruit-{row}-{number}.png" for row in (1, 2, 3) for number in (1, 2, 3)]
    assert done.stdout.split() == [str(tmp_path / name) for name in (*names, out.name)]
    alone = tmp_path / "alone.png"
    drawn = (names[0], "red apple", 7), (names[3], "green apple", 7), (names[8], "wooden fox", 9)
    for name, prompt, seed in drawn:
        command_line(
            "sample", "--prompt", prompt, "--seed", seed, "--preset", "balanced", "--out", alone
        )
        image = Image.open(tmp_path / name)
        assert image.text["seeds"] == str(seed)
        np.testing.assert_allclose(np.array(image), np.array(Image.open(alone)).astype(int), atol=1)
    wide, high = Image.open(out).size
    assert wide > 3 * 128 and high > 3 * 128
    done = command_line("explore", "accordion", "abacus", "--out", tmp_path / "none.png")
    assert done.returncode != 0 and "does not know 'accordion'" in done.stderr


@pytest.mark.parametrize(
    "command", ["sample", "compare", "explore", "calibrate", "encode", "convert"]
)
@pytest.mark.parametrize("out", ["", "a.png/b", "x" * 300, "a\0", "folder"])
def test_unwritable_paths_are_refused_before_the_work(command_line, tmp_path, command, out):
    (tmp_path / "a.png").touch()
    (tmp_path / "folder").mkdir()
    more = {
        "sample": ["--prompt", "octopus", "--model", "nowhere"],
        "compare": ["--model", "nowhere"],
        "explore": ["fox", "--model", "nowhere"],
        "calibrate": ["--model", "nowhere", "--prompts", "nowhere"],
        "encode": ["--vae", "nowhere", "--image", "nowhere", "--sides", "1,2"],
        "convert": ["nowhere"],
    }[command]
    done = command_line(command, *more, "--out", tmp_path / out)
    assert done.returncode != 0 and "cannot be written: " in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "folder"}


def run(module, *arguments, **options) -> subprocess.CompletedProcess:
    """A command line in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_trace_that_does_not_fit_leaves_the_image(tmp_path):
    import resource

    out, size = tmp_path / "new" / "a.png", 100_000  # the image has 20 kB, the trace 200
    options = ["--prompt", "octopus", "--out", out, "--trace", tmp_path / "t.safetensors"]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    assert "File too large" in run("tests.trace", *options, preexec_fn=limit).stderr
    assert Image.open(out).size == (128, 128)


def test_a_closed_output_loses_nothing_and_complains_of_nothing(tmp_path):
    read, unread = os.pipe()
    os.close(read)
    closed = {"preexec_fn": partial(os.close, 1)}  # by the shell, as with >&-
    for i, options in enumerate((closed, {"stdout": unread})):  # by the reader: | head -0
        out = tmp_path / f"{i}.safetensors"
        done = run("diversevar_core", "convert", included.VAE, "--out", out, **options)
        assert (done.returncode, done.stderr) == (0, "")
        assert out.exists()
    os.close(unread)


def test_the_version_is_the_packs(command_line):
    version = re.search('^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert command_line("--version").stdout == f"diversevar_core {version}\n"


@pytest.mark.parametrize(
    ("options", "same"),
    [
        (["--guidance-start", "6", "--starts", "1"], ["--guidance-start", "6"]),
        (["--starts", "1"], ["--guidance-start", "4"]),
        (["--guidance-start", "0", "--starts", "1"], []),
        (["--starts", "1", "--repulsion", "4"], ["--guidance-start", "4", "--repulsion", "4"]),
    ],
)
def test_an_option_wins_over_the_presets(command_line, tmp_path, options, same):
    images = []
    for i, own in enumerate((["--preset", "most different", *options], same)):
        out = tmp_path / f"{i}.png"
        done = command_line("sample", "--prompt", "octopus", "--batch", "2", "--out", out, *own)
        assert done.returncode == 0, done.stderr
        images.append(Image.open(out).tobytes())
    assert images[0] == images[1]


def test_sixteen_to_nine_is_wide(command_line, common):
    for aspect in ("16:9", "1.778"):
        assert command_line("sample", *options(common, aspect=aspect)).returncode == 0
        width, height = Image.open(common["--out"]).size
        assert width / height == pytest.approx(16 / 9, rel=0.05)


@pytest.mark.parametrize("seeds", ["0", "1", "-1", "65", "x", "9" * 5000])
def test_how_many_seeds_calibration_takes(command_line, tmp_path, seeds):
    done = command_line("calibrate", "--prompts", tmp_path / "nowhere", "--seeds", seeds)
    assert "--seeds: must be a whole number from 2 to 64, not" in done.stderr


def test_convert_sets_the_suffix_and_makes_the_folder(command_line, tmp_path):
    done = command_line("convert", included.VAE, "--out", tmp_path / "new" / "vae")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "vae.safetensors").exists()


def test_a_path_that_the_output_cannot_print(tmp_path):
    out = tmp_path / "模型.safetensors"
    done = subprocess.run(
        [sys.executable, "-m", "diversevar_core", "convert", included.VAE, "--out", out],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert out.exists() and "\\u6a21" in done.stdout


@pytest.mark.parametrize("sides", ["0", "1,100000", "2,4", "1,3,2", "1,-2"])
def test_sides_of_an_encoded_image(command_line, tmp_path, sides):
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(image)
    files = ["--vae", included.VAE, "--image", image, "--out", tmp_path / "out.png"]
    done = command_line("encode", *files, f"--sides={sides}")
    assert done.returncode != 0 and "--sides" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_their_exif_data(tmp_path, orientation):
    seen = Image.new("RGB", (80, 40), "red")
    seen.paste("blue", (0, 0, 20, 20))  # in the upper left
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(-90, expand=True),
    }[orientation](seen)
    about = Image.Exif()
    about[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=about)
    assert open_image(tmp_path / "a.png").tobytes() == seen.tobytes()


def test_grey_of_16_bits_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype("uint16")
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = np.asarray(open_image(tmp_path / "a.png")).astype(float)
    np.testing.assert_allclose(found, np.repeat(ramp[..., None] / 257, 3, axis=2), atol=0.51)


def test_a_broken_image_is_refused_in_one_sentence(tmp_path):
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"hello", whole[:60], whole[:2000], whole[:40] + bytes(20) + whole[60:]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match="not an image that can be read"):
            open_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="is missing, or"):
        open_image(tmp_path / "b.png")
