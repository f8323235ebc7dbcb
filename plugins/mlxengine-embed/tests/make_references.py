"""Compute the stored references with sentence-transformers on torch.

Run it in an environment with torch, sentence-transformers, transformers, numpy and safetensors (mlx is not
needed): ``python make_references.py MINILM_FOLDER``. It writes ``references.npz`` beside itself, or the file
that a second argument names.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import embed_checkpoints as checkpoints
import reference_encoders
from embed_texts import mixed_texts

PRECISIONS = ("int8", "uint8", "binary", "ubinary")


def main(minilm: str, target: Path) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    model = SentenceTransformer(minilm, device="cpu")
    texts = mixed_texts()
    found["minilm"] = model.encode(texts, batch_size=1)
    found["minilm/truncated"] = model.encode(texts[:20], truncate_dim=128, normalize_embeddings=True)
    for precision in PRECISIONS:
        found[f"minilm/{precision}"] = model.encode(texts[25:57], precision=precision)
    words = checkpoints.word_texts()
    with tempfile.TemporaryDirectory() as folder:
        for name in checkpoints.EMBEDDERS:
            written = checkpoints.write(name, Path(folder))
            if name in checkpoints.PUBLISHED:
                found[name] = _published(checkpoints.PUBLISHED[name], written, words)
                continue
            if name == "jina-v3-published":
                for task in (None, "retrieval.query", "text-matching"):
                    whole = checkpoints.merged(written, Path(tempfile.mkdtemp(dir=folder)), task)
                    model = SentenceTransformer(str(whole), device="cpu")
                    vectors = model.encode(words, batch_size=1, prompt_name=task)
                    found[name if task is None else f"{name}/{task}"] = vectors
                continue
            checkpoints.for_transformers(name, written)
            model = SentenceTransformer(str(written), device="cpu")
            found[name] = model.encode(words, batch_size=1)
            if name in ("bert-mean", "gemma3"):
                tokens = model.encode(words[:6], output_value="token_embeddings", batch_size=1)
                found[f"{name}/tokens"] = np.concatenate([item.numpy() for item in tokens])
            if name == "bert-dense":
                found[f"{name}/query"] = model.encode_query(words)
                found[f"{name}/whole"] = model.encode(words, prompt="", truncate_dim=24)
                found[f"{name}/similarity"] = model.similarity(found[name], found[name]).numpy()
            if name == "bge-m3":
                tokens = model.encode(words, output_value="token_embeddings", batch_size=1)
                longest = {"truncation": True, "max_length": checkpoints.LONGEST}
                read = [model.tokenizer(text, **longest)["input_ids"] for text in words]
                found |= reference_encoders.m3(written, [item.numpy() for item in tokens], read)
            if name in ("bert-without-prompt", "bert-cls"):
                found[f"{name}/prompt"] = model.encode(words, prompt="w1 w2 w3 ", batch_size=1)
        for name in checkpoints.RERANKERS:
            ranker = CrossEncoder(str(checkpoints.write(name, Path(folder))), device="cpu")
            pairs = [(words[4], document) for document in words]
            found[name] = ranker.predict(pairs, batch_size=1)
            if name == "bert-reranker-with-prompts":
                found[f"{name}/other"] = ranker.predict(pairs, batch_size=1, prompt_name="other")
        for name in checkpoints.JUDGES:
            ranker = CrossEncoder(str(checkpoints.write(name, Path(folder))), device="cpu")
            pairs = [(words[4], document) for document in words]
            found[name] = ranker.predict(pairs, batch_size=1)
            if name == "judge":
                found[f"{name}/prompt"] = ranker.predict(pairs, batch_size=1, prompt="w9 w10 w11")
        for name in checkpoints.BARE_JUDGES:
            read = _read_as_qwen3 if name.startswith("Qwen3") else _read_as_gemma
            found[name] = _logits(checkpoints.write(name, Path(folder)), words, read)
        for name in checkpoints.SPARSE:
            sparse = SparseEncoder(str(checkpoints.write(name, Path(folder))), device="cpu")
            dense = sparse.encode(words, batch_size=1, convert_to_sparse_tensor=False)
            found[name] = dense.numpy()
            if name == "routed-splade":
                found[f"{name}/query"] = sparse.encode_query(words, convert_to_sparse_tensor=False).numpy()
            if name == "bert-splade":
                found[f"{name}/similarity"] = sparse.similarity(dense, dense).numpy()
                few = sparse.encode(words, batch_size=1, convert_to_sparse_tensor=False, max_active_dims=5)
                found[f"{name}/few"] = few.numpy()
                top = sparse.decode(dense[4], top_k=3)
                found[f"{name}/words"] = np.array([checkpoints.VOCABULARY.index(word) for word, _ in top])
        for name in checkpoints.LATE:
            found |= _late(name, checkpoints.write(name, Path(folder)), words)
        for name in checkpoints.CLASSIFIERS:
            ranker = CrossEncoder(str(checkpoints.write(name, Path(folder))), device="cpu")
            pairs = [(words[4], document) for document in words]
            found[name] = ranker.predict(pairs, batch_size=1)
            found[f"{name}/softmax"] = ranker.predict(pairs, batch_size=1, apply_softmax=True)
    found |= _util()
    np.savez_compressed(target, **found)


def _published(kind: str, folder: Path, words: list[str]) -> Any:
    """The mean of the hidden vectors that `reference_encoders` gives."""
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    tensors = {name: value.astype(np.float64) for name, value in stored.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encode = getattr(reference_encoders, kind)
    longest = checkpoints.LONGEST
    read = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in words]
    return np.stack([encode(config, tensors, np.array(ids)).mean(axis=0) for ids in read]).astype(np.float32)


def _logits(folder: Path, words: list[str], read: Callable[[Any, str, str], list[int]]) -> Any:
    """The logits that the cards of two families have code for; Qwen3's softmax of two is a sigmoid of one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    with torch.no_grad():
        for document in words:
            last = model(torch.tensor([read(tokenizer, words[4], document)])).logits[0, -1]
            yes, no, capital = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "Yes"))
            scores.append(float(last[yes] - last[no] if read is _read_as_qwen3 else last[capital]))
    return np.array(scores, dtype=np.float32)


def _read_as_qwen3(tokenizer: Any, query: str, document: str) -> list[int]:
    start = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    task = "Given a web search query, retrieve relevant passages that answer the query"
    body = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
    end = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    first, middle, last = (tokenizer.encode(text, add_special_tokens=False) for text in (start, body, end))
    return first + middle + last


def _read_as_gemma(tokenizer: Any, query: str, document: str) -> list[int]:
    question = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'."
    )
    texts = (f"A: {query}", "\n", f"B: {document}", "\n", question)
    first, line, second, _, last = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    return [tokenizer.bos_token_id, *first, *line, *second, *line, *last]


def _late(name: str, folder: Path, words: list[str]) -> dict[str, Any]:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu")
    documents = [f"{text} , w1 ." for text in words[:11]] + words[11:]
    queries = model.encode_query(words[:9], batch_size=1, convert_to_numpy=True)
    passages = model.encode_document(documents, batch_size=1, convert_to_numpy=True)
    found = {
        f"{name}/{kind}": np.concatenate(rows) for kind, rows in (("query", queries), ("document", passages))
    }
    found[f"{name}/lengths"] = np.array([len(row) for row in (*queries, *passages)])
    found[name] = model.similarity(queries, passages).numpy()
    return found


def _util() -> dict[str, Any]:
    """What sentence-transformers' functions on vectors give."""
    from sentence_transformers import util

    queries, corpus = checkpoints.search_vectors()
    found: dict[str, Any] = {}
    hits = util.semantic_search(torch.tensor(queries), torch.tensor(corpus), top_k=7)
    found["search/places"] = np.array([[item["corpus_id"] for item in row] for row in hits])
    found["search/scores"] = np.array([[item["score"] for item in row] for row in hits])
    pairs = util.paraphrase_mining_embeddings(torch.tensor(corpus[:90]), top_k=5, max_pairs=60)
    found["mining"] = np.array(pairs)
    for name in ("cos", "dot", "euclidean", "manhattan"):
        function = getattr(util, f"pairwise_{name}_{'score' if name == 'dot' else 'sim'}")
        found[f"pairwise/{name}"] = function(torch.tensor(queries), torch.tensor(corpus[:20])).numpy()
    return found


if __name__ == "__main__":
    here = Path(__file__).parent / "references.npz"
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else here)
