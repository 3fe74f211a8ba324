"""The benches from their command line to their report, on miniatures in the public layouts."""

import json
import multiprocessing
import os
import random
import re
import runpy
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.diversity import emoji
from diversevar_core.analysis.judge import self_alignment
from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.methods.starts import Starts, choose_starts
from diversevar_core.sampling.sampler import sample
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.autoencoder import to_image

JUDGE = Path(__file__).parents[1] / "judge.safetensors"  # of training/judge.py

CAPTIONS = ("penguin", "pizza", "red apple", "fox", "cat face", "sunflower", "owl", "octopus")


def run(*arguments: object) -> None:
    """``python -m benchmarks.diversity`` in this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that the module has been imported before
        patch.setattr(sys, "argv", ["diversity", *map(str, arguments)])
        runpy.run_module("benchmarks.diversity", run_name="__main__")


def options(files) -> list[object]:
    """All networks."""
    return [part for option, file in files.items() for part in (option, file)]


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture of coloured blots."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """COCO's validation set of 2017 in small: 10 pictures of different shapes."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    images, annotations = [], []
    for i in range(10):
        name, width, height = f"{1000 - i:012d}.jpg", 40 + 7 * (i % 3), 50
        noise(width, height, i).save(folder / "val2017" / name)
        images.append({"id": 1000 - i, "file_name": name, "width": width, "height": height})
        for j in range(2):
            caption = CAPTIONS[i % 8] if j else f"not {CAPTIONS[i % 8]}\n"
            annotations.append({"id": 500 - 10 * i - j, "image_id": 1000 - i, "caption": caption})
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    return folder


def written(folder: Path) -> dict[Path, int]:
    """Finished files and their inodes, which change when a file is rewritten."""
    return {
        path: path.stat().st_ino
        for path in folder.rglob("*.*")
        if not path.name.startswith(".") and path.suffix in (".png", ".safetensors")
    }


def share(place: int, arguments: list[str], log: Path) -> None:
    """One of two processes, with the environment variables of torchrun."""
    os.environ |= {"RANK": str(place), "WORLD_SIZE": "2"}
    sys.stdout = sys.stderr = log.open("w")
    run(*arguments)


def test_a_run_killed_three_times_reports_the_same_as_a_clean_run(coco, files, tmp_path, capsys):
    common = ["--bench", "coco2017-5k", "--data", coco, "--batch", "3", "--device", "cpu"]
    common += ["--rows", "vanilla", "late guidance", "--k", "3", *options(files)]
    clean, broken = tmp_path / "clean", tmp_path / "broken"
    run(*common, "--out", clean)
    said = capsys.readouterr().out
    assert re.search(r"vanilla, drawn and judged: 10 pictures, \d+ s per thousand", said)
    assert re.search(r"late guidance, a thousand pictures: drawn in \d+ s, judged in \d+ s", said)
    assert said.endswith(f"{clean / 'report.md'}\n")

    whole = len(written(clean)) - 2  # report.png and pictures.png
    moments = sorted(random.sample(range(1, whole - 2), 3))
    fork = multiprocessing.get_context("fork")
    seen: dict[Path, int] = {}
    for moment in (*moments, None):
        workers = [
            fork.Process(target=share, args=(i, [*common, "--out", broken], tmp_path / f"log{i}"))
            for i in range(2)
        ]
        for worker in workers:
            worker.start()
        if moment is not None:
            while len(written(broken)) < moment and any(w.is_alive() for w in workers):
                time.sleep(0.01)
            for worker in workers:
                worker.kill()
        for worker in workers:
            worker.join(200)
        now = written(broken)
        assert {path: now[path] for path in seen} == seen, "a finished file was written again"
        seen = now
        assert (broken / "report.json").exists() == (moment is None), moments
        ends = {worker.exitcode for worker in workers}
        logs = [(tmp_path / f"log{i}").read_text() for i in range(2)]
        assert ends == {0} if moment is None else -9 in ends, (ends, logs)

    assert (broken / "report.json").read_bytes() == (clean / "report.json").read_bytes()
    assert (broken / "report.md").read_bytes() == (clean / "report.md").read_bytes()
    report = json.loads((clean / "report.json").read_text())
    assert report["references"] == report["prompts"] == 10
    expected = {"recall", "precision", "density", "coverage", "FID", "CLIP score", "ImageReward"}
    expected |= {"self-alignment", "log-likelihood"}
    assert expected <= set(report["rows"]["vanilla"])
    assert report["rows"]["vanilla"] != report["rows"]["late guidance"]
    assert set(report["rows"]["real pictures"]) == {"CLIP score", "ImageReward"}
    ours, theirs = (report["rows"][name] for name in ("late guidance", "vanilla"))
    assert {"self-alignment", "CLIP score"} <= set(report["differences"]["late guidance"])
    for name, (mean, low, high) in report["differences"]["late guidance"].items():
        assert mean == pytest.approx(ours[name][0] - theirs[name][0])
        assert low <= mean <= high
    for folder in (clean, broken):
        timings = json.loads((folder / "timings.json").read_text())
        assert set(timings) == {"vanilla", "late guidance"}
        for name, seconds in timings.items():
            files = (folder / name.replace(" ", "-") / "drawn").glob("*.json")  # no drafts
            parts = [json.loads(file.read_text())["seconds"] for file in files]
            for what in ("drawn", "judged"):
                assert seconds[what] == pytest.approx(100 * sum(part[what] for part in parts))
                assert all(part[what] > 0 for part in parts)
    table = (clean / "report.md").read_text()
    assert (
        "| *published: Infinity-2B, DiverseVAR* | 0.480 | - | - | 0.860 | 33.390 | 0.313 |" in table
    )
    assert "Theirs are of 5000 prompts; do not compare." in table
    assert "Less vanilla, prompt by prompt:" in table
    for name in ("report.png", "pictures.png"):
        assert Image.open(clean / name).size[0] > 400
    assert len(list((clean / "vanilla" / "samples").glob("000??_0.png"))) == 10


def test_other_settings_do_not_mix(coco, tmp_path):
    common = ["--bench", "coco2017-5k", "--data", coco, "--rows", "vanilla", "--out", tmp_path]
    run(*common, "--prompts", 2)
    manifest = (tmp_path / "vanilla" / "manifest.json").read_bytes()
    for change, words in (
        (["--prompts", 3], "with another set of prompts"),
        (["--prompts", 2, "--seed", 7], r"with another first seed \(0, and now 7\)"),
        (["--prompts", 2, "--batch", 1], r"with another batch \(8, and now 1\)"),
    ):
        with pytest.raises(SystemExit, match=words):
            run(*common, *change)
    assert (tmp_path / "vanilla" / "manifest.json").read_bytes() == manifest
    assert len(list((tmp_path / "vanilla" / "samples").iterdir())) == 2


def test_other_references_do_not_mix(coco, files, tmp_path):
    common = ["--bench", "coco2017-5k", "--prompts", 6, "--rows", "vanilla", "--out", tmp_path]
    run(*common, "--data", coco, "--clip", files["--clip"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "annotations").symlink_to(coco / "annotations")
    (other / "val2017").mkdir()
    for picture in (coco / "val2017").iterdir():
        noise(64, 64, 99).save(other / "val2017" / picture.name)
    with pytest.raises(SystemExit, match="references were made with another set of references"):
        run(*common, "--data", other, "--clip", files["--clip"])


def test_geneval_output_has_the_scorers_layout(tmp_path):
    """djghosh13/geneval, evaluation/evaluate_images.py: numbered folders, metadata, samples."""
    data, out = tmp_path / "geneval", tmp_path / "out"
    (data / "prompts").mkdir(parents=True)
    lines = [
        json.dumps({"tag": "single_object", "include": [{"class": p, "count": 1}], "prompt": p})
        for p in ("penguin", "pizza", "owl")
    ]
    (data / "prompts" / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ("--bench", "geneval", "--data", data, "--rows", "vanilla", "--out", out)
    run(*arguments, "--shard", "0/1", "--prompts", 2)
    samples = out / "vanilla" / "samples"
    assert sorted(folder.name for folder in samples.iterdir()) == ["00000", "00001"]
    for i, folder in enumerate(sorted(samples.iterdir())):
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(lines[i])
        names = sorted(path.name for path in (folder / "samples").iterdir())
        assert names == ["0000.png", "0001.png", "0002.png", "0003.png"]
    row = json.loads((out / "report.json").read_text())["rows"]["vanilla"]
    assert len(row["distance in a prompt (pixels)"]) == 3
    assert "recall" not in row


def test_dpg_output_has_the_scorers_layout(tmp_path):
    """TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py: a 2 x 2 grid a prompt, by its name."""
    data, out = tmp_path / "dpg_bench", tmp_path / "out"
    (data / "prompts").mkdir(parents=True)
    for name, text in (("partiprompts7", "penguin\n"), ("12", "pizza")):
        (data / "prompts" / f"{name}.txt").write_text(text)
    run("--bench", "dpg", "--data", data, "--rows", "vanilla", "--out", out)
    grids = out / "vanilla" / "grids"
    assert sorted(path.name for path in grids.iterdir()) == ["12.png", "partiprompts7.png"]
    grid = Image.open(grids / "partiprompts7.png")
    for j, corner in enumerate(((0, 0), (128, 0), (0, 128), (128, 128))):
        part = grid.crop((*corner, corner[0] + 128, corner[1] + 128))
        one = Image.open(out / "vanilla" / "samples" / f"partiprompts7_{j}.png")
        assert part.tobytes() == one.tobytes()


def test_emoji_with_its_judge(tmp_path):
    data, out = tmp_path / "emoji-data", tmp_path / "out"
    data.mkdir()
    words = ("ant", "avocado", "amphora", "bat", "owl")
    concepts = [{"prompt": word, "mirrored": True, "designs": 6} for word in words]
    (data / "concepts.json").write_text(json.dumps(concepts))
    pictures = np.stack([np.asarray(noise(128, 128, i)) for i in range(30)])
    concept, design = np.divmod(np.arange(30), 6)
    np.savez(data / "emoji.npz", pictures=pictures, concept=concept, design=design)
    options = ("--data", data, "--judge", JUDGE, "--out", out)
    run("--bench", "emoji", "--prompts", 2, "--each", 4, "--rows", "vanilla", *options)
    report = json.loads((out / "report.json").read_text())
    assert report["references"] == 12  # of the first two prompts, amphora and ant
    row = report["rows"]["vanilla"]
    assert {"recall", "top-1", "top-5", "designs", "modes"} <= set(row)
    assert 1 <= row["modes"][0] <= 4
    assert 0 <= row["designs"][0] <= 4
    assert "Frechet distance (judge)" in row


def test_every_image_depends_on_its_seed_and_is_judged_by_its_prompt(tmp_path):
    """Diverse starts of two prompts, in batches across both, equal each image made alone."""
    arguments = ("--bench", "emoji", "--prompts", 2, "--each", 3, "--seed", 7, "--batch", 4)
    run(*arguments, "--rows", "diverse starts", "--device", "cpu", "--out", tmp_path)
    scores = json.loads((tmp_path / "diverse-starts/drawn/000000.json").read_text())["scores"]

    model, vae = load_model(included.MODEL), load_vae(included.VAE)
    read, schedule = load_text_encoder(included.TEXT_ENCODER), model.schedule()
    settings = replace(model.defaults(), guidance_start=4)
    for i, prompt in enumerate(("amphora", "ant")):
        how = (model, vae, Text(read([prompt])), schedule)
        seeds = choose_starts(Starts(64, 6), 3, *how, settings, 7 + 3 * i)
        assert seeds != [7 + 3 * i + j for j in range(3)]
        for j, seed in enumerate(seeds):
            steps = list(sample(*how, settings, [seed]))
            with torch.no_grad():
                alone = to_image(vae.decode(steps[-1].f_hat))[0].permute(1, 2, 0) * 255
            found = Image.open(tmp_path / f"diverse-starts/samples/{prompt}_{j}.png")
            assert np.abs(np.asarray(found) - alone.numpy()).mean() < 1
            judged = self_alignment(*how[:2], [step.tokens for step in steps], *how[2:])
            place = 3 * i + j
            assert scores["self-alignment"][place] == pytest.approx(judged.alignment.item(), 1e-3)
            assert scores["log-likelihood"][place] == pytest.approx(judged.likelihood.item(), 1e-3)


def test_no_starts_by_default_with_one_image_per_prompt(tmp_path):
    common = ("--bench", "emoji", "--prompts", 2, "--each", 1, "--out", tmp_path)
    run(*common)
    report = (tmp_path / "report.json").read_bytes()
    assert list(json.loads(report)["rows"]) == ["vanilla", "ssr+sar", "late guidance"]
    assert Image.open(tmp_path / "report.png").size[0] > 400

    record = tmp_path / "vanilla/drawn/000000.json"
    scores = json.loads(record.read_text())["scores"]
    pictures = {path: path.stat().st_ino for path in tmp_path.glob("*/samples/*.png")}
    record.unlink()  # as a kill between the pictures and it leaves them
    run(*common)
    assert json.loads(record.read_text())["scores"] == scores
    assert (tmp_path / "report.json").read_bytes() == report
    assert {path: path.stat().st_ino for path in pictures} == pictures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bench", "geneval"], "geneval reads its prompts from your copy; name it with --data"),
        (["--bench", "coco2017-5k", "--data", "nowhere"], "There is no nowhere.*captions_val2017"),
        (["--bench", "dpg", "--data", "nowhere"], "There are no nowhere"),
        (["--bench", "emoji", "--shard", "2/2"], "--shard must be like 0/4 to 3/4"),
        (["--bench", "emoji", "--each", "0"], "--each must be 1 or more"),
        (["--bench", "emoji", "--clip", "nowhere"], "There is no nowhere"),
        (["--bench", "emoji", "--model", "nowhere"], "There is no"),
        (["--bench", "emoji", "--judge", "x"], "--judge judges the benches emoji and layouts"),
        (
            ["--bench", "emoji", "--each", "1", "--rows", "diverse starts"],
            "diverse starts chooses among the images of one prompt, .* set --each higher",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, words, tmp_path):
    with pytest.raises(SystemExit, match=words):
        run(*arguments, "--out", tmp_path / "out")
    assert not list(tmp_path.rglob("*.png"))


def test_a_missing_reference_is_named(coco, tmp_path):
    folder = tmp_path / "coco"
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").symlink_to(coco / "annotations")
    with pytest.raises(SystemExit, match="10 of 10 reference pictures are missing, first .*jpg"):
        run("--bench", "coco2017-5k", "--data", folder, "--out", tmp_path / "out")


def test_the_included_model_knows_every_emoji_prompt():
    asked = [prompt.text for prompt in emoji.protocol(None).prompts]
    assert set(asked) <= set(included.prompts())
