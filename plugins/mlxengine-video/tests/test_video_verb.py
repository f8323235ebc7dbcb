"""``mlxengine video`` as a person drives it, and as a script does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mlxengine import Progress
from mlxengine.cli import main
from mlxengine.cli.verbs import Output, ProgressLine
from mlxengine_video import VideoWriter, read_recipe

FEW = ["--feature", "video.reserve=48x32x5"]
SMALL = ["--size", "48x32", "--frames", "5", "--steps", "2", "--guidance", "3", "--seed", "1", *FEW]


def run(*words: str | Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def test_the_verb_writes_a_video_and_says_what_it_takes_first(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "fox.mp4"
    code, out, err = run("video", "-m", tiny, "a red fox", "-o", target, *SMALL, "--fps", "8")
    assert (code, out.strip()) == (0, str(target))
    with av.open(str(target)) as box:
        track = box.streams.video[0]
        assert (track.width, track.height, track.frames, track.average_rate) == (48, 32, 5, 8)
    lines = err.splitlines()
    assert "working space" in lines[0]
    assert any("5 frames of 48 × 32 at 8 a second, seed 1" in line for line in lines)
    assert any(line.startswith("step 2 of 2") for line in lines)


def test_json_is_one_value_with_the_recipe(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "fox.png"
    code, out, _ = run("video", "-m", tiny, "a red fox", "-o", target, *SMALL, "--json", "-q")
    found = json.loads(out)
    assert code == 0
    assert (found["path"], found["frames"], found["fps"]) == (str(target), 5, 16)
    assert found["recipe"]["prompt"] == "a red fox"


def test_a_recipe_is_printed_and_makes_the_same_video_again(tiny: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "a.mp4", tmp_path / "b.mp4"
    assert run("video", "-m", tiny, "a red fox", "--negative", "a cat", "-o", first, *SMALL)[0] == 0
    code, out, _ = run("video", "--recipe", first)
    assert (code, json.loads(out)) == (0, dict(read_recipe(first)))
    assert run("video", "--recipe", first, "-o", again, *FEW)[0] == 0
    assert again.read_bytes() == first.read_bytes()


def test_a_picture_to_start_from_is_asked_for_again_by_the_recipe(seeing: Path, tmp_path: Path) -> None:
    from PIL import Image

    start, film = tmp_path / "start.png", tmp_path / "a.mp4"
    Image.new("RGB", (64, 64), "red").save(start)
    asked = ["--image", start, "--size", "32x32", "--frames", "1", "--steps", "1", *FEW]
    assert run("video", "-m", seeing, "x", "-o", film, *asked)[0] == 0
    assert "image_sha256" in read_recipe(film)
    code, _, err = run("video", "--recipe", film, "-o", tmp_path / "b.mp4", *FEW)
    assert code == 2
    assert "--image" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([""], 2, "empty"),
        ([], 2, "What should the video show"),
        (["x", "--frames", "6"], 2, "frames=6"),
        (["x", "--size", "big"], 2, "size"),
        (["x", "--size", "50x32"], 2, "multiples of 16"),
        (["x", "--steps", "0"], 2, "steps=0"),
        (["x", "--seed", "-1"], 2, "seed=-1"),
        (["x", "--image", "none.png"], 6, "text only"),
        (["x", "--image", "none.png", "--crf", "9"], 6, "text only"),
        (["x", "-o", "/none/a.mp4"], 2, "cannot be written"),
        (["x", "-o", "a.avi"], 2, "does not end"),
        (["x", "--recipe", "none.mp4", "-o", "a.mp4"], 3, "no file"),
    ],
)
def test_bad_input_ends_with_its_code_and_a_hint_before_weights_are_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run("video", "-m", tiny, *words)
    assert (found, out) == (code, "")
    assert says in " ".join(err.split())
    assert "load …" not in err
    assert [*tmp_path.iterdir()] == []


def test_run_bench_and_fit_know_the_kind(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    words = [word for word in SMALL if word not in FEW]
    code, out, _ = run("run", "-m", tiny, "a red fox", *FEW, *words, "-o", target, "--json")
    assert code == 0
    assert json.loads(out)["path"] == str(target)
    assert read_recipe(target)["steps"] == 2
    measured = ["--steps", "1", "--size", "32x32", "--frames", "5", "--repeats", "1", *FEW, "--json"]
    code, out, _ = run("bench", "-m", tiny, *measured)
    assert code == 0
    assert json.loads(out)["figures"]["frames decoded/s"]["mean"] > 0
    code, out, _ = run("fit", tiny, "--size", "1280x704", "--frames", "81", "--json")
    assert code == 0
    assert json.loads(out)["fit"]["estimate"]["workspace"] > 1 << 30


def test_the_mock_makes_a_video_that_says_so(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    mocked = ["--feature", "core.mock", "-m", "any/video"]
    code, _, _ = run("video", *mocked, "x", "-o", target, "--size", "32x32", "--frames", "5")
    assert code == 0
    assert read_recipe(target)["mock"] is True


@pytest.mark.parametrize("prompt", ["狐" * 400, "w" * 300, "a" * 59 + " b"], ids=["wide", "long", "cut"])
def test_the_file_of_a_long_prompt_has_a_name_that_a_file_can_have(
    prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mocked = ["--feature", "core.mock", "-m", "any/video"]
    code, out, err = run("video", *mocked, prompt, "--size", "32x32", "--frames", "1")
    assert (code, out.strip()) == (0, prompt[:59].strip() + prompt[59:60].strip() + ".mp4"), err
    assert [item.name for item in tmp_path.iterdir()] == [out.strip()]


def test_a_recipe_that_lacks_a_side_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    with VideoWriter(source, size=(32, 32), fps=16, recipe={"prompt": "x", "width": 32}) as writer:
        writer.add(np.zeros((32, 32, 3), np.uint8))
    code, _, err = run("video", "--feature", "core.mock", "--recipe", source, "-o", tmp_path / "b.mp4")
    assert (code, [item.name for item in tmp_path.iterdir()]) == (2, ["a.mp4"])
    assert "height=None" in err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_at_once_and_the_old_video_stays(
    tiny: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    target = tmp_path / "a.mp4"
    target.write_bytes(b"the old one")
    command = [sys.executable, "-m", "mlxengine", "video", "-m", str(tiny), "x", "-o", str(target), *FEW]
    command += ["--size", "640x640", "--frames", "33", "--steps", "500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            if "33 frames" in line:  # the file is opened now, and the first step runs: it takes half a minute
                break
        while len([*tmp_path.iterdir()]) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        process.send_signal(sent)
        assert process.wait(timeout=60) == code
    assert time.monotonic() - began < 15
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]
    assert target.read_bytes() == b"the old one"


def test_the_line_says_how_long_the_rest_takes_by_the_steps_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxengine_video.cli import Told

    said: list[str] = []
    line: Any = lambda event: said.append(event.stage)  # noqa: E731
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr("mlxengine_video.cli.time.monotonic", lambda: next(clock))
    told: Callable[[Progress], None] = Told(line, Output(quiet=True))
    for done in (1, 2, 3):
        told(Progress(stage="denoise", done=done, total=9))
    assert said == ["step 1 of 9", "step 2 of 9, 1:10 left", "step 3 of 9, 1:30 left"]
    assert ProgressLine is not None
