"""Jobs over replicas with a real Ray: ``make test-ray`` runs them, in an environment of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import ray
from deadly import install
from mlxengine import InferenceEngine
from mlxengine_ray import BatchModel, Embed
from ray_processes import cluster, listening_elsewhere, wait_for_the_end

REPLICAS = 2


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    folder = tmp_path_factory.mktemp("deadly")
    return install(folder), folder / "model"


def texts(path: Path, count: int, deadly: tuple[int, ...] = ()) -> Path:
    rows = [{"text": f"the {'kill' if n in deadly else 'text'} {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(source: Path, out: Path, model: Path) -> list[str]:
    words = ["batch", "--json", "-q", source, out, "--model", model, "--replicas", REPLICAS]
    return [sys.executable, "-m", "mlxengine", *map(str, words)]


def results(out: Path) -> list[dict[str, Any]]:
    parts = sorted(out.glob("part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


def journaled(out: Path) -> list[dict[str, Any]]:
    rows = []
    for path in [*out.glob(".journal/*.jsonl"), *out.glob("part-*")]:
        with contextlib.suppress(FileNotFoundError):  # it has become a part
            rows += [
                json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-2:] == "}\n"
            ]
    return rows


def wait_for(out: Path, count: int, running: subprocess.Popen[str]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 240
    while len(found := journaled(out)) < count:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def check_whole(found: list[dict[str, Any]], count: int, deadly: tuple[int, ...] = ()) -> None:
    assert [row["row"] for row in found] == list(range(count))
    assert [row["row"] for row in found if "error" in row] == list(deadly)
    for row in found:
        if "error" not in row:
            assert row["vector"][0] == len(f"the text {row['row']}")


def test_rows_that_kill_their_worker_are_found_and_a_worker_that_is_shot_loses_nothing(
    tmp_path: Path, environment: tuple[dict[str, str], Path]
) -> None:
    variables, model = environment
    deadly = (300, 1700)
    source, out = texts(tmp_path / "t.jsonl", 2000, deadly), tmp_path / "out"
    with subprocess.Popen(
        job(source, out, model), env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        found = wait_for(out, 200, running)
        shot = int(next(row["vector"][1] for row in found if "vector" in row))
        os.kill(shot, signal.SIGKILL)
        told, errors = running.communicate(timeout=400)
    assert running.returncode == 0, errors
    value = json.loads(told)
    assert (value["rows"], value["errors"]) == (2000, 2)
    check_whole(results(out), 2000, deadly)
    assert all("ended the process" in row["error"]["message"] for row in results(out) if "error" in row)
    workers = Counter(row["vector"][1] for row in results(out) if "vector" in row)
    assert len(workers) > REPLICAS  # replacements
    assert sorted(workers.values())[-2] > 200  # both replicas had their share


def test_a_driver_that_is_killed_goes_on_where_it_was_and_leaves_no_process(
    tmp_path: Path, environment: tuple[dict[str, str], Path]
) -> None:
    variables, model = environment
    source, out = texts(tmp_path / "t.jsonl", 3000), tmp_path / "out"
    words = job(source, out, model)
    with subprocess.Popen(
        words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        found = wait_for(out, 600, running)
        running.kill()
    left = {row["row"] for row in journaled(out)}
    assert 600 <= len(left) < 3000
    workers = {int(row["vector"][1]) for row in found}
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.2)
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["rows"], value["errors"], value["resumed"]) == (3000, 0, len(left))
    check_whole(results(out), 3000)


def test_a_model_that_no_replica_can_load_is_said_by_its_own_error(
    tmp_path: Path, environment: tuple[dict[str, str], Path]
) -> None:
    variables, model = environment
    words = [
        *job(texts(tmp_path / "t.jsonl", 3), tmp_path / "out", model),
        "--plugin",
        "nobody",
        "--task",
        "embed",
    ]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False, timeout=240)
    assert json.loads(done.stdout)["error"]["type"] == "NoPluginForModelError", done.stderr
    assert done.returncode == 3


INTRUDER = "import ray; ray.init(address='auto', log_to_driver=False); print('in', len(ray.nodes()))"


def gets_in(seconds: float, **variables: str) -> bool:
    """Whether somebody with these variables can use the cluster on this machine within so many seconds."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", INTRUDER],
            env={**clean, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:  # it asks again and again
        return False
    return "in 1" in done.stdout


def test_a_cluster_of_a_job_s_own_is_on_loopback_and_lets_nobody_in_without_its_token(
    tmp_path: Path, environment: tuple[dict[str, str], Path]
) -> None:
    variables, model = environment
    source, out = texts(tmp_path / "t.jsonl", 600), tmp_path / "out"
    source.write_text(source.read_text() + '{"text": "a slow one"}\n' * 100)
    with subprocess.Popen(
        job(source, out, model), env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        wait_for(out, 200, running)
        [server] = [name for name in cluster() if "gcs_server" in name]
        assert listening_elsewhere() == []
        environ = Path("/proc", server.split()[0], "environ").read_bytes().decode().split("\0")
        token = dict(item.split("=", 1) for item in environ if "=" in item)["RAY_AUTH_TOKEN"]
        began = time.monotonic()
        assert gets_in(120, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        took = time.monotonic() - began
        assert not gets_in(2 * took)
        assert not gets_in(2 * took, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * len(token))
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
    wait_for_the_end()


def test_ray_data_maps_batches_over_the_actor_class() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        rows = [{"text": f"text {n}", "id": n} if n % 10 else {"text": None, "id": n} for n in range(200)]
        found = (
            ray.data.from_arrow(pyarrow.Table.from_pylist(rows))
            .repartition(4)
            .map_batches(
                BatchModel,
                batch_format="pyarrow",
                batch_size=32,
                concurrency=1,
                fn_constructor_args=("mock/embed", Embed()),
                fn_constructor_kwargs={"features": {"core.mock": True}},
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    assert sorted(row["id"] for row in found) == list(range(200))
    assert {row["id"] for row in found if row["error"] is not None} == set(range(0, 200, 10))
    with InferenceEngine(backend="mock") as engine:
        wanted = engine.load_embeddings("mock/embed").embed(["text 77"]).numpy()[0].tolist()
    [row] = [row for row in found if row["id"] == 77]
    assert list(row["vector"]) == wanted
