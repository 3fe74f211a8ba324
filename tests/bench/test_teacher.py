"""Training sees what sampling sees."""

import pytest
import torch
from torch.nn import functional as F

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.sampling.sampler import sample
from diversevar_core.settings import Settings
from diversevar_core.text.encoder import load_text_encoder
from training.growth import encoded
from training.teacher import Teacher, by_map, forward


@torch.inference_mode()
def test_teacher_forcing_finds_the_bits_that_sampling_draws():
    model, vae = load_model(included.MODEL), load_vae(included.VAE)
    rows = load_text_encoder(included.TEXT_ENCODER)(["octopus", "birthday cake"])
    schedule = model.schedule()
    likeliest = Settings(cfg=(1.0,), cfg_schedule="flat", tau=(0.01,), top_k=1, top_p=0.0)
    drawn, inputs, f_hat = [], [], None
    for step in sample(model, vae, Text(rows), schedule, likeliest, range(2)):
        drawn.append(step.tokens)
        f_hat, shown = vae.accumulate(f_hat, step.tokens, step.scale)
        inputs.append(shown)
    teacher = Teacher.of(model, schedule, torch.device("cpu"))
    longest = max(map(len, rows)) + 3
    logits = forward(model, teacher, list(rows), torch.cat(inputs[:-1], dim=1), longest)
    assert torch.equal(logits.argmax(dim=-1), torch.cat(drawn, dim=1))


@pytest.mark.parametrize("maps", [7, 5])
def test_attention_by_map_is_attention_with_the_mask(maps):
    model = load_model(included.MODEL)
    schedule = model.schedule()
    mask = Teacher.of(model, schedule[:maps], torch.device("cpu")).mask
    generator = torch.Generator().manual_seed(0)
    shape = 10, 2, mask.shape[-1], 8
    q, k, v = (torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3))
    made = by_map(schedule)(q, k, v, mask, 0.5)
    right = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5)
    torch.testing.assert_close(made, right)
    weights = torch.randn(shape, generator=generator)
    gradients = (torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (made, right))
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_features_that_are_kept_belong_to_the_pictures_asked_for(tmp_path):
    vae, path = load_vae(included.VAE), tmp_path / "features.pt"
    pictures = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 128, 128, 3) * 40
    encoded(vae, pictures, path)
    torch.testing.assert_close(
        encoded(vae, pictures[3:], path), encoded(vae, pictures, tmp_path / "all.pt")[3:]
    )
