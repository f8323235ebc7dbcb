"""The hub's API: documents in JSON, a page at a time, asked for until they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..errors import HubUnavailableError, MLXEngineError
from .access import Access, Cancelled, Policy, never
from .names import read_json
from .patience import Patience
from .secrets import redact
from .transport import Answer, get, home_of, origin
from .wire import Trouble

_MOST_ANSWER_BYTES = 64 << 20
_MOST_UNREACHABLE = 4
_NEXT = re.compile(r"<([^<>]*)>[^<]*;\s*rel=\"?next\b")


def get_json(
    access: Access,
    path: str,
    *,
    repo: str,
    params: str = "",
    policy: Policy | None = None,
    cancelled: Cancelled = never,
) -> Any:
    """Ask the hub's API, with retries; returns the decoded answer.

    Raises:
        HubUnavailableError: it could not be reached, or did not answer with JSON.
        MLXEngineError: what it refused, with its type.
    """
    return get_page(
        access, f"{access.endpoint}{path}{params}", repo=repo, policy=policy, cancelled=cancelled
    )[0]


def get_page(
    access: Access, url: str, *, repo: str, policy: Policy | None = None, cancelled: Cancelled = never
) -> tuple[Any, str | None]:
    """Like `get_json` for a whole address; also returns the address of the next page, if the hub has one."""
    policy = policy or access.policy
    patience = Patience(policy, cancelled)
    unreachable = 0
    while True:
        try:
            with get(access, url, repo=repo, policy=policy, cancelled=cancelled) as answer:
                data = b"".join(_limited(answer))
                following = _following(access, answer.headers.get("link", ""))
            break
        except Trouble as problem:
            unreachable += problem.unreachable
            final = HubUnavailableError(
                f"{redact(access.endpoint)} could not be asked about {repo}: {problem.reason}.",
                hint="Check the network and the endpoint; a model that is ready loads with offline=True.",
            )
            if unreachable >= _MOST_UNREACHABLE:
                raise final from problem.__cause__
            patience.failed(problem, final)
    try:
        return read_json(data, f"The answer of {redact(url)}"), following
    except MLXEngineError as error:
        raise HubUnavailableError(
            f"{redact(access.endpoint)} did not answer as a hub does: {error.message}",
            hint="Check the endpoint.",
            recoverable=False,
        ) from error


def _following(access: Access, link: str) -> str | None:
    """The address of the next page, by a ``Link`` header (RFC 8288); only on the hub itself."""
    match = _NEXT.search(link)
    try:
        return match[1] if match is not None and origin(match[1]) == home_of(access) else None
    except ValueError:
        return None


def _limited(answer: Answer) -> Iterator[bytes]:
    count = 0
    for chunk in answer.chunks():
        count += len(chunk)
        if count > _MOST_ANSWER_BYTES:
            raise HubUnavailableError(f"The hub's answer is longer than {_MOST_ANSWER_BYTES} bytes.")
        yield chunk
