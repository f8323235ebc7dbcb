"""Model types that transformers does not have: what their published repositories name themselves.

Only what a plugin can tell a model by: classes, sections of the configuration, beginnings of tensors' names
(as mlx-vlm's own converters expect them).
"""

from __future__ import annotations

from typing import Any

_TEXT = ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
_VISION = {"model_type": "vision"}


def _seeing(name: str, *tensors: str, **config: Any) -> dict[str, Any]:
    return {
        "task": "vlm",
        "config": {"architectures": [name], **config},
        "tensors": [*tensors, "model.layers.0.self_attn.q_proj.weight"],
    }


def _other(name: str, *tensors: str, **config: Any) -> dict[str, Any]:
    return {**_seeing(name, *tensors, **config), "task": "other"}


_LLAVA = ("model.mm_projector.0.weight", "model.vision_tower.vision_tower.model.patch_embed.0.weight")
_MOONDREAM = ("model.vision.patch_emb.weight", "model.text.blocks.0.attn.qkv.weight")
_TWO = {"vision_config": _VISION, "text_config": {"model_type": "text"}}
_TOWER = ("vision_tower.patch_embed.proj.weight", "multi_modal_projector.linear_1.weight")

REMOTE: dict[str, dict[str, Any]] = {
    "bunny-llama": _seeing("BunnyLlamaForCausalLM", *_LLAVA, mm_vision_tower="siglip"),
    "clef": _other("ClefForQuestionAnswering", "model.visual.patch_embed.proj.weight", **_TWO),
    "colidefics3": _other("ColIdefics3", "model.vision_model.embeddings.position_embedding.weight", **_TWO),
    "colqwen2_5": _other("ColQwen2_5ForRetrieval", "vlm.visual.patch_embed.proj.weight", **_TWO),
    "d1_omni": _other("D1OmniForDecision", "vision.patch.weight", "audio.layers.0.weight", **_TWO),
    "deepseek_vl_v2": _seeing(
        "DeepseekVLV2ForCausalLM",
        "vision.patch_embed.proj.weight",
        vision_config=_VISION,
        language_config={"a": 1},
    ),
    "deepseekocr": _seeing("DeepseekOCRForCausalLM", "model.sam_model.pos_embed", vision_config=_VISION),
    "deepseekocr_2": _seeing("DeepseekOCR2ForCausalLM", "model.sam_model.pos_embed", vision_config=_VISION),
    "dots_ocr": _seeing(
        "DotsOCRForCausalLM", "vision_tower.patch_embed.patchifier.proj.weight", vision_config=_VISION
    ),
    "ernie4_5_moe_vl": _seeing(
        "Ernie4_5_VLMoeForConditionalGeneration",
        "vision_model.patch_embed.proj.weight",
        vision_config=_VISION,
    ),
    "falcon-perception": _other("FalconPerceptionForSegmentation", "img_projector.weight"),
    "falcon_ocr": _seeing("FalconOCRForCausalLM", "img_projector.weight"),
    "falcon_perception": _other("FalconPerceptionForSegmentation", "img_projector.weight"),
    "fastvlm": _seeing("LlavaQwen2ForCausalLM", *_LLAVA, mm_vision_tower="mobileclip_l_1024"),
    "got": _seeing("GOTQwenForCausalLM", "model.vision_tower_high.patch_embed.proj.weight"),
    "granite-vision": _seeing("LlavaNextForConditionalGeneration", *_TOWER, **_TWO),
    "granite4-vision": _seeing("Granite4VisionForConditionalGeneration", *_TOWER, **_TWO),
    "granite_vision": _seeing("LlavaNextForConditionalGeneration", *_TOWER, **_TWO),
    "indic_ocr": _seeing("Qwen3_5ForConditionalGeneration", "model.visual.patch_embed.proj.weight", **_TWO),
    "inkling": _seeing("InklingForConditionalGeneration", *_TOWER, **_TWO),
    "internvl_chat": _seeing(
        "InternVLChatModel",
        "vision_model.embeddings.patch_embedding.weight",
        "mlp1.0.weight",
        vision_config=_VISION,
        llm_config={"model_type": "qwen2"},
    ),
    "jina_vlm": _seeing(
        "JinaVLMForConditionalGeneration", "model.vision_model.patch_embed.proj.weight", **_TWO
    ),
    "jvlm": _seeing("JinaVLMForConditionalGeneration", "model.vision_model.patch_embed.proj.weight", **_TWO),
    "kimi_k3": _seeing("KimiK3ForConditionalGeneration", *_TOWER, **_TWO),
    "kimi_vl": _seeing("KimiVLForConditionalGeneration", *_TOWER, **_TWO),
    "lfm2-vl": _seeing("Lfm2VlForConditionalGeneration", "model.vision_tower.vision_model.a.weight", **_TWO),
    "llama_nemotron_vl_embedding": _other("LlamaNemotronVLModel", *_TOWER, **_TWO),
    "llava-qwen2": _seeing("LlavaQwen2ForCausalLM", *_LLAVA, mm_vision_tower="siglip"),
    "llava_bunny": _seeing("LlavaQwen2ForCausalLM", *_LLAVA, mm_vision_tower="siglip"),
    "llava_qwen2": _seeing("LlavaQwen2ForCausalLM", *_LLAVA, mm_vision_tower="mobileclip_l_1024"),
    "llmjpvl": _seeing("LlmJpVLForConditionalGeneration", "vision_backbone.embeddings.weight", **_TWO),
    "locateanything": _seeing("LocateAnythingForConditionalGeneration", *_TOWER, **_TWO),
    "mage_vl": _seeing("MageVLForConditionalGeneration", "visual.embeddings.patch_embedding.weight", **_TWO),
    "mimo_v2": _seeing(
        "MiMoV2ForCausalLM", "visual.patch_embed.proj.weight", vision_config=_VISION, audio_config=_VISION
    ),
    "minicpmo": _seeing(
        "MiniCPMO",
        "apm.conv1.weight",
        "llm.lm_head.weight",
        "resampler.query",
        "vpm.embeddings.patch_embedding.weight",
        vision_config=_VISION,
        audio_config=_VISION,
        tts_config={"model_type": "conditional_chattts"},
    ),
    "mistral_large3": _seeing(
        "MistralLarge3ForCausalLM", "vision_encoder.patch_conv.weight", vision_config=_VISION
    ),
    "moge3": _other("MoGeForDepthEstimation", "encoder.backbone.patch_embed.proj.weight"),
    "molmo": _seeing("MolmoForCausalLM", "model.vision_backbone.image_vit.patch_embedding.weight"),
    "molmo_point": _seeing(
        "MolmoPointForConditionalGeneration",
        "model.vision_backbone.image_vit.patch_embedding.weight",
        vit_config=_VISION,
        text_config={"model_type": "molmo2_text"},
    ),
    "moondream1": _seeing("HfMoondream", *_MOONDREAM, config={}),
    "moondream2": _seeing("HfMoondream", *_MOONDREAM, config={}),
    "moondream3": _seeing("HfMoondream", *_MOONDREAM, config={}),
    "multi_modality": _seeing(
        "MultiModalityCausalLM",
        "aligner.layers.0.weight",
        "vision_model.vision_tower.patch_embed.proj.weight",
        vision_config={"cls": "CLIPVisionTower", "model_type": "vision"},
        language_config={"model_type": "llama"},
    ),
    "muse_spark_open": _seeing("MuseSparkForConditionalGeneration", *_TOWER, **_TWO),
    "nemotron_h_nano_omni": _seeing(
        "NemotronH_Nano_Omni_Reasoning_V3",
        "vision_model.radio_model.model.patch_generator.embedder.weight",
        **_TWO,
    ),
    "nemotron_parse": _seeing(
        "NemotronParseForConditionalGeneration",
        "encoder.model_encoder.radio_model.model.patch_generator.pos_embed",
        is_encoder_decoder=True,
    ),
    "nemotron_voicechat": _other("NemotronVoiceChatForSpeech", "perception.encoder.layers.0.weight"),
    "nemotronh_nano_omni_reasoning_v3": _seeing(
        "NemotronH_Nano_Omni_Reasoning_V3",
        "vision_model.radio_model.model.patch_generator.embedder.weight",
        **_TWO,
    ),
    "phi3_v": _seeing(
        "Phi3VForCausalLM",
        "model.vision_embed_tokens.img_processor.vision_model.embeddings.class_embedding",
        img_processor={"name": "clip_vision_model"},
    ),
    "phi4-siglip": _seeing("Phi4ForCausalLMV", *_LLAVA, mm_vision_tower="siglip2"),
    "phi4_siglip": _seeing("Phi4ForCausalLMV", *_LLAVA, mm_vision_tower="siglip2"),
    "phi4mm": _seeing(
        "Phi4MMForCausalLM",
        "model.embed_tokens_extend.image_embed.glb_GN",
        "model.embed_tokens_extend.audio_embed.encoder.embed.conv.0.weight",
        audio_processor={"name": "cascades"},
        embd_layer={"embedding_cls": "image_audio"},
    ),
    "plamo2vl": _seeing("Plamo2VLForCausalLM", *_TOWER, **_TWO),
    "prism_hadamard_qwen35": _seeing(
        "PrismForConditionalGeneration", "model.visual.patch_embed.proj.weight", **_TWO
    ),
    "qwen3_vl_embedding": _other("Qwen3VLForEmbedding", "model.visual.patch_embed.proj.weight", **_TWO),
    "rf-detr": _other("RfDetrForObjectDetection", "backbone.encoder.patch_embeddings.weight"),
    "rfdetr": _other("RfDetrForObjectDetection", "backbone.encoder.patch_embeddings.weight"),
    "sam3.1_video": _other("Sam3VideoModel", "detector_model.vision_encoder.backbone.patch_embed.weight"),
    "sam3_1": _other("Sam3VideoModel", "detector_model.vision_encoder.backbone.patch_embed.weight"),
    "sam3d_body": _other("Sam3DBodyForBodies", "backbone.encoder.patch_embed.proj.weight"),
    "sam3d_objects": _other("Sam3DObjectsForShapes", "backbone.encoder.patch_embed.proj.weight"),
    "unlimited-ocr": _seeing("UnlimitedOCRForCausalLM", "model.sam_model.pos_embed", vision_config=_VISION),
    "video_depth_anything": _other(
        "VideoDepthAnythingForDepthEstimation", "pretrained.patch_embed.proj.weight"
    ),
    "yolo11": _other("Yolo11ForObjectDetection", "model.0.conv.weight"),
    "youtu_vl": _seeing("YoutuVLForConditionalGeneration", "siglip2.vision_model.embeddings.weight", **_TWO),
    "zaya1_vl": _seeing("Zaya1VLForConditionalGeneration", *_TOWER, **_TWO),
}
# Encoders of text and makers of pictures; the latter come as pipelines of diffusers.
_ENCODERS = (
    "gemma3_embedding gliner2_5 lfm2_colbert lfm2_embedding lfm2_encoder llama_bidirec ministral3_embedding "
    "qwen3_embedding xlm_roberta decider2 laya"
)
PICTURES = frozenset(
    {
        "bonsai",
        "ernie_image",
        "flux2",
        "flux3",
        "ideogram4",
        "llada_image",
        "mage_flow",
        "ming_image",
        "minimax_h3",
        "moss_image",
        "qwen_image",
        "z_image",
    }
)
REMOTE |= {
    kind: {"task": "other", "config": {"architectures": [f"{kind.title()}Model"]}, "tensors": list(_TEXT[1:])}
    for kind in _ENCODERS.split()
}


def plain_text(kind: str) -> dict[str, Any]:
    """Any other model type: a language model."""
    return {
        "task": "llm",
        "config": {"architectures": [f"{kind.title()}ForCausalLM"]},
        "tensors": list(_TEXT),
    }
