"""What a person at a terminal sees when something is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture
def common(infinity_case, text_encoder, tmp_path):
    return {
        "--model": infinity_case.model,
        "--vq": infinity_case.tokenizer,
        "--text-encoder": text_encoder,
        "--prompt": "a red apple",
        "--out": tmp_path / "picture.png",
    }


def options(common, **changes):
    named = {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    merged = {**common, **named}
    return [part for name, value in merged.items() if value is not None for part in (name, value)]


def test_prompt_and_negative_make_a_picture(command_line, common):
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
        ({"text_encoder": "nowhere"}, "There is no file nowhere"),
        ({"batch": 0}, "--batch must be 1 or more"),
        ({"ssr": "nan"}, "ssr must be a finite number"),
        ({"ssr": 1, "sides": "5"}, "no token map of side 5; its sides are 1, 2, 4, 6, 8, 12, 16"),
        ({"aspect": "-1"}, "aspect ratio"),
    ],
)
def test_bad_input_is_told_in_one_sentence(command_line, common, changes, words):
    done = command_line("sample", *options(common, **changes))
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not common["--out"].exists()


def test_wrong_tokenizer_names_both(command_line, common, var_case):
    done = command_line("sample", *options(common, vq=var_case.tokenizer))
    assert "needs Infinity's tokenizer with 16 bits" in done.stderr
    assert "was given VAR's with a codebook of 64 rows of 16" in done.stderr


def test_class_that_is_not_there(command_line, var_case, tmp_path):
    files = ["--model", var_case.model, "--vq", var_case.tokenizer, "--out", tmp_path / "p.png"]
    done = command_line("sample", *files, "--labels", "3,10")
    assert "There is no class 10; the last is 9" in done.stderr


def test_text_features_of_another_width(command_line, common, tmp_path):
    features = tmp_path / "text.safetensors"
    save_file({"text": torch.zeros(4, 64), "lens": torch.tensor([4])}, features)
    done = command_line("sample", *options(common, prompt=None, text_features=features))
    assert "text features are 64 wide" in done.stderr
    assert "Traceback" not in done.stderr


def test_encode_takes_a_picture_through_the_tokenizer(command_line, common, tmp_path):
    command_line("sample", *options(common))
    out = tmp_path / "again.png"
    sides = "1,2,4,6,8,12,16"
    done = command_line(
        "encode", "--vq", common["--vq"], "--image", common["--out"], "--sides", sides, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_compare_shows_the_included_model_in_three_rows(command_line, tmp_path):
    out = tmp_path / "rows.png"
    done = command_line("compare", "--batch", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(out).convert("RGB")).astype(float)
    vanilla, diverse, late = picture.reshape(3, 20 + 64, 3, 64, 3)[:, 20:]  # below the captions
    assert (vanilla != diverse).any()
    assert late.std(axis=1).mean() > 1.5 * vanilla.std(axis=1).mean()  # three seeds, three cats
