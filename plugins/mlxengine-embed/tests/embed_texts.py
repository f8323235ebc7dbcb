"""A hundred texts of every kind that a person may send: the same ones for the reference and for us."""

from __future__ import annotations

import random

_WORDS = [
    *("the", "a", "of", "river", "stone", "quickly", "embeds", "vector", "cat", "kitten", "finance", "Paris"),
    *("protein", "galaxy", "lemon", "engine", "under", "between", "writes", "reads", "broken", "silent"),
    *("42", "3.14", "GPU", "café", "naïve", "Zürich", "piñata", "über", "façade"),
]
_SPECIAL = [
    "",
    " ",
    "\n\t",
    "a",
    ".",
    "?!…",
    "🙂",
    "👩‍👩‍👧‍👦 🏳️‍🌈 family and flag",
    "I ❤️ embeddings 🚀🚀🚀",
    "今天天气很好，我们去公园散步。",
    "機械学習モデルは文章をベクトルに変換します。",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "ﬁ ligature, e\u0301 combining, É composed",
    "ÀÉÎÕÜ àéîõü ß ẞ ı İ",
    "[CLS] [SEP] [PAD] [MASK]",
    "[SEP]",
    "def f(x):\n    return x ** 2  # square",
    "https://example.org/path?query=1&other=two#part",
    "SHOUTING IN CAPITALS",
    "x" * 300,
    "supercalifragilisticexpialidocious " * 3,
    "0123456789 " * 12,
    "null\u0000byte and \u200bzero width",
]


def mixed_texts() -> list[str]:
    """A hundred texts: special ones, sentences of 3 to 120 words, and one of 2,000 words."""
    source = random.Random(5)
    texts = list(_SPECIAL)
    texts.append(" ".join(source.choice(_WORDS) for _ in range(2000)))
    while len(texts) < 100:
        count = source.choice((3, 6, 9, 12, 20, 40, 120))
        texts.append(" ".join(source.choice(_WORDS) for _ in range(count)))
    return texts
