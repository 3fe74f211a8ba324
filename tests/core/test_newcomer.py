"""What a newcomer types is in the images."""

from pathlib import Path

import torch

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.job import draw
from diversevar_core.presets import PRESETS
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.autoencoder import to_image
from training.colours import colour_of
from training.edits_data import COLOURS
from training.judge import read_judge

JUDGE = Path(__file__).parents[1] / "judge.safetensors"  # of training/judge.py
TYPED = {
    "a cat": "cat",
    "octopus": "octopus",
    "Pizza": "pizza",
    "an apple": "red apple",
    "the fox ": "fox",
    "two sunflowers.": "sunflower",
    "spaceship": "rocket",
    "飞机": "airplane",
    "🌈": "rainbow",
    "a ghost on the moon": "ghost",
    "机器人": "robot",
    "a guitar": "guitar",
    "blue car": "automobile",
}


def test_what_is_typed_is_recognised_in_six_of_eight_images():
    judge, prompts = read_judge(JUDGE)
    text = load_text_encoder(included.TEXT_ENCODER)
    model, vae = load_model(included.MODEL), load_vae(included.VAE)
    preset, right = PRESETS["balanced"], {}
    for typed, prompt in TYPED.items():
        condition = Text(text([typed])).repeat(8)
        how = (model, vae, condition, model.schedule(), preset.settings(model.defaults()))
        *_, last = draw(*how, 0, preset.chain()).steps
        with torch.no_grad():
            images = to_image(vae.decode(last.f_hat))
            seen = judge(2 * images - 1).concept.argmax(dim=1)
        right[typed] = (seen == prompts.index(prompt)).sum().item()
    assert min(right.values()) >= 6, right
    colours = colour_of(255 * images.movedim(1, -1))  # of the last one typed, a blue car
    assert (colours == list(COLOURS).index("blue")).sum() >= 6
