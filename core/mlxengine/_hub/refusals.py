"""What the hub's refusals mean, as typed errors that repeat nothing of what a server says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._shown import shown
from ..errors import (
    CorruptFileError,
    GatedModelError,
    HubAuthError,
    HubUnavailableError,
    MLXEngineError,
    ModelNotFoundError,
    RateLimitedError,
)
from .access import Access, retry_after
from .secrets import redact, scrub, silent
from .wire import AGAIN, Trouble

if TYPE_CHECKING:
    from .transport import Answer


def no_client(error: Exception, secrets: Sequence[str]) -> MLXEngineError:
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


def refusal(answer: Answer, access: Access, repo: str, secrets: Sequence[str]) -> Exception:
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
    typed = _typed(found, status, redact(access.endpoint), repo)
    typed.__cause__ = silent(found, secrets)
    return typed


def _typed(found: Exception | None, status: int, where: str, repo: str) -> MLXEngineError:
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
