"""Odd files in a models folder never break the pack: they are ignored."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cases import write_case, write_text_encoder
from comfy_host import HOW_TO, ROOT, find
from safetensors.torch import load_file, save_file

# the pack's own modules of these names, in the host's Python, without its nodes
START = """
import json, sys, types
host, pack, models = sys.argv[1:]
sys.path.insert(0, host)
sys.argv = ["main.py"]
import folder_paths
for folder in ("diffusion_models", "vae", "text_encoders", "checkpoints", "loras"):
    folder_paths.folder_names_and_paths[folder][0][:] = [f"{models}/{folder}"]
for name, path in (("pack", pack), ("pack.nodes", f"{pack}/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from pack.nodes import folders
folders.register()
kinds = (folders.MODELS, folders.VAES, folders.TEXT_ENCODERS)
"""
LISTED = """
print(json.dumps([folders.choices(kind) for kind in kinds]))
try:
    folders.path_of(folders.MODELS, "x" * 999 + ".safetensors")
except folders.UserError as error:
    print(error)
"""
NAMES = """
from pathlib import Path
def found(name):
    try:
        return str(folders.model_path(name).relative_to(models))
    except folders.UserError as error:
        return str(error)
print(json.dumps([found(name) for name in json.loads(sys.stdin.read())]))
"""
READ = """
import os, time
from pathlib import Path
read, names_in = [], folders.names_in
folders.names_in = lambda path: read.append(str(path)) or names_in(path)
def listing():
    read.clear()
    began = time.monotonic()
    choices = [folders.choices(kind) for kind in kinds]
    return sum(map(len, choices)), len(read), time.monotonic() - began
first, again = listing(), listing()
changed = Path(models, "diffusion_models", "7.safetensors")
changed.write_bytes(changed.read_bytes() + b" ")
folder_paths.filename_list_cache.clear()
print(json.dumps([first, again, listing(), len(folders.verdicts)]))
"""
DOWNLOADED = """
from pathlib import Path
folder, whole = Path(models, "diffusion_models", "many"), Path(sys.stdin.read().strip('"'))
folder.mkdir()
content = whole.read_bytes()
(folder / "m.safetensors").write_bytes(content[:1000])
def listed():
    folder_paths.filename_list_cache.clear()
    return [name for name in folders.choices(folders.MODELS) if name.startswith("many")]
before = listed()
with (folder / "m.safetensors").open("ab") as file:
    file.write(content[1000:])
print(json.dumps([before, listed()]))
"""
LONG = """
import os, time
from pathlib import Path
def listing():
    began = time.process_time()
    folders.choices(folders.MODELS)
    return time.process_time() - began
first = listing()
for file in Path(models, "diffusion_models").glob("long*"):
    os.utime(file, (1, 1))
print(json.dumps([first, listing()]))
"""
VERSIONS = """
import os
from pathlib import Path
def change(file):
    Path(file).write_text((Path(file).read_text() if Path(file).exists() else "{}") + " ")
seen = []
for name, kind, changed in json.loads(sys.stdin.read()):
    before = folders.version(kind := getattr(folders, kind), name)
    assert folders.version(kind, name) == before and json.loads(json.dumps(before)) == before
    change(f"{models}/{changed}")
    seen.append(folders.version(kind, name) != before)
print(json.dumps([*seen, folders.version(folders.model_path, None)]))
"""


def run_in_host(script: str, models: Path, given: object = None) -> str:
    """What the script prints at last in the host's Python, with ``given`` at its input."""
    found = find()
    if found is None:
        pytest.skip(HOW_TO)
    command = [found[1], "-c", START + script, found[0], ROOT, models]
    text = json.dumps(given)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def models(tmp_path):
    for folder in ("diffusion_models", "vae", "text_encoders", "checkpoints", "loras"):
        (tmp_path / folder).mkdir()
    case = write_case("infinity_plain", tmp_path)
    case.model.rename(tmp_path / "diffusion_models" / "good.safetensors")
    case.vae.rename(tmp_path / "vae" / "good.safetensors")
    write_text_encoder(tmp_path / "text_encoders" / "good")
    return tmp_path


def test_odd_files_are_ignored(models):
    for folder in ("diffusion_models", "vae", "text_encoders"):
        here = models / folder
        os.mkfifo(here / "pipe.safetensors")
        os.symlink("/dev/zero", here / "device.pth")
        os.symlink("nowhere", here / "dangling.safetensors")
        os.symlink("loop.safetensors", here / "loop.safetensors")
        (here / "null.safetensors").write_bytes(b"\4\0\0\0\0\0\0\0null")
        (here / "\udcff.safetensors").write_bytes(b"what")
        (here / "listed").mkdir()
        (here / "listed" / "model.safetensors.index.json").write_text("[[1]]")
        save_file({}, here / "listed" / "nothing.safetensors")
    listed, refused = run_in_host(LISTED, models).splitlines()[-2:]
    in_doubt = {"null.safetensors", "\udcff.safetensors"}
    kinds = [set(names) - in_doubt for names in json.loads(listed)]
    assert kinds == [
        {"emoji", "emoji-small", "emoji-edit", "good.safetensors"},
        {"emoji", "emoji-small", "good.safetensors"},
        {"emoji", "emoji-small", "emoji-edit", "good", "good/model.safetensors"},
    ]
    assert refused.startswith("There is no 'xxx")


def test_only_names_of_the_list_are_taken_with_any_systems_separators(models):
    here = models / "diffusion_models"
    for file in ("sub/one.safetensors", "back\\slash.safetensors"):
        (here / file).parent.mkdir(exist_ok=True)
        shutil.copy(here / "good.safetensors", here / file)
    outside = models / "outside.safetensors"
    shutil.copy(here / "good.safetensors", outside)
    good = ["good.safetensors", "sub/one.safetensors", "back\\slash.safetensors"]
    names = [*good, "sub\\one.safetensors"]
    odd = [str(outside), "../outside.safetensors", "..\\outside.safetensors", "", ".", "sub/.."]
    odd += ["sub/../good.safetensors", "good.safetensors\0", 7]
    found = json.loads(run_in_host(NAMES, models, names + odd).splitlines()[-1])
    assert found[:4] == [f"diffusion_models/{name}" for name in [*good, good[1]]]
    assert all("choose another" in words for words in found[4:]), found[4:]


def test_a_listing_reads_what_has_changed_however_many_files_there_are(models):
    here = models / "diffusion_models"
    for i in range(4200):
        os.link(here / "good.safetensors", here / f"{i}.safetensors")
    (here / "7.safetensors").unlink()
    shutil.copy(here / "good.safetensors", here / "7.safetensors")
    first, again, changed, kept = json.loads(run_in_host(READ, models).splitlines()[-1])
    assert first[1] > 4200 and again[1] == 0
    assert changed[1] == 1
    assert first[0] == again[0] == changed[0] > 4200
    assert again[2] < 5
    assert kept == first[1]


def test_a_folder_is_listed_once_its_file_is_downloaded(models):
    file = str(models / "diffusion_models" / "good.safetensors")
    half, whole = json.loads(run_in_host(DOWNLOADED, models, file).splitlines()[-1])
    assert half == ["many/m.safetensors"]  # in doubt
    assert whole == ["many", "many/m.safetensors"]


def test_long_headers_are_refused_quickly(models):
    """Ten of 16 MB, with 180,000 names each: parsing them takes seconds."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"word_embed.weight.{i:07}": entry for i in range(180_000)}).encode()
    for i in range(10):
        content = len(header).to_bytes(8, "little") + header
        (models / "diffusion_models" / f"long {i}.safetensors").write_bytes(content)
    first, touched = json.loads(run_in_host(LONG, models).splitlines()[-1])
    assert first < 2 and touched < 2


def test_a_choice_has_another_version_after_any_of_its_files_changed(models):
    case = models / "diffusion_models" / "good.safetensors"
    folder = models / "diffusion_models" / "many"
    folder.mkdir()
    shutil.copy(case, folder / "one.safetensors")
    index = {name: "one.safetensors" for name in load_file(case)}
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    changes = [
        ["good.safetensors", "model_path", "diffusion_models/good.json"],
        ["many", "model_path", "diffusion_models/many/x.safetensors.index.json"],
        ["many", "model_path", "diffusion_models/many/config.json"],
        ["good.safetensors", "vae_path", "vae/good.json"],
        ["good", "text_encoder_path", "text_encoders/good/tokenizer.json"],
    ]
    found = json.loads(run_in_host(VERSIONS, models, changes).splitlines()[-1])
    assert found == [*(len(changes) * [True]), None]
