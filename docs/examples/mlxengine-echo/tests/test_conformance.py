"""The clauses that every plugin keeps, on this one."""

from pathlib import Path

from mlxengine import ImagePart, Message, TextRequest
from mlxengine.errors import PromptTooLongError, UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen, parameters_beyond
from mlxengine_echo._echo import HONOURED

pytest_plugins = ["mlxengine.testing.pytest"]


def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


class TestEcho(PluginConformance):
    name = "echo"
    specimen = Specimen(
        path=Path(__file__).parent / "specimen",
        examples=[
            Example(
                request=TextRequest(messages=[Message.user("Good morning to you")]),
                text="Good morning to you",
                shows={"text", "chat"},
            ),
            Example(
                request=TextRequest(messages=[Message.user('weather {"city": "Oslo"}')], tools=[weather]),
                text="",
                shows={"tools"},
            ),
        ],
        refused=[
            *(
                (TextRequest(prompt="a", params=params), UnsupportedInputError)
                for params in parameters_beyond(HONOURED - {"temperature"})
            ),
            (TextRequest(prompt="word " * 64), PromptTooLongError),
            (TextRequest(prompt_tokens=[1, 2]), UnsupportedInputError),
            (TextRequest(messages=[Message.user(ImagePart("a.png"))]), UnsupportedInputError),
        ],
    )
