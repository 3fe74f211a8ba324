"""The model's own judgement, what calibration makes of it, and what a preset stands for."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical

from diversevar_core.analysis.calibrate import (
    Measured,
    Task,
    calibrate,
    choose,
    save,
)
from diversevar_core.analysis.front import front_plot
from diversevar_core.analysis.judge import self_alignment
from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.diversity import pixel_features
from diversevar_core.errors import UserError
from diversevar_core.job import Chain
from diversevar_core.methods.repulsion import Repulsion
from diversevar_core.methods.ssr_sar import DiverseVAR
from diversevar_core.methods.starts import Starts
from diversevar_core.presets import PRESETS, Preset, calibrated_preset, calibration_path
from diversevar_core.sampling.sampler import sample
from diversevar_core.settings import Settings
from diversevar_core.text.encoder import load_text_encoder

SMALL = included.FOLDER / "emoji-small"
FREE = Settings(cfg=(1.0,), cfg_schedule="flat", tau=(1.0,), top_k=0, top_p=0.0)


@pytest.fixture(scope="module")
def emoji():
    return load_model(SMALL / "transformer.safetensors"), load_vae(SMALL / "vae.safetensors")


@pytest.fixture(scope="module")
def read():
    return load_text_encoder(SMALL / "text_encoder.safetensors")


def free_likelihood(pair, condition):
    """Tokens drawn at temperature 1 without guidance, and their log-likelihood."""
    model, vae = pair
    steps = list(sample(*pair, condition, model.schedule(), FREE, range(len(condition))))
    total = torch.zeros(len(condition), dtype=torch.float64)
    for step in steps:
        choices = step.logits.double().unflatten(-1, (-1, model.token_kind.choices))
        drawn = step.tokens.view(choices.shape[:-1])
        total += Categorical(logits=choices).log_prob(drawn).sum((1, 2))
    return [step.tokens for step in steps], total


def test_the_likelihood_is_that_of_drawing_the_image(emoji, read):
    condition = Text(read(["cat face", "red apple"]))
    maps, total = free_likelihood(emoji, condition)
    judged = self_alignment(*emoji, maps, condition, emoji[0].schedule())
    torch.testing.assert_close(judged.likelihood, total, rtol=1e-5, atol=0)


def test_alignment_is_against_the_models_own_unconditional_rows(emoji, read):
    condition = Text(read(["cat face"]))
    own = Text([emoji[0].cfg_uncond[: len(condition.positive[0])].float()])
    maps, total = free_likelihood(emoji, own)
    judged = self_alignment(*emoji, maps, condition, emoji[0].schedule())
    unconditional = judged.likelihood - judged.alignment
    torch.testing.assert_close(unconditional, total, rtol=1e-5, atol=0)


def test_a_class_model_judges_itself_too(var_case):
    pair = load_model(var_case.model), load_vae(var_case.vae)
    condition = Labels(torch.tensor([1, 2]))
    maps, total = free_likelihood(pair, condition)
    judged = self_alignment(*pair, maps, condition, pair[0].schedule())
    torch.testing.assert_close(judged.likelihood, total, rtol=1e-5, atol=0)


def test_an_image_follows_its_own_prompt_and_not_another(emoji, read):
    model, schedule = emoji[0], emoji[0].schedule()
    texts = read(["cat face", "red apple", "sunflower"])
    settings = model.defaults()
    maps = [s.tokens for s in sample(*emoji, Text(texts), schedule, settings, [1, 2, 3])]
    own, other = (
        self_alignment(*emoji, maps, Text(given), schedule).alignment
        for given in (texts, texts[1:] + texts[:1])
    )
    assert (own > 100).all() and (other < 0).all()


@pytest.fixture
def task(emoji, read):
    model, vae = emoji
    prompts = [Text([text]) for text in read(["cat face", "red apple"])]
    return Task(model, vae, prompts, seeds=3)


CANDIDATES = (Preset(), Preset(guidance_start=4), Preset(ssr=8.0, sar=4.0))


def test_calibration_takes_what_differs_and_still_follows(task, tmp_path):
    path = calibration_path(tmp_path / "emoji.safetensors")
    *_, (measured, done) = calibrate(task, path, CANDIDATES)
    assert done == 1.0
    assert [one.preset for one in measured] == list(CANDIDATES)
    assert sum(measured[2].alignment) < sum(measured[0].alignment) - 200  # it breaks images
    assert calibrated_preset(tmp_path / "emoji.safetensors") == CANDIDATES[1]


def test_models_are_made_ready_before_every_sampling(task, tmp_path):
    made = []

    def features(images):  # as CLIP vision, for which the host may unload the models
        made.append("features")
        return pixel_features(images)

    task = replace(task, features=features)
    path = calibration_path(tmp_path / "emoji.safetensors")
    list(calibrate(task, path, CANDIDATES[1:2], made.append))
    assert made == 2 * [CANDIDATES[1].chain(), "features"]


def test_images_are_decoded_one_by_one(task, tmp_path, monkeypatch):
    sizes, decode = [], task.vae.decode
    monkeypatch.setattr(task.vae, "decode", lambda f: sizes.append(len(f)) or decode(f))
    list(calibrate(task, tmp_path / "x.diversity.json", CANDIDATES[:1]))
    assert sizes == 6 * [1]


@pytest.mark.parametrize("part", ["head", "word_embed"])
def test_a_model_of_nan_is_refused(task, tmp_path, part):
    model = load_model(SMALL / "transformer.safetensors")
    getattr(model, part).weight.data[:] = torch.nan
    path = tmp_path / "x.diversity.json"
    with pytest.raises(UserError, match="NaN or infinite|finite"):
        list(calibrate(replace(task, model=model), path, CANDIDATES[:1]))
    assert not path.exists()


def test_a_cancelled_calibration_leaves_the_one_before_it(task, tmp_path):
    path = calibration_path(tmp_path / "emoji.safetensors")
    list(calibrate(task, path, CANDIDATES[:1]))
    before = path.read_bytes()
    next(calibrate(task, path, CANDIDATES[1:]))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_several_may_write_at_once_and_readers_see_whole_files(tmp_path):
    path = tmp_path / "x.safetensors"
    measured = 5 * [Measured(Preset(guidance_start=4), *(3 * [50 * [0.1]]))]

    def work(i):
        for _ in range(100):
            save(calibration_path(path), measured, measured[0])
            assert calibrated_preset(path) == measured[0].preset

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert list(tmp_path.iterdir()) == [calibration_path(path)]


def one(diversity, alignment, likelihood):
    return Measured(Preset(), [diversity], [alignment], [likelihood])


def test_the_choice_is_the_most_different_that_loses_little():
    published = one(0.1, 600, -400)
    good, likelier = one(0.3, 550, -450), one(0.2, 600, -300)
    broken, elsewhere = one(0.5, 100, -900), one(0.6, 590, -900)
    assert choose([published, good, likelier, broken, elsewhere]) == good
    assert choose([published, broken]) == published
    tied = one(0.29, 580, -450)  # differs as much, follows better
    assert choose([published, good, tied]) == tied


def test_the_plot_shows_every_preset_and_the_choice():
    measured = [
        Measured(Preset(), [0.1, 0.2], [600.0, 640.0], [-400.0, -410.0]),
        Measured(Preset(guidance_start=4), [0.3, 0.4], [500.0, 520.0], [-500.0, -490.0]),
    ]
    plot = front_plot(measured, measured[1])
    orange, blue = torch.tensor([0xD9, 0x54, 0x1E]) / 255, torch.tensor([0x3B, 0x6E, 0xA5]) / 255
    places = {}
    for name, colour in (("orange", orange), ("blue", blue)):
        found = (plot[:, :, :600] - colour[:, None, None]).abs().amax(0) < 0.02
        assert found.sum() > 50
        places[name] = found.nonzero().double().mean(0)
    assert places["orange"][0] < places["blue"][0]  # differs more: above
    assert places["orange"][1] < places["blue"][1]  # follows less: left


def test_a_preset_stands_for_its_methods_and_chained_ones_replace_their_like():
    assert PRESETS["as published"].chain() == Chain(starts=Starts(1))
    preset = Preset(4, 64, 0.5, 0.25, 2.0)
    assert preset.chain() == Chain((DiverseVAR(0.5, 0.25), Repulsion(2.0)), Starts(64))
    given = Chain((DiverseVAR(1.0),), Starts(8), travel=2)
    assert preset.chain(given) == Chain((Repulsion(2.0), DiverseVAR(1.0)), Starts(8), travel=2)
    assert str(preset) == "guidance_start 4, starts 64, ssr 0.5, sar 0.25, repulsion 2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no finished calibration"),
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("{}", "is not a calibration"),
        ("[" * 100_000, "is not a JSON object"),
        ('{"chosen": {"magic": 1}}', "is not a calibration of this version"),
        ('{"chosen": [1]}', "is not a calibration of this version"),
        ('{"chosen": {"starts": 1000000000}}', "is not a calibration of this version"),
        ('{"chosen": {"starts": 8.5}}', "is not a calibration of this version"),
        ('{"chosen": {"starts": true}}', "is not a calibration of this version"),
        ('{"chosen": {"starts": null}}', "is not a calibration of this version"),
        ('{"chosen": {"guidance_start": "4"}}', "is not a calibration of this version"),
        ('{"chosen": {"ssr": NaN}}', "is not a calibration of this version"),
        ('{"chosen": {"sar": Infinity}}', "is not a calibration of this version"),
        ('{"chosen": {"repulsion": -1}}', "is not a calibration of this version"),
    ],
)
def test_a_calibration_that_cannot_be_read_is_refused(tmp_path, content, words):
    model = tmp_path / "model.safetensors"
    if content is not None:
        calibration_path(model).write_text(content)
    with pytest.raises(UserError, match=words):
        calibrated_preset(model)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_what_is_no_file_of_that_size_is_not_read(tmp_path, kind):
    model = tmp_path / "model.safetensors"
    path = calibration_path(model)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2**30)
    with pytest.raises(UserError, match=path.name):
        calibrated_preset(model)


def test_every_file_has_its_own_calibration(tmp_path):
    names = ("a.safetensors", "a.pth", "a")
    assert len({calibration_path(tmp_path / name) for name in names}) == len(names)
