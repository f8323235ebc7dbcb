"""Every tensor of a Wan in its place: what is missing, left over, misshapen or damaged is an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine.errors import (
    BackendUnavailableError,
    CorruptFileError,
    IncompatibleWeightsError,
    InvalidParameterError,
)
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))

import tiny_wan as w

FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "transformer_2": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda family: w.write(family, tmp_path / family)


def load(folder: Path, dtype: str | None = "float32") -> Any:
    from mlxengine_video.wan import Wan

    return Wan.load(folder, dtype=dtype)


def change(folder: Path, part: str, **tensors: Any) -> None:
    """Save a part again with other tensors; ``None`` leaves one out."""
    path = folder / part / FILES[part]
    known = {**load_file(path), **tensors}
    save_file({name: value for name, value in known.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("family", "part", "name"),
    [
        ("t2v", "transformer", "blocks.1.attn2.to_out.0.bias"),
        ("two", "transformer_2", "scale_shift_table"),
        ("t2v", "text_encoder", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("t2v", "vae", "decoder.up_blocks.1.upsamplers.0.time_conv.weight"),
        ("ti2v", "vae", "decoder.up_blocks.1.upsampler.time_conv.bias"),
        ("ti2v", "vae", "encoder.down_blocks.2.downsampler.resample.1.weight"),
        ("i2v", "vae", "quant_conv.bias"),
    ],
)
def test_a_tensor_that_is_missing_left_over_or_misshapen_is_named(
    write: Write, family: str, part: str, name: str
) -> None:
    folder = write(family)
    whole = load_file(folder / part / FILES[part])[name]
    for value, what in ((None, "1 missing"), (np.zeros((3, 3), np.float32), "1 of the wrong shape")):
        change(folder, part, **{name: value})
        with pytest.raises(IncompatibleWeightsError, match=rf"weights of {part} .*{what} \({name}"):
            load(folder)
    change(folder, part, **{name: whole, "another.weight": np.zeros(1, np.float32)})
    with pytest.raises(IncompatibleWeightsError, match=r"1 not known \(another\.weight"):
        load(folder)


def test_weights_that_are_no_floats_are_refused(write: Write) -> None:
    folder, name = write("t2v"), "blocks.0.ffn.net.2.weight"
    whole = load_file(folder / "transformer" / FILES["transformer"])[name]
    change(folder, "transformer", **{name: (whole * 50).astype(np.int8)})
    with pytest.raises(IncompatibleWeightsError, match=rf"1 quantized .*\({name}\)"):
        load(folder)


def test_a_tokenizer_of_more_tokens_than_the_text_encoder_has_is_refused(write: Write) -> None:
    folder = write("t2v")
    path = folder / "tokenizer" / "tokenizer.json"
    known = json.loads(path.read_text())
    known["model"]["vocab"]["z"] = 64
    path.write_text(json.dumps(known))
    model = load(folder)
    model.prompts("a", None)
    for texts in (("az", None), ("a", "z")):
        with pytest.raises(IncompatibleWeightsError, match="which has 64"):
            model.prompts(*texts)


def test_the_encoder_of_a_model_without_pictures_is_not_asked_for(write: Write) -> None:
    folder = write("t2v")
    known = load_file(folder / "vae" / FILES["vae"])
    unused = [name for name in known if name.startswith(("encoder.", "quant_conv."))]
    assert unused
    change(folder, "vae", **dict.fromkeys(unused))
    load(folder)


def test_a_copy_of_the_text_encoders_table_is_known_for_one(write: Write) -> None:
    folder = write("t2v")
    before = np.array(load(folder).prompts(w.PROMPT, None).prompt)
    table = load_file(folder / "text_encoder" / "model.safetensors")["shared.weight"]
    for own in (table, None):
        change(folder, "text_encoder", **{"encoder.embed_tokens.weight": table, "shared.weight": own})
        assert np.array_equal(before, np.array(load(folder).prompts(w.PROMPT, None).prompt))


def split(folder: Path) -> Path:
    """Cut the transformer's file in two with a list of both; gives the second."""
    part = folder / "transformer"
    known = load_file(part / FILES["transformer"])
    (part / FILES["transformer"]).unlink()
    files = [part / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    listed = {}
    for number, file in enumerate(files):
        names = sorted(known)[number::2]
        save_file({name: known[name] for name in names}, file)
        listed |= dict.fromkeys(names, file.name)
    name = "diffusion_pytorch_model.safetensors.index.json"
    (part / name).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return files[1]


def test_shards_are_those_that_the_list_names(write: Write) -> None:
    folder = write("t2v")
    second = split(folder)
    save_file(
        {"another": np.zeros(1, np.float32)}, second.parent / "diffusion_pytorch_model.fp16.safetensors"
    )
    load(folder)
    second.unlink()
    with pytest.raises(IncompatibleWeightsError, match=f"lacks {second.name}"):
        load(folder)


def test_a_list_that_is_none_is_said_to_be_damaged(write: Write) -> None:
    folder = write("t2v")
    split(folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="no list of files"):
        load(folder)


def test_files_that_nobody_says_belong_together_are_refused(write: Write) -> None:
    folder = write("t2v")
    save_file({"another": np.zeros(1, np.float32)}, folder / "vae" / "more.safetensors")
    with pytest.raises(IncompatibleWeightsError, match="vae has 2 safetensors files and 0 lists"):
        load(folder)
    for file in (folder / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(IncompatibleWeightsError, match="vae has 0 safetensors files"):
        load(folder)


def test_a_file_that_was_cut_off_is_said_to_be_damaged(write: Write) -> None:
    folder = write("t2v")
    path = folder / "vae" / FILES["vae"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match="of vae cannot be read as safetensors"):
        load(folder)


def test_a_tokenizer_that_cannot_be_read_is_an_error_of_the_model(write: Write) -> None:
    folder = write("t2v")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(IncompatibleWeightsError):
        load(folder)


def test_without_the_library_it_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx_video.models.wan.text_encoder", None)
    with pytest.raises(BackendUnavailableError, match="mlx-video-with-audio"):
        load(write("t2v"))


def test_a_number_format_that_does_not_exist_is_refused(write: Write) -> None:
    with pytest.raises(InvalidParameterError, match="dtype='int8'"):
        load(write("t2v"), "int8")
