"""Frames become a file that plays as it should, or nothing at all."""

from __future__ import annotations

import resource
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mlxengine import Array
from mlxengine.errors import BackendUnavailableError, InvalidParameterError, ModelNotFoundError
from mlxengine.pictures.handle import read_recipe as recipe_of_picture
from mlxengine_video import FrameReady, Video, VideoPlanned, VideoWriter, read_recipe, write_video
from mlxengine_video.writing import check_target

RECIPE = {"prompt": "a red fox, “quoted” — 狐", "seed": 3, "steps": 4}
SIZE = (64, 48)
# Red, green, blue, white: what H.264 makes of colours is seen best on flat ones.
COLOURS = np.array([(220, 40, 30), (30, 200, 60), (40, 60, 210), (255, 255, 255)], np.uint8)


def frames(count: int = 9) -> list[np.ndarray[Any, Any]]:
    """Four fields of colour, and a bar that moves."""
    found = np.zeros((count, SIZE[1], SIZE[0], 3), np.uint8)
    for place, colour in enumerate(COLOURS):
        found[:, :, place * 16 : place * 16 + 16] = colour
    for number in range(count):
        found[number, 4 * number : 4 * number + 4] = 0
    return [*found]


def write(path: Path, pictures: list[np.ndarray[Any, Any]], **options: Any) -> Path:
    with VideoWriter(path, size=SIZE, **{"fps": 16, "recipe": RECIPE, **options}) as writer:
        for picture in pictures:
            writer.add(picture)
    return writer.path


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.feature("video.mp4")
@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (16, Fraction(16)),
        (24, Fraction(24)),
        (23.976, Fraction(2997, 125)),
        (30000 / 1001, Fraction(30000, 1001)),
    ],
)
def test_an_mp4_holds_every_frame_its_colours_and_exactly_its_rate(
    tmp_path: Path, fps: float, exact: Fraction
) -> None:
    made = frames()
    with av.open(str(write(tmp_path / "a.mp4", made, fps=fps))) as box:
        track = box.streams.video[0]
        assert (track.codec_context.name, track.pix_fmt, track.frames) == ("h264", "yuv420p", 9)
        assert track.average_rate == exact
        assert track.duration * track.time_base == 9 / exact
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]).astype(int)
    fields = found[:, 40:, 4::16]  # away from edges, whose colours share a pixel
    assert np.abs(fields - COLOURS.astype(int)).max() <= 6
    dark = [int(frame[:, 0].sum(axis=-1).argmin()) for frame in found]
    assert all(4 * number <= row < 4 * number + 4 for number, row in enumerate(dark))


def test_the_recipe_is_in_the_file_and_comes_back(tmp_path: Path) -> None:
    assert dict(read_recipe(write(tmp_path / "a.mp4", frames()))) == RECIPE
    folder = write(tmp_path / "frames", frames(3))
    assert sorted(item.name for item in folder.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert recipe_of_picture(folder / "00002.png")["prompt"] == RECIPE["prompt"]


def test_an_animated_png_is_each_pixel_as_it_was(tmp_path: Path) -> None:
    from PIL import Image

    made = frames()
    with Image.open(write(tmp_path / "a.png", made, fps=8)) as opened:
        assert opened.n_frames == 9
        for number, frame in enumerate(made):
            opened.seek(number)
            assert np.array_equal(np.array(opened.convert("RGB")), frame)
            assert opened.info["duration"] == 125


def test_a_lower_quality_takes_less_room(tmp_path: Path) -> None:
    noisy = [np.random.default_rng(n).integers(0, 256, (48, 64, 3), dtype=np.uint8) for n in range(5)]
    good, bad = (write(tmp_path / f"{crf}.mp4", noisy, crf=crf).stat().st_size for crf in (10, 45))
    assert bad < good / 3


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_where_the_disk_is_full_the_old_file_stays_and_nothing_beside_it(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, frames())
    before = path.read_bytes()
    noise = np.random.default_rng(0)
    with little_room(20_000), pytest.raises(OSError, match="large"):
        write(path, [noise.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(40)])
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    with pytest.raises(error), VideoWriter(tmp_path / name, size=SIZE, fps=16) as writer:
        writer.add(frames()[0])
        assert [*tmp_path.iterdir()]  # it is being written
        raise error
    assert [*tmp_path.iterdir()] == []


def test_events_are_written_as_they_come_and_a_failure_among_them_leaves_nothing(tmp_path: Path) -> None:
    def events(fail: bool) -> Iterator[Any]:
        yield VideoPlanned(width=64, height=48, frames=9, fps=16, recipe=RECIPE)
        for number, frame in enumerate(frames()):
            yield FrameReady(
                number=number, pixels=Array(data=frame.tobytes(), shape=frame.shape, dtype="uint8")
            )
            if fail and number == 4:
                raise InvalidParameterError("it broke")

    seen: list[Any] = []
    made = write_video(events(False), tmp_path / "a.mp4", report=seen.append)
    assert (made.frames, made.width, made.height, made.fps) == (9, 64, 48, 16)
    assert len(seen) == 10
    with pytest.raises(InvalidParameterError, match="broke"):
        write_video(events(True), tmp_path / "b.mp4")
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


def test_a_long_video_is_written_in_the_memory_of_a_few_frames(tmp_path: Path) -> None:
    frame = np.zeros((480, 832, 3), np.uint8)
    tracemalloc.start()
    try:
        with VideoWriter(tmp_path / "a.mp4", size=(832, 480), fps=16) as writer:
            for number in range(40):
                frame[:] = number
                writer.add(frame)
                if number == 5:
                    early = tracemalloc.get_traced_memory()[0]
        late = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert late - early < 4 * frame.nbytes


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.avi", "does not end"),
        ("none/a.mp4", "cannot be written"),
        ("full", "not empty"),
        ("file", "not a folder"),
    ],
)
def test_a_path_where_no_video_can_go_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidParameterError, match=says):
        VideoWriter(tmp_path / name, size=SIZE, fps=16)
    with pytest.raises(InvalidParameterError, match="no file"):
        VideoWriter("/dev/full", size=SIZE, fps=16)
    assert (tmp_path / "full" / "keep.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_values_that_make_no_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="even sides"):
        VideoWriter(tmp_path / "a.mp4", size=(63, 48), fps=16)
    with pytest.raises(InvalidParameterError, match="crf"):
        VideoWriter(tmp_path / "a.mp4", size=SIZE, fps=16, crf=52)
    with pytest.raises(InvalidParameterError, match="without frames"):
        write(tmp_path / "a.mp4", [])
    with pytest.raises(InvalidParameterError, match="shape"):
        write(tmp_path / "a.mp4", [np.zeros((48, 48, 3), np.uint8)])
    with pytest.raises(InvalidParameterError, match="float32"):
        write(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.float32)])
    assert [*tmp_path.iterdir()] == []


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.mp4", tmp_path / "link.mp4"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write(link, frames(1))
    assert link.is_symlink()
    assert read_recipe(real)


def test_what_holds_no_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no file"):
        read_recipe(tmp_path / "none.mp4")
    with pytest.raises(InvalidParameterError, match="no recipe"):
        read_recipe(write(tmp_path / "a.mp4", frames(1), recipe={}))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(InvalidParameterError, match="cannot be read"):
        read_recipe(tmp_path / "b.mp4")


@pytest.mark.parametrize(
    "comment", ["filmed by the sea", "[" * 100_000, '"mlxengine"'], ids=["words", "deep", "text"]
)
def test_a_comment_of_others_is_no_recipe(comment: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as box:
        track = box.add_stream("libx264", rate=16)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        box.metadata["comment"] = comment
        box.mux(track.encode(av.VideoFrame.from_ndarray(frames(1)[0], format="rgb24")))
        box.mux(track.encode(None))
    with pytest.raises(InvalidParameterError, match="holds no recipe"):
        read_recipe(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "name", ["n" * 260 + ".mp4", "狐" * 90, "a\0b.mp4", "a\0b"], ids=["long", "wide", "zero", "zero-folder"]
)
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="cannot be written"):
        check_target(tmp_path / name)


def test_without_pyav_a_file_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("a.mp4", "a.png"):
        with pytest.raises(BackendUnavailableError, match="PyAV"):
            check_target(tmp_path / name)
    assert check_target(tmp_path / "frames").name == "frames"


def test_a_video_in_memory_is_saved_like_one_that_is_streamed(tmp_path: Path) -> None:
    arrays = tuple(Array(data=item.tobytes(), shape=item.shape, dtype="uint8") for item in frames())
    video = Video(frames=arrays, fps=16, recipe=RECIPE)
    assert (video.size, video.seconds, video.numpy().shape) == ((64, 48), 9 / 16, (9, 48, 64, 3))
    saved = video.save(tmp_path / "a.mp4")
    assert saved.read_bytes() == write(tmp_path / "b.mp4", frames()).read_bytes()
    assert threading.active_count() < 20
