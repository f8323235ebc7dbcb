"""Joined pieces are the whole text, whatever the tokens are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from mlxengine.toolkit.detokenize import Detokenizer, StopTexts
from tokenizers import Tokenizer, decoders, models

# The first letter of 30 scripts' blocks, and how many follow it that are assigned.
SCRIPTS = """
41:26 C0:20 391:17 410:64 531:38 5D0:27 627:36 710:30 780:38 905:50 985:8
A05:6 A85:9 B05:8 B85:6 C05:8 C85:8 D05:8 D85:18 E01:58 EA1:3 F40:8
1000:33 10D0:38 1200:60 13A0:80 1780:51 1820:80 3041:80 4E00:5000 AC00:9000
"""
EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇲🇲", "❤️", "🧑🏿‍🚀"]
BURMESE = "မြန်မာစာ" * 3 + "then Latin words, many of them, to the end"

Spell = Callable[[str], list[int]]


def byte_fallback(metaspace: bool) -> tuple[Any, Spell]:
    """Llama 2's and Gemma's kind: letters, spaces as ``▁``, and bytes for everything else."""
    letters = "▁" + "".join(map(chr, range(0x21, 0x7F)))
    words = [f"<0x{i:02X}>" for i in range(256)] + list(letters)
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if metaspace else parts)
    known = {w: i for i, w in enumerate(words)}

    def spell(text: str) -> list[int]:
        marked = text.replace(" ", "▁")
        marked = "▁" + marked if metaspace else marked
        return [
            i
            for c in marked
            for i in ([known[c]] if c in known else [known[f"<0x{b:02X}>"] for b in c.encode()])
        ]

    return tokenizer, spell


def byte_level() -> tuple[Any, Spell]:
    from tokenizers import pre_tokenizers

    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, lambda text: tokenizer.encode(text).ids


def word_piece() -> tuple[Any, Spell]:
    """BERT's kind, of single letters."""
    letters = sorted({letter for text in texts() for letter in text if letter != " "})
    words = [*letters, *(f"##{letter}" for letter in letters), "[UNK]"]
    known = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)

    def spell(text: str) -> list[int]:
        return [known[f"##{c}" if at else c] for word in text.split() for at, c in enumerate(word)]

    return tokenizer, spell


FORMS = {
    "ByteFallback": lambda: byte_fallback(False),
    "ByteFallback, space stripped": lambda: byte_fallback(True),
    "ByteLevel": byte_level,
    "WordPiece": word_piece,
}


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False))
    return [*[detokenizer.add(token) for token in tokens], detokenizer.finish()]


def texts() -> list[str]:
    draw = random.Random(4)
    found = [BURMESE, "".join(EMOJI) * 4, "a" + "".join(EMOJI) + "b" * 40]
    for _ in range(60):
        words = []
        for _ in range(draw.randint(2, 9)):
            first, count = draw.choice(SCRIPTS.split()).split(":")
            letters = [chr(int(first, 16) + draw.randrange(int(count))) for _ in range(draw.randint(1, 24))]
            words.append("".join(letters) if draw.random() < 0.8 else draw.choice(EMOJI))
        found.append(draw.choice(["", " ", "x"]).join(words))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_joined_pieces_are_what_all_tokens_say_at_once(form: str) -> None:
    tokenizer, spell = FORMS[form]()
    for text in texts():
        tokens = spell(text)
        whole = tokenizer.decode(tokens, skip_special_tokens=False)
        assert whole == text
        found = pieces(tokenizer, tokens)
        assert "".join(found) == whole
        assert len(found[-1]) <= 1, "all but what the end decides was sent as it came"


@pytest.mark.parametrize("form", FORMS)
def test_a_stop_text_is_found_across_the_border_of_a_run_of_bytes(form: str) -> None:
    tokenizer, spell = FORMS[form]()
    stops, said, found = StopTexts(["စာthen L"]), "", None
    for piece in pieces(tokenizer, spell(BURMESE)):
        more, found = stops.feed(piece)
        said += more
        if found:
            break
    assert found == "စာthen L"
    assert said == BURMESE.partition("စာthen L")[0]
