"""Requests to the hub: one at a time, redirects followed by hand, every failure given a type."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

from attrs import frozen

from .._shown import shown, unshowable
from .._version import __version__
from ..errors import (
    CorruptFileError,
    DownloadError,
    GatedModelError,
    HubAuthError,
    HubUnavailableError,
    InvalidParameterError,
    MLXEngineError,
    ModelNotFoundError,
    OfflineError,
    RateLimitedError,
)
from .access import Access, Cancelled, Policy, backoff, never, pause, retry_after
from .names import read_json
from .secrets import basic, proxy_secrets, redact, saved_token, scrub, silent
from .wire import AGAIN, Line, Trouble, trace

log = logging.getLogger("mlxengine.hub")

_MOST_REDIRECTS = 8
_SMALL = 64 << 10
_MOST_ANSWER_BYTES = 64 << 20
_MOST_UNREACHABLE = 4
_NEXT = re.compile(r"<([^<>]*)>[^<]*;\s*rel=\"?next\b")


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address.

    Raises:
        ValueError: it is not one that a request can be made to; the text says why, and repeats none of it.
    """
    parts = port = None
    with suppress(ValueError):  # whose texts would
        parts = urlsplit(url)
        port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    if parts is None:
        raise ValueError("its host is not written as one")
    host = (parts.hostname or "").lower()
    if parts.scheme not in ("http", "https"):
        raise ValueError("it does not begin with http:// or https://")
    if not host or unshowable(url) or any(character.isspace() for character in url):
        raise ValueError("it names no host, or has a space or a control character")
    if ":" not in host:
        encoded = b""
        with suppress(UnicodeError):
            encoded = host.encode() if host.isascii() else host.encode("idna")
        if any(not 0 < len(label) < 64 for label in encoded.rstrip(b".").split(b".")) or len(encoded) > 253:
            raise ValueError("a part of the host's name is empty or too long")
    if not port:
        raise ValueError("its port is no number from 1 to 65535")
    return parts.scheme, host, port


def home_of(access: Access) -> tuple[str, str, int]:
    """The origin of the hub.

    Raises:
        InvalidParameterError: the endpoint is no address.
    """
    problem = ""
    try:
        return _origin(access.endpoint)
    except ValueError as error:
        problem = str(error)
    # Where the address cannot be taken apart, a password may stand anywhere before the last "@".
    raise InvalidParameterError(
        f"The hub's address {access.endpoint.rpartition('@')[2][:200]!r} cannot be used: {problem}.",
        hint="Write it as https://host or https://host:port (endpoint=, HF_ENDPOINT, or the settings file).",
    )


@frozen(kw_only=True, eq=False)
class Answer:
    """A response whose body has not been read. ``direct`` says that the hub itself answered."""

    response: Any
    direct: bool
    line: Line[Answer]

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
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            CancelledError, Trouble: see `Line.read`.
        """
        return self.line.read(self.response.iter_raw())


@contextmanager
def get(
    access: Access,
    url: str,
    *,
    repo: str,
    policy: Policy,
    cancelled: Cancelled = never,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Answer]:
    """Make one GET request and follow its redirects; the token goes to the endpoint's origin alone.

    Raises:
        Trouble: a transport error, or 408, 429 or 5xx, or a refusal by another origin than the hub's
            (an expired signed address: asking the hub again brings a new one).
        CancelledError: the caller gave up.
        MLXEngineError: what will not pass, with its type.
    """
    if access.offline:
        raise OfflineError(f"{redact(url)} was not asked: the network is off.", hint="Turn offline mode off.")
    home = home_of(access)
    line: Line[Answer] = Line(cancelled, policy.answer, policy.slowest)
    answer = line.open(
        lambda: _ask(access, home, url, repo, policy, headers or {}, line), lambda late: late.response.close()
    )
    try:
        yield answer
    finally:
        try:
            answer.response.close()
        finally:
            line.hang_up()


def _ask(
    access: Access,
    home: tuple[str, str, int],
    url: str,
    repo: str,
    policy: Policy,
    headers: Mapping[str, str],
    line: Line[Answer],
) -> Answer:
    """Send, and follow redirects, until there is an answer; on the line's own thread."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    line.secrets = (*access.secrets, *proxy_secrets())
    token = access.token if access.token is not None else saved_token()
    line.secrets = (*line.secrets, *filter(None, (token,)))
    plain = {"Accept-Encoding": "identity", "User-Agent": f"mlxengine/{__version__}", **headers}
    proof = basic(access.userinfo) if access.userinfo else f"Bearer {token}" if token else None
    signed = {**plain, "Authorization": proof} if proof else plain
    problem: Exception | None = None
    try:
        session = get_session()
    except Exception as error:
        problem = error
    if problem is not None:
        raise _no_client(problem, line.secrets)
    for _ in range(_MOST_REDIRECTS):
        direct = _origin(url) == home
        request = session.build_request(
            "GET",
            url,
            headers=signed if direct else plain,
            timeout=(policy.connect, policy.read, policy.read, policy.connect),
            extensions={"trace": trace},
        )
        if not direct:
            request.headers.pop("authorization", None)
            request.headers.pop("cookie", None)
        try:
            response = session.send(request, stream=True, follow_redirects=False)
        except OfflineModeIsEnabled:
            raise OfflineError(
                f"{repo} was not asked for: HF_HUB_OFFLINE is set.", hint="Unset it."
            ) from None
        except RuntimeError:
            if session.is_closed:  # huggingface_hub shares it with the whole process, and makes a new one
                raise Trouble("the client was closed by something else in this process") from None
            raise
        try:
            answer = Answer(response=response, direct=direct, line=line)
            if response.has_redirect_location:
                if 0 <= answer.length <= _SMALL:
                    for _chunk in response.iter_raw():
                        pass  # so that the connection can be used again
                url = _next(url, response.headers["location"])
                response.close()
                continue
            if answer.status >= 400:
                raise _refusal(answer, access, repo, line.secrets)
        except BaseException:
            response.close()
            raise
        return answer
    raise Trouble(f"more than {_MOST_REDIRECTS} redirects from {redact(access.endpoint)}", again=False)


def _next(url: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
        Trouble: nowhere.
    """
    try:
        found = urljoin(url, location)
        _origin(found)
    except ValueError as error:
        raise Trouble(f"it was sent on to {redact(location)[:200]!r}: {error}", again=False) from None
    return found


def _no_client(error: Exception, secrets: Sequence[str]) -> MLXEngineError:
    """Why no request at all can be made: the client reads proxies and certificates when it is made."""
    what = scrub(f"{type(error).__name__}: {error}", secrets)
    typed = HubUnavailableError(
        f"No request can be made: {what[:500]}.",
        hint="Check the proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY; SOCKS needs the package "
        "socksio) and the certificates (SSL_CERT_FILE, SSL_CERT_DIR).",
        recoverable=False,
    )
    typed.__cause__ = silent(error, secrets)
    return typed


def _refusal(answer: Answer, access: Access, repo: str, secrets: Sequence[str]) -> Exception:
    """An answer of 400 or more as an exception; what the server says in it is repeated by no message."""
    import httpx2
    from huggingface_hub.utils import hf_raise_for_status

    status = answer.status
    if status in AGAIN or not answer.direct:
        asked = retry_after(answer.headers.get("retry-after"))
        final = None
        if status == 429:
            final = RateLimitedError(f"{redact(access.endpoint)} limits requests for {repo}.")
        return Trouble(f"status {status}", wait=asked, final=final)
    # Only these two are told: a body may be endless, and anything else would be logged as it is.
    told = {
        name: shown(answer.headers[name]).encode("ascii", "backslashreplace").decode()
        for name in ("x-error-code", "x-error-message")
        if name in answer.headers
    }
    response = httpx2.Response(status, headers=told, request=answer.response.request)
    found: Exception | None = None
    try:
        hf_raise_for_status(response)
    except Exception as error:
        found = error
    typed = _typed_refusal(found, status, redact(access.endpoint), repo)
    typed.__cause__ = silent(found, secrets)
    return typed


def _typed_refusal(found: Exception | None, status: int, where: str, repo: str) -> MLXEngineError:
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(found, GatedRepoError):  # a subclass of RepositoryNotFoundError, so it comes first
        return GatedModelError(
            f"{repo} is gated: its terms must be accepted by the owner of the token.",
            hint=f"Accept them at {where}/{repo}, then pass the token (token=, HF_TOKEN or `hf auth login`).",
        )
    if isinstance(found, RepositoryNotFoundError | DisabledRepoError):
        return ModelNotFoundError(
            f"{where} has no repository {repo} that this token may see.",
            hint="Check the spelling; a private repository needs a token.",
        )
    if isinstance(found, RevisionNotFoundError):
        return ModelNotFoundError(f"{repo} has no such revision.", hint="Check the part after '@'.")
    if isinstance(found, EntryNotFoundError):
        return ModelNotFoundError(f"{repo} lacks a file that its own listing names.")
    if status in (401, 403):
        return HubAuthError(
            f"{where} refused the request for {repo} (status {status}).",
            hint="Check the token: it may be wrong, expired, or not allowed to read this repository.",
        )
    if status == 416:
        return CorruptFileError(f"{where} has fewer bytes of a file of {repo} than it says.")
    return HubUnavailableError(f"{where} answered {status} for {repo}.", recoverable=False)


class Patience:
    """Counts failures in a row, waits between them, and ends with a typed error. Progress renews it."""

    def __init__(self, policy: Policy, cancelled: Cancelled, report: Any = None) -> None:
        self._policy, self._cancelled, self._report = policy, cancelled, report
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    def failed(self, problem: Trouble, final: MLXEngineError) -> None:
        """Wait for the next attempt, or raise ``final`` when there is none."""
        self._failures += 1
        if not problem.again:
            final.recoverable = False
            raise final from (problem.__cause__ or problem)
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
        return match[1] if match is not None and _origin(match[1]) == home_of(access) else None
    except ValueError:
        return None


def _limited(answer: Answer) -> Iterator[bytes]:
    count = 0
    for chunk in answer.chunks():
        count += len(chunk)
        if count > _MOST_ANSWER_BYTES:
            raise HubUnavailableError(f"The hub's answer is longer than {_MOST_ANSWER_BYTES} bytes.")
        yield chunk


def gave_up(file: str, problem: Trouble) -> MLXEngineError:
    """The error for a file whose download made no progress for too long."""
    hint = "Call again: what has arrived is kept and resumed."
    if not problem.again:
        hint = "Check the endpoint, and what stands between it and this machine."
    return DownloadError(f"{file} did not arrive: {problem.reason}.", hint=hint)
