"""The verb ``mlxengine image``, as a process."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlxengine_diffusion import terminal
from PIL import Image

ASK = ["a red circle", "--steps", "2", "--guidance", "3", "--seed", "1", "--size", "32x32"]


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from mlxengine.cli import main; sys.exit(main())", "image"]
    return subprocess.run(
        [*command, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("given", "found"), [({}, "0"), ({"MLX_USE_CUDA_GRAPHS": "1"}, "1")], ids=str)
def test_a_process_that_makes_pictures_alone_does_without_cuda_graphs(
    tiny_folder: Path, tmp_path: Path, given: dict[str, str], found: str
) -> None:
    told = "import os; from mlxengine.cli import main; main(); print(os.environ['MLX_USE_CUDA_GRAPHS'])"
    usual = {key: value for key, value in os.environ.items() if key != "MLX_USE_CUDA_GRAPHS"}
    command = [sys.executable, "-c", told, "image", *ASK, "-m", str(tiny_folder)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**usual, **given}, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == found


def _web_ui(text: str) -> bytes:
    """EXIF as a web UI writes it."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + f"{text}Seed: 4, Model: toy, Odd: thing".encode("utf-16-be")
    return exif.tobytes()


def test_a_picture_is_written_with_its_recipe_and_made_again_from_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    made = run(*ASK, "--model", tiny_folder, "--out", "x.png", folder=tmp_path)
    assert (made.returncode, made.stdout) == (0, "x.png\n")
    told = json.loads(run("--recipe", "x.png", "--json", folder=tmp_path).stdout)
    assert (told["prompt"], told["seed"], told["steps"], told["width"]) == ("a red circle", 1, 2, 32)
    again = run("--recipe", "x.png", "--out", "y.png", "--json", folder=tmp_path)
    assert json.loads(again.stdout)["pictures"][0]["recipe"] == told
    first, second = (np.array(Image.open(tmp_path / name)) for name in ("x.png", "y.png"))
    assert np.array_equal(first, second)
    made = run(*ASK, "--bits", 4, "--model", tiny_folder, "--out", "packed.png", folder=tmp_path)
    again = run("--recipe", "packed.png", "--out", "again.png", folder=tmp_path)
    assert (made.returncode, again.returncode) == (0, 0)
    assert "BLAS" not in made.stderr  # mlx was imported with it
    packed, second = (np.array(Image.open(tmp_path / name)) for name in ("packed.png", "again.png"))
    assert np.array_equal(packed, second)
    foreign = Image.open(tmp_path / "x.png")
    foreign.save(
        tmp_path / "z.jpg", exif=_web_ui("a red circle\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 3, ")
    )
    told = json.loads(run("--recipe", "z.jpg", "--json", folder=tmp_path).stdout)
    assert (told["scheduler"], told["guidance"], told["other"]) == ("dpmpp_2m", 3.0, {"Odd": "thing"})
    unnamed = run("--recipe", "z.jpg", "--out", "w.png", folder=tmp_path)
    assert (unnamed.returncode, "calls toy" in unnamed.stderr) == (2, True)
    named = run("--recipe", "z.jpg", "--out", "w.png", "-m", tiny_folder, "--size", "32x32", folder=tmp_path)
    assert (named.returncode, named.stdout) == (0, "w.png\n")
    several = run(*ASK, "-m", tiny_folder, "-n", 2, "--init", "x.png", "--strength", 0.6, folder=tmp_path)
    assert several.stdout.split() == ["a-red-circle-0.png", "a-red-circle-1.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_picture_that_cannot_be_written_is_an_error_with_its_seed(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.png").symlink_to("/dev/full")
    done = run(*ASK, "--model", tiny_folder, "--out", "x.png", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    text = " ".join(done.stderr.split())
    assert "x.png cannot be written: No space left on device. With --seed 1" in text
    assert Path("/dev/full").is_char_device(), "what is no file stays what it is"


_LONG_STEP = """
import sys, time
from mlxengine.cli import entry
from mlxengine_diffusion.sd.unet import UNet

def step(*_, **__):
    print("a step", file=sys.stderr, flush=True)
    time.sleep(40)

UNet.predicted = step
sys.exit(entry())
"""


def test_ctrl_c_in_a_long_step_ends_at_once_with_130_and_the_old_picture_stays(
    tiny_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"the old one")
    command = [sys.executable, "-c", _LONG_STEP, "image", *ASK, "-m", str(tiny_folder), "-o", str(target)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        with process.stderr:
            assert any("a step" in line for line in process.stderr)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    assert time.monotonic() - began < 15
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"the old one"


@pytest.mark.parametrize("strength", ["1", "0.5", ".5", "-.5", "1."])
def test_a_strength_is_written_as_numbers_are(strength: str) -> None:
    from mlxengine_diffusion.cli import _control

    found = _control(f"net=edges.png@{strength},0,.5")
    assert (found.image, found.strength, found.end) == ("edges.png", float(strength), 0.5)
    assert _control(f"net=edges.png@{strength}").strength == float(strength)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "What should the picture show?"),
        (["a", "--size", "big"], 2, "'big' is no size"),
        (["a", "--steps", "many"], 2, "--steps"),
        (["a", "--out", "nowhere/x.png"], 2, "cannot be written"),
        (["a", "--out", "x.doc"], 2, "does not end like a picture"),
        (["--recipe", "missing.png"], 3, "There is no file"),
        (["a", "--model", "./missing"], 3, "missing"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_any_work_with_the_right_exit_code(
    tmp_path: Path, words: list[str], code: int, text: str
) -> None:
    done = run(*words, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({}, None),
    ],
)
def test_terminals_that_show_pictures_are_known_by_their_environment(
    environment: dict[str, str], name: str | None
) -> None:
    assert terminal.protocol(environment) == name


def test_the_escapes_hold_the_whole_file() -> None:
    png = os.urandom(10_000)
    text = base64.standard_b64encode(png).decode()
    pieces = terminal.escape(png, "kitty").strip().split("\x1b\\")[:-1]
    assert [piece.partition(";")[0] for piece in pieces] == ["\x1b_Ga=T,f=100,m=1"] + ["\x1b_Gm=1"] * 2 + [
        "\x1b_Gm=0"
    ]
    assert "".join(piece.partition(";")[2] for piece in pieces) == text
    assert terminal.escape(png, "iterm") == f"\x1b]1337;File=inline=1;size=10000:{text}\x07\n"
