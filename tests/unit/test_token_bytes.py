"""The bytes of tokens joined are the UTF-8 of the text that the tokenizer decodes them to."""

from __future__ import annotations

from typing import Any

import pytest
from mlxengine.toolkit.token_bytes import TokenBytes
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEXTS = [
    "plain words",
    "Grüße, 世界! 👩‍👩‍👧 नमस्ते",
    " two  blanks  ",
    "\n\ttabs\r\n",
    "é<|mark|>\N{REPLACEMENT CHARACTER}",
]


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: at for at, text in enumerate([*alphabet, "Ã¼", "Ġw"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ã", "¼"), ("Ġ", "w")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback(decoder: Any) -> Tokenizer:
    words = ["▁", "▁p", "p", "l", "a", "i", "n", "w", "o", "r", "d", "s", "G", "é", "世", "\n"]
    vocabulary = {text: at for at, text in enumerate([*(f"<0x{value:02X}>" for value in range(256)), *words])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "p")], byte_fallback=True, unk_token=None)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoder
    return tokenizer


LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
TOKENIZERS = {
    "byte level": byte_level,
    "sentencepiece that strips": lambda: byte_fallback(
        decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)])
    ),
    "sentencepiece that keeps": lambda: byte_fallback(decoders.Sequence(LLAMA)),
    "metaspace": lambda: byte_fallback(
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="first")])
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_bytes_of_a_texts_tokens_joined_are_its_utf8(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_special_tokens([AddedToken("<|mark|>", special=True, normalized=False)])
    spelled = TokenBytes(tokenizer)
    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        found = [spelled(token, first=at == 0) for at, token in enumerate(tokens)]
        assert None not in found
        shown = tokenizer.decode(tokens, skip_special_tokens=False)
        assert b"".join(item or b"" for item in found) == shown.encode(), text
        assert shown.strip() == text.strip()


def test_a_part_of_a_character_is_told_by_its_bytes() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("世").ids
    assert [TokenBytes(tokenizer)(token, first=at == 0) for at, token in enumerate(tokens)] == [
        b"\xe4",
        b"\xb8",
        b"\x96",
    ]


def test_a_decoder_that_looks_at_neighbours_tells_no_bytes() -> None:
    tokenizer = byte_level()
    tokenizer.decoder = decoders.WordPiece()
    assert TokenBytes(tokenizer)(3) is None
    assert TokenBytes()(3) is None


def test_an_id_that_no_token_has_stands_for_nothing() -> None:
    assert TokenBytes(byte_level())(100_000) == b""
