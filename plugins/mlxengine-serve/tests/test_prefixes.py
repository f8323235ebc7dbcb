"""Which server a request goes to: the one that has its prefix, within a bound on how busy it is."""

from __future__ import annotations

import math
import random

import pytest
from mlxengine import GenerateParams, ImagePart, Message, TextRequest
from mlxengine_serve import _prefixes
from mlxengine_serve._prefixes import BLOCK, CROWD, Prefixes, keys_of

LONG = "An instruction that everybody has. " * 40


def chat(*texts: str, **rest: object) -> TextRequest:
    roles = [Message.user, Message.assistant]
    messages = [roles[number % 2](text) for number, text in enumerate(texts)]
    return TextRequest(messages=messages, **rest)  # type: ignore[arg-type]


def shared(left: TextRequest, right: TextRequest) -> int:
    pairs = zip(keys_of("m", left), keys_of("m", right), strict=False)
    return sum(one == other for one, other in pairs)


def test_a_turn_more_has_the_keys_of_the_turns_before() -> None:
    first = keys_of("m", chat(LONG))
    assert len(first) >= len(LONG) // BLOCK
    assert keys_of("m", chat(LONG, "yes " * 200, "go on"))[: len(first)] == first


def test_a_key_stands_for_all_that_is_before_it() -> None:
    assert shared(chat("x" + LONG), chat("y" + LONG)) == 0
    assert shared(chat(LONG + "x" * BLOCK), chat(LONG + "y" * BLOCK)) == len(LONG) // BLOCK
    assert keys_of("m", chat("short")) == ()


@pytest.mark.parametrize(
    "other",
    [
        chat(LONG, instructions="otherwise"),
        chat(LONG, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        chat(LONG, params=GenerateParams(adapter="pirate")),
        TextRequest(prompt=LONG),
        TextRequest(prompt_tokens=tuple(range(300))),
    ],
    ids=["instructions", "tools", "adapter", "prompt", "tokens"],
)
def test_what_stands_before_the_messages_or_changes_the_weights_tells_prompts_apart(
    other: TextRequest,
) -> None:
    assert keys_of("m", other)
    assert shared(chat(LONG), other) == 0
    assert not set(keys_of("m", other)) & set(keys_of("n", other))


def test_how_it_is_sampled_does_not_tell_prompts_apart() -> None:
    assert keys_of("m", chat(LONG, params=GenerateParams(temperature=0.3, seed=7))) == keys_of(
        "m", chat(LONG)
    )


def test_pictures_are_known_by_their_content() -> None:
    def seen(picture: bytes) -> tuple[bytes, ...]:
        return keys_of("m", TextRequest(messages=[Message.user([ImagePart(picture), LONG])]))

    assert seen(b"a" * 1000) == seen(b"a" * 1000)
    assert not set(seen(b"a" * 1000)) & set(seen(b"b" * 1000))


def test_a_conversation_stays_where_it_is_and_others_go_where_there_is_room() -> None:
    prefixes, texts = Prefixes(), {name: [name * 400] for name in "abcdef"}
    at: dict[str, set[int]] = {name: set() for name in texts}
    for turn in range(6):
        for name, said in texts.items():
            at[name].add(prefixes.choose(keys_of("m", chat(*said)), {0: 0, 1: 0, 2: 0}))
            said += [f"answer {turn} " * 60, f"question {turn} {name} " * 60]
    assert all(len(servers) == 1 for servers in at.values())
    assert sorted(next(iter(servers)) for servers in at.values()) == [0, 0, 1, 1, 2, 2]


def test_of_two_that_have_some_of_it_the_one_with_more_is_chosen() -> None:
    prefixes = Prefixes()
    assert prefixes.choose(keys_of("m", chat(LONG)), {0: 0}) == 0
    more = chat(LONG, "b" * 900, "c" * 900)
    assert prefixes.choose(keys_of("m", more), {1: 0}) == 1
    assert prefixes.choose(keys_of("m", chat(LONG, "b" * 900, "d" * 900)), {0: 0, 1: 1}) == 1


@pytest.mark.parametrize("servers", [2, 3, 5])
def test_a_prefix_that_everybody_has_burdens_nobody_beyond_the_bound(servers: int) -> None:
    prefixes, keys, draw = Prefixes(), keys_of("m", chat(LONG)), random.Random(servers)
    loads = dict.fromkeys(range(servers), 0)
    used = set()
    for _ in range(500):
        total = sum(loads.values())
        chosen = prefixes.choose(keys, loads)
        loads[chosen] += 1
        used.add(chosen)
        assert loads[chosen] <= math.ceil(CROWD * (total + 1) / servers)
        if draw.random() < 0.45 and (busy := [item for item, load in loads.items() if load]):
            loads[draw.choice(busy)] -= 1
    assert len(used) >= servers / CROWD


def test_requests_without_a_prefix_go_round() -> None:
    prefixes = Prefixes()
    assert [prefixes.choose((), {0: 0, 1: 0, 2: 0}) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    assert prefixes.choose((), {0: 3, 1: 1, 2: 2}) == 1


def test_a_server_that_was_lost_has_no_prefix_any_more() -> None:
    prefixes, keys = Prefixes(), keys_of("m", chat(LONG))
    assert prefixes.choose(keys, {0: 0}) == 0
    assert prefixes.choose(keys, {0: 1, 1: 0}) == 0
    prefixes.forget(0)
    assert prefixes.choose(keys, {0: 1, 1: 0}) == 1


def test_no_more_blocks_are_remembered_than_there_may_be_and_the_first_of_a_prompt_go_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_prefixes, "MOST_BLOCKS", 20)
    prefixes, keys = Prefixes(), keys_of("m", chat("a" * BLOCK * 12))
    prefixes.choose(keys, {1: 0})
    prefixes.choose(keys_of("m", chat("b" * BLOCK * 12)), {0: 0})
    assert prefixes.choose(keys, {0: 0, 1: 1}) == 1
