"""The networks against other implementations of them."""

import math

import networks
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.diversity import features
from benchmarks.diversity.inception import Inception, prepare

PROMPTS = ["a red apple", "the cat on the moon " + "cat " * 60]


@pytest.fixture(scope="module")
def pictures():
    """One higher than wide, one wider than high."""
    generator = np.random.default_rng(0)
    found = []
    for width, height in ((50, 71), (96, 60)):
        small = generator.integers(0, 256, (7, 5, 3), dtype=np.uint8)
        found.append(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return found


def test_inception_equals_torch_fidelity():
    """Expected: features 0, 256, ... by torch-fidelity 0.4.0 on torch 2.13.0, the same weights."""
    expected = torch.tensor(
        [
            [2.572042, 2.099901, 0.015062, 0.682642, 0.000434, 0.097767, 0.475984, 0.021144],
            [2.572128, 2.099878, 0.015097, 0.682693, 0.000432, 0.097764, 0.475954, 0.021144],
        ]
    )
    found = Inception(networks.inception_weights(divide=1))(networks.inception_pictures().float())
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found[:, ::256], expected, rtol=0, atol=2e-6)


def test_inception_sees_the_central_square(pictures):
    high = pictures[0]
    square = high.crop((0, 10, 50, 60))
    assert prepare(high).equal(prepare(square))
    flat = prepare(Image.new("RGB", (20, 30), (10, 128, 255)))
    assert flat.shape == (3, 299, 299)
    torch.testing.assert_close(flat.mean(dim=(1, 2)), torch.tensor([10.0, 128.0, 255.0]))


def test_clip_score_equals_the_transformers_library(files, pictures):
    folder = files["--clip"]
    found = features.clip(folder, "cpu").load()(pictures, PROMPTS)
    seen = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    words = CLIPTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        out = model(**words, pixel_values=seen(pictures, return_tensors="pt").pixel_values)
    expected = out.logits_per_image.diag() / model.logit_scale.exp()
    torch.testing.assert_close(found["CLIP score"], expected.detach(), rtol=1e-4, atol=1e-5)
    assert found["clip"].shape == (2, 24)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_image_reward_equals_its_formula(files, pictures):
    encode = features.image_reward(files["--image-reward"], "cpu").load()
    found = encode(pictures, PROMPTS)["ImageReward"]
    weights = {k: t.double() for k, t in networks.image_reward_weights().items()}
    expected = [
        formula(weights, features.normalized(picture, 32).double(), ids)
        for picture, ids in zip(
            pictures, ([2, 4, 5, 6, 3], [2, 9, 7, 8, 9, 10, *[7] * 28, 3]), strict=True
        )
    ]
    assert len([2, 9, 7, 8, 9, 10, *[7] * 28, 3]) == 35
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def formula(weights, picture, ids) -> float:
    """ImageReward's score in float64, one picture and prompt (BLIP, arXiv 2201.12086, fig. 2)."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x, eps):
        scaled = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + eps
        ).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(q, k, v):  # one head of 64
        return (q @ k.T / math.sqrt(64)).softmax(dim=-1) @ v

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    patches = picture.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(16, -1)
    kernel = weights[f"{vision}.patch_embed.proj.weight"].flatten(1)
    x = patches @ kernel.T + weights[f"{vision}.patch_embed.proj.bias"]
    x = torch.cat((weights[f"{vision}.cls_token"][0], x)) + weights[f"{vision}.pos_embed"][0]
    for i in range(2):
        block = f"{vision}.blocks.{i}"
        q, k, v = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=1)
        x = x + linear(f"{block}.attn.proj", attend(q, k, v))
        hidden = gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    seen = norm(f"{vision}.norm", x, 1e-6)

    embeddings = f"{text}.embeddings"
    x = weights[f"{embeddings}.word_embeddings.weight"][ids]
    x = x + weights[f"{embeddings}.position_embeddings.weight"][: len(ids)]
    x = norm(f"{embeddings}.LayerNorm", x, 1e-12)
    for i in range(2):
        layer = f"{text}.encoder.layer.{i}"
        for attention, source in (("attention", None), ("crossattention", seen)):
            name = f"{layer}.{attention}"
            read = x if source is None else source
            q, k, v = (
                linear(f"{name}.self.{part}", y)
                for part, y in (("query", x), ("key", read), ("value", read))
            )
            out = linear(f"{name}.output.dense", attend(q, k, v))
            x = norm(f"{name}.output.LayerNorm", out + x, 1e-12)
        out = linear(f"{layer}.output.dense", gelu(linear(f"{layer}.intermediate.dense", x)))
        x = norm(f"{layer}.output.LayerNorm", out + x, 1e-12)
    x = x[0]
    for i in (0, 2, 4, 6, 7):
        x = linear(f"mlp.layers.{i}", x)
    return (x.item() - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.filterwarnings("ignore:.*TorchScript", "ignore:.*torch.jit.script")
def test_files_with_code_in_them_are_refused(tmp_path):
    script = tmp_path / "inception.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(script)
    with pytest.raises(ValueError, match="inception.pt is not a file of tensors only"):
        features.inception(script, "cpu").load()


def test_another_networks_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth is not FID's Inception"):
        features.inception(tmp_path / "other.pth", "cpu").load()
    with pytest.raises(ValueError, match="There is no .*nowhere.pth"):
        features.inception(tmp_path / "nowhere.pth", "cpu")


def test_a_digest_tells_files_apart(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"x" * 100)
    other.write_bytes(b"x" * 99 + b"y")
    assert features.digest(one) != features.digest(other)
    whole = features.digest(tmp_path)
    other.write_bytes(b"x" * 100)
    assert features.digest(one) == features.digest(other)
    assert features.digest(tmp_path) != whole
