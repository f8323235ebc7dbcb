"""The kinds that answer in text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contract.kinds import Kind, Task

if TYPE_CHECKING:
    from ..contract.configuration import ModelCard

_SHARED: dict[str, Any] = {
    "handle": "mlxengine.text.handle:TextHandle",
    "async_handle": "mlxengine.text.handle:AsyncTextHandle",
    "workload": "mlxengine.text.workload:TextWorkload",
    "usage": "mlxengine.contract.tokens:TokenUsage",
    "run": "mlxengine.text.verbs:RUN",
    "bench": "mlxengine.text.verbs:BENCH",
    "mock": "mlxengine.text.mock:TextMock",
    "degrade": "mlxengine.text.degrade:degrade",
}
_TASKS = (
    Task(name="chat", words=r"instruct|chat|it", notes="."),
    Task(name="code", words=r"coder?|code\w*|starcoder\d*|codestral|devstral"),
    Task(
        name="reasoning",
        words=r"think|thinking|reason|reasoning|r1|qwq",
        notes=r"(?s)^(?!.*never thinks).*think",
    ),
    Task(name="tools", notes=r"(?<!no )\btools\b"),
    Task(name="multilingual", words=r"multilingual|over \d+ languages"),
)


def sees(card: ModelCard) -> bool:
    """Whether a model looks like one that takes pictures (an encoder of them has ``modules.json``)."""
    names = {item.path for item in card.files}
    return "modules.json" not in names and (
        "vision_config" in card.config or "preprocessor_config.json" in names
    )


KINDS = (
    Kind(
        name="llm",
        summary="language models",
        pipelines=["text-generation"],
        tasks=_TASKS,
        install="mlxengine[llm]",
        libraries=["mlx-lm", "transformers"],
        **_SHARED,
    ),
    Kind(
        name="vlm",
        summary="language models that see",
        pipelines=["image-text-to-text"],
        tasks=[*_TASKS, Task(name="video", words=r"videos?")],
        install="mlxengine[vlm]",
        libraries=["mlx-vlm", "transformers"],
        looks="mlxengine.text.kind:sees",
        **_SHARED,
    ),
)
