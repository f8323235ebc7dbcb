"""Requests to the hub: one at a time, redirects followed by hand, every failure given a type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

from attrs import frozen

from .._shown import unshowable
from .._version import __version__
from ..errors import InvalidParameterError, OfflineError
from .access import Access, Cancelled, Policy, never
from .refusals import no_client, refusal
from .secrets import basic, proxy_secrets, redact, saved_token
from .wire import Line, Trouble, trace

_MOST_REDIRECTS = 8
_SMALL = 64 << 10


def origin(url: str) -> tuple[str, str, int]:
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
        return origin(access.endpoint)
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
        raise no_client(problem, line.secrets)
    for _ in range(_MOST_REDIRECTS):
        direct = origin(url) == home
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
                raise refusal(answer, access, repo, line.secrets)
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
        origin(found)
    except ValueError as error:
        raise Trouble(f"it was sent on to {redact(location)[:200]!r}: {error}", again=False) from None
    return found
