"""The clauses that every plugin keeps, on this one."""

from pathlib import Path

from mlxengine.errors import UnsupportedInputError
from mlxengine.testing import Example, PluginConformance, Specimen
from mlxengine_audio import ListenRequest

pytest_plugins = ["mlxengine.testing.pytest"]

HERE = Path(__file__).parent
SPEECH, NOISE = str(HERE / "two-sentences.wav"), str(HERE / "noise.wav")


class TestAudio(PluginConformance):
    name = "audio"
    specimen = Specimen(
        path=HERE / "specimen",
        examples=[
            Example(request=ListenRequest(path=SPEECH), shows={"voice_activity"}),
            Example(request=ListenRequest(path=NOISE)),
        ],
        refused=[
            (ListenRequest(path="no-such-file.wav"), UnsupportedInputError),
            (ListenRequest(path=__file__), UnsupportedInputError),
        ],
    )
