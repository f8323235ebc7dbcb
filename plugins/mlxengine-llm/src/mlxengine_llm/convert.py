"""Converting checkpoints: quantizing safetensors, repacking GGUF, and saying what it cost."""

from __future__ import annotations

import enum
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from mlxengine.errors import ConfigurationError, IncompatibleWeightsError, InvalidParameterError, LoadError

if TYPE_CHECKING:
    import argparse

    from mlxengine import ModelCard
    from mlxengine.cli.verbs import Output


class Mode(enum.StrEnum):
    """How numbers are packed; each of mlx's modes has its own group sizes and bits."""

    AFFINE = "affine"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    MXFP8 = "mxfp8"


_ALLOWED: dict[Mode, tuple[tuple[int, ...], tuple[int, ...]]] = {
    Mode.AFFINE: ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    Mode.MXFP4: ((4,), (32,)),
    Mode.NVFP4: ((4,), (16,)),
    Mode.MXFP8: ((8,), (32,)),
}
_KEPT = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")


@frozen(kw_only=True)
class Quality:
    """A conversion measured on a text.

    Args:
        tokens: how many were scored.
        source_perplexity, perplexity: of the source and of what was made of it.
        kl: mean divergence of the two next-token distributions, KL(source ‖ result), in nats a token.
        source_seconds, seconds: time for one pass over the text.
    """

    tokens: int
    source_perplexity: float
    perplexity: float
    kl: float
    source_seconds: float
    seconds: float


@frozen(kw_only=True)
class Conversion:
    """What was written: bytes of the weights before and after, bits a weight, and the quality if measured."""

    path: Path
    source_bytes: int
    bytes: int
    lossless: bool
    quality: Quality | None = None


def convert(
    card: ModelCard,
    source: Path,
    target: Path,
    *,
    bits: int | None = None,
    mode: Mode | str = Mode.AFFINE,
    group_size: int | None = None,
    text: str | None = None,
) -> Conversion:
    """Write a model as an MLX folder, quantized if ``bits`` or another mode than affine is given.

    A GGUF file without ``bits`` is repacked: the same numbers in another layout. ``target`` appears whole
    or not at all.

    Args:
        card: what `mlxengine.hub.resolve` found.
        source: the local folder or GGUF file.
        target: a folder that does not exist yet.
        bits, mode, group_size: as mlx's ``quantize`` takes them; ``None`` is the mode's usual.
        text: measure perplexity and divergence on it.

    Raises:
        ConfigurationError: the target exists.
        InvalidParameterError: the mode does not have these bits or groups, or the text is too short.
        IncompatibleWeightsError: the source is quantized already.
        LoadError, CorruptFileError: the source cannot be read.
    """
    if target.exists():
        raise ConfigurationError(f"{target} exists already.", hint="Name a new folder.")
    settings = _settings(bits, Mode(mode), group_size)
    is_gguf = source.suffix == ".gguf" or any(source.glob("*.gguf"))
    if card.quantization is not None and settings is not None:
        raise IncompatibleWeightsError(
            f"{card.id} is quantized already.", hint="Quantize the repository in full precision."
        )
    if not is_gguf and settings is None:
        raise InvalidParameterError("Nothing to convert: the source is safetensors.", hint="Give bits.")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        if is_gguf:
            made = _from_gguf(source, scratch / "model", settings)
        else:
            made = _quantized(source, scratch / "model", settings)
        if text is not None:
            made = evolve(made, quality=_measure(source, scratch / "model", text, is_gguf=is_gguf))
        (scratch / "model").rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return evolve(made, path=target)


def _settings(bits: int | None, mode: Mode, group_size: int | None) -> dict[str, Any] | None:
    if bits is None and mode is Mode.AFFINE and group_size is None:
        return None
    allowed, groups = _ALLOWED[mode]
    found = {"group_size": group_size or groups[0], "bits": bits or allowed[0], "mode": str(mode)}
    if found["bits"] not in allowed or found["group_size"] not in groups:
        raise InvalidParameterError(
            f"The mode {mode} has no {found['bits']} bits in groups of {found['group_size']}.",
            hint=f"It has {', '.join(map(str, allowed))} bits and groups of {', '.join(map(str, groups))}.",
        )
    return found


def _from_gguf(source: Path, folder: Path, settings: dict[str, Any] | None) -> Conversion:
    from mlxengine.toolkit.gguf import convert_gguf

    file = source if source.is_file() else next(iter(sorted(source.glob("*.gguf"))))
    plain = folder if settings is None else folder.with_name("plain")
    convert_gguf(file, plain)
    if settings is None:
        size = plain.joinpath("model.safetensors").stat().st_size
        return Conversion(path=plain, source_bytes=file.stat().st_size, bytes=size, lossless=True)
    if "quantization" in json.loads(plain.joinpath("config.json").read_text("utf-8")):
        raise IncompatibleWeightsError(
            f"{file.name} is quantized already.", hint="Leave the bits out to repack it without loss."
        )
    return _quantized(plain, folder, settings)


def _quantized(source: Path, folder: Path, settings: dict[str, Any] | None) -> Conversion:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.utils import save_config, save_model

    assert settings is not None
    network, config = load_network(source)
    originals: Any = tree_flatten(network.parameters())
    before: Any = sum(value.nbytes for _, value in originals)
    group = settings["group_size"]
    chosen = getattr(network, "quant_predicate", None)  # what the model's authors leave in full precision
    special: dict[str, Any] = {}

    def packs(path: str, module: Any) -> Any:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group:
            return False
        found = True if chosen is None else chosen(path, module)
        if isinstance(found, dict):
            special[path] = found
        return found

    nn.quantize(network, group, settings["bits"], mode=settings["mode"], class_predicate=packs)
    config["quantization"] = {**settings, **special}
    parameters: Any = tree_flatten(network.parameters())
    after = sum(value.nbytes for _, value in parameters)
    folder.mkdir(parents=True)
    for _, value in parameters:  # one at a time: the source need not fit in memory as a whole
        mx.eval(value)
    save_model(folder, network)
    save_config(config, folder / "config.json")
    copy_documents(source, folder)
    return Conversion(path=folder, source_bytes=before, bytes=after, lossless=False)


def copy_documents(source: Path, folder: Path) -> None:
    """Copy the tokenizer and the other documents of a model that the folder does not have yet."""
    for pattern in _KEPT:
        for file in source.glob(pattern):
            if not folder.joinpath(file.name).exists() and file.name != "model.safetensors.index.json":
                shutil.copyfile(file, folder / file.name)


def load_network(folder: Path) -> tuple[Any, dict[str, Any]]:
    """mlx-lm's module of a local folder, its weights not yet evaluated.

    Raises:
        LoadError: it cannot be built.
    """
    from mlxengine.toolkit.checkpoint import normalise_config
    from mlxengine.toolkit.loading import check_safetensors, descriptor_limit_kept

    with descriptor_limit_kept():
        from mlx_lm.utils import load_config, load_model
    for file in sorted(folder.glob("model*.safetensors")):
        check_safetensors(file)
    try:
        return load_model(folder, lazy=True, model_config=normalise_config(load_config(folder)))  # type: ignore[no-any-return]
    except Exception as error:
        raise LoadError(f"{folder} cannot be loaded: {error}.") from error


def _measure(source: Path, made: Path, text: str, *, is_gguf: bool) -> Quality:
    import math

    import mlx.core as mx
    from mlx_lm.tokenizer_utils import load as load_tokenizer
    from mlxengine.toolkit.dtype import upcast_for_cpu

    tokens = load_tokenizer(made, {"trust_remote_code": False}).encode(text)
    if len(tokens) < 8:
        raise InvalidParameterError(f"A text of {len(tokens)} tokens is too short to measure on.")
    if is_gguf:  # the repacked numbers are the source's own: compare with them unpacked
        source = made
    networks: list[Any] = []
    for folder in (source, made):
        network, _ = load_network(folder)
        upcast_for_cpu(network)
        if is_gguf and not networks:
            from mlx_lm.utils import dequantize_model

            network = dequantize_model(network)
        networks.append(network)
    wanted = mx.array(tokens[1:])
    found, seconds = [], []
    for network in networks:
        began = time.perf_counter()
        logits = network(mx.array([tokens[:-1]]))[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        mx.eval(logprobs)
        seconds.append(time.perf_counter() - began)
        found.append(logprobs)
    losses: Any = [-mx.take_along_axis(item, wanted[:, None], axis=-1).mean().item() for item in found]
    divergence: Any = mx.sum(mx.exp(found[0]) * (found[0] - found[1]), axis=-1).mean().item()
    return Quality(
        tokens=len(tokens) - 1,
        source_perplexity=math.exp(losses[0]),
        perplexity=math.exp(losses[1]),
        kl=divergence,
        source_seconds=seconds[0],
        seconds=seconds[1],
    )


def fetched(reference: str, out: Output) -> tuple[ModelCard, Path]:
    """What a verb works on: the model's card, and its folder or file, fetched with a progress line."""
    from mlxengine import hub
    from mlxengine.cli.verbs import ProgressLine

    card = hub.resolve(reference)
    if card.path is not None:
        return card, card.path
    with ProgressLine(out) as progress:
        return card, hub.fetch(reference, report=progress)


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``mlxengine convert``."""
    parser.add_argument("source", help="org/name, a folder or a GGUF file")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--bits", type=int)
    parser.add_argument("--mode", choices=[str(item) for item in Mode], default="affine")
    parser.add_argument("--group", type=int, help="weights that share a scale")
    parser.add_argument(
        "--from-bin", action="store_true", help="write pytorch_model.bin as safetensors, without running it"
    )
    parser.add_argument("--report", type=Path, metavar="TEXT_FILE", help="measure the loss on this text")


def run(options: argparse.Namespace, out: Output) -> int:
    """The command ``mlxengine convert``."""
    if options.from_bin:
        return _run_from_bin(options, out)
    card, source = fetched(options.source, out)
    made = convert(
        card,
        source,
        options.target,
        bits=options.bits,
        mode=options.mode,
        group_size=options.group,
        text=None if options.report is None else options.report.read_text("utf-8"),
    )

    def text() -> None:
        weights, before = made.bytes / 1e6, made.source_bytes / 1e6
        out.line(f"{made.path}: {weights:.1f} MB of weights, {before:.1f} MB before")
        if made.quality is not None:
            found = made.quality
            out.line(
                f"perplexity {found.perplexity:.4f} ({found.source_perplexity:.4f} before), "
                f"KL {found.kl:.5f} nats a token over {found.tokens} tokens"
            )

    out.emit(made, text)
    return 0


def _run_from_bin(options: argparse.Namespace, out: Output) -> int:
    from mlxengine import hub
    from mlxengine.cli.verbs import ProgressLine
    from mlxengine.toolkit.from_bin import DOCUMENTS, LAYERS, WEIGHTS, convert_bin

    if (options.bits, options.mode, options.group, options.report) != (None, "affine", None, None):
        raise InvalidParameterError(
            "--from-bin keeps the numbers as they are.", hint="Convert first, then quantize the new folder."
        )
    source = Path(options.source).expanduser()
    if not source.exists():
        patterns = (*DOCUMENTS, WEIGHTS, f"*/{WEIGHTS}", LAYERS)
        with ProgressLine(out) as progress:
            source = hub.fetch(options.source, files=patterns, pickles=True, report=progress)
    made = convert_bin(source, options.target)

    def text() -> None:
        out.line(f"{made.path}: {made.tensors} tensors, {made.nbytes / 1e6:.1f} MB")
        for item in made.files:
            out.line(f"{item.sha256}  {item.file} (from {item.source})")

    out.emit(made, text)
    return 0


__all__ = [
    "Conversion",
    "Mode",
    "Quality",
    "configure",
    "convert",
    "copy_documents",
    "fetched",
    "load_network",
    "run",
]
