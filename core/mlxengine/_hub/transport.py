"""Requests to the hub: one at a time, redirects followed by hand, every failure given a type."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from attrs import frozen

from .._version import __version__
from ..errors import (
    CorruptFileError,
    DownloadError,
    GatedModelError,
    HubAuthError,
    HubUnavailableError,
    MLXEngineError,
    ModelNotFoundError,
    OfflineError,
    RateLimitedError,
)
from .access import Access, Cancelled, Policy, backoff, never, pause, redact, retry_after
from .names import read_json

log = logging.getLogger("mlxengine.hub")

_MOST_REDIRECTS = 8
_SMALL = 64 << 10
_MOST_ANSWER_BYTES = 64 << 20
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class Passing(Exception):
    """A failure that may pass: the request is worth making again.

    Args:
        reason: what happened, for people.
        wait: seconds that the server asks us to wait.
        final: the error to end with when patience is used up.
    """

    def __init__(
        self, reason: str, *, wait: float | None = None, final: MLXEngineError | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.final = reason, wait, final


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


def same_origin(first: str, second: str) -> bool:
    """Whether two addresses have one scheme, host and port."""
    return _origin(first) == _origin(second)


@frozen(kw_only=True, eq=False)
class Answer:
    """A response whose body has not been read. ``direct`` says that the hub itself answered."""

    response: Any
    direct: bool

    @property
    def status(self) -> int:
        return int(self.response.status_code)

    @property
    def headers(self) -> Mapping[str, str]:
        headers: Mapping[str, str] = self.response.headers
        return headers

    @property
    def length(self) -> int:
        """Bytes of the body; -1 where the answer does not say."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else -1

    def disconnect(self) -> None:
        """Wake up a thread that is waiting for this body, from another thread."""
        import socket

        stream = self.response.extensions.get("network_stream")
        raw = stream.get_extra_info("socket") if stream is not None else None
        if raw is not None:
            try:
                raw.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


@contextmanager
def get(
    access: Access, url: str, *, repo: str, policy: Policy, headers: Mapping[str, str] | None = None
) -> Iterator[Answer]:
    """Make one GET request and follow its redirects; the token goes to the endpoint's origin alone.

    Raises:
        Passing: a transport error, or 408, 429 or 5xx, or a refusal by another origin than the hub's
            (an expired signed address: asking the hub again brings a new one).
        MLXEngineError: what will not pass, with its type.
    """
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    if access.offline:
        raise OfflineError(f"{redact(url)} was not asked: the network is off.", hint="Turn offline mode off.")
    home = _origin(access.endpoint)
    plain = {"Accept-Encoding": "identity", "User-Agent": f"mlxengine/{__version__}", **(headers or {})}
    token = _token(access)
    signed = {**plain, "Authorization": f"Bearer {token}"} if token else plain
    try:
        for _ in range(_MOST_REDIRECTS):
            direct = _origin(url) == home
            session = get_session()
            request = session.build_request(
                "GET",
                url,
                headers=signed if direct else plain,
                timeout=(policy.connect, policy.read, policy.read, policy.connect),
            )
            if not direct:
                request.headers.pop("authorization", None)
                request.headers.pop("cookie", None)
            response = session.send(request, stream=True, follow_redirects=False)
            try:
                answer = Answer(response=response, direct=direct)
                if response.has_redirect_location:
                    if 0 <= answer.length <= _SMALL:
                        response.read()  # so that the connection can be used again
                    url = urljoin(url, response.headers["location"])
                    if urlsplit(url).scheme not in ("http", "https"):
                        raise Passing(f"it was sent on to {redact(url)}")
                    continue
                if answer.status >= 400:
                    _refuse(answer, access, repo)
                yield answer
                return
            finally:
                response.close()
        raise Passing(f"more than {_MOST_REDIRECTS} redirects from {redact(access.endpoint)}")
    except OfflineModeIsEnabled as error:
        raise OfflineError(f"{repo} was not asked for: HF_HUB_OFFLINE is set.", hint="Unset it.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise Passing(f"{type(error).__name__}: {error or 'the connection failed'}") from error


def _token(access: Access) -> str | None:
    """The token to send: the caller's, else the saved one unless the user forbade that.

    huggingface_hub's ``build_hf_headers`` would do, but makes a request of its own to another address.
    """
    from huggingface_hub import constants, get_token

    if access.token is not None:
        return access.token
    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _refuse(answer: Answer, access: Access, repo: str) -> None:
    """Turn an answer of 400 or more into an exception."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import hf_raise_for_status

    status, where = answer.status, redact(access.endpoint)
    if status in _AGAIN or not answer.direct:
        asked = retry_after(answer.headers.get("retry-after"))
        final = RateLimitedError(f"{where} limits requests for {repo}.") if status == 429 else None
        raise Passing(f"status {status}", wait=asked, final=final)
    answer.response.read()
    try:
        hf_raise_for_status(answer.response)
    except GatedRepoError as error:  # a subclass of RepositoryNotFoundError, so it comes first
        raise GatedModelError(
            f"{repo} is gated: its terms must be accepted by the owner of the token.",
            hint=f"Accept them at {where}/{repo}, then pass the token (token=, HF_TOKEN or `hf auth login`).",
        ) from error
    except (RepositoryNotFoundError, DisabledRepoError) as error:
        raise ModelNotFoundError(
            f"{where} has no repository {repo} that this token may see.",
            hint="Check the spelling; a private repository needs a token.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repo} has no such revision.", hint="Check the part after '@'.") from error
    except EntryNotFoundError as error:
        raise ModelNotFoundError(f"{repo} lacks a file that its own listing names.") from error
    except HfHubHTTPError as error:
        if status in (401, 403):
            raise HubAuthError(
                f"{where} refused the request for {repo} (status {status}).",
                hint="Check the token: it may be wrong, expired, or not allowed to read this repository.",
            ) from error
        if status == 416:
            raise CorruptFileError(f"{where} has fewer bytes of a file of {repo} than it says.") from error
        raise HubUnavailableError(f"{where} answered {status} for {repo}.", recoverable=False) from error
    raise HubUnavailableError(f"{where} answered {status} for {repo}.", recoverable=False)


class Patience:
    """Counts failures in a row, waits between them, and ends with a typed error. Progress renews it."""

    def __init__(self, policy: Policy, cancelled: Cancelled, report: Any = None) -> None:
        self._policy, self._cancelled, self._report = policy, cancelled, report
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    def failed(self, problem: Passing, final: MLXEngineError) -> None:
        """Wait for the next attempt, or raise ``final`` when there is none."""
        self._failures += 1
        wait = problem.wait
        if self._failures >= self._policy.attempts or (wait or 0) > self._policy.longest_retry_after:
            if wait and problem.final is not None:
                problem.final.hint = f"It asks to wait {wait:.0f} s."
            raise (problem.final or final) from (problem.__cause__ or problem)
        delay = backoff(self._policy, self._failures)
        if wait is not None:
            delay = wait + min(delay, 1.0)
        log.info("%s; attempt %d in %.1f s", problem.reason, self._failures + 1, delay)
        if self._report is not None:
            self._report(problem.reason, delay, self._failures)
        pause(delay, self._cancelled)


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
    """Like `get_json` for a whole address; also returns the address of the next page, if there is one."""
    policy = policy or access.policy
    patience = Patience(policy, cancelled)
    unreachable = 0
    while True:
        try:
            with get(access, url, repo=repo, policy=policy) as answer:
                data = b"".join(_limited(answer))
                link = answer.response.links.get("next", {}).get("url")
            break
        except Passing as problem:
            unreachable += type(problem.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
            final = HubUnavailableError(
                f"{redact(access.endpoint)} could not be asked about {repo}: {problem.reason}.",
                hint="Check the network and the endpoint; a model that is ready loads with offline=True.",
            )
            if unreachable >= 4:
                raise final from problem.__cause__
            patience.failed(problem, final)
    try:
        return read_json(data, f"The answer of {redact(url)}"), link
    except MLXEngineError as error:
        raise HubUnavailableError(
            f"{redact(access.endpoint)} did not answer as a hub does: {error.message}",
            hint="Check the endpoint.",
        ) from error


def _limited(answer: Answer) -> Iterator[bytes]:
    count = 0
    for chunk in answer.response.iter_raw():
        count += len(chunk)
        if count > _MOST_ANSWER_BYTES:
            raise HubUnavailableError(f"The hub's answer is longer than {_MOST_ANSWER_BYTES} bytes.")
        yield chunk


def gave_up(file: str, problem: Passing) -> MLXEngineError:
    """The error for a file whose download made no progress for too long."""
    return DownloadError(
        f"{file} did not arrive: {problem.reason}.", hint="Call again: what has arrived is kept and resumed."
    )
