"""Sound where an architecture takes it: Gemma 4 on random weights, held to mlx-vlm's own result."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from mlxengine import AudioPart, GenerateParams, ImagePart, Message, TextPart, TextRequest
from mlxengine.errors import UnsupportedInputError
from mlxengine_vlm._media import MediaLimits
from mlxengine_vlm._prompt import Media
from random_checkpoint import tensor
from vlm_checkpoints import write_tokenizer
from vlm_harness import Plugin, text_of
from vlm_pictures import Thing, draw

SPECIAL = {4: "<boi>", 5: "<eoi>", 6: "<boa>", 7: "<image>", 8: "<video>", 9: "<audio>", 10: "<eoa>"}
RATE = 16_000
CONFIG: dict[str, Any] = {
    "model_type": "gemma4",
    "architectures": ["Gemma4ForConditionalGeneration"],
    "image_token_id": 7,
    "video_token_id": 8,
    "audio_token_id": 9,
    "boi_token_id": 4,
    "eoi_token_id": 5,
    "boa_token_id": 6,
    "eoa_token_id": 10,
    "eos_token_id": 2,
    "vocab_size": 120,
    "hidden_size": 64,
    "text_config": {
        "model_type": "gemma4_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 16,
        "vocab_size": 120,
        "vocab_size_per_layer_input": 120,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 512,
    },
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "global_head_dim": 16,
        "position_embedding_size": 64,
    },
    "audio_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "subsampling_conv_channels": [8, 4],
        "output_proj_dims": 40,
        "use_clipped_linears": False,
    },
}


@pytest.fixture(scope="module")
def hearing(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Gemma 4 with a processor for pictures and sound."""
    from mlx_vlm.models import gemma4
    from mlx_vlm.utils import update_module_configs

    folder = tmp_path_factory.mktemp("gemma4")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    settings = gemma4.ModelConfig.from_dict(CONFIG)
    settings = update_module_configs(settings, gemma4, CONFIG, ["text", "vision", "audio"])
    network = gemma4.Model(settings)
    drawn = tree_map_with_path(
        lambda name, value: mx.array(tensor(name, value.shape)) if value.size > 1 else value,
        network.parameters(),
    )
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(drawn)))
    named = {f"{name[1:-1]}_token": name for name in SPECIAL.values()}
    write_tokenizer(folder, SPECIAL, image="<image>", audio="<audio>", named=named)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Gemma4ImageProcessor"})
    )
    processor = {
        "processor_class": "Gemma4Processor",
        "image_seq_length": 70,
        "image_processor": {"patch_size": 16, "max_soft_tokens": 70, "pooling_kernel_size": 3},
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "sampling_rate": RATE},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return plugin.load(folder)


def tone(pitch: float, seconds: float = 0.4) -> Any:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def about(*parts: Any) -> TextRequest:
    params = GenerateParams(ignore_eos=True, max_tokens=8)
    return TextRequest(messages=[Message.user([*parts, TextPart("w20 w31 w44")])], params=params)


@pytest.mark.feature("vlm.audio")
def test_sound_gives_what_mlx_vlm_gives(plugin: Plugin, hearing: Any) -> None:
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import prepare_inputs

    (events,) = plugin.run([plugin.start(hearing, about(AudioPart(tone(440), RATE)))])
    said = [token for event in events if hasattr(event, "token_ids") for token in event.token_ids]
    with plugin.backend.stream():
        made = prepare_inputs(
            hearing.processor, prompts="<bos><audio> w20 w31 w44", audio=[tone(440)], add_special_tokens=True
        )
        ids, mask = made.pop("input_ids"), made.pop("attention_mask")
        step = generate_step(ids, hearing.network, None, mask, max_tokens=8, temperature=0.0, **made)
        wanted = [int(token) for token, _ in step]
    assert said == wanted
    assert "audio" in hearing.takes


def test_another_sound_gives_another_answer_and_a_batch_what_each_gives_alone(
    plugin: Plugin, hearing: Any
) -> None:
    picture = draw([Thing("circle", "red")], size=96)
    requests = [
        about(AudioPart(tone(440), RATE)),
        about(AudioPart(tone(3000), RATE)),
        about(),
        about(ImagePart(picture)),
        about(ImagePart(picture), AudioPart(tone(440, 0.2), RATE)),
    ]
    alone = [plugin.answer(hearing, request) for request in requests]
    assert len(set(alone)) == len(alone)
    together = plugin.run([plugin.start(hearing, request) for request in requests])
    assert [text_of(events) for events in together] == alone


def test_sound_at_another_rate_is_resampled_and_a_second_one_refused_not_dropped(
    plugin: Plugin, hearing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = AudioPart(tone(440)[::2], RATE // 2), AudioPart(tone(440), RATE)
    ids = [
        hearing.prompts.make(about(sound), True, Media(hearing, MediaLimits())).ids for sound in (slow, fast)
    ]
    assert ids[0] == ids[1]
    monkeypatch.setattr(hearing.processor, "supports_multiple_audio", False, raising=False)
    with pytest.raises(UnsupportedInputError, match="one sound"):
        plugin.answer(hearing, about(slow, slow))
