"""How the hub is reached, how patiently, and where its files are kept."""

from __future__ import annotations

import math
import os
import random
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import ModuleType

from attrs import field, frozen

from ..errors import CancelledError, InvalidParameterError
from .secrets import checked_token, forms, split_userinfo


@frozen(kw_only=True)
class Policy:
    """Time-outs and retries. Times are seconds.

    Args:
        connect: longest wait for a connection.
        read: longest silence of the other side.
        answer: longest time that one request may take,
        slowest: but for what it has brought already, at so many bytes a second.
        attempts: failures in a row after which a call gives up; one that brought bytes at more than the
            slowest rate starts the count anew.
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
    answer: float = 30.0
    slowest: float = 1024.0
    attempts: int = 9
    base: float = 0.2
    cap: float = 30.0
    longest_retry_after: float = 120.0
    workers: int = 8
    chunk: int = 1 << 20
    xet_above: int = 50_000_000_000
    corrupt_attempts: int = 3


QUICK = Policy(connect=0.4, read=0.6, answer=0.8, slowest=math.inf, attempts=1)
"""For asking whether a model that is ready has become newer: nobody waits for that."""

BRIEF = Policy(connect=0.4, read=0.6, answer=1.0, slowest=1 << 16, attempts=2, longest_retry_after=1.0)
"""For what the newer one consists of: if that does not come soon, what is ready is used as it is."""


@frozen(kw_only=True)
class Access:
    """One caller's way to a hub and a cache.

    Args:
        endpoint: the hub's address, without a slash at its end, and without user and password.
        userinfo: the user and the password that stood in the address; sent to ``endpoint`` alone.
        cache_dir: huggingface_hub's cache folder.
        token: sent to ``endpoint`` alone; ``None`` uses the saved one, if there is one.
        offline: whether no request may be made.
    """

    endpoint: str
    cache_dir: Path
    token: str | None = field(default=None, repr=False)
    userinfo: str | None = field(default=None, repr=False)
    offline: bool = False
    policy: Policy = field(factory=Policy)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        return (*filter(None, (self.token,)), *(forms(self.userinfo) if self.userinfo else ()))

    @classmethod
    def of(
        cls,
        *,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Access:
        """What the caller gave, completed from the environment as huggingface_hub reads it.

        Raises:
            InvalidParameterError: the token cannot be one, or a variable of huggingface_hub's cannot be read.
        """
        constants = _constants()
        address, userinfo = split_userinfo((endpoint or constants.ENDPOINT).strip().rstrip("/"))
        return cls(
            endpoint=address,
            userinfo=userinfo,
            cache_dir=Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve(),
            token=checked_token(token, "token="),
            offline=offline or offline_by_default() or bool(constants.is_offline_mode()),
            policy=usual_policy(),
        )


def _constants() -> ModuleType:
    try:
        from huggingface_hub import constants
    except ValueError as error:  # it reads numbers from the environment while it is imported
        raise InvalidParameterError(
            f"huggingface_hub cannot read its variables: {error}.", hint="Look at those that begin with HF_."
        ) from error
    found: ModuleType = constants
    return found


def usual_policy() -> Policy:
    """The policy for what somebody waits for; ``HF_HUB_DOWNLOAD_TIMEOUT`` is the longest silence."""
    silence = float(_constants().HF_HUB_DOWNLOAD_TIMEOUT)
    if not silence > 0:
        raise InvalidParameterError(f"HF_HUB_DOWNLOAD_TIMEOUT={silence:g} must be above 0.")
    return Policy(connect=min(10.0, silence), read=silence, answer=max(Policy().answer, 3 * silence))


def offline_by_default() -> bool:
    """Whether ``HF_HUB_OFFLINE`` asks for no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true")


Cancelled = Callable[[], bool]
SLICE = 0.05
"""Seconds between two looks at whether the caller gave up."""


def never() -> bool:
    """Nobody cancels."""
    return False


def check(cancelled: Cancelled) -> None:
    """Let go if the caller gave up.

    Raises:
        CancelledError: it did.
    """
    if cancelled():
        raise CancelledError("The download was cancelled.", hint="The next call resumes it.")


def pause(seconds: float, cancelled: Cancelled) -> None:
    """Wait, in slices short enough for a cancel to be felt at once.

    Raises:
        CancelledError: the caller gave up.
    """
    end = time.monotonic() + seconds
    while True:
        check(cancelled)
        left = end - time.monotonic()
        if left <= 0:
            return
        threading.Event().wait(min(left, SLICE))


def backoff(policy: Policy, failures: int) -> float:
    """Seconds to wait after so many failures in a row (1 is the first): full jitter."""
    return random.uniform(0, min(policy.cap, policy.base * 2 ** (failures - 1)))


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or a date), or ``None`` if it says neither."""
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+", text):
        return float(text) if len(text) < 10 else math.inf
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, LookupError, OverflowError, OSError):
        return None
