"""What stands for pictures, videos and sound in a prompt, counted against what the request brings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field
from mlxengine import AudioPart, ImagePart, VideoPart
from mlxengine.errors import UnsupportedInputError
from mlxengine.text.messages import Part
from mlxengine.toolkit.conversation import Parts, Prompts
from mlxengine.toolkit.plain_text import at_places
from mlxengine.toolkit.templates import Conversation, OwnTemplate, Reads
from mlxengine.toolkit.turns import text_of

from ._media import MediaLimits, Picture, Sound, picture, sound
from ._processor import Clip, arrays, media_words, prepare, template_of, token_ids, tokenizer_of
from ._sight import Prompt

if TYPE_CHECKING:
    from ._model import VisionModel


def prompts_of(model: VisionModel) -> Prompts:
    """What makes token ids of requests to a model."""
    return Prompts(
        tokenizer_of(model.processor),
        name=model.card.id,
        context=model.context,
        template=_Template(model.template, model.processor, model.config, model.template_takes_parts),
        source=template_of(model.processor),
        words=media_words(model.processor, model.tags),
        reasons=model.dialect.reasons,
    )


@define
class Media(Parts):
    """The media of one request, in the order of their places; decoded and encoded beside the device."""

    model: VisionModel
    limits: MediaLimits
    pictures: list[Picture] = field(init=False, factory=list)
    clips: list[Clip] = field(init=False, factory=list)
    sounds: list[Sound] = field(init=False, factory=list)
    digests: list[str] = field(init=False, factory=list)
    given: dict[str, Any] = field(init=False, factory=dict)

    @property
    def listed(self) -> bool:
        return self.model.template_takes_parts

    def shown(self, part: Part) -> list[dict[str, Any]]:
        if isinstance(part, VideoPart):
            found = self._video(part)
        elif isinstance(part, ImagePart):
            self._need("image", "pictures")
            self._add(picture(part.source, self.limits))
            found = [{"type": "image"}]
        else:
            assert isinstance(part, AudioPart)
            self._need("audio", "sound")
            heard = sound(part.source, part.sampling_rate, self.limits)
            self.sounds.append(heard)
            self.digests.append(heard.digest)
            found = [{"type": "audio"}]
        if len(self.pictures) + sum(len(clip.frames) for clip in self.clips) > self.limits.count:
            raise UnsupportedInputError(
                f"The request has more than {self.limits.count} pictures and frames.",
                hint="Send fewer at once.",
            )
        return found

    def placed(self, text: str) -> bool:
        return all(tag is None or text.count(tag) == found for tag, found, _ in self._places())

    def check(self, ids: Sequence[int]) -> None:
        for token in self.model.media_tokens.intersection(ids):
            raise UnsupportedInputError(
                f"Token {token} stands for a picture or sound, and prompt_tokens bring none.",
                hint="Send messages with ImagePart instead.",
            )

    def encode(self, prompts: Prompts, text: str, mark: str, *, raw: bool) -> list[int]:
        del raw  # processors put the opening token before both
        model, markers = self.model, prompts.markers
        self._check_tags(text)
        text = _without_second_start(tokenizer_of(model.processor), text)
        if self.digests:
            if model.context is not None and len(text) >= model.context:
                # The processor must not meet a text that alone is too long.
                prompts.check_room(markers.encode(text, mark, add_special_tokens=True))
            return self._processed(prompts, text, mark)
        ids = markers.encode(text, mark, add_special_tokens=True)
        if model.media_tokens.intersection(ids):
            raise UnsupportedInputError(
                "The prompt has tags for pictures or sound, and brings none.",
                hint="Give them as message parts, and leave the model's own tags out of the texts.",
            )
        return ids

    def prompt(self, ids: list[int]) -> Prompt:
        """Token ids with the media among them."""
        return Prompt(ids=ids, given=self.given, media=tuple(self.digests))

    def _processed(self, prompts: Prompts, text: str, mark: str) -> list[int]:
        """Token ids and ``given``, as the model's processor makes them of text and media."""
        import mlx.core as mx

        model = self.model
        with model.processing:
            made = prepare(
                model.processor,
                text,
                image_token=model.image_token,
                pictures=self.pictures,
                clips=self.clips,
                sounds=self.sounds,
            )
            ids, given = token_ids(made), arrays(made)
            if mark and mark in text:
                kept = prompts.markers.kept(ids, text, mark)
                places = at_places(range(len(ids)), kept)
                given = {name: _only(value, places, len(ids)) for name, value in given.items()}
                ids = at_places(ids, kept)
            # What is left to compute belongs to this thread's stream: another could not do it.
            mx.eval([value for value in given.values() if isinstance(value, mx.array)])
        if model.media_tokens and not model.media_tokens.intersection(ids):
            raise UnsupportedInputError(
                "The model's chat template left the media out of the prompt.",
                hint="Give the model's own template with ModelConfiguration(chat_template=…).",
            )
        self.given = given
        return ids

    def _places(self) -> tuple[tuple[str | None, int, str], ...]:
        model = self.model
        return (
            (model.image_tag, len(self.pictures), "picture"),
            (model.video_tag, len(self.clips), "video"),
            (model.audio_tag, len(self.sounds), "sound"),
        )

    def _check_tags(self, text: str) -> None:
        for tag, found, what in self._places():
            if tag is None or (tags := text.count(tag)) == found:
                continue
            raise UnsupportedInputError(
                f"The prompt has {tags} tags {tag!r} for {found} {what}{'' if found == 1 else 's'}.",
                hint=f"Give each {what} as a message part, and leave {tag!r} out of the texts.",
            )

    def _add(self, *pictures: Picture) -> None:
        self.pictures.extend(pictures)
        self.digests.extend(item.digest for item in pictures)

    def _video(self, part: VideoPart) -> list[dict[str, Any]]:
        """A clip where the model has a place for one, else its frames as pictures in a row."""
        if not part.frames:
            raise UnsupportedInputError("The video has no frames.", hint="Give at least one frame.")
        self._need("image", "pictures")
        frames = tuple(picture(frame, self.limits) for frame in part.frames)
        if self.model.video_tag is None or "video" not in self.model.takes:
            self._add(*frames)
            return [{"type": "image"} for _ in frames]
        if len({frame.size for frame in frames}) > 1:
            raise UnsupportedInputError("The frames of a video must have one size.", hint="Scale them first.")
        digest = hashlib.sha256(
            "".join([frame.digest for frame in frames] + [repr(part.fps)]).encode()
        ).hexdigest()
        self.clips.append(Clip(frames=frames, fps=part.fps, digest=digest))
        self.digests.append(digest)
        return [{"type": "video"}]

    def _need(self, what: str, name: str) -> None:
        if what not in self.model.takes:
            raise UnsupportedInputError(
                f"{self.model.card.id} takes no {name}.",
                hint="Choose a model that does: `mlxengine models --kind vlm`.",
            )


class _Template:
    """The model's own template; mlx-vlm's way to write media where that one knows nothing of them."""

    def __init__(
        self, own: OwnTemplate, processor: Any, config: Mapping[str, Any], takes_parts: bool
    ) -> None:
        self._own = own
        self._processor = processor
        self._config = config
        self._takes_parts = takes_parts
        self.words = own.words
        self.exists = True
        self.close = own.close

    def reads(self, tools: Sequence[Mapping[str, Any]] | None) -> Reads | None:
        return self._own.reads(tools) if self._own.exists else None

    def write(self, conversation: Conversation) -> str:
        messages = conversation.messages
        shown = [part["type"] for item in messages for part in item["content"] if not isinstance(part, str)]
        media = any(kind != "text" for kind in shown)
        if self._own.exists and (self._takes_parts or not media):
            return self._own.write(conversation)
        from mlx_vlm.prompt_utils import apply_chat_template

        if conversation.tools or conversation.variables or any("tool_calls" in item for item in messages):
            raise ValueError("it has no place for tools and switches beside pictures")
        plain = [{"role": item["role"], "content": text_of(dict(item))} for item in messages]
        made = apply_chat_template(
            self._processor,
            dict(self._config),
            plain if len(plain) > 1 else plain[0]["content"],
            add_generation_prompt=conversation.add_generation_prompt,
            num_images=shown.count("image"),
            num_audios=shown.count("audio"),
        )
        return made if isinstance(made, str) else str(made.get("content", made))


def _only(value: Any, kept: list[int], length: int) -> Any:
    """Of an array with a value for each token, shape (1, length), those of the kept ones."""
    import mlx.core as mx

    fits = getattr(value, "ndim", 0) >= 2 and tuple(value.shape[:2]) == (1, length)
    return value[:, mx.array(kept)] if fits else value


def _without_second_start(tokenizer: Any, text: str) -> str:
    """Drop the start token that the template wrote where the tokenizer adds one itself."""
    start = tokenizer.bos_token
    if start and text.startswith(start):
        first = tokenizer.encode("x")[:1]
        if first == [tokenizer.bos_token_id]:
            return text[len(start) :]
    return text


__all__ = ["Media", "prompts_of"]
