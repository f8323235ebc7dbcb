"""Tensors of torch's files are read, and nothing in such a file is ever run."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import random
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine.cli import main
from mlxengine.errors import ConfigurationError, CorruptFileError, IncompatibleWeightsError, MLXEngineError
from mlxengine.toolkit.from_bin import convert_bin
from mlxengine.toolkit.torch_file import TorchFile
from safetensors.numpy import load_file

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
}


class _Kept:
    """A tensor as torch pickles it: a view of a storage."""

    def __init__(self, array: Any, key: str, offset: int = 0, stride: tuple[int, ...] | None = None) -> None:
        self.array, self.key, self.offset = array, key, offset
        plain = tuple(step // array.itemsize for step in array.strides)
        self.stride = plain if stride is None else stride

    def __reduce__(self) -> Any:
        utils = sys.modules["torch._utils"]
        storage = _Reference(_STORAGES[self.array.dtype.name], self.key, self.array.size)
        hooks: Any = collections.OrderedDict()
        return utils._rebuild_tensor_v2, (storage, self.offset, self.array.shape, self.stride, False, hooks)


class _Reference:
    def __init__(self, storage: str, key: str, count: int) -> None:
        self.told = ("storage", getattr(sys.modules["torch"], storage), key, "cpu", count)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.told if isinstance(value, _Reference) else None


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that have torch's names, so that the pickles name them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *_: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def pickled(value: Any, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


def write(
    path: Path, data: bytes, storages: Mapping[str, bytes], compress: int = zipfile.ZIP_STORED, **more: bytes
) -> Path:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", more.pop("byteorder", b"little"))
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers)
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def state(path: Path, protocol: int = 2) -> tuple[Path, dict[str, Any]]:
    """A file with tensors of several kinds: a transposed view, a part of a storage, none at all."""
    values = np.random.default_rng(3)
    a = values.standard_normal((4, 3)).astype(np.float32)
    b = values.standard_normal(12).astype(np.float16)
    c = np.arange(5, dtype=np.int64)
    named: Any = collections.OrderedDict()
    named["a"] = _Kept(a, "0")
    named["a.T"] = _Kept(a.T, "0")
    part = _Kept(b, "1", offset=2, stride=(4, 1))
    part.array = b[:6].reshape(2, 3)
    part.__class__ = _Part
    named["part"] = part
    named["c"] = _Kept(c, "2")
    named["none"] = _Kept(np.zeros((0, 7), dtype=np.float32), "3")
    named._metadata = collections.OrderedDict({"": {"version": 1}})
    storages = {"0": a.tobytes(), "1": b.tobytes(), "2": c.tobytes(), "3": b""}
    expected = {"a": a, "a.T": a.T, "part": np.stack([b[2:5], b[6:9]]), "c": c}
    expected["none"] = np.zeros((0, 7), dtype=np.float32)
    return write(path, pickled(named, protocol), storages), expected


class _Part(_Kept):
    def __reduce__(self) -> Any:
        utils = sys.modules["torch._utils"]
        storage = _Reference("HalfStorage", self.key, 12)
        return utils._rebuild_tensor_v2, (storage, self.offset, self.array.shape, self.stride, False, {})


class _Wide(_Kept):
    def __reduce__(self) -> Any:
        function, arguments = super().__reduce__()
        return function, (*arguments[:2], (4, 6), *arguments[3:])


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_numbers_come_out_as_they_went_in(torch_names: None, tmp_path: Path, protocol: int) -> None:
    source = tmp_path / "source"
    (source / "2_Dense").mkdir(parents=True)
    _, expected = state(source / "pytorch_model.bin", protocol)
    state(source / "2_Dense" / "pytorch_model.bin")
    (source / "config.json").write_text("{}")
    (source / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    (source / "training_args.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    made = convert_bin(source, tmp_path / "made")
    for folder in ("", "2_Dense"):
        found = load_file(str(tmp_path / "made" / folder / "model.safetensors"))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert np.array_equal(found[name], value), name
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "2_Dense",
        "config.json",
        "converted_from_bin.json",
        "model.safetensors",
    ]
    record = json.loads((tmp_path / "made" / "converted_from_bin.json").read_text())
    assert [item["file"] for item in record] == ["model.safetensors", "2_Dense/model.safetensors"]
    import hashlib

    for item in record:
        for kind, root in (("source", source), ("file", tmp_path / "made")):
            whole = (root / item[kind]).read_bytes()
            key = "sha256" if kind == "file" else "source_sha256"
            assert hashlib.sha256(whole).hexdigest() == item[key]
    assert made.tensors == 2 * len(expected)
    with pytest.raises(ConfigurationError, match="exists already"):
        convert_bin(source, tmp_path / "made")


def _harm(path: Path) -> str:
    return f"touch {path}/harm"


def _global(module: str, name: str, argument: str, protocol: int = 2) -> bytes:
    if protocol == 2:
        return b"\x80\x02c" + f"{module}\n{name}\nX".encode() + _text(argument) + b"\x85R."
    found = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    return found + b"\x93X" + _text(argument) + b"\x85R."


def _text(value: str) -> bytes:
    return len(value).to_bytes(4, "little") + value.encode()


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (lambda at: _global("os", "system", _harm(at)), r"holds os\.system, which"),
    "posix.system": (lambda at: _global("posix", "system", _harm(at), 4), r"holds posix\.system, which"),
    "eval": (lambda at: _global("builtins", "eval", f"open('{at}/harm','w')"), "builtins.eval"),
    "exec": (lambda at: _global("__builtin__", "exec", "1"), "__builtin__.exec"),
    "nested": (
        lambda at: _global("torch._utils", "_rebuild_tensor_v2.__globals__", "1", 4),
        "_rebuild_tensor_v2.__globals__",
    ),
    "another of torch's": (lambda at: _global("torch", "load", f"{at}/x"), "torch.load"),
    "a dotted module": (lambda at: _global("torch._utils._rebuild_tensor_v2", "x", "1"), "_v2.x"),
    "a call of a storage": (lambda at: _global("torch", "FloatStorage", "1"), "a call of torch.FloatStorage"),
    "OrderedDict of something": (
        lambda at: _global("collections", "OrderedDict", "1"),
        "is made of something",
    ),
    "INST": (lambda at: b"(S'" + _harm(at).encode() + b"'\nios\nsystem\n.", "instruction"),
    "OBJ": (lambda at: b"\x80\x02(ccollections\nOrderedDict\no.", "instruction OBJ"),
    "NEWOBJ": (lambda at: b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
    "EXT": (lambda at: b"\x80\x02\x82\x01.", "instruction EXT1"),
    "PERSID": (lambda at: b"Psomething\n.", "instruction PERSID"),
    "a long integer": (lambda at: b"\x80\x02\x8b\x01\x00\x00\x00\x01.", "instruction LONG4"),
    "state for a function": (
        lambda at: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        "makes no sense",
    ),
    "a reference to a file": (
        lambda at: b"\x80\x02(X\x04\x00\x00\x00fileK\x01K\x02K\x03K\x04tQ.",
        "reference",
    ),
    "a number": (lambda at: b"\x80\x02K\x01.", "type int instead of tensors"),
    "no end": (lambda at: b"\x80\x02}", "cannot be parsed"),
    "nothing to take": (lambda at: b"\x80\x02\x85.", "makes no sense"),
    "a deep key": (lambda at: b"\x80\x02})" + b"\x85" * 50_000 + b"K\x01s.", "makes no sense"),
    "itself": (lambda at: b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "type dict under 'a'"),
    "too long": (lambda at: b"\x80\x02" + b"0" * (17 << 20) + b".", "more than 16 MiB"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_wants_more_than_tensors_is_refused_and_does_nothing(tmp_path: Path, name: str) -> None:
    make, match = HOSTILE[name]
    path = write(tmp_path / "pytorch_model.bin", make(tmp_path), {})
    with pytest.raises((IncompatibleWeightsError, CorruptFileError), match=match):
        TorchFile(path)
    with pytest.raises((IncompatibleWeightsError, CorruptFileError)):
        convert_bin(tmp_path, tmp_path / "made")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["pytorch_model.bin"]


def test_tensors_that_are_not_in_their_storage_are_refused(torch_names: None, tmp_path: Path) -> None:
    plain = np.arange(6, dtype=np.float32)
    cases = {
        "beyond its end": _Kept(plain, "0", offset=3),
        "one number for many": _Kept(np.zeros((2, 3), np.float32), "0", stride=(10**9, 10**9)),
        "larger than the file": _Kept(np.broadcast_to(plain[:1], (3000,)), "0"),
        "each of its numbers four times": _Wide(plain, "0", stride=(0, 1)),
        "negative": _Kept(plain, "0", offset=-1),
        "in another place": _Kept(plain, "../0"),
        "in none": _Kept(plain, "7"),
        "of seventeen dimensions": _Kept(plain[:1].reshape((1,) * 17), "0"),
    }
    for name, tensor in cases.items():
        path = write(tmp_path / "x.bin", pickled({"a": tensor}), {"0": plain.tobytes()})
        with pytest.raises((CorruptFileError, IncompatibleWeightsError)):
            TorchFile(path)
            pytest.fail(name)
    many = {f"t{i}": _Kept(np.zeros(5000, np.float32), "0") for i in range(9)}
    path = write(tmp_path / "x.bin", pickled(many), {"0": bytes(20_000)})
    with pytest.raises(IncompatibleWeightsError, match="tensors of 180000 bytes"):
        TorchFile(path)


@pytest.mark.parametrize(
    ("compress", "more", "match"),
    [
        (zipfile.ZIP_DEFLATED, {}, "compressed entry"),
        (zipfile.ZIP_STORED, {"archive/../../evil": b"x"}, "evil"),
        (zipfile.ZIP_STORED, {"/data.pkl": b"x"}, "data.pkl"),
        (zipfile.ZIP_STORED, {"archive\\data": b"x"}, "entry of the name"),
        (zipfile.ZIP_STORED, {"other/data.pkl": b"x"}, "twice"),
        (zipfile.ZIP_STORED, {"archive/code/__torch__.py": b"x"}, "TorchScript"),
        (zipfile.ZIP_STORED, {"byteorder": b"big"}, "big-endian"),
    ],
)
def test_an_archive_that_torch_would_not_write_is_refused(
    torch_names: None, tmp_path: Path, compress: int, more: dict[str, bytes], match: str
) -> None:
    bomb = {"0": bytes(1 << 20)}
    data = pickled({"a": _Kept(np.zeros(1 << 18, np.float32), "0")})
    path = write(tmp_path / "x.bin", data, bomb, compress, **more)
    with pytest.raises((IncompatibleWeightsError, CorruptFileError), match=match):
        TorchFile(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02", "before 1.6"),
        (b"sys_info\0" * 100, "no file of torch.save"),
        (b"PK\x03\x04" + b"x" * 50, "cannot be read"),
    ],
)
def test_older_and_other_formats_are_refused_with_what_to_do(
    tmp_path: Path, content: bytes, match: str
) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises((IncompatibleWeightsError, CorruptFileError), match=match):
        TorchFile(path)


def test_whatever_is_cut_off_or_changed_gives_the_same_numbers_or_a_typed_error(
    torch_names: None, tmp_path: Path
) -> None:
    path, expected = state(tmp_path / "pytorch_model.bin")
    whole, source = path.read_bytes(), random.Random(7)
    cut = [whole[:size] for size in range(0, len(whole), 7)]
    changed = []
    for _ in range(400):
        copy = bytearray(whole)
        copy[source.randrange(len(copy))] ^= 1 << source.randrange(8)
        changed.append(bytes(copy))
    refused = 0
    for content in (*cut, *changed):
        path.write_bytes(content)
        try:
            with TorchFile(path) as opened:
                numbers = {name: opened.data(item) for name, item in opened.tensors.items()}
        except MLXEngineError:
            refused += 1
            continue
        assert set(numbers.values()) <= {np.ascontiguousarray(item).tobytes() for item in expected.values()}
    assert refused >= len(cut)


def test_shards_become_shards_and_a_name_in_two_of_them_is_refused(torch_names: None, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in (1, 2):
        numbers = np.full(3, number, np.float32)
        data = pickled({f"t{number}": _Kept(numbers, "0")})
        write(source / f"pytorch_model-0000{number}-of-00002.bin", data, {"0": numbers.tobytes()})
    convert_bin(source, tmp_path / "made")
    found = sorted(path.name for path in (tmp_path / "made").glob("*.safetensors"))
    assert found == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (source / "pytorch_model-00002-of-00002.bin").write_bytes(
        (source / "pytorch_model-00001-of-00002.bin").read_bytes()
    )
    with pytest.raises(IncompatibleWeightsError, match="t1 is in"):
        convert_bin(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(IncompatibleWeightsError, match="already"):
        convert_bin(source, tmp_path / "again")
    with pytest.raises(IncompatibleWeightsError, match=r"no pytorch_model\.bin"):
        convert_bin(tmp_path / "nothing", tmp_path / "again")


def test_single_layers_beside_the_weights_keep_their_names(torch_names: None, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, value in (("pytorch_model.bin", 1), ("sparse_linear.pt", 2), ("colbert_linear.pt", 3)):
        numbers = np.full(3, value, np.float32)
        write(source / name, pickled({"weight": _Kept(numbers, "0")}), {"0": numbers.tobytes()})
    (source / "optimizer.pt").write_bytes(b"\x80\x02cos\nsystem\n.")
    convert_bin(source, tmp_path / "made")
    found = {path.stem: load_file(path)["weight"][0] for path in (tmp_path / "made").glob("*.safetensors")}
    assert found == {"model": 1, "sparse_linear": 2, "colbert_linear": 3}


def test_a_file_alone_becomes_a_file_and_dictionaries_in_it_are_joined(
    torch_names: None, tmp_path: Path
) -> None:
    numbers = {str(place): np.full(3, place, np.float32) for place in range(2)}
    one, other = (_Kept(value, key) for key, value in numbers.items())
    data = {key: value.tobytes() for key, value in numbers.items()}
    for value, names in (
        ({"image_proj": {"a": one}, "ip_adapter": {"b": other}}, {"image_proj.a", "ip_adapter.b"}),
        ({"params_ema": {"a": one, "b": other}}, {"a", "b"}),
        ({"a": one, "b": other}, {"a", "b"}),
    ):
        source = write(tmp_path / "x.pth", pickled(value), data)
        made = convert_bin(source, tmp_path / "x.safetensors")
        found = load_file(made.path)
        assert set(found) == names
        assert sorted(item[0] for item in found.values()) == [0, 1]
        with pytest.raises(ConfigurationError, match="exists already"):
            convert_bin(source, made.path)
        made.path.unlink()
    source = write(tmp_path / "x.pth", pickled({"state_dict": {"a": one}, "epoch": 3}), data)
    for target, error in (("y.safetensors", IncompatibleWeightsError), ("y", ConfigurationError)):
        with pytest.raises(error):
            convert_bin(source, tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_parts_of_a_diffusers_repository_keep_their_names(torch_names: None, tmp_path: Path) -> None:
    numbers = np.ones(3, np.float32)
    (tmp_path / "source" / "vae").mkdir(parents=True)
    file = tmp_path / "source" / "vae" / "diffusion_pytorch_model.bin"
    write(file, pickled({"weight": _Kept(numbers, "0")}), {"0": numbers.tobytes()})
    made = convert_bin(tmp_path / "source", tmp_path / "made").path
    assert np.array_equal(load_file(made / "vae" / "diffusion_pytorch_model.safetensors")["weight"], numbers)


def test_the_verb_converts_a_folder_and_prints_checksums(
    torch_names: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    state(source / "pytorch_model.bin")
    assert main(["convert", str(source), str(tmp_path / "made"), "--from-bin"]) == 0
    (record,) = json.loads((tmp_path / "made" / "converted_from_bin.json").read_text())
    assert f"{record['sha256']}  model.safetensors (from pytorch_model.bin)" in capsys.readouterr().out
    assert main(["convert", str(source), str(tmp_path / "other"), "--from-bin", "--bits", "4"]) == 2
    assert "Convert first" in capsys.readouterr().err


_WRITER = """
import sys, torch
from safetensors.torch import save_file
kinds = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
torch.manual_seed(1)
found = {kind: (torch.randn(5, 7) * 9).to(getattr(torch, kind)) for kind in kinds}
whole = torch.randn(6, 8)
found |= {"turned": whole.t(), "part": whole[1:4, ::2], "one": torch.tensor(3.0)}
found["own"] = torch.nn.Parameter(whole)
layer = torch.nn.Linear(3, 4)
state = layer.state_dict()
state.update(found)
torch.save(state, sys.argv[1])
save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, sys.argv[2])
"""


@pytest.mark.parity
def test_what_torch_writes_is_what_safetensors_keeps(tmp_path: Path) -> None:
    python = os.environ.get("MLXENGINE_PARITY_PYTHON", sys.executable)
    source, expected = tmp_path / "source", tmp_path / "expected.safetensors"
    source.mkdir()
    subprocess.run([python, "-c", _WRITER, source / "pytorch_model.bin", expected], check=True)
    convert_bin(source, tmp_path / "made")
    assert _raw(tmp_path / "made" / "model.safetensors") == _raw(expected)


def _raw(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor of a safetensors file."""
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    header.pop("__metadata__", None)
    return {
        name: (item["dtype"], item["shape"], data[slice(*item["data_offsets"])])
        for name, item in header.items()
    }
