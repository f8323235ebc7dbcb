"""From a request to token ids and media, counted against each other."""

from __future__ import annotations

import hashlib
from typing import Any

from attrs import Factory, define, field, frozen
from mlxengine import (
    AudioPart,
    ImagePart,
    Message,
    TextPart,
    TextRequest,
    ToolCallPart,
    ToolResultPart,
    VideoPart,
)
from mlxengine.errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from mlxengine.readonly import thaw
from mlxengine.toolkit.plain_text import with_marks
from mlxengine.toolkit.speech import tools_of
from mlxengine.toolkit.templates import TemplateBoundError

from ._media import MediaLimits, Picture, Sound, picture, sound
from ._model import VisionModel
from ._processor import Clip, arrays, prepare, token_ids, tokenizer_of
from ._sight import Prompt


@define
class _Media:
    """The media of a conversation, in the order of their placeholders."""

    pictures: list[Picture] = Factory(list)
    clips: list[Clip] = Factory(list)
    sounds: list[Sound] = Factory(list)
    digests: list[str] = Factory(list)


@frozen(kw_only=True)
class Written:
    """A request as text with its media, made beside the device; ``mark``: see `Markers`."""

    text: str = field(repr=False)
    mark: str
    ids: list[int] | None
    media: _Media


def write(model: VisionModel, request: TextRequest, limits: MediaLimits, plain: bool) -> Written:
    """The text and the decoded media of a request; touches no array of mlx, so any thread may do it.

    ``plain``: what the messages say never becomes a special token.

    Raises:
        UnsupportedInputError: media that the model does not take, cannot be decoded, or do not match
            their tags in the text.
        InvalidParameterError: the prompt is empty, or a token id is not in the vocabulary.
        PromptTooLongError: the text alone leaves no room for an answer.
    """
    tokenizer = tokenizer_of(model.processor)
    media = _Media()
    if request.prompt_tokens is not None:
        ids = list(request.prompt_tokens)
        _check_tokens(model, ids, len(tokenizer))
        return Written(text="", mark="", ids=ids, media=media)
    text, mark = request.prompt or "", ""
    if request.prompt is None:
        text, mark = _render(model, request, media, limits, plain)
    if model.most_characters is not None and len(text) > model.most_characters:
        raise _too_long(model, f"{len(text)} characters")
    _check_tags(model, text, media)
    text = _without_second_start(tokenizer, text)
    if media.digests and (model.context is None or len(text) < model.context):
        return Written(text=text, mark=mark, ids=None, media=media)
    ids = model.markers.encode(text, mark, add_special_tokens=True) if text else []
    if media.digests:  # a text that fits is encoded again, by the processor, which must not meet a longer one
        _check_room(model, ids)
        return Written(text=text, mark=mark, ids=None, media=media)
    if model.media_tokens.intersection(ids):
        raise UnsupportedInputError(
            "The prompt has tags for pictures or sound, and brings none.",
            hint="Give them as message parts, and leave the model's own tags out of the texts.",
        )
    return Written(text=text, mark=mark, ids=ids, media=media)


def make_prompt(model: VisionModel, written: Written) -> Prompt:
    """Tokens and media of a request; on the scheduler's thread, since processors make arrays of mlx.

    Raises:
        UnsupportedInputError: the processor refuses the media, or the template left them out.
        InvalidParameterError: the prompt is empty.
        PromptTooLongError: the prompt leaves no room for an answer.
    """
    media, ids, given = written.media, written.ids, dict[str, Any]()
    if ids is None:
        made = prepare(
            model.processor,
            written.text,
            image_token=model.image_token,
            pictures=media.pictures,
            clips=media.clips,
            sounds=media.sounds,
        )
        ids, given = token_ids(made), arrays(made)
        if written.mark and written.mark in written.text:
            kept = model.markers.kept(ids, written.text, written.mark)
            given = {name: _only(value, kept, len(ids)) for name, value in given.items()}
            ids = [ids[at] for at in kept]
        if model.media_tokens and not model.media_tokens.intersection(ids):
            raise UnsupportedInputError(
                "The model's chat template left the media out of the prompt.",
                hint="Give the model's own template with ModelConfiguration(chat_template=…).",
            )
    if not ids:
        raise InvalidParameterError("The prompt is empty.", hint="Give at least one token of prompt.")
    _check_room(model, ids)
    return Prompt(ids=ids, given=given, media=tuple(media.digests))


def _only(value: Any, kept: list[int], length: int) -> Any:
    """Of an array with a value for each token, shape (1, length), those of the kept ones."""
    import mlx.core as mx

    fits = getattr(value, "ndim", 0) >= 2 and tuple(value.shape[:2]) == (1, length)
    return value[:, mx.array(kept)] if fits else value


def _check_room(model: VisionModel, ids: list[int]) -> None:
    if model.context is not None and len(ids) >= model.context:
        raise _too_long(model, f"{len(ids)} tokens with its media")


def _too_long(model: VisionModel, what: str) -> PromptTooLongError:
    return PromptTooLongError(
        f"The prompt has {what}; {model.card.id} takes {model.context} tokens, answer included.",
        hint="Use fewer or smaller pictures, or a shorter text.",
    )


def _check_tokens(model: VisionModel, ids: list[int], size: int) -> None:
    for token in ids:
        if isinstance(token, bool) or not 0 <= token < size:
            raise InvalidParameterError(f"{token!r} is not a token id; the vocabulary has {size} tokens.")
        if token in model.media_tokens:
            raise UnsupportedInputError(
                f"Token {token} stands for a picture or sound, and prompt_tokens bring none.",
                hint="Send messages with ImagePart instead.",
            )


def _check_tags(model: VisionModel, text: str, media: _Media) -> None:
    for tag, found, what in (
        (model.image_tag, len(media.pictures), "picture"),
        (model.video_tag, len(media.clips), "video"),
        (model.audio_tag, len(media.sounds), "sound"),
    ):
        if tag is None or (tags := text.count(tag)) == found:
            continue
        raise UnsupportedInputError(
            f"The prompt has {tags} tags {tag!r} for {found} {what}{'' if found == 1 else 's'}.",
            hint=f"Give each {what} as a message part, and leave {tag!r} out of the texts.",
        )


def _without_second_start(tokenizer: Any, text: str) -> str:
    """Drop the start token that the template wrote where the tokenizer adds one itself."""
    start = tokenizer.bos_token
    if start and text.startswith(start):
        first = tokenizer.encode("x")[:1]
        if first == [tokenizer.bos_token_id]:
            return text[len(start) :]
    return text


def _render(
    model: VisionModel, request: TextRequest, media: _Media, limits: MediaLimits, plain: bool
) -> tuple[str, str]:
    """The conversation as the template writes it, and the mark in it."""
    messages = [_message(model, item, media, limits) for item in request.messages]
    if len(media.digests) and not any(item["content"] for item in messages):
        raise InvalidParameterError("The conversation is empty.")
    if request.instructions is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": request.instructions}]})
    tools, mark = tools_of(request), ""
    if plain:
        mark = model.markers.mark_for((messages, tools))
        messages = [model.markers.hide_message(item, mark) for item in messages]
        tools = model.markers.hide(tools, mark)
    return with_marks(_written(model, messages, tools, media, request), mark), mark


def _written(
    model: VisionModel, messages: list[dict[str, Any]], tools: Any, media: _Media, request: TextRequest
) -> str:
    template = getattr(model.processor, "chat_template", None) or tokenizer_of(model.processor).chat_template
    if template is None or not model.template_takes_parts:
        return _library_template(model, messages, media, request)
    thinking = request.params.thinking
    try:
        return str(
            tokenizer_of(model.processor).apply_chat_template(
                messages,
                tools=tools or None,
                **({} if thinking is None else {"enable_thinking": thinking}),
                chat_template=template if isinstance(template, str) else None,
                add_generation_prompt=request.add_generation_prompt,
                tokenize=False,
            )
        )
    except TemplateBoundError:
        raise
    except Exception as error:  # templates are programs of the model's publisher
        raise UnsupportedInputError(
            f"The chat template of {model.card.id} refused the conversation: {error}.",
            hint="Many templates want alternating user and assistant messages, and some no system message.",
        ) from error


def _library_template(
    model: VisionModel, messages: list[dict[str, Any]], media: _Media, request: TextRequest
) -> str:
    """The prompt as mlx-vlm writes it for models whose template knows nothing of media."""
    from mlx_vlm.prompt_utils import apply_chat_template

    plain = [
        {"role": item["role"], "content": "".join(part.get("text", "") for part in item["content"])}
        for item in messages
    ]
    try:
        made = apply_chat_template(
            model.processor,
            model.config,
            plain if len(plain) > 1 else plain[0]["content"],
            add_generation_prompt=request.add_generation_prompt,
            num_images=len(media.pictures),
            num_audios=len(media.sounds),
        )
    except TemplateBoundError:
        raise
    except Exception as error:
        raise UnsupportedInputError(
            f"{model.card.id} has no chat template that can be used: {error}.",
            hint="Send TextRequest(prompt=…), or load it with ModelConfiguration(chat_template=…).",
        ) from error
    return made if isinstance(made, str) else str(made.get("content", made))


def _message(model: VisionModel, message: Message, media: _Media, limits: MediaLimits) -> dict[str, Any]:
    found: dict[str, Any] = {"role": str(message.role)}
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            _need(model, "image", "pictures")
            found_picture = picture(part.source, limits)
            media.pictures.append(found_picture)
            media.digests.append(found_picture.digest)
            content.append({"type": "image"})
        elif isinstance(part, VideoPart):
            content.extend(_video(model, part, media, limits))
        elif isinstance(part, AudioPart):
            _need(model, "audio", "sound")
            found_sound = sound(part.source, part.sampling_rate, limits)
            media.sounds.append(found_sound)
            media.digests.append(found_sound.digest)
            content.append({"type": "audio"})
        elif isinstance(part, ToolCallPart):
            function = {"name": part.name, "arguments": thaw(part.arguments)}
            calls.append({"id": part.id, "type": "function", "function": function})
        elif isinstance(part, ToolResultPart):
            found |= {"tool_call_id": part.id, "name": part.name}
            content.append({"type": "text", "text": part.content})
    if len(media.pictures) + sum(len(clip.frames) for clip in media.clips) > limits.count:
        raise UnsupportedInputError(
            f"The request has more than {limits.count} pictures and frames.", hint="Send fewer at once."
        )
    if calls:
        found["tool_calls"] = calls
    return {**found, "content": content}


def _video(model: VisionModel, part: VideoPart, media: _Media, limits: MediaLimits) -> list[dict[str, Any]]:
    """A clip where the model has a place for one, else its frames as pictures in a row."""
    if not part.frames:
        raise UnsupportedInputError("The video has no frames.", hint="Give at least one frame.")
    _need(model, "image", "pictures")
    frames = tuple(picture(frame, limits) for frame in part.frames)
    if model.video_tag is None or "video" not in model.takes:
        media.pictures.extend(frames)
        media.digests.extend(frame.digest for frame in frames)
        return [{"type": "image"} for _ in frames]
    if len({frame.size for frame in frames}) > 1:
        raise UnsupportedInputError("The frames of a video must have one size.", hint="Scale them first.")
    digest = hashlib.sha256(
        "".join([frame.digest for frame in frames] + [repr(part.fps)]).encode()
    ).hexdigest()
    media.clips.append(Clip(frames=frames, fps=part.fps, digest=digest))
    media.digests.append(digest)
    return [{"type": "video"}]


def _need(model: VisionModel, what: str, name: str) -> None:
    if what not in model.takes:
        raise UnsupportedInputError(
            f"{model.card.id} takes no {name}.",
            hint="Choose a model that does: `mlxengine models --kind vlm`.",
        )


__all__ = ["Written", "make_prompt", "write"]
