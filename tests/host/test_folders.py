"""What lies in a models folder never takes the pack down: odd files are passed over."""

import json
import os
import subprocess

import pytest
from comfy_host import HOW_TO, ROOT, find
from safetensors.torch import save_file

from .conftest import write_infinity

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
    write_infinity(tmp_path)
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
        [found[1], "-c", LIST, found[0], ROOT, models], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    listed, refused = done.stdout.splitlines()[-2:]
    in_doubt = {"null.safetensors", "\udcff.safetensors", "truncated.safetensors"}
    kinds = [set(names) - in_doubt for names in json.loads(listed)]
    assert kinds == [
        {"emoji", "infinity_tiny.safetensors", "infinity_2b_reg.pth"},
        {"emoji", "infinity_tiny.safetensors", "infinity_vae_d32reg.pth"},
        {"emoji", "flan-t5-xl", "t5_tiny"}
        | {f"{name}/model.safetensors" for name in ("flan-t5-xl", "t5_tiny")},
    ]
    assert refused.startswith("There is no xxx")
