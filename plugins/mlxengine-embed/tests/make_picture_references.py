"""Compute what models that see give, with transformers and sentence-transformers on torch.

Run it in an environment with torch, sentence-transformers, transformers, Pillow, numpy and safetensors (mlx
is not needed): ``python make_picture_references.py``. It writes ``pictures.safetensors`` beside itself, or
the file that an argument names.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
import picture_checkpoints as checkpoints


def main(target: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        for name in checkpoints.SEEING:
            folder = checkpoints.write(name, Path(root))
            for part, vectors in (_modules if name in ("clip-modules", "clip-saved") else _whole)(
                folder, name
            ).items():
                found[f"{name}/{part}"] = np.ascontiguousarray(vectors, dtype=np.float32)
        for name in checkpoints.LATE:
            found |= _late(checkpoints.write(name, Path(root)), name)
    save_file(found, str(target))


def _late(folder: Path, name: str) -> dict[str, Any]:
    """The matrices of all texts, one below the other, and of all pictures; and how they compare."""
    from transformers import ColPaliForRetrieval, ColPaliProcessor

    model = ColPaliForRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    processor = ColPaliProcessor(
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        texts = [model(**processor.process_queries(text=[text])).embeddings[0] for text in checkpoints.TEXTS]
        pictures = [
            model(**processor.process_images(images=[picture.convert("RGB")])).embeddings[0]
            for picture in checkpoints.pictures()
        ]
    scores = processor.score_retrieval(texts, pictures)
    found = {"texts": torch.cat(texts), "pictures": torch.cat(pictures), "similarity": scores}
    return {f"{name}/{part}": value.numpy() for part, value in found.items()}


def _whole(folder: Path, name: str) -> dict[str, Any]:
    """One at a time: padding to the longest of a batch is no part of the reference."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    settings: dict[str, Any] = {"truncation": True, "max_length": checkpoints.LONGEST, "return_tensors": "pt"}
    settings["padding"] = "max_length" if name.startswith("siglip") else False
    names = {"input_ids", "attention_mask"} & set(tokenizer.model_input_names)
    rows: dict[str, list[Any]] = {"texts": [], "pictures": [], "pixels": []}
    with torch.no_grad():
        for text in checkpoints.texts_of(name):
            given = tokenizer([text], **settings)
            inputs = {key: given[key] for key in names}
            rows["texts"].append(model.get_text_features(**inputs).pooler_output[0].numpy())
        for picture in checkpoints.pictures():
            pixels = processor(picture, return_tensors="np")["pixel_values"]
            rows["pixels"].append(pixels[0])
            features = model.get_image_features(pixel_values=torch.from_numpy(np.asarray(pixels)))
            rows["pictures"].append(features.pooler_output[0].numpy())
    if name not in ("clip", "siglip2"):  # pictures are made in as many ways as there are processors
        del rows["pixels"]
    return {part: np.stack(values) for part, values in rows.items()}


def _modules(folder: Path, name: str) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    texts, pictures = checkpoints.texts_of(name), checkpoints.pictures()
    found = {"texts": model.encode(texts, batch_size=1)}
    found["pictures"] = model.encode([item.convert("RGB") for item in pictures], batch_size=1)
    return {**found, "similarity": model.similarity(found["texts"], found["pictures"]).numpy()}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("pictures.safetensors"))
