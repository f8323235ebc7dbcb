"""What must not be repeated: tokens, and the user and password of an address."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote
from urllib.request import getproxies

from .._shown import shown
from ..errors import InvalidParameterError

_TOKEN = re.compile(r"[!-~]+")
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://|)(?P<userinfo>[^/?#]*)@")


def checked_token(token: object, source: str) -> str | None:
    """A token without the white space around it.

    Raises:
        InvalidParameterError: it is no text, or has a character that no header may carry; the message does
            not repeat it.
    """
    if token is None:
        return None
    if not isinstance(token, str):
        raise InvalidParameterError(f"The token from {source} must be text, found {type(token).__name__}.")
    token = token.strip()
    if token and not _TOKEN.fullmatch(token):
        raise InvalidParameterError(
            f"The token from {source} has a character that no token has: a line break, a space, a control "
            "character, or a letter outside ASCII.",
            hint="Copy it again, or make a new one.",
        )
    return token


def saved_token() -> str | None:
    """What huggingface_hub would send: from the environment, else what `hf auth login` stored.

    huggingface_hub takes line breaks out of a token, wherever they are; here they are refused.

    Raises:
        InvalidParameterError: as `checked_token`; or it cannot be read, or not be renewed.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            checked_token(os.environ[name], name)
            break
    else:
        checked_token(_stored(Path(constants.HF_TOKEN_PATH)), constants.HF_TOKEN_PATH)
    problem = ""
    try:
        token = get_token()
    except Exception as error:  # what it says may repeat the token
        problem = type(error).__name__
    if problem:
        raise InvalidParameterError(
            f"huggingface_hub cannot give its token ({problem}).", hint="Run `hf auth login`, or pass token=."
        )
    return checked_token(token, "huggingface_hub")


def _stored(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None


def split_userinfo(endpoint: str) -> tuple[str, str | None]:
    """An address without its user and password, and these two as they stood there."""
    match = _USERINFO.match(endpoint)
    if match is None:
        return endpoint, None
    return match["scheme"] + endpoint[match.end() :], match["userinfo"]


def basic(userinfo: str) -> str:
    """The ``Authorization`` header that stands for a user and a password (RFC 7617)."""
    user, _, password = userinfo.partition(":")
    plain = f"{unquote(user)}:{unquote(password)}"
    return f"Basic {base64.b64encode(plain.encode()).decode()}"


def forms(userinfo: str) -> tuple[str, ...]:
    """Every form in which a user and a password could be repeated."""
    password = userinfo.partition(":")[2]
    found = (password, unquote(password), basic(userinfo)[6:], userinfo)
    return tuple(form for form in found if len(form) > 3)  # less is no secret, and stands in every text


def proxy_secrets() -> tuple[str, ...]:
    """Users and passwords of the proxies in the environment."""
    found = (split_userinfo(address)[1] for address in getproxies().values())
    return tuple(form for userinfo in found if userinfo for form in forms(userinfo))


def redact(url: object) -> str:
    """An address without user, password and query: signed addresses and tokens stay out of messages."""
    return shown(split_userinfo(str(url))[0].partition("?")[0])


def scrub(text: str, secrets: Iterable[str]) -> str:
    """A text without the secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def silent(error: BaseException | None, secrets: Iterable[str]) -> BaseException | None:
    """The error, if neither it nor what it came from repeats a secret; else nothing."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        try:
            text = f"{each} {each!r}"
        except Exception:
            return None
        if scrub(text, secrets) != text:
            return None
        todo += [each.__cause__, each.__context__]
    return error


__all__ = [
    "basic",
    "checked_token",
    "forms",
    "proxy_secrets",
    "redact",
    "saved_token",
    "scrub",
    "silent",
    "split_userinfo",
]
