"""Planned texts of two tool calls in each notation that is known, as models write them."""

from __future__ import annotations

from typing import Any

ARGUMENTS: dict[str, Any] = {
    "city": 'Wien "<b>" \\ [x] {y} & ä🎉 it\'s, a: b',
    "days": 3,
    "near": ["Graz", "Linz"],
    "exact": True,
    "height": -1.5,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "near": {"type": "array", "items": {"type": "string"}},
        "exact": {"type": "boolean"},
        "height": {"type": "number"},
    },
    "required": ["city"],
}
TOOLS = {"weather": SCHEMA, "now": {"type": "object", "properties": {}}}
DESCRIBED = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}
    for name, schema in TOOLS.items()
]
CALLS = [("weather", ARGUMENTS), ("now", {})]

_CITY = ARGUMENTS["city"]
_JSON = (
    '{"city": "Wien \\"<b>\\" \\\\ [x] {y} & \\u00e4\\ud83c\\udf89 it\'s, a: b", "days": 3,'
    ' "near": ["Graz", "Linz"], "exact": true, "height": -1.5}'
)
_RAW = {"city": _CITY, "days": "3", "near": '["Graz", "Linz"]', "exact": "true", "height": "-1.5"}


def _pairs(written: str, line: str = "") -> str:
    return line.join(written.replace("KEY", key).replace("VALUE", value) for key, value in _RAW.items())


def _keyed(prefix: str) -> str:
    pair = "<Parg_key>KEY</Parg_key>\n<Parg_value>VALUE</Parg_value>\n".replace("P", prefix, 4)
    opens, closes = f"<{prefix}tool_call>", f"</{prefix}tool_call>"
    return f"{opens}weather\n{_pairs(pair)}{closes}\n{opens}now{closes}"


def _braced(quote: str) -> str:
    near = f"[{quote}Graz{quote},{quote}Linz{quote}]"
    return f"call:weather{{city:{quote}{_CITY}{quote},days:3,near:{near},exact:true,height:-1.5}}"


_PARAMETER = '<parameter name="KEY">VALUE</parameter>\n'
_ATEM = '<atem:parameter name="KEY">VALUE</atem:parameter>'
_K3 = "".join(
    f'<|open|>argument key="{key}" type="{kind}"<|sep|>{_RAW[key]}<|close|>argument<|sep|>'
    for key, kind in zip(_RAW, ("string", "number", "array", "boolean", "number"), strict=True)
)
_PYTHON = (
    'weather(city="Wien \\"<b>\\" \\\\ [x] {y} & ä🎉 it\\\'s, a: b", days=3, near=["Graz", \'Linz\'], '
    "exact=True, height=-1.5)"
)
_CODER = (
    "<tool_call>\n<function=weather>\n"
    + _pairs("<parameter=KEY>\nVALUE\n</parameter>\n")
    + "</function>\n</tool_call>"
)

TEXTS = {
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="weather">\n'
        + _pairs(_PARAMETER)
        + '</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>'
    ),
    "gemma4": "<|tool_call>" + _braced('<|"|>') + "<tool_call|><|tool_call>call:now{}<tool_call|>",
    "function_gemma": (
        f"<start_function_call>{_braced('<escape>')}<end_function_call>"
        "<start_function_call>call:now{}<end_function_call>"
    ),
    "longcat": _keyed("longcat_"),
    "glm47": _keyed(""),
    "laguna": _keyed(""),
    "pythonic": f"<|tool_call_start|>[{_PYTHON}, now()]<|tool_call_end|>",
    "qwen3_coder": f"{_CODER}\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        f"{_JSON}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "minicpm5": (
        '<function name="weather">'
        + _pairs('<param name="KEY">VALUE</param>').replace(_CITY, f"<![CDATA[{_CITY}]]>")
        + '</function>\n<function name="now"></function>'
    ),
    "mistral": f"[TOOL_CALLS]weather[ARGS]{_JSON}[TOOL_CALLS]now[ARGS]{{}}",
    "mistral_list": (
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {_JSON}, "id": "abcdefghi"}}, '
        '{"name": "now", "arguments": {}}]'
    ),
    "muse_spark": (
        '<atem:function_calls><atem:invoke name="weather">'
        + _pairs(_ATEM)
        + '</atem:invoke><atem:invoke name="now"></atem:invoke></atem:function_calls>'
    ),
    "cohere2_moe": (
        f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "weather", "parameters": {_JSON}}},\n'
        '{"tool_call_id": "1", "tool_name": "now", "parameters": {}}]<|END_ACTION|>'
    ),
    "json_tools": (
        f'<tool_call>\n{{"name": "weather", "arguments": {_JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    ),
    "kimi_k3": (
        f'<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>{_K3}<|close|>call<|sep|>'
        '<|open|>call tool="now" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
    ),
    "harmony": (
        f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{_JSON}<|call|>"
        "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"
    ),
}
"""Each has a call of ``weather`` with `ARGUMENTS`, then one of ``now`` without any."""

MARKS = {
    "harmony": [
        f"<|{name}|>" for name in ("start", "channel", "message", "end", "call", "return", "constrain")
    ],
    "kimi_k3": ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"],
    "gemma4": ["<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"],
    "function_gemma": ["<start_function_call>", "<end_function_call>", "<escape>"],
    "mistral": ["[TOOL_CALLS]", "[ARGS]"],
    "kimi_k2": [
        f"<|tool_call{name}|>"
        for name in ("s_section_begin", "s_section_end", "_begin", "_end", "_argument_begin")
    ],
    "json_tools": ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    "muse_spark": ["<|start|>", "<|message|>", "<|eom|>", "<|eot|>"],
}
"""Added tokens of models of some notations; others write their marks as text."""

SHOWN = {
    "harmony": "",
    "kimi_k3": "",
    "qwen3_coder": "<tool_call>\\n<function=",
    "json_tools": "<tool_call>tool_call.name",
    "mistral": "[TOOL_CALLS][ARGS]",
    "pythonic": "<|tool_call_start|>",
    "minicpm5": '<function name="<param name="',
    "gemma4": "<|tool_call><tool_call|>",
    "glm47": "<arg_key>",
    "longcat": "<longcat_tool_call>",
    "minimax_m2": "<minimax:tool_call>",
    "function_gemma": "<start_function_call>",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "mistral_list": "[TOOL_CALLS]",
    "muse_spark": "<atem:function_calls>",
    "cohere2_moe": "<|START_ACTION|>",
}
"""What the chat templates of their models show; ``laguna`` is told apart by the checkpoint alone."""
