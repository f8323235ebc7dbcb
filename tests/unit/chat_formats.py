# ruff: noqa: E501 (templates, as their publishers write them)
"""Small tokenizers and templates in the forms of well-known model families, markers and all."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen(kw_only=True)
class Format:
    """A family's way to write a conversation.

    ``base`` is the kind of vocabulary: ``bytes`` (GPT-2 and after) or ``pieces`` (SentencePiece with bytes to fall
    back on). ``plain`` are added tokens that are not special.
    """

    name: str
    base: str
    special: tuple[str, ...]
    template: str
    plain: tuple[str, ...] = ()


FORMATS = (
    Format(
        name="ChatML",
        base="bytes",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        template="""{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{%- for t in tools %}{{- t | tojson }}{{- '\\n' }}
{%- endfor %}{{- '<tool_call>...</tool_call><|im_end|>\\n' }}{%- endif %}
{%- for m in messages %}{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'assistant' %}{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}{{- '<|im_start|>assistant\\n' + content }}{%- for c in m.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
    ),
    Format(
        name="Llama 3",
        base="bytes",
        special=("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
        template="""{{- bos_token }}{%- for m in messages %}
{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}
{%- if m.tool_calls %}{{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- m.tool_calls[0].function.arguments | tojson }}{{- '}' }}{%- else %}{{- m.content | trim }}{%- endif %}{{- '<|eot_id|>' }}
{%- endfor %}{%- for t in tools or [] %}{{- t | tojson(indent=4) }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    ),
    Format(
        name="Gemma",
        base="pieces",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        plain=("\n\n", "<h1>"),
        template="""{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (m.content | trim) + '<end_of_turn>\\n' }}
{% endfor %}{% for t in tools or [] %}{{ t.function.name }}: {{ t | tojson }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    ),
    Format(
        name="Mistral",
        base="pieces",
        special=("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
        template="""{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% if m.tool_calls %}
{{ '[TOOL_CALLS]' + (m.tool_calls | tojson) }}{% endif %}{{ ' ' + m.content + eos_token }}
{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}
{% endfor %}{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}""",
    ),
    Format(
        name="Phi",
        base="pieces",
        special=("<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>", "<|tool|>"),
        template="""{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}
{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}{{ tools | tojson }}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}""",
    ),
    Format(
        name="DeepSeek",
        base="bytes",
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        plain=("<think>", "</think>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
        template="""{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' }}{% for c in m.tool_calls or [] %}
{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + (c.function.arguments | tojson) + '<｜tool▁call▁end｜>' }}
{% endfor %}{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}
{{ c + '<｜end▁of▁sentence｜>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}{{ tools | tojson }}
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}""",
    ),
    Format(
        name="Harmony",
        base="bytes",
        special=(
            "<|startoftext|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
            "<|call|>",
            "<|return|>",
        ),
        template="""{% for m in messages %}{% if '<|channel|>final' in m.content %}{{ raise_exception('tags in the content') }}
{% endif %}{% if m.tool_calls %}
{{ '<|start|>assistant to=functions.' + m.tool_calls[0].function.name + '<|channel|>commentary json<|message|>' }}
{{ m.tool_calls[0].function.arguments | tojson }}{{ '<|call|>' }}{% else %}
{{ '<|start|>' + (('functions.' + m.name) if m.role == 'tool' else m.role) + '<|message|>' + m.content + '<|end|>' }}
{% endif %}{% endfor %}{% for t in tools or [] %}{{ '// ' + (t.function.description or '') + '\\ntype ' + t.function.name }}
{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}""",
    ),
    Format(
        name="GLM",
        base="bytes",
        special=(
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
        ),
        plain=(
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "<arg_key>",
            "</arg_key>",
            "<arg_value>",
        ),
        template="""[gMASK]<sop>{% for m in messages %}{{ '<|observation|>' if m.role == 'tool' else '<|' + m.role + '|>' }}
{{ '\\n' + m.content.strip() }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}
{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\\n<arg_value>{{ v if v is string else v | tojson }}
{% endfor %}</tool_call>{% endfor %}{% endfor %}{{ tools | tojson(ensure_ascii=False) }}
{% if add_generation_prompt %}<|assistant|>\\n<think></think>{% endif %}""",
    ),
    Format(
        name="Kimi",
        base="bytes",
        special=(
            "[BOS]",
            "[EOS]",
            "<|im_end|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_system|>",
            "<|im_middle|>",
        ),
        plain=("<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>"),
        template="""{% for m in messages %}{{ '<|im_' + ('system' if m.role == 'tool' else m.role) + '|>' + m.role }}
<|im_middle|>{{ m.content }}{% for c in m.tool_calls or [] %}<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>
{{ c.function.arguments | tojson }}{{ c.function.name }}<|tool_call_end|>{% endfor %}<|im_end|>{% endfor %}
{{ tools | tojson(separators=(',', ':')) }}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}""",
    ),
)


def tokenizer(form: Format) -> Any:
    """transformers' tokenizer of a format, with single bytes (or letters) and a few merges as its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if form.base == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [
            ("<", "|"),
            ("|", ">"),
            ("i", "m"),
            ("e", "n"),
            ("Ġ", "w"),
            ("t", "h"),
            ("Ċ", "Ċ"),
            ("ï", "·"),
        ]
        words = [*alphabet, *("".join(pair) for pair in merges)]
        made = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        made.decoder = decoders.ByteLevel()
    else:
        letters = ["▁", *map(chr, range(32, 127)), "ä", "€"]
        merges = [("<", "|"), ("▁", "w"), ("e", "n"), ("t", "h"), ("i", "m")]
        words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
        words += ["".join(pair) for pair in merges]
        made = Tokenizer(
            models.BPE(
                vocab={word: at for at, word in enumerate(words)},
                merges=merges,
                unk_token="<unk>",
                byte_fallback=True,
                fuse_unk=True,
            )
        )
        if form.name == "Gemma":
            made.normalizer = normalizers.Replace(" ", "▁")
        else:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in form.special])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in form.plain])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=form.special[0],
        eos_token=form.special[1],
        clean_up_tokenization_spaces=False,
    )
    found.chat_template = form.template
    return found
