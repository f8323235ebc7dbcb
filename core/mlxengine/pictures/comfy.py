"""A recipe as ComfyUI writes and reads it: the graph of nodes that it runs, as JSON.

A PNG holds it as the text chunk ``prompt``, a WebP in EXIF's ``Model`` after that word and a colon. What is
written is the graph of its default workflow. Source of its names: ``nodes.py``, ``execution.py`` and
``comfy/samplers.py`` of github.com/comfyanonymous/ComfyUI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CHUNK = "prompt"
"""The PNG text chunk, and the word before the graph in EXIF."""
_SAMPLERS = {
    "euler": "euler",
    "euler_ancestral": "euler_ancestral",
    "heun": "heun",
    "ddim": "ddim",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_sde": "dpmpp_sde",
    "deis": "deis",
    "unipc": "uni_pc",
    "lcm": "lcm",
}
_SCHEDULES = {"karras": "karras", "exponential": "exponential", "beta": "beta", "uniform": "normal"}
_OURS = {theirs: ours for ours, theirs in _SAMPLERS.items()}
_PLACED = {theirs: ours for ours, theirs in _SCHEDULES.items() if ours != "uniform"}
_NUMBERS = {"seed": ("seed", int), "steps": ("steps", int), "cfg": ("guidance", float)}
_DEEPEST = 32
Graph = Mapping[str, Any]


def to_graph(recipe: Mapping[str, Any]) -> str | None:
    """The graph that draws such a picture; ``None`` where the default workflow cannot."""
    sampler = _SAMPLERS.get(recipe.get("scheduler") or "")
    if sampler is None or recipe.get("strength") is not None:
        return None
    words = [recipe.get("prompt") or "", recipe.get("negative") or ""]
    latents = {"width": recipe.get("width"), "height": recipe.get("height"), "batch_size": 1}
    drawn = {
        "seed": recipe.get("seed"),
        "steps": recipe.get("steps"),
        "cfg": recipe.get("guidance"),
        "sampler_name": sampler,
        "scheduler": _SCHEDULES.get(recipe.get("sigmas") or "uniform", "normal"),
        "denoise": 1.0,
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "3": ("KSampler", drawn),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": recipe.get("model")}),
        "5": ("EmptyLatentImage", latents),
        "6": ("CLIPTextEncode", {"text": words[0], "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": words[1], "clip": ["4", 1]}),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"filename_prefix": "mlxengine", "images": ["8", 0]}),
    }
    graph = {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}
    return json.dumps(graph, ensure_ascii=False)


def from_graph(text: str) -> dict[str, Any] | None:
    """A recipe from the first sampler of a graph; ``None`` where there is none.

    ``model_name`` is what ComfyUI calls the checkpoint; what has no meaning here stands under ``"other"``.

    Raises:
        ValueError: it is no JSON.
    """
    graph = json.loads(text)
    if not isinstance(graph, dict):
        return None
    inputs = next((_inputs(node) for node in graph.values() if "cfg" in _inputs(node)), None)
    if inputs is None:
        return None
    found: dict[str, Any] = {"prompt": _words(graph, inputs.get("positive")) or ""}
    if negative := _words(graph, inputs.get("negative")):
        found["negative"] = negative
    other: dict[str, str] = {}
    for theirs, (ours, kind) in _NUMBERS.items():
        value = inputs.get(theirs, inputs.get("noise_seed") if theirs == "seed" else None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[ours] = kind(value)
    sampler, schedule = str(inputs.get("sampler_name", "")), str(inputs.get("scheduler", "normal"))
    if sampler in _OURS:
        found["scheduler"] = _OURS[sampler]
    else:
        other["sampler_name"] = sampler
    if schedule in _PLACED:
        found["sigmas"] = _PLACED[schedule]
    elif schedule != "normal":
        other["scheduler"] = schedule
    if inputs.get("denoise", 1) != 1:
        other["denoise"] = str(inputs["denoise"])
    size = _node(graph, inputs.get("latent_image"))
    if isinstance(size.get("width"), int) and isinstance(size.get("height"), int):
        found["width"], found["height"] = size["width"], size["height"]
    if name := _checkpoint(graph, inputs.get("model"), other):
        found["model_name"] = name
    return {**found, **({"other": other} if other else {})}


def _inputs(node: Any) -> Graph:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _node(graph: Graph, link: Any) -> Graph:
    """The inputs of the node that a link, (name, output), leads to."""
    return _inputs(graph.get(str(link[0]))) if isinstance(link, list) and len(link) == 2 else {}


def _words(graph: Graph, link: Any) -> str | None:
    """The text that a conditioning comes from, through the nodes that change it."""
    for _ in range(_DEEPEST):
        inputs = _node(graph, link)
        text = inputs.get("text", inputs.get("text_g"))
        if isinstance(text, str):
            return text
        link = text if isinstance(text, list) else inputs.get("conditioning", inputs.get("positive"))
        if link is None:
            return None
    return None


def _checkpoint(graph: Graph, link: Any, other: dict[str, str]) -> str | None:
    """The checkpoint's name; adapters on the way are noted in ``other``."""
    for _ in range(_DEEPEST):
        inputs = _node(graph, link)
        for name in ("ckpt_name", "unet_name"):
            if isinstance(inputs.get(name), str):
                found: str = inputs[name]
                return found
        if isinstance(inputs.get("lora_name"), str):
            other[f"lora {inputs['lora_name']}"] = str(inputs.get("strength_model", 1))
        link = inputs.get("model")
        if link is None:
            return None
    return None


__all__ = ["CHUNK", "from_graph", "to_graph"]
