"""How the hub is reached, how patiently, and where its files are kept."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

from attrs import field, frozen

from ..errors import CancelledError


@frozen(kw_only=True)
class Policy:
    """Time-outs and retries. Times are seconds.

    Args:
        connect: longest wait for a connection.
        read: longest silence of the other side.
        attempts: failures in a row, without a byte of progress between them, after which a call gives up.
        base: upper bound of the first wait; it doubles with each failure in a row (full jitter:
            the wait is drawn between zero and the bound, https://aws.amazon.com/blogs/architecture/
            exponential-backoff-and-jitter/).
        cap: longest wait of our own choice.
        longest_retry_after: longest wait that a server may ask of us.
        workers: files fetched at once.
        chunk: most bytes between two looks at "cancelled", and most that a killed process loses.
        xet_above: bytes above which a file goes through huggingface_hub's own Xet path.
        corrupt_attempts: how often a file whose content is wrong is fetched from its beginning.
    """

    connect: float = 10.0
    read: float = 10.0
    attempts: int = 9
    base: float = 0.2
    cap: float = 30.0
    longest_retry_after: float = 120.0
    workers: int = 8
    chunk: int = 1 << 20
    xet_above: int = 50_000_000_000
    corrupt_attempts: int = 3


QUICK = Policy(connect=0.4, read=0.6, attempts=1)
"""For asking whether a model that is ready has become newer: nobody waits for that."""


@frozen(kw_only=True)
class Access:
    """One caller's way to a hub and a cache.

    Args:
        endpoint: the hub's address, without a slash at its end.
        cache_dir: huggingface_hub's cache folder.
        token: sent to ``endpoint`` alone; ``None`` uses the saved one, if there is one.
        offline: whether no request may be made.
    """

    endpoint: str
    cache_dir: Path
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    policy: Policy = field(factory=Policy)

    @classmethod
    def of(
        cls,
        *,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Access:
        """What the caller gave, completed from the environment as huggingface_hub reads it."""
        from huggingface_hub import constants

        return cls(
            endpoint=(endpoint or constants.ENDPOINT).rstrip("/"),
            cache_dir=Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve(),
            token=token,
            offline=offline or offline_by_default() or bool(constants.is_offline_mode()),
            policy=Policy(
                connect=min(10.0, constants.HF_HUB_DOWNLOAD_TIMEOUT), read=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ),
        )


def offline_by_default() -> bool:
    """Whether ``HF_HUB_OFFLINE`` asks for no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true")


Cancelled = Callable[[], bool]


def never() -> bool:
    """Nobody cancels."""
    return False


def pause(seconds: float, cancelled: Cancelled) -> None:
    """Wait, in slices short enough for a cancel to be felt at once.

    Raises:
        CancelledError: the caller gave up.
    """
    end = time.monotonic() + seconds
    while True:
        if cancelled():
            raise CancelledError("The download was cancelled.", hint="The next call resumes it.")
        left = end - time.monotonic()
        if left <= 0:
            return
        threading.Event().wait(min(left, 0.05))


def backoff(policy: Policy, failures: int) -> float:
    """Seconds to wait after so many failures in a row (1 is the first): full jitter."""
    return random.uniform(0, min(policy.cap, policy.base * 2 ** (failures - 1)))


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or a date), or ``None``."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def redact(url: object) -> str:
    """An address without user, password and query: signed addresses and tokens stay out of messages."""
    return re.sub(r"//[^/@]*@", "//", str(url)).partition("?")[0]
