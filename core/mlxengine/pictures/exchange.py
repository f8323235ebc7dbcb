"""A picture's recipe in its file: ours as JSON, and the text that other programs write and read.

That text is AUTOMATIC1111's ``parameters``: the prompt, ``Negative prompt: …``, and a line of
``Name: value`` pairs. A PNG holds it as a text chunk beside our JSON; JPEG and WebP hold both in EXIF, the
text as ``UserComment`` and the JSON as ``MakerNote``; all hold the text as XMP's description as well. Source
of its names and places: ``modules/infotext_utils.py`` and ``modules/images.py`` of
github.com/AUTOMATIC1111/stable-diffusion-webui.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..readonly import thaw
from . import comfy, xmp

RECIPE_KEY = "mlxengine"
"""The PNG text chunk that holds the recipe, as JSON."""
TEXT_KEY = "parameters"
"""The PNG text chunk that holds the other programs' text."""
WITH_EXIF = (".jpg", ".jpeg", ".webp")
"""Endings of the other formats that hold both."""

_log = logging.getLogger("mlxengine.pictures")
_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_COMFY_TAGS = (0x0110, 0x010F)  # Model, Make
_MARK, _UNICODE = b"mlxengine\0", b"UNICODE\0"
_MOST_EXIF = 65_000  # a segment of a JPEG has 64 KiB
_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)
_SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_sde": "DPM++ SDE",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
    "pndm": "PLMS",
    "lms": "LMS",
    "ddpm": "DDPM",
}
_SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta", "uniform": "Uniform"}
_OURS = {name.lower(): key for key, name in _SAMPLERS.items()}
_PLACED = {name.lower(): key for key, name in _SCHEDULES.items()}
# The name of a pair, ours, and how its value is read.
_NUMBERS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("Steps", "steps", int),
    ("CFG scale", "guidance", float),
    ("Seed", "seed", int),
    ("Clip skip", "clip_skip", int),
    ("Denoising strength", "strength", float),
)
_HARMLESS = ("Model hash", "Version", "VAE hash", "VAE", "RNG", "Size", "Lora hashes", "TI hashes")


def to_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as other programs write it, as far as they have names for it."""
    pairs: dict[str, Any] = {"Steps": recipe.get("steps")}
    if name := recipe.get("scheduler"):
        pairs["Sampler"] = _SAMPLERS.get(name, name)
    if placement := recipe.get("sigmas"):
        pairs["Schedule type"] = _SCHEDULES.get(placement, placement)
    pairs |= {name: recipe.get(key) for name, key, _ in _NUMBERS[1:]}
    if recipe.get("width"):
        pairs["Size"] = f"{recipe['width']}x{recipe['height']}"
    pairs["Model"] = recipe.get("model")
    pairs["Version"] = recipe.get("plugin")
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items() if value is not None)
    negative = recipe.get("negative")
    return "\n".join(
        [str(recipe.get("prompt") or ""), *([f"{_NEGATIVE} {negative}"] if negative else []), line]
    )


def from_text(text: str) -> dict[str, Any]:
    """A recipe from another program's text: what has a meaning here, and the rest under ``"other"``.

    ``model_name`` is what the other program calls the model; nobody can load that.
    """
    *words, last = text.strip().split("\n")
    pairs = dict(_PAIR.findall(last))
    if len(pairs) < 3:
        words, pairs = [*words, last], {}
    prompt, _, negative = "\n".join(words).partition(_NEGATIVE)
    networks = [*_NETWORK.findall(prompt), *_NETWORK.findall(negative)]
    prompt, negative = _NETWORK.sub("", prompt), _NETWORK.sub("", negative)
    found: dict[str, Any] = {"prompt": prompt.strip()}
    if negative.strip():
        found["negative"] = negative.strip()
    other = {name.strip(): _unquoted(value) for name, value in pairs.items()}
    for name, key, read in _NUMBERS:
        try:
            found[key] = read(other[name])
        except (KeyError, ValueError):
            continue
        del other[name]
    if size := re.fullmatch(r"(\d+)x(\d+)", other.pop("Size", "")):
        found["width"], found["height"] = int(size[1]), int(size[2])
    _read_sampler(other, found)
    if networks:
        other["networks"] = " ".join(networks)
    if "Model" in other:
        found["model_name"] = other.pop("Model")
    left = {name: value for name, value in other.items() if name not in _HARMLESS}
    return {**found, **({"other": left} if left else {})}


def sampler_called(name: str, placement: str = "") -> tuple[str | None, str | None]:
    """Our names for a sampler and its schedule as the web UI calls them, ``DPM++ 2M Karras`` among them."""
    name, placement = name.strip().lower(), placement.strip().lower()
    for word in _PLACED:  # older versions wrote both as one
        if name.endswith(f" {word}"):
            name, placement = name.removesuffix(f" {word}"), word
    return _OURS.get(name), _PLACED.get(placement)


def _read_sampler(other: dict[str, str], found: dict[str, Any]) -> None:
    placement = other.get("Schedule type", "Automatic")
    scheduler, sigmas = sampler_called(other.get("Sampler", ""), placement)
    if scheduler is None:
        return
    found["scheduler"] = scheduler
    del other["Sampler"]
    if sigmas is not None:
        found["sigmas"] = sigmas
    if sigmas is not None or placement.lower() == "automatic":
        other.pop("Schedule type", None)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n\"]", text) else text


def _unquoted(text: str) -> str:
    text = text.strip()
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text


def saving(suffix: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What Pillow's ``save`` is told, so that a file with this ending holds the recipe."""
    if not recipe:
        return {}
    ours, theirs = json.dumps(thaw(recipe), ensure_ascii=False), to_text(recipe)
    if suffix == ".png":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_itxt(RECIPE_KEY, ours)
        chunks.add_itxt(TEXT_KEY, theirs)
        chunks.add_itxt(xmp.CHUNK, xmp.packet(theirs))
        if graph := comfy.to_graph(recipe):
            chunks.add_itxt(comfy.CHUNK, graph)
        return {"pnginfo": chunks}
    if suffix not in WITH_EXIF:
        return {}
    from PIL.Image import Exif

    exif = Exif()
    exif.get_ifd(_EXIF_IFD).update(
        {_USER_COMMENT: _UNICODE + theirs.encode("utf-16-be"), _MAKER_NOTE: _MARK + ours.encode()}
    )
    data, packet = exif.tobytes(), xmp.packet(theirs).encode()
    if max(len(data), len(packet)) > _MOST_EXIF:
        _log.warning("The recipe is too long for a %s file and was left out: a PNG holds it.", suffix)
        return {}
    return {"exif": data, "xmp": packet}


def held(opened: Any) -> dict[str, Any] | None:
    """The recipe in an opened PIL image, ours before another program's; ``None`` if there is none.

    Raises:
        ValueError: what claims to be a recipe is none.
    """
    ours, theirs = opened.info.get(RECIPE_KEY), opened.info.get(TEXT_KEY)
    if ours is None and theirs is None:
        block = opened.getexif().get_ifd(_EXIF_IFD)
        note, comment = block.get(_MAKER_NOTE), block.get(_USER_COMMENT)
        if isinstance(note, bytes) and note.startswith(_MARK):
            ours = note.removeprefix(_MARK).decode()
        elif isinstance(comment, bytes):
            theirs = _comment(comment)
    if ours is theirs is None and "Steps: " in (text := xmp.description(opened.info.get("xmp")) or ""):
        theirs = text  # a description of anything else is no recipe
    if ours is not None:
        found = json.loads(ours)
        return found if isinstance(found, dict) else None
    if theirs:
        return from_text(theirs)
    graph = opened.info.get(comfy.CHUNK) or _graph(opened.getexif())
    return comfy.from_graph(graph) if graph else None


def _graph(exif: Any) -> str | None:
    """ComfyUI's graph in EXIF: ``prompt:`` and the JSON, in whichever of its two fields."""
    for tag in _COMFY_TAGS:
        word, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and word.lower() == comfy.CHUNK:
            return text.rstrip("\0")
    return None


def _comment(data: bytes) -> str:
    """EXIF's comment, whose first eight bytes name its characters."""
    text = data[8:]
    if data.startswith(_UNICODE):
        return text.decode("utf-16-be" if text[:1] == b"\0" or text[:2] != text[:1] + b"\0" else "utf-16-le")
    return text.decode("utf-8", errors="replace")


__all__ = ["RECIPE_KEY", "TEXT_KEY", "from_text", "held", "sampler_called", "saving", "to_text"]
