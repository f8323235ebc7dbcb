"""The clauses that every plugin keeps, on this one."""

from mlxengine import TextRequest
from mlxengine.errors import UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen
from vlm_harness import TINY, asking
from vlm_pictures import Thing, draw

pytest_plugins = ["mlxengine.testing.pytest"]

RED, BLUE = draw([Thing("circle", "red")]), draw([Thing("square", "blue")])
SAMPLED = {"temperature": 2.0, "seed": 3, "ignore_eos": True}


class TestVision(PluginConformance):
    name = "vlm"
    specimen = Specimen(
        path=TINY,
        examples=[
            Example(request=asking("What is 3 plus 4?"), text=" 7", shows={"text", "chat"}),
            Example(request=asking("What shape is this?", RED), text=" circle", shows={"vision"}),
            Example(
                request=asking(
                    "Describe the picture as JSON.", BLUE, temperature=2.0, seed=3, ignore_eos=True
                )
            ),
        ],
        refused=[(TextRequest(prompt="<image>What is this?"), UnsupportedInputError)],
    )
