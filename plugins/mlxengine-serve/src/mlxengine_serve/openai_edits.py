"""OpenAI's edits of a picture: the whole of it, or where a mask says, made anew by a prompt."""

from __future__ import annotations

from typing import Any

from mlxengine import AsyncImageHandle, ImageRequest

from ._answers import Asked, Dialect
from ._asking import data_url
from ._fields import Fields, Table, callers, honoured, refused
from ._pictures import transparent
from ._refusals import Refusal
from .openai_images import BEYOND, SHARED, PictureStream, by_name, parameters, whole

KINDS = {
    **dict.fromkeys(("n", "steps", "seed", "partial_images", "output_compression", "frame_count"), int),
    **dict.fromkeys(("guidance", "strength"), float),
    "stream": bool,
}
"""What the fields of a form are that are no texts."""

TABLE = Table(
    "OpenAI image edits",
    "/v1/images/edits",
    (
        honoured(
            "image",
            "Files of the form, or data: URLs. One is started from; several are looked at, by a model that "
            "can (FLUX.2, Qwen-Image-Edit).",
            "init_image",
        ),
        honoured("prompt"),
        *by_name(
            *SHARED,
            refused("input_fidelity", "Say strength: how far to leave the picture, 0 to 1."),
            refused("markup", "Say it in the prompt, or with a mask."),
            honoured(
                "mask", "Transparent where the picture is made anew; without transparency, light there."
            ),
            honoured("size", "WIDTHxHEIGHT; auto is that of the picture.", "size width height"),
        ),
    ),
    (
        honoured("images", 'In JSON: [{"image_url": "data:…"}].', "references"),
        callers("moderation", "Nothing is moderated."),
        honoured("strength", "How far to leave the one picture, 0 to 1."),
        *BEYOND,
    ),
)


def read(body: dict[str, Any], request_id: str) -> Asked:  # noqa: ARG001 - the answer has no id
    """A body as what the engine is asked; files of a form are bytes in it.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    pictures = [*_pictures(fields, "image"), *_pictures(fields, "images")]
    if not pictures:
        raise fields.wrong("image", "A picture to edit is missing.", "missing_value")
    masks = _pictures(fields, "mask")
    if len(masks) > 1:
        raise fields.wrong("mask", f"A picture has one mask, found {len(masks)}.")
    for name in ("mask", "strength"):
        if fields.has(name) and len(pictures) > 1:
            raise fields.wrong(name, f"{name} goes with one picture, found {len(pictures)}.")
    streamed, previews, values = parameters(fields)
    if len(pictures) > 1:
        values["references"] = tuple(pictures)
    else:
        values["init_image"] = pictures[0]
        values["mask"] = transparent(masks[0], "mask") if masks else None
        values["strength"] = fields.number("strength")
    return Asked(
        model=fields.text("model"),
        requests=(ImageRequest(**values),),
        handle=AsyncImageHandle,
        gives="pictures",
        whole=whole,
        writer=PictureStream("image_edit", previews) if streamed else None,
        unknown=unknown,
        aside=True,
    )


def _pictures(fields: Fields, name: str) -> list[bytes]:
    """The pictures in a field: a form's files, ``data:`` URLs, or objects that hold one."""
    value = fields.data.get(name)
    found = []
    for number, item in enumerate(value if isinstance(value, list) else [] if value is None else [value]):
        where = f"{name}[{number}]" if isinstance(value, list) else name
        if isinstance(item, dict):
            inner = Fields(item, where=where)
            if inner.has("file_id"):
                raise inner.wrong("file_id", "No files are kept here.", "unsupported_parameter")
            item, where = inner.need("image_url"), inner.at("image_url")
        if isinstance(item, str):
            found.append(data_url(item, where))
        elif isinstance(item, bytes):
            found.append(item)
        else:
            raise Refusal(400, f"{where} is no picture.", param=where, code="invalid_type")
    return found


DIALECT = Dialect(TABLE, read, KINDS)

__all__ = ["DIALECT", "KINDS", "TABLE", "read"]
