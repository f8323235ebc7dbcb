"""The clauses that every plugin keeps, on this one."""

import pytest
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen
from mlxengine_markov import SPECIMEN, ContinueRequest

pytest_plugins = ["mlxengine.testing.pytest"]

CHOICES = (("markov.choices", True),)


class TestMarkov(PluginConformance):
    name = "markov"
    specimen = Specimen(
        path=SPECIMEN,
        examples=[
            Example(
                request=ContinueRequest(text="round the", length=4, seed=0),
                text=" house they ran, the",
                shows={"continuation", "word"},
            ),
            Example(request=ContinueRequest(text="the cat", length=30, seed=1, features=CHOICES)),
        ],
        refused=[(ContinueRequest(text="\0"), UnsupportedInputError)],
    )


@pytest.mark.parametrize("length", [0, -1, "four", None, True])
def test_a_length_that_is_no_number_of_words_is_refused(length: object) -> None:
    with pytest.raises(InvalidParameterError, match="length"):
        ContinueRequest(length=length)  # type: ignore[arg-type]
