"""What strangers wrote cannot move the terminal, or look like something else."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlxengine._hub.names import problem_with
from mlxengine._shown import in_json, shown, spoken, unshowable
from mlxengine.cli import main
from mlxengine.cli._frame import _log_to_stderr
from mlxengine.cli._output import Output, tell
from mlxengine.errors import CorruptFileError, MLXEngineError

HIDDEN = {
    "a bidirectional override": "\u202e",
    "a bidirectional embedding": "\u202b",
    "a bidirectional isolate": "\u2067",
    "a right-to-left mark": "\u200f",
    "an Arabic letter mark": "\u061c",
    "a zero-width space": "\u200b",
    "a zero-width joiner": "\u200d",
    "a word joiner": "\u2060",
    "a byte order mark": "\ufeff",
    "a soft hyphen": "\xad",
    "CSI of C1": "\x9b",
    "a next line of C1": "\x85",
    "a string terminator of C1": "\x9c",
    "ESC": "\x1b",
    "a carriage return": "\r",
    "a backspace": "\b",
    "DEL": "\x7f",
    "a line separator": "\u2028",
    "a tag character": "\U000e0041",
    "a filler of Hangul": "\u3164",
    "a half-width filler": "\uffa0",
    "the empty Braille cell": "\u2800",
    "an interlinear anchor": "\ufff9",
    "half a character": "\ud83d",
}
SEEN = [
    "config.json",
    "naïve.json",
    "模型.json",
    "نموذج.json",
    "דגם.json",
    "модель.json",
    "a b.json",
    "🤗.json",
    "①.json",
]
SPACED = ["Screen\u202fShot.png", "a\u00a0b.png", "❤\ufe0f.png", "全\u3000角.png", "\ue000.png"]


@pytest.mark.parametrize("what", HIDDEN)
def test_a_name_that_cannot_be_shown_is_refused(what: str) -> None:
    for name in (f"a{HIDDEN[what]}b.json", f"{HIDDEN[what]}config.json", f"folder{HIDDEN[what]}/config.json"):
        assert problem_with(name)


@pytest.mark.parametrize("name", [*SEEN, *SPACED])
def test_a_name_that_can_be_seen_is_kept(name: str) -> None:
    assert problem_with(name) is None


@pytest.mark.parametrize("name", SEEN)
def test_what_can_be_seen_is_shown_as_it_is(name: str) -> None:
    assert shown(name) == spoken(name) == in_json(name) == name


@pytest.mark.parametrize("name", SPACED)
def test_what_looks_like_something_else_is_shown_by_its_escape(name: str) -> None:
    assert shown(name) != name
    assert "\\" in shown(name)


@given(st.text(st.characters()))
def test_nothing_that_is_shown_can_be_hidden_or_move_anything(text: str) -> None:
    assert all(line.isprintable() for line in shown(text).split("\n"))
    assert not unshowable(shown(text).replace("\n", ""))
    assert shown(shown(text)) == shown(text)
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t" for c in spoken(text))
    assert in_json(json.dumps(text, ensure_ascii=False)).isprintable()
    assert json.loads(in_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize("what", [what for what in HIDDEN if what != "half a character"])
def test_no_way_out_of_the_command_line_lets_it_through(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    character = HIDDEN[what]
    name = f"before{character}after"
    out = Output()
    out.line(name)
    out.table((name,), [(name,), (Path(name),)])
    out.paragraph(name)
    out.note(name)
    tell(name)
    out.value({name: [name]})
    out.fail(CorruptFileError(name, hint=name), 4)
    out.fail(ValueError(name), 1)
    out.configure(json=True, quiet=False)
    out.fail(CorruptFileError(name, hint=name), 4)
    _log_to_stderr(2)
    logger = logging.getLogger("mlxengine")
    try:
        logger.warning("%s", name)
        out.configure(json=False, quiet=False)
        out.fail(ValueError(name), 1)  # with its traceback
    finally:
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    written = capsys.readouterr()
    for text in (written.out, written.err):
        assert "after" in text
        assert character not in text


@pytest.mark.parametrize("what", [what for what in HIDDEN if unicodedata.category(HIDDEN[what]) == "Cc"])
def test_what_a_model_says_cannot_move_the_terminal(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    Output().write(f"before{HIDDEN[what]}2Jafter\n\tand 👩‍💻 می‌خواهم")
    written = capsys.readouterr().out
    assert HIDDEN[what] not in written
    assert written.endswith("2Jafter\n\tand 👩‍💻 می‌خواهم")


@pytest.mark.parametrize("what", HIDDEN)
def test_an_error_shows_it_as_an_escape(what: str) -> None:
    name = f"before{HIDDEN[what]}after"
    error = MLXEngineError(f"There is no {name}.", hint=f"Look for {name}.")
    for text in (str(error), error.message, error.hint or "", repr(error)):
        assert HIDDEN[what] not in text
        assert "after" in text


@pytest.mark.parametrize("what", [what for what in HIDDEN if what != "half a character"])
def test_a_folder_of_such_a_name_is_shown_as_an_escape(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"a{HIDDEN[what]}b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    main(["verify", str(folder)])
    main(["verify", str(folder / "gone")])
    written = capsys.readouterr()
    assert HIDDEN[what] not in written.out + written.err
    assert "a\\" in written.out
