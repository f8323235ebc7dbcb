# ruff: noqa: E501 (templates, as their publishers write them)
"""Chat templates are programs of a model's publisher: bounded, and as transformers renders them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlxengine.errors import UnsupportedInputError
from mlxengine.toolkit.templates import ChatTemplate, TemplateBoundError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Who wrote “Faust”?\n"},
    {"role": "assistant", "content": "Goethe\t<b>&amp;</b>", "tool_calls": None},
    {"role": "user", "content": [{"type": "text", "text": "ä € 😀"}]},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": [1, None]}}}]

ENDLESS = {
    "a product of texts": "{{ 'a' * 1000000000 }}",
    "a product of lists": "{{ ([1] * 1000000000) | length }}",
    "a loop of 10^10": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a loop that writes": "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "str.format": "{{ '{:9999999999}'.format(1) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "indent": "{{ ('a\\n' * 1000) | indent(100000000) }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a block that is kept": "{% set x %}{% for i in range(100000) %}{% for j in range(9999) %}xxxx{% endfor %}"
    "{% endfor %}{% endset %}",
    "lipsum": "{{ lipsum(n=10000000) }}",
    "a power": "{% set x = 9 ** (9 ** 9) %}",
    "a generator": "{{ (range(99999) | map('string') | list) * 99999 }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_measure_is_stopped_in_time_and_memory(source: str) -> None:
    template = ChatTemplate(source, seconds=1.0, memory=256 << 20, characters=1 << 20)
    began = time.perf_counter()
    with pytest.raises(TemplateBoundError, match="takes more than"):
        template.render({})
    assert time.perf_counter() - began < 5.0  # the bound is one second; the rest is a busy machine
    template.close()


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for",
        "{{ raise_exception('no system message, please') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_that_errs_or_reaches_out_is_a_typed_error_and_the_next_one_renders(source: str) -> None:
    template = ChatTemplate("{% if bad %}" + source + "{% else %}fine{% endif %}")
    with pytest.raises(UnsupportedInputError):
        template.render({"bad": True, "messages": []})
    if source != "{% for" and "((" not in source and "f()" not in source:
        assert template.render({"bad": False}) == "fine"
    template.close()


def test_a_stopped_template_renders_the_next_conversation() -> None:
    template = ChatTemplate("{{ 'ab' * n }}", seconds=5.0, memory=256 << 20)
    assert template.render({"n": 2}) == "abab"
    with pytest.raises(TemplateBoundError):
        template.render({"n": 10**9})
    assert template.render({"n": 3}) == "ababab"
    assert template._process is not None
    os.kill(template._process._process.pid, signal.SIGKILL)
    template._process._process.wait(5)
    assert template.render({"n": 1}) == "ab"
    template.close()


def test_the_process_sees_no_environment_and_ends_with_its_template() -> None:
    template = ChatTemplate("x")
    assert template.render({}) == "x"
    assert template._process is not None
    child = template._process._process
    kept = Path(f"/proc/{child.pid}/environ")
    environment = kept.read_bytes() if kept.exists() else b""
    assert b"HOME" not in environment
    del template
    assert child.wait(5) is not None


def test_many_threads_share_a_template() -> None:
    template = ChatTemplate("{{ n }}")
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        found[n] = template.render({"n": n})

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: str(n) for n in range(16)}
    template.close()


FORMS = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "trim": "{% for m in messages %}{{ loop.index }}{{ m.content | string | trim }}\n{% endfor %}",
    "json": "{{ messages | tojson }}{{ tools | tojson(indent=2) }}",
    "namespace and break": "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}"
    "{% if n.x == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}{{ n.x }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tests": "{% for m in messages %}{% if m.content is string and 'F' in m.content %}s{% elif m.content is iterable"
    " %}{{ m.content[0].text }}{% endif %}{{ m.tool_calls is defined }}{% endfor %}{{ tools is none }}",
    "macro": "{% macro say(m, k='') -%}[{{ m.role }}{{ k }}]{%- endmacro %}{{ say(messages[0], k='!') }}\n  {%- if 1 %}\n x"
    "\n  {% endif %}",
    "dict": "{{ dict(a=1) }}{% for k, v in tools[0].function.items() %}{{ k }}{{ v }}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}{{ bos_token }}{{ add_generation_prompt }}",
}


@pytest.mark.parametrize("source", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_template_gives_what_transformers_gives(source: str, tools: Any) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    if tools is None and "tools[0]" in source:
        return
    plain = [{key: value for key, value in item.items() if value is not None} for item in MESSAGES]
    (wanted,), _ = render_jinja_template(
        [plain], tools=tools, chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    template = ChatTemplate(source)
    given = {"messages": plain, "tools": tools, "documents": None, "add_generation_prompt": True}
    assert template.render({**given, "bos_token": "<s>"}) == wanted
    template.close()
