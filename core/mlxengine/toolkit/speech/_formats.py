"""The notations of tool calls: how each is recognised, what marks its pieces, how it is read and written.

The marks are those of the models' own chat templates; mlx-lm and mlx-vlm know them by the same names.
"""

from __future__ import annotations

from attrs import frozen

from . import _readers as readers
from . import _writers as writers
from ._readers import Reader, Tags
from ._writers import Writer


@frozen(kw_only=True)
class Format:
    """One notation.

    Args:
        name: as mlx-lm has it in ``tool_parser_type``.
        opens, closes: around a piece, which holds one call or several; ``closes`` may be empty.
        read, write: the calls within a piece, see `Reader` and `Writer`.
        around: what stands before and behind all calls of a piece.
        between: what parts calls that stand in one piece; ``None`` where each has a piece of its own.
        shown: groups of texts, of which all of one stand in the chat templates of models that write so.
        vocabulary: tokens that all such models have, where their templates do not tell.
        kept: ``opens`` is the beginning of the call itself.
    """

    name: str
    opens: str
    closes: str = ""
    read: Reader
    write: Writer
    around: tuple[str, str] = ("", "")
    between: str | None = None
    shown: tuple[tuple[str, ...], ...] = ()
    vocabulary: tuple[str, ...] = ()
    kept: bool = False


XTML = ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")

_NAMED = ' name="NAME"'
_MINIMAX = Tags(
    call="<invoke",
    call_name=_NAMED,
    end="</invoke>",
    key="<parameter",
    key_name=_NAMED,
    value_end="</parameter>",
    line="\n",
)
_MUSE = Tags(
    call="<atem:invoke",
    call_name=_NAMED,
    end="</atem:invoke>",
    key="<atem:parameter",
    key_name=_NAMED,
    value_end="</atem:parameter>",
)
_MINICPM = Tags(
    call_name='"NAME"', end="</function>", key="<param", key_name=_NAMED, value_end="</param>", cdata=True
)
_CODER = Tags(
    call="<function=",
    end="</function>",
    key="<parameter=",
    value_end="</parameter>",
    trim="line",
    line="\n",
)
_K3 = Tags(
    call="<|open|>call",
    call_name=' tool="NAME" index="1"',
    head="<|sep|>",
    end="<|close|>call<|sep|>",
    key="<|open|>argument",
    key_name=' key="NAME" type="KIND"',
    key_end="<|sep|>",
    value_end="<|close|>argument<|sep|>",
    trim="",
    types=True,
)


def _keyed(name: str, prefix: str, *shown: tuple[str, ...]) -> Format:
    """The notation of GLM: a name, then keys and values in turn."""
    tags = Tags(
        head="",
        end=f"</{prefix}tool_call>",
        key=f"<{prefix}arg_key>",
        key_end=f"</{prefix}arg_key>",
        value=f"<{prefix}arg_value>",
        value_end=f"</{prefix}arg_value>",
    )
    return Format(
        name=name,
        opens=f"<{prefix}tool_call>",
        closes=f"</{prefix}tool_call>",
        read=readers.tagged(tags),
        write=writers.tagged(tags),
        shown=shown,
    )


_OBJECT = '{"name": "NAME", "arguments": '

# In this order they are looked for.
FORMATS = (
    Format(
        name="minimax_m2",
        opens="<minimax:tool_call>",
        closes="</minimax:tool_call>",
        read=readers.tagged(_MINIMAX),
        write=writers.tagged(_MINIMAX),
        between="",
        shown=(("<minimax:tool_call>",),),
    ),
    Format(
        name="gemma4",
        opens="<|tool_call>",
        closes="<tool_call|>",
        read=readers.braced('<|"|>'),
        write=writers.braced('<|"|>'),
        shown=(("<|tool_call>", "<tool_call|>"),),
    ),
    Format(
        name="function_gemma",
        opens="<start_function_call>",
        closes="<end_function_call>",
        read=readers.braced("<escape>"),
        write=writers.braced("<escape>"),
        shown=(("<start_function_call>",),),
    ),
    _keyed("longcat", "longcat_", ("<longcat_tool_call>",)),
    _keyed("glm47", "", ("<arg_key>",)),
    _keyed("laguna", ""),
    Format(
        name="pythonic",
        opens="<|tool_call_start|>",
        closes="<|tool_call_end|>",
        read=readers.pythonic,
        write=writers.pythonic,
        around=("[", "]"),
        between=", ",
        shown=(("<|tool_list_start|>",), ("<|tool_call_start|>",)),
        vocabulary=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Format(
        name="qwen3_coder",
        opens="<tool_call>",
        closes="</tool_call>",
        read=readers.tagged(_CODER),
        write=writers.tagged(_CODER),
        shown=(("<tool_call>\\n<function=",), ("<tool_call>\n<function=",)),
    ),
    Format(
        name="kimi_k2",
        opens="<|tool_calls_section_begin|>",
        closes="<|tool_calls_section_end|>",
        read=readers.kimi_k2,
        write=writers.kimi_k2,
        between="",
        shown=(("<|tool_calls_section_begin|>",),),
    ),
    Format(
        name="minicpm5",
        opens="<function name=",
        closes="</function>",
        read=readers.tagged(_MINICPM),
        write=writers.tagged(_MINICPM),
        shown=(('<function name="', '<param name="'),),
    ),
    Format(
        name="mistral",
        opens="[TOOL_CALLS]",
        read=readers.mistral,
        write=writers.framed("NAME[ARGS]", ""),
        between="[TOOL_CALLS]",
        shown=(("[TOOL_CALLS]", "[ARGS]"),),
    ),
    Format(
        name="mistral_list",
        opens="[TOOL_CALLS]",
        read=readers.mistral,
        write=writers.framed(_OBJECT, "}"),
        around=("[", "]"),
        between=", ",
        shown=(("[TOOL_CALLS]",),),
    ),
    Format(
        name="muse_spark",
        opens="<atem:function_calls>",
        closes="</atem:function_calls>",
        read=readers.tagged(_MUSE),
        write=writers.tagged(_MUSE),
        between="",
        shown=(("<atem:function_calls>",),),
    ),
    Format(
        name="cohere2_moe",
        opens="<|START_ACTION|>",
        closes="<|END_ACTION|>",
        read=readers.json_calls,
        write=writers.framed('{"tool_call_id": "0", "tool_name": "NAME", "parameters": ', "}"),
        around=("[", "]"),
        between=", ",
        shown=(("<|START_ACTION|>",),),
    ),
    Format(
        name="json_tools",
        opens="<tool_call>",
        closes="</tool_call>",
        read=readers.json_calls,
        write=writers.framed(f"\n{_OBJECT}", "}\n"),
        shown=(("<tool_call>", "tool_call.name"),),
    ),
    Format(
        name="kimi_k3",
        opens="<|open|>tools<|sep|>",
        closes="<|close|>tools<|sep|>",
        read=readers.tagged(_K3),
        write=writers.tagged(_K3),
        between="",
        vocabulary=XTML,
    ),
)

GENERIC = Format(
    name="generic",
    opens="{",
    read=readers.json_calls,
    write=writers.framed(_OBJECT, "}"),
    kept=True,
)
"""For models that have no notation of their own: a JSON object. They are told of it, and held to it."""


def format_named(name: str) -> Format | None:
    """The notation of a ``tool_parser_type``; ``None`` for one that is not known."""
    return next((item for item in FORMATS if item.name == name), None)


def format_of(template: str, vocabulary: set[str]) -> Format | None:
    """The notation that a chat template shows, or else that the vocabulary is made for."""
    for item in FORMATS:
        if any(all(text in template for text in group) for group in item.shown):
            return item
    for item in FORMATS:
        if item.vocabulary and vocabulary.issuperset(item.vocabulary):
            return item
    return None


__all__ = ["FORMATS", "GENERIC", "XTML", "Format", "format_named", "format_of"]
