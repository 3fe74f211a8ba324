"""What a newcomer types: known prompts show what they say, of others the model says so."""

from pathlib import Path

import pytest
import torch

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.job import draw
from diversevar_core.presets import PRESETS
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.autoencoder import to_image
from training.judge import read_judge

JUDGE = Path(__file__).parents[1] / "judge.safetensors"  # of training/growth.py
KNOWN = (
    "a cat",
    "octopus",
    "Pizza",
    "a red apple",
    "the fox",
    "a sunflower.",
    "rocket",
    "an airplane",
    "the rainbow",
    "a snowman",
)
UNKNOWN = (
    "a red sports car on a beach",
    "a green dragon",
    "my grandmother's kitchen",
    "knight on horseback",
    "cyberpunk city at night",
    "a blue butterfly",
    "two cats",
    "portrait of a woman",
    "a spaceship over the sea",
    "the Eiffel tower",
)


@pytest.fixture(scope="module")
def text():
    return load_text_encoder(included.TEXT_ENCODER)


@pytest.mark.parametrize("prompt", UNKNOWN)
def test_what_is_unknown_is_said(text, prompt):
    assert text.unseen(prompt).startswith("This model does not know")


def test_what_is_known_is_recognised_in_six_of_eight_images(text):
    judge, prompts = read_judge(JUDGE)
    model, vae = load_model(included.MODEL), load_vae(included.VAE)
    preset, found = PRESETS["balanced"], {}
    for prompt in KNOWN:
        assert text.unseen(prompt) is None
        condition = Text(text([prompt])).repeat(8)
        how = (model, vae, condition, model.schedule(), preset.settings(model.defaults()))
        *_, last = draw(*how, 0, preset.chain()).steps
        with torch.no_grad():
            images = to_image(vae.decode(last.f_hat))
            seen = judge(2 * images - 1).concept.argmax(dim=1)
        name = prompt.lower().strip(".").removeprefix("a ").removeprefix("an ").removeprefix("the ")
        found[prompt] = (seen == prompts.index(name)).sum().item()
    assert min(found.values()) >= 6, found
