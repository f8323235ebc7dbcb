"""The detector hears speech where it is, through the engine and from a terminal."""

import contextlib
import io
from pathlib import Path

import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine_audio import ListenRequest, Speech, Voice
from mlxengine_audio.cli import main

HERE = Path(__file__).parent
# where the two sentences lie in the recording, in seconds (they were spoken by espeak-ng)
SENTENCES = ((0.60, 2.53), (3.53, 5.25))


def listen(name: str) -> tuple[list[Speech], list[float]]:
    with InferenceEngine() as engine, engine.load(HERE / "specimen") as vad:
        assert (vad.kind, vad.plugin) == ("vad", "audio")
        events = vad.run(ListenRequest(path=str(HERE / name), min_silence=0.3)).events
    probabilities = [
        float(value)
        for event in events
        if isinstance(event, Voice)
        for value in event.probabilities.numpy().tolist()
    ]
    return [event for event in events if isinstance(event, Speech)], probabilities


def test_two_sentences_are_heard_where_they_are_spoken() -> None:
    speech, probabilities = listen("two-sentences.wav")
    assert len(speech) == 2
    for found, (start, end) in zip(speech, SENTENCES, strict=True):
        assert abs(found.start - start) < 0.25
        assert abs(found.end - end) < 0.35
    assert max(probabilities) > 0.9


def test_noise_is_not_speech() -> None:
    speech, probabilities = listen("noise.wav")
    assert speech == []
    assert max(probabilities) < 0.5


def test_the_verb_prints_when_somebody_speaks() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([str(HERE / "specimen"), str(HERE / "two-sentences.wav")]) == 0
    assert len(out.getvalue().splitlines()) == 3  # the comma is a pause too


@pytest.mark.parametrize("threshold", [0, 1, -0.5, float("nan"), "high", None])
def test_a_threshold_that_is_no_probability_is_refused(threshold: object) -> None:
    with pytest.raises(InvalidParameterError, match="threshold"):
        ListenRequest(path="a.wav", threshold=threshold)  # type: ignore[arg-type]
