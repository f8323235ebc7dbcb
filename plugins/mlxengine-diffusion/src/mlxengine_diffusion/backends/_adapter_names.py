"""What the layers of flow matching's transformers are called where the models were published first.

Adapters that were trained with those programs, kohya's and ComfyUI's among them, write these names.
Sources: the modules of github.com/black-forest-labs/flux (``model.py``, ``modules/layers.py``),
github.com/black-forest-labs/flux2, github.com/XLabs-AI/x-flux (``src/flux/modules/layers.py``) and
github.com/Tongyi-MAI/Z-Image. Their last norm keeps shift before scale; diffusers keeps scale first.
"""

from __future__ import annotations

from ..sd.lora import OtherNames

_PICTURE = ("attn.to_q", "attn.to_k", "attn.to_v")
_PROMPT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_ATTENTION = {
    "img_attn.qkv": _PICTURE,
    "txt_attn.qkv": _PROMPT,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
}
_ENDS = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_SWAPPED = frozenset({"final_layer.adaLN_modulation.1"})

FLUX1 = OtherNames(
    blocks=(
        (
            "transformer_blocks",
            "double_blocks",
            {
                **_ATTENTION,
                "img_mlp.0": ("ff.net.0.proj",),
                "img_mlp.2": ("ff.net.2",),
                "txt_mlp.0": ("ff_context.net.0.proj",),
                "txt_mlp.2": ("ff_context.net.2",),
                "img_mod.lin": ("norm1.linear",),
                "txt_mod.lin": ("norm1_context.linear",),
                "processor.qkv_lora1": _PICTURE,
                "processor.qkv_lora2": _PROMPT,
                "processor.proj_lora1": ("attn.to_out.0",),
                "processor.proj_lora2": ("attn.to_add_out",),
            },
        ),
        (
            "single_transformer_blocks",
            "single_blocks",
            {
                "linear1": (*_PICTURE, "proj_mlp"),
                "linear2": ("proj_out",),
                "modulation.lin": ("norm.linear",),
                "processor.qkv_lora": _PICTURE,
                "processor.proj_lora": ("proj_out",),
            },
        ),
        (
            "",
            "",
            {
                **_ENDS,
                "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
                "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
                "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
                "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
                "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
                "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
            },
        ),
    ),
    swapped=_SWAPPED,
)
FLUX2 = OtherNames(
    blocks=(
        (
            "transformer_blocks",
            "double_blocks",
            {
                **_ATTENTION,
                "img_mlp.0": ("ff.linear_in",),
                "img_mlp.2": ("ff.linear_out",),
                "txt_mlp.0": ("ff_context.linear_in",),
                "txt_mlp.2": ("ff_context.linear_out",),
            },
        ),
        # diffusers' own names where it joins them.
        (
            "transformer_blocks",
            "transformer_blocks",
            {"attn.to_qkv": _PICTURE, "attn.to_added_qkv": _PROMPT},
        ),
        (
            "single_transformer_blocks",
            "single_blocks",
            {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
        ),
        (
            "",
            "",
            {
                **_ENDS,
                "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
                "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
                "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
                "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
                "single_stream_modulation.lin": ("single_stream_modulation.linear",),
            },
        ),
    ),
    swapped=_SWAPPED,
)
Z_IMAGE = OtherNames(
    blocks=(
        *(
            (
                block,
                block,
                {
                    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
                    "attention.out": ("attention.to_out.0",),
                },
            )
            for block in ("layers", "noise_refiner", "context_refiner")
        ),
        (
            "",
            "",
            {
                "x_embedder": ("all_x_embedder.2-1",),
                "final_layer.linear": ("all_final_layer.2-1.linear",),
                "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
            },
        ),
    ),
)

__all__ = ["FLUX1", "FLUX2", "Z_IMAGE"]
