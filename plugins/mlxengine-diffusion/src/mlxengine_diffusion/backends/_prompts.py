"""How models whose prompts a language model reads are told them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlxengine.toolkit.templates import bind

from ._flow import Flow
from ._work import Job, PromptReport

if TYPE_CHECKING:
    import mlx.core as mx


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer of a folder, without code of its own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def report(tokenizer: Any, ids: Sequence[int], length: int) -> PromptReport:
    """How many of a prompt's tokens are read, ``length`` at most, and the text of the others."""
    cut = ids[length:]
    return PromptReport(tokens=min(len(ids), length), truncated=tokenizer.decode(cut).strip() if cut else "")


class ChatFlow(Flow):
    """A model that is told its prompts as turns of a chat with Qwen3. Families say how states are made."""

    LENGTH = 512
    thinks: ClassVar[bool]  # whether the chat's template leaves room for reasoning

    def __init__(self, *arguments: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tokenizer = tokenizer
        bind(tokenizer)

    def _text(self, prompt: str) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinks,
        )
        return text

    def read_prompt(self, job: Job) -> PromptReport:
        ids = list(self._tokenizer(self._text(job.prompt), verbose=False).input_ids)
        return report(self._tokenizer, ids, self.LENGTH)

    def _told(self, job: Job) -> Generator[None, None, list[mx.array]]:
        import mlx.core as mx

        told = []
        with self._use("text_encoder", job) as encoder:
            for prompt in (job.prompt, job.negative or "")[: 2 if job.guidance > 1 else 1]:
                states = self._states(encoder, self._text(prompt))
                mx.eval(states)
                told.append(states)
                yield None
        return told

    def _states(self, encoder: Any, text: str) -> mx.array:
        """The encoder's states (1, tokens, width) for a turn of at most ``LENGTH`` tokens."""
        raise NotImplementedError


__all__ = ["ChatFlow", "report", "tokenizer_in"]
