"""The command-line verbs of the hub: what they print, ask, remove, and the codes that they end with."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlxengine import hub as public
from mlxengine.cli import main
from mlxengine.cli._hub_verbs import parse_bytes
from mlxengine.errors import InvalidParameterError

from tests.hub.server import HubServer, User
from tests.hub.tiny import safetensors

FILES: dict[str, Any] = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": safetensors({"w": 3_000_000}),
    "README.md": b"not fetched",
}
META = {"tags": ["mlx", "license:mit"], "pipeline_tag": "text-generation", "downloads": 7}


@pytest.fixture
def served(hub: HubServer, hub_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    hub.repos.add("org/name-1B-4bit", FILES, meta=META)
    settings = tmp_path / "mlxengine.toml"
    settings.write_text(f'[hub]\nendpoint = "{hub.endpoint}"\n')
    monkeypatch.setenv("MLXENGINE_CONFIG", str(settings))
    return hub


NAME = "org/name-1B-4bit"


def _json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    return json.loads(shown.out)


def test_search_shows_size_and_fit(served: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    served.repos.add("org/other", FILES, meta={"tags": ["gguf"], "downloads": 900})
    (found,) = _json(capsys, "search", "NAME")["models"]
    assert (found["id"], found["kind"], found["quantization"], found["fit"]) == (NAME, "llm", "4bit", "fits")
    assert (found["parameters"], found["weight_bytes"], found["license"]) == (1e9, 3_000_000, "mit")
    assert [m["id"] for m in _json(capsys, "search", "--any-library")["models"]] == ["org/other", NAME]
    assert _json(capsys, "search", "--max-size", "2MB")["models"] == []
    assert main(["search"]) == 0
    assert "2.9 MiB" in capsys.readouterr().out


def test_pull_fetches_what_a_model_needs_and_prints_its_folder(
    served: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", NAME]) == 0
    shown = capsys.readouterr()
    folder = Path(shown.out.strip())
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert "2 files" in shown.err
    again = _json(capsys, "pull", NAME)
    assert (again["path"], again["fetched"]) == (str(folder), 0)


def test_pull_with_a_plan_fetches_no_weights(served: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "pull", NAME, "--plan")
    assert found["total"] == len(FILES["model.safetensors"]) + len(FILES["config.json"])
    assert served.log.bytes() < 200_000
    assert _json(capsys, "verify") == {"ok": True, "models": []}
    (report,) = _json(capsys, "verify", NAME, code=4)["models"]
    assert "completed" in report["problem"]
    assert main(["ls"]) == 0
    assert "incomplete" in capsys.readouterr().out


def test_pull_asks_above_the_size_that_the_user_set(
    served: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = _json(capsys, "pull", NAME, "--ask-above", "1MB", code=2)["error"]
    assert "--yes" in error["hint"]
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["pull", NAME, "--ask-above", "1MB"]) == 0
    shown = capsys.readouterr()
    assert "Fetch" in shown.err
    assert shown.out == ""
    assert not public.list_local()[0].ready
    assert _json(capsys, "pull", NAME, "--ask-above", "1MB", "--yes")["fetched"] > 2_000_000


@pytest.mark.parametrize("words", [("run", "hello", "-m", NAME), ("setup", "-m", NAME)])
def test_what_loads_a_model_asks_in_the_same_way_before_it_fetches(
    served: HubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
) -> None:
    settings = tmp_path / "asking.toml"
    settings.write_text(f'[hub]\nendpoint = "{served.endpoint}"\nask_above = "1MB"\n')
    monkeypatch.setenv("MLXENGINE_CONFIG", str(settings))
    error = _json(capsys, *words, code=2)["error"]
    assert "--yes" in error["hint"]
    assert served.log.bytes() < 200_000


def test_pull_shows_each_retry_with_its_reason(served: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    served.faults.add("reset", "model.safetensors", after=1_000_000, skip=1)
    assert main(["pull", NAME]) == 0
    err = capsys.readouterr().err
    assert "trying again" in err
    assert "100%" in err


def test_each_failure_has_the_exit_code_of_its_kind(
    served: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    served.repos.add("org/gated", FILES, gated="manual")
    assert _json(capsys, "pull", "not a name", code=2)["error"]["type"] == "InvalidModelRefError"
    assert _json(capsys, "pull", "org/none", code=3)["error"]["type"] == "ModelNotFoundError"
    gated = _json(capsys, "pull", "org/gated", code=3)["error"]
    assert gated["type"] == "GatedModelError"
    assert f"{served.endpoint}/org/gated" in gated["hint"]
    served.faults.add("corrupt", "model.safetensors", offset=-1, times=None)
    assert _json(capsys, "pull", NAME, code=4)["error"]["type"] == "CorruptFileError"


def test_damage_is_found_by_verify_and_put_right_by_repair(
    served: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = public.fetch(NAME, endpoint=served.endpoint)
    blob = (folder / "model.safetensors").resolve()
    assert _json(capsys, "verify")["ok"]
    found = blob.stat()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert _json(capsys, "verify", NAME)["ok"]
    assert not _json(capsys, "verify", NAME, "--deep", code=4)["ok"]
    assert main(["verify", NAME, "--deep"]) == 4
    assert "corrupt    model.safetensors" in capsys.readouterr().out
    served.log.clear()
    assert _json(capsys, "repair", NAME)["repaired"] == ["model.safetensors"]
    assert served.log.bytes() == len(FILES["model.safetensors"])
    assert _json(capsys, "verify", NAME, "--deep")["ok"]
    assert _json(capsys, "repair", NAME)["repaired"] == []


def test_ls_and_du_show_what_is_here_and_rm_what_it_frees(
    served: HubServer, capsys: pytest.CaptureFixture[str], hub_home: Path
) -> None:
    assert _json(capsys, "ls")["models"] == []
    public.fetch(NAME, endpoint=served.endpoint)
    size = len(FILES["model.safetensors"]) + len(FILES["config.json"])
    (model,) = _json(capsys, "ls")["models"]
    assert (model["id"], model["size"], model["revisions"][0]["refs"]) == (NAME, size, ["main"])
    assert main(["ls"]) == 0
    assert "ready" in capsys.readouterr().out
    assert _json(capsys, "du")["total"] == size
    assert _json(capsys, "rm", NAME, "--dry-run")["freed"] == size
    assert _json(capsys, "rm", NAME, code=2)["error"]["hint"] == "Add --yes."
    assert _json(capsys, "rm", NAME, "--yes")["freed"] == size
    assert _json(capsys, "ls")["models"] == []
    assert not [path for path in hub_home.rglob("*") if path.is_file()]
    assert _json(capsys, "rm", NAME, code=3)["error"]["type"] == "ModelNotFoundError"


def test_removing_a_revision_keeps_what_another_one_uses(
    served: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    public.fetch(NAME, endpoint=served.endpoint)
    old = served.repos[NAME].refs["main"]
    served.repos[NAME].commit({"config.json": b'{"model_type": "newer"}'})
    public.fetch(NAME, endpoint=served.endpoint)
    assert _json(capsys, "rm", f"{NAME}@{old}", "--yes")["freed"] == len(FILES["config.json"])
    assert public.verify(NAME, deep=True).ok
    (model,) = public.list_local()
    assert len(model.revisions) == 1


def test_a_token_is_in_no_output(
    served: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "hf_canary_9876543210"
    monkeypatch.setenv("HF_TOKEN", canary)
    served.users[canary] = User("me")
    served.repos.add("org/gated", FILES, gated="manual")
    for words in (
        ["pull", "org/gated", "-vv"],
        ["pull", "org/gated", "--json"],
        ["pull", "org/none", "-vv"],
        ["search", "-vv"],
        ["ls", "--json"],
        ["verify", "--deep", "--json"],
    ):
        main(words)
    served.users.clear()
    served.repos.add("org/closed", FILES, gated="manual")
    assert main(["pull", "org/closed", "-vv", "--json"]) == 3
    assert main(["pull", "org/closed", "-vv"]) == 3
    shown = capsys.readouterr()
    assert canary not in shown.out + shown.err


def test_control_c_ends_a_pull_with_130_within_a_second_and_it_goes_on(
    served: HubServer, hub_home: Path
) -> None:
    served.faults.add("slow", "model.safetensors", rate=1 << 20, times=None)
    command = [
        sys.executable,
        "-c",
        "import sys; from mlxengine.cli import main; sys.exit(main())",
        "pull",
        NAME,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while served.log.bytes() < 1_500_000:
        assert process.poll() is None
        time.sleep(0.01)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - start < 1.5
    assert "Traceback" not in shown
    served.faults.clear()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert served.log.bytes("model.safetensors") <= len(FILES["model.safetensors"]) + (1 << 20)


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("2 GiB", 2**31), ("1.5k", 1500), ("7", 7), ("1TB", 10**12)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(InvalidParameterError):
        parse_bytes("large")
