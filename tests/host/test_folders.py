"""What lies in a models folder never takes the pack down: odd files are passed over."""

import json
import os
import subprocess

import pytest
from cases import write_case, write_text_encoder
from comfy_host import HOW_TO, ROOT, find
from safetensors.torch import save_file

# the pack's own modules of these names, in the host's Python, without its nodes
LIST = """
import json, sys, types
host, pack, models = sys.argv[1:]
sys.path.insert(0, host)
sys.argv = ["main.py"]
import folder_paths
for folder in ("diffusion_models", "vae", "text_encoders", "checkpoints"):
    folder_paths.folder_names_and_paths[folder][0][:] = [f"{models}/{folder}"]
for name, path in (("pack", pack), ("pack.nodes", f"{pack}/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from pack.nodes import folders
folders.register()
kinds = (folders.MODELS, folders.TOKENIZERS, folders.TEXT_ENCODERS)
print(json.dumps([folders.choices(kind) for kind in kinds]))
try:
    folders.path_of(folders.MODELS, "x" * 999 + ".safetensors")
except ValueError as error:
    print(error)
"""


@pytest.fixture
def models(tmp_path):
    for folder in ("diffusion_models", "vae", "text_encoders", "checkpoints"):
        (tmp_path / folder).mkdir()
    case = write_case("infinity_plain", tmp_path)
    case.model.rename(tmp_path / "diffusion_models" / "good.safetensors")
    case.tokenizer.rename(tmp_path / "vae" / "good.safetensors")
    write_text_encoder(tmp_path / "text_encoders" / "good")
    return tmp_path


def test_odd_files_are_passed_over(models):
    found = find()
    if found is None:
        pytest.skip(HOW_TO)
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
    done = subprocess.run(
        [found[1], "-c", LIST, found[0], ROOT, models], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    listed, refused = done.stdout.splitlines()[-2:]
    in_doubt = {"null.safetensors", "\udcff.safetensors"}
    kinds = [set(names) - in_doubt for names in json.loads(listed)]
    assert kinds == [
        {"emoji", "emoji-edit", "good.safetensors"},
        {"emoji", "good.safetensors"},
        {"emoji", "emoji-edit", "good", "good/model.safetensors"},
    ]
    assert refused.startswith("There is no xxx")
