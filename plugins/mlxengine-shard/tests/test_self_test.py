"""The plugin's part of ``mlxengine doctor --self-test``, and what ranks on CUDA need."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from attrs import evolve
from mlxengine import Device, SelfTestContext
from mlxengine.errors import FeatureUnavailableError
from mlxengine_shard import _self_test, plugin
from mlxengine_shard._transport import transport_of
from shard_harness import running


def test_two_ranks_say_what_one_says(tmp_path: Path) -> None:
    (check,) = plugin.self_test(SelfTestContext(folder=tmp_path, device=Device.detect()))
    assert (check.status, check.name) == ("ok", "ranks")
    assert "over two ranks" in check.detail
    assert running() == []


@pytest.mark.parametrize(
    ("part", "lie", "told"),
    [("_whole", lambda _: [1, 2, 3], "change tokens"), ("_spread", lambda *_: 1 / 0, "ZeroDivisionError")],
)
def test_what_goes_wrong_is_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, lie: object, told: str
) -> None:
    monkeypatch.setattr(_self_test, "_spread", lambda *_: [4, 5, 6])
    monkeypatch.setattr(_self_test, part, lie)
    (check,) = plugin.self_test(SelfTestContext(folder=tmp_path, device=Device.detect()))
    assert check.status == "failed"
    assert told in check.detail


def test_on_cuda_each_rank_needs_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_count", lambda _: 1)
    with pytest.raises(FeatureUnavailableError, match="2 ranks need 2 CUDA devices, and this process sees 1"):
        transport_of("cuda", 2)
    device = evolve(Device.detect(), backend="cuda")
    (check,) = plugin.self_test(SelfTestContext(folder=tmp_path, device=device))
    assert check.status == "ok"
    assert "not run" in check.detail
    monkeypatch.setattr(mx, "device_count", lambda _: 2)
    assert transport_of("cuda", 2) == "nccl"
