"""CLIP's text encoder: diffuse-mlx's, put together as a configuration says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.nn as nn
from diffuse_mlx.stable_diffusion.clip import CLIPTextModel
from diffuse_mlx.stable_diffusion.config import CLIPTextModelConfig

from .config import Config


def build_clip(config: Config, *, projection: bool) -> Any:
    """A CLIP text encoder with arbitrary weights; ``projection`` adds the one of the pooled output."""
    width = config["hidden_size"]
    made = CLIPTextModel(
        CLIPTextModelConfig(
            num_layers=config["num_hidden_layers"],
            model_dims=width,
            num_heads=config["num_attention_heads"],
            max_length=config["max_position_embeddings"],
            vocab_size=config["vocab_size"],
            projection_dim=config["projection_dim"] if projection else None,
            hidden_act=config.get("hidden_act", "quick_gelu"),
        )
    )
    fit_layers(made.layers, config)
    made.final_layer_norm.eps = config.get("layer_norm_eps", 1e-5)
    return made


def fit_layers(layers: Iterable[Any], config: Config) -> None:
    """Give layers that the library built what a configuration says besides."""
    width, inner, eps = config["hidden_size"], config["intermediate_size"], config.get("layer_norm_eps", 1e-5)
    for layer in layers:
        if inner != 4 * width:
            layer.linear1, layer.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        layer.layer_norm1.eps = layer.layer_norm2.eps = eps


__all__ = ["build_clip", "fit_layers"]
