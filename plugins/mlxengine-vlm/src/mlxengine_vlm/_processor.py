"""Loading a checkpoint's processor, and calling it without its traps.

mlx-vlm patches ``AutoProcessor`` for the architectures that it knows, with ``trust_remote_code=True`` as the
default and every failure swallowed; so the flag is always given here, and what comes back is checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from mlxengine.errors import LoadError, MLXEngineError, RemoteCodeRefusedError, UnsupportedInputError
from mlxengine.toolkit.templates import OwnTemplate, bind

from ._media import Picture, Sound

_SETTINGS = ("preprocessor_config.json", "processor_config.json")
_FILTERED = ("padding", "return_tensors", "padding_side")


@frozen(kw_only=True)
class Clip:
    """Frames of one video, in order, at ``fps`` frames a second; ``digest`` names their content."""

    frames: tuple[Picture, ...]
    fps: float | None
    digest: str


def load_processor(folder: Path, *, trust_remote_code: bool, chat_template: str | None) -> Any:
    """The processor of a checkpoint: a tokenizer, and what turns media into arrays.

    Raises:
        RemoteCodeRefusedError: it is code of the repository and that is not allowed.
        LoadError: it cannot be read.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        image_processor = _own_image_processor(folder, trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise RemoteCodeRefusedError(
                "The processor of this model is code of its repository.",
                hint="Read that code first; then load with trust_remote_code=True if you trust it.",
            ) from error
        where, hint = _at_fault(folder)
        said = " ".join(str(error).split())
        raise LoadError(
            f"The processor of this model cannot be read ({where}): {type(error).__name__}: {said[:300]}.",
            hint=hint,
        ) from error
    if image_processor is not None:
        processor.image_processor = image_processor
    if chat_template is not None:
        processor.chat_template = tokenizer_of(processor).chat_template = chat_template
    _quiet(processor)
    return processor


def _at_fault(folder: Path) -> tuple[str, str]:
    """Which file it is that a processor cannot be made of, and what to do."""
    compare = "Compare it with that of the original repository."
    settings = [name for name in _SETTINGS if (folder / name).is_file()]
    if not settings:
        return "there is no " + " and no ".join(_SETTINGS), f"The repository needs {' or '.join(_SETTINGS)}."
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(tokenizer))
        except Exception:  # the library raises nothing narrower
            return tokenizer.name, compare
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception:
        return "tokenizer_config.json", f"{compare} The repository needs a tokenizer beside it."
    return " or ".join(settings), compare


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer inside a processor, or the processor itself where it is one."""
    return getattr(processor, "tokenizer", processor)


def template_of(processor: Any) -> str | None:
    """The source of the chat template, or ``None``."""
    found = getattr(processor, "chat_template", None) or tokenizer_of(processor).chat_template
    return found if found is None or isinstance(found, str) else str(found)


def media_words(processor: Any, tags: Iterable[str | None]) -> list[str]:
    """The texts that a processor reads as the place of media: its own, and the template's tags."""
    names = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token", "boa_token", "eoa_token")
    found = [*tags, *(getattr(processor, name, None) for name in names)]
    return [word for word in found if isinstance(word, str)]


def bound(processor: Any) -> OwnTemplate:
    """Let a processor and its tokenizer render the processor's chat template, or its own, within bounds."""
    tokenizer = tokenizer_of(processor)

    def source(tools: Any) -> str | None:
        own = getattr(processor, "chat_template", None)
        found = own if isinstance(own, str) else None
        return found or (
            None if tokenizer.chat_template is None else tokenizer.get_chat_template(None, tools)
        )

    if processor is not tokenizer:
        bind(processor, source)
    return bind(tokenizer, source)


def takes(processor: Any, what: str) -> bool:
    """Whether the processor has a part for ``"image"``, ``"video"`` or ``"audio"``."""
    names = {"image": ("image_processor",), "video": ("video_processor",), "audio": ("feature_extractor",)}
    if any(getattr(processor, name, None) is not None for name in names[what]):
        return True
    if what == "video":
        return "videos" in inspect.signature(type(processor).__call__).parameters
    return False


def prepare(
    processor: Any,
    text: str,
    *,
    image_token: int | None,
    pictures: Sequence[Picture] = (),
    clips: Sequence[Clip] = (),
    sounds: Sequence[Sound] = (),
) -> dict[str, Any]:
    """Token ids and arrays of one prompt, as ``get_input_embeddings`` wants them; a batch of one.

    Raises:
        UnsupportedInputError: the processor refuses the media.
    """
    from mlx_vlm.utils import prepare_inputs

    if len(sounds) > 1 and not getattr(processor, "supports_multiple_audio", False):
        raise UnsupportedInputError(
            f"This model takes one sound in a request, found {len(sounds)}.", hint="Join them, or ask twice."
        )
    rate = int(getattr(getattr(processor, "feature_extractor", None), "sampling_rate", 16_000) or 16_000)
    given: dict[str, Any] = {}
    if clips:
        given["videos"] = [np.stack([np.asarray(frame.image) for frame in clip.frames]) for clip in clips]
        if all(clip.fps for clip in clips):
            given["fps"] = [float(clip.fps or 0) for clip in clips]
    try:
        made = prepare_inputs(
            processor,
            images=[picture.image for picture in pictures] or None,
            audio=[_resampled(sound, rate) for sound in sounds] or None,
            prompts=text,
            image_token_index=image_token,
            add_special_tokens=True,
            **given,
        )
    except MLXEngineError:
        raise
    except Exception as error:  # processors raise whatever they like on pictures they cannot take
        raise UnsupportedInputError(
            f"The model's processor refused the input: {error}.",
            hint="Try a picture of ordinary size and proportions; see what the model takes with `info`.",
        ) from error
    return {name: value for name, value in made.items() if value is not None}


def _own_image_processor(folder: Path, trust_remote_code: bool) -> Any:
    from mlx_vlm.utils import load_image_processor

    return load_image_processor(folder, trust_remote_code=trust_remote_code)


def _quiet(processor: Any) -> None:
    """Keep the tokenizer's options from image processors that pass on all they are given.

    LLaVA's processor hands ``padding`` to its image processor, which transformers 5.23 refuses.
    """
    inner = getattr(processor, "image_processor", None)
    if inner is None or type(processor).__name__ != "LlavaProcessor":
        return

    class Filtered(type(inner)):  # type: ignore[misc]
        def __call__(self, images: Any, **options: Any) -> Any:
            kept = {name: value for name, value in options.items() if name not in _FILTERED}
            return super().__call__(images, **kept)

    Filtered.__name__ = type(inner).__name__
    inner.__class__ = Filtered


def _resampled(sound: Sound, rate: int) -> Any:
    """Samples at the processor's rate, by linear interpolation where it differs."""
    if sound.rate == rate:
        return sound.samples
    count = max(1, round(len(sound.samples) * rate / sound.rate))
    at = np.linspace(0, len(sound.samples) - 1, count)
    return np.interp(at, np.arange(len(sound.samples)), sound.samples).astype(np.float32)


def arrays(made: Mapping[str, Any]) -> dict[str, Any]:
    """What the processor made besides tokens and their mask."""
    dropped = ("input_ids", "attention_mask")
    return {name: value for name, value in made.items() if name not in dropped}


def token_ids(made: Mapping[str, Any]) -> list[int]:
    """The tokens of a batch of one."""
    ids: Any = np.asarray(made["input_ids"])
    return [int(token) for token in ids.reshape(-1)]


__all__ = [
    "Clip",
    "arrays",
    "bound",
    "load_processor",
    "media_words",
    "prepare",
    "takes",
    "template_of",
    "token_ids",
    "tokenizer_of",
]
