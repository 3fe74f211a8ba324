"""Files are untrusted: odd ones are refused in one sentence, quickly, with little reading."""

import json
import os
import pickle
import random
import socket
import struct
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diversevar_core.checkpoints.files import CheckpointError, names_in, read, read_tensors
from diversevar_core.errors import quote

MB = 2**20
TENSORS = {"a.weight": torch.arange(60.0).reshape(6, 10), "b.bias": torch.arange(7).bfloat16()}


def anything(keys) -> bool:
    return "a.weight" in keys


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(**changes) -> bytes:
    """A safetensors file of one tensor of 8 bytes, with changes to what it says of it."""
    about = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return safetensors(json.dumps({"a.weight": about}).encode(), data=bytes(8))


def zipped(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def grown(path: Path, content: bytes, size: int, end: bytes = b"") -> None:
    """A sparse file of this apparent size: content at its start, ``end`` at its end."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)


def encrypted(path: Path) -> None:
    zipped(path, {"m/data.pkl": b"\x80\x02}."})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def nested(path: Path, depth: int) -> None:
    """A pickle of dictionaries in dictionaries, as a program that needs no recursion."""
    key = b"X\x01\x00\x00\x00a"
    body = b"}" + (key + b"}") * depth + b"s" * depth
    zipped(path, {"m/data.pkl": b"\x80\x02" + body + b".", "m/version": b"3\n"})


def itself(path: Path) -> None:
    loop = {"b": torch.zeros(3)}
    loop["loop"] = loop
    torch.save(loop, path)


def many_paths(path: Path) -> None:
    """Dictionaries with two ways to each next one: 2 ** 60 paths to the last."""
    inner = {}
    for _ in range(60):
        inner = {"x": inner, "y": inner}
    torch.save(inner, path)


def wide_tensor(path: Path) -> None:
    """A tensor of 4 TB that shows one number again and again."""
    torch.save({"a.weight": torch.zeros(1).expand(1_000_000, 1_000_000)}, path)


def device_of(name: str):
    return lambda path: os.symlink(name, path)


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def folder_of(**files: str):
    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("__", ".")).write_text(content)

    return make


def index(content: str):
    return folder_of(model__safetensors__index__json=content)


def written(content: bytes):
    return lambda path: path.write_bytes(content)


END = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 2**32 - 2**20, 2**20, 0)
HUGE = b"\x80\x02cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\0\0\0V2000000000\x85R"
NO_BYTES = b"c_codecs\nencode\nX\0\0\0\0X\6\0\0\0latin1\x86R"
HOSTILE = {
    "empty.safetensors": written(b""),
    "null.safetensors": written(safetensors(b"null")),
    "list.safetensors": written(safetensors(b"[[1]]")),
    "entry.safetensors": written(safetensors(b'{"a.weight": 3}')),
    "facts.safetensors": written(safetensors(b'{"__metadata__": [1]}')),
    "deep.safetensors": written(safetensors(b'{"a":' + b"[" * 200_000)),
    "digits.safetensors": written(safetensors(b'{"a":' + b"9" * 200_000 + b"}")),
    "length.safetensors": written(safetensors(b"{}", 2**63 + 5)),
    "long.safetensors": written(safetensors(b"{" + b" " * 20 * MB + b"}")),
    "sparse.safetensors": lambda path: grown(path, safetensors(b"{}", 10 * 2**30), 20 * 2**30),
    "dtype.safetensors": written(entry(dtype="F1")),
    "shape.safetensors": written(entry(shape=[2**62, 2**62])),
    "larger.safetensors": written(entry(shape=[3])),
    "negative.safetensors": written(entry(shape=[-2])),
    "outside.safetensors": written(entry(data_offsets=[8, 16])),
    "backward.safetensors": written(entry(data_offsets=[8, 0])),
    "encrypted.pth": encrypted,
    "bomb.pth": lambda path: zipped(
        path, {"m/data.pkl": bytes(300 * MB)}, compression=zipfile.ZIP_DEFLATED
    ),
    "compressed.pth": lambda path: zipped(
        path, {"m/data.pkl": b"\x80\x02}."}, compression=zipfile.ZIP_LZMA
    ),
    "program.pth": lambda path: zipped(path, {"m/data.pkl": bytes(20 * MB)}),
    "directory.pth": lambda path: grown(path, b"PK\x03\x04", 5 * 2**30, END),
    "two.pth": lambda path: zipped(path, {"a/data.pkl": b"}.", "b/data.pkl": b"}."}),
    "none.pth": lambda path: zipped(path, {"readme": b"hello"}),
    "opcodes.pth": lambda path: zipped(path, {"m/data.pkl": b"0" * 1000 + b"."}),
    "storage.pth": lambda path: zipped(path, {"m/data.pkl": b"\x80\x02]."}),
    "scalar.pth": lambda path: zipped(path, {"m/data.pkl": HUGE + b"\x85R."}),
    "void.pth": lambda path: zipped(path, {"m/data.pkl": HUGE + NO_BYTES + b"\x86R."}),
    "text.pth": written(b"hello"),
    "zeros.pth": lambda path: grown(path, b"", 5 * 2**30),
    "pipe.safetensors": os.mkfifo,
    "pipe.pth": os.mkfifo,
    "socket.safetensors": listening,
    "device.safetensors": device_of("/dev/zero"),
    "device.pth": device_of("/dev/zero"),
    "dangling.safetensors": device_of("nowhere.safetensors"),
    "loop.safetensors": device_of("loop.safetensors"),
    "name\udcff.safetensors": written(b"what"),
    "folder.safetensors": folder_of(),
    "null_index": index("null"),
    "list_index": index("[[1]]"),
    "cut_index": index('{"weight_map": {"a":'),
    "number_index": index('{"weight_map": 3}'),
    "empty_index": index('{"weight_map": {}}'),
    "numbers_index": index('{"weight_map": {"a.weight": 3}}'),
    "deep_index": index('{"weight_map":' + "[" * 200_000),
    "long_index": index(" " * 20 * MB),
    "missing_index": index('{"weight_map": {"a.weight": "model-00001.safetensors"}}'),
    "outside_index": index('{"weight_map": {"a.weight": "../../secret.safetensors"}}'),
    "parent_index": index('{"weight_map": {"a.weight": ".."}}'),
    "null_byte_index": index('{"weight_map": {"a.weight": "a\\u0000.safetensors"}}'),
    "two_files": folder_of(a__safetensors="x", b__safetensors="y"),
}
ODD = {  # readable, but with nothing in them that anyone could use
    "itself.pth": itself,
    "deep.pth": lambda path: nested(path, 100_000),
    "paths.pth": many_paths,
    "wide.pth": wide_tensor,
}


def bytes_read() -> int:
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def high_water(reset: bool = False) -> int:
    """Peak memory of this process since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class Little:
    """Check that the code inside takes little time, memory and reading."""

    def __enter__(self):
        self.before = time.process_time(), bytes_read(), high_water(reset=True)

    def __exit__(self, *_):
        started, already, held = self.before
        assert time.process_time() - started < 5
        assert bytes_read() - already < 100 * MB
        assert high_water() - held < 200 * MB


@pytest.mark.parametrize("name", HOSTILE | ODD)
def test_listing_survives(name, tmp_path):
    (HOSTILE | ODD)[name](tmp_path / name)
    with Little():
        names = names_in(tmp_path / name)
    assert names is None or all(isinstance(name, str) for name in names)


@pytest.mark.parametrize("name", HOSTILE)
def test_reading_refuses_in_one_sentence(name, tmp_path):
    (tmp_path.parent / "secret.safetensors").write_bytes(entry())
    HOSTILE[name](tmp_path / name)
    with Little(), pytest.raises(CheckpointError) as caught:
        read(tmp_path / name, anything)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ODD)
def test_nothing_usable_is_found(name, tmp_path):
    ODD[name](tmp_path / name)
    with Little():
        assert "a.weight" not in read(tmp_path / name, anything).tensors


@pytest.mark.parametrize("sidecar", ["null", "[1]", "{", "[" * 200_000, '{"pn":' + "9" * 9999])
def test_sidecar_that_is_not_an_object(sidecar, tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors")
    (tmp_path / "m.json").write_text(sidecar)
    with pytest.raises(CheckpointError, match="m.json' is not a JSON object"):
        read(tmp_path / "m.safetensors", anything)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", ["file", "folder", "parent"])
def test_file_without_read_permission(closed):
    """Its own mode, its folder's or that of the folder above forbids it; seen by another user."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent) / "folder"
        file = folder / "m.safetensors"
        folder.mkdir()
        save_file(TENSORS, file)
        {"file": file, "folder": folder, "parent": Path(parent)}[closed].chmod(0)
        if not (child := os.fork()):
            status = 1
            try:
                os.setuid(65534)
                assert names_in(file) is None
                if closed != "file":
                    assert names_in(folder) is None
                read(file, anything)
            except CheckpointError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


def test_names_that_are_not_text_are_left_out(tmp_path):
    torch.save({3: torch.zeros(1), ("a", "b"): torch.zeros(1)} | TENSORS, tmp_path / "m.pth")
    assert read(tmp_path / "m.pth", anything).tensors.keys() == TENSORS.keys()


def test_names_are_found_without_reading_tensors(tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors", {"pn": "1M"})
    torch.save({"trainer": TENSORS}, tmp_path / "m.pth")
    index(json.dumps({"weight_map": dict.fromkeys(TENSORS, "x")}))(tmp_path / "folder")
    assert names_in(tmp_path / "m.safetensors") == TENSORS.keys()
    assert names_in(tmp_path / "m.pth") >= TENSORS.keys()
    assert names_in(tmp_path / "folder") == TENSORS.keys()


def test_evidence_in_order(tmp_path):
    """The header takes precedence over the name, the user's sidecar over both."""
    (tmp_path / "infinity_8b_512x512_weights").mkdir()
    file = tmp_path / "infinity_8b_512x512_weights" / "model.safetensors"
    save_file(TENSORS, file)
    assert read(file.parent, anything).facts == {"pn": "0.25M"}
    save_file(TENSORS, file, {"pn": "1M", "task": "edit"})
    assert read(file.parent, anything).facts == {"pn": "1M", "task": "edit"}
    (file.parent / "config.json").write_text('{"pn": "0.60M"}')
    assert read(file.parent, anything).facts == {"pn": "0.60M", "task": "edit"}


@pytest.mark.parametrize("task", ["text-to-image", None, 3, [], {"a": 1}, "x" * 9999])
def test_an_unknown_task_is_ignored_and_logged(task, tmp_path, caplog):
    torch.save(TENSORS, tmp_path / "8B-512.pth")
    (tmp_path / "8B-512.json").write_text(json.dumps({"task": task, "pn": "1M"}))
    with caplog.at_level("INFO"):
        assert read(tmp_path / "8B-512.pth", anything).facts == {"task": "edit", "pn": "1M"}
    assert "is ignored" in caplog.text and len(caplog.text) < 1000


def test_tensors_alone_are_read_without_a_sidecar(tmp_path):
    save_file({f"module.{name}": tensor for name, tensor in TENSORS.items()}, tmp_path / "a.sft")
    (tmp_path / "a.json").write_text("this is nothing")
    assert read_tensors(tmp_path / "a.sft").keys() == {f"module.{name}" for name in TENSORS}


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_names_without_what_wraps_a_model(prefix, suffix, tmp_path):
    names = {"a.weight", "block_chunks.0.module.1.fc.weight", "blocks.2._orig_mod.fc.weight"}
    file = tmp_path / f"m.{suffix}"
    save = torch.save if suffix == "pth" else save_file
    save({prefix + name: torch.zeros(2) for name in names}, file)
    plain = names - {"blocks.2._orig_mod.fc.weight"} | {"blocks.2.fc.weight"}
    assert read(file, anything).tensors.keys() == plain
    assert names_in(file) >= plain


@pytest.mark.parametrize("suffix", ["SAFETENSORS", "Safetensors", "SFT", "PTH", "Bin"])
def test_suffix_in_any_case(suffix, tmp_path):
    safe = suffix.lower() in ("safetensors", "sft")
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / f"M.{suffix}", tmp_path / "folder" / f"M.{suffix}"):
        (save_file if safe else torch.save)(TENSORS, file)
        assert names_in(file) >= TENSORS.keys()
        assert read(file, anything).tensors.keys() == TENSORS.keys()
    assert read(tmp_path / "folder", anything).tensors.keys() == TENSORS.keys()


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9000000000\n"
OTHERS = {  # file that a download may give -> words of the error
    "lfs.pth": (LFS.encode(), "git lfs pull"),
    "lfs.SAFETENSORS": (LFS.encode(), "git lfs pull"),
    "page.pth": (b"\n <!DOCTYPE html><html>Access denied</html>", "web page"),
    "page.safetensors": (b"\xef\xbb\xbf<html><body>404", "web page"),
    "t5.gguf": (b"GGUF" + bytes(200), "GGUF file, which is not supported"),
    "empty.ckpt": (b"", "is empty; download"),
    "model.safetensors.index.json": (b'{"weight_map": {}}', "choose the checkpoint's file, or its"),
    "text.pth": (b"hello", "truncated or not a checkpoint"),
    "text.bin": (b"word embed", "holds something other than tensors"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_not_checkpoints_are_named(name, tmp_path):
    content, words = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read(tmp_path / name, anything)
    assert quote(tmp_path / name) in str(caught.value)


class Code:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("packing", ["plain", "zip", "legacy"])
def test_code_is_named_where_there_is_code(packing, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, content = tmp_path / "m.pth", TENSORS | {"c": Code()}
    if packing == "plain":
        file.write_bytes(pickle.dumps({"c": Code()}, protocol))
    else:
        torch.save(content, file, pickle, protocol, packing == "zip")
    with pytest.raises(CheckpointError, match="code in it is never run"):
        read(file, anything)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["model-{}-of-00002", "{}-of-00002"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_one_shard_is_not_offered_and_its_folder_is_named(name, suffix, tmp_path):
    save, parts = save_file if suffix == "safetensors" else torch.save, {}
    for i, (key, tensor) in enumerate(TENSORS.items()):
        parts[key] = f"{name.format(f'{i + 1:05}')}.{suffix}"
        save({key: tensor}, tmp_path / parts[key])
    index(json.dumps({"weight_map": parts}))(tmp_path / "x")
    file = tmp_path / f"model.{suffix}.index.json"
    (tmp_path / "x" / "model.safetensors.index.json").rename(file)
    assert names_in(tmp_path) == TENSORS.keys() == read(tmp_path, anything).tensors.keys()
    for part in parts.values():
        assert names_in(tmp_path / part) == frozenset()
        with pytest.raises(CheckpointError, match="one of several parts") as caught:
            read(tmp_path / part, anything)
        assert quote(tmp_path) in str(caught.value)
    save(TENSORS, tmp_path / f"whole.{suffix}")  # next to them, and in no index
    assert names_in(tmp_path / f"whole.{suffix}") >= TENSORS.keys()


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has 0 checkpoint files and no .*; choose one file"):
        read(tmp_path, anything)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("8B-512.pth", {"task": "edit", "pn": "0.25M"}),
        ("8B-1024.pth", {"task": "edit", "pn": "1M"}),
        ("infinity_2b_reg.pth", {}),
        ("infinity_125M_256x256.pth", {"pn": "0.06M"}),
    ],
)
def test_what_only_a_name_says(name, facts, tmp_path):
    torch.save(TENSORS, tmp_path / name)
    assert read(tmp_path / name, anything).facts == facts


def valid_files(folder: Path) -> list[tuple[Path, bytes]]:
    """A file of every format: what is read, and its content."""
    save_file(TENSORS, folder / "a.safetensors", {"pn": "1M"})
    torch.save({"trainer": {"gpt": TENSORS}, "step": 3}, folder / "b.pth")
    torch.save(TENSORS, folder / "c.pth", _use_new_zipfile_serialization=False)
    whole = folder / "shards"
    whole.mkdir()
    save_file(TENSORS, whole / "part.safetensors")
    indexed = whole / "model.safetensors.index.json"
    indexed.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "part.safetensors")}))
    files = [folder / "a.safetensors", folder / "b.pth", folder / "c.pth", indexed]
    return [(file, file.read_bytes()) for file in files]


def mutated(content: bytes, dice: random.Random) -> bytes:
    """The content with bytes flipped, cut, doubled or, where lengths are kept, made absurd."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(changed)) if changed else 0
        span = dice.choice((1, 2, 4, 8, 200))
        match dice.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del changed[at : at + span]
            case 2:
                changed[at:at] = changed[at : at + span]
            case 3:
                changed[at : at + span] = dice.choice((b"\xff", b"\x00", b"\x7f")) * span
            case 4 if dice.random() < 0.3:
                del changed[at:]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_two_thousand_mutations(tmp_path):
    files, dice = valid_files(tmp_path), random.Random(0)
    loaded, held = 0, high_water(reset=True)
    for i in range(2000):
        file, content = files[i % len(files)]
        path = file.parent if file.parent != tmp_path else file
        file.write_bytes(mutated(content, dice))
        started = time.process_time()
        names_in(path)
        try:
            for tensor in read(path, anything).tensors.values():
                tensor.float().sum()
            loaded += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
        assert time.process_time() - started < 2
        file.write_bytes(content)
    assert high_water() - held < 200 * MB
    assert 200 < loaded < 1800  # both kinds came up
