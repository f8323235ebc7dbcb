"""What a server is told when it is made: which models, who may come, and how much of anything."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen
from mlxengine.errors import InvalidParameterError

KEYS_VARIABLE = "MLXENGINE_SERVE_KEYS"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


@frozen(kw_only=True)
class Key:
    """What a client shows to be let in. Of the secret only a digest is kept.

    Args:
        digest: the secret's SHA-256; `of` makes a key of the secret itself.
        name: what logs and metrics call whoever has it.
        priority: its requests' priority, as in `mlxengine.Request`; they cannot ask for a higher one.
        limit: most requests of it at once; ``None``: any number.
    """

    digest: bytes = field(repr=False)
    name: str
    priority: int = 0
    limit: int | None = None

    @classmethod
    def of(cls, secret: str, name: str = "key", *, priority: int = 0, limit: int | None = None) -> Key:
        """The key of a secret.

        Raises:
            InvalidParameterError: the secret is empty or holds a space, or the limit is no number from 1.
        """
        if not secret or secret.split() != [secret]:
            raise InvalidParameterError("A key must be a text without spaces.")
        if limit is not None and limit < 1:
            raise InvalidParameterError(f"limit={limit} of the key {name!r} must be a number from 1.")
        return cls(digest=_digest(secret), name=name, priority=priority, limit=limit)


def read_keys(lines: Iterable[str]) -> tuple[Key, ...]:
    """Keys from lines ``SECRET [name=…] [priority=…] [limit=…]``; empty lines and ``#`` lines are left out.

    Raises:
        InvalidParameterError: a line says something else. The message never holds the secret.
    """
    found: list[Key] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        secret, *rest = words
        said = dict(word.partition("=")[::2] for word in rest)
        name = said.pop("name", f"key-{len(found) + 1}")
        try:
            numbers = {key: int(said.pop(key)) for key in ("priority", "limit") if key in said}
        except ValueError:
            raise InvalidParameterError(f"Line {number} of the keys: a number is wanted.") from None
        if said:
            raise InvalidParameterError(
                f"Line {number} of the keys has words that mean nothing here.",
                hint="Write: SECRET name=alice priority=1 limit=4.",
            )
        found.append(Key.of(secret, name, priority=numbers.get("priority", 0), limit=numbers.get("limit")))
    return tuple(found)


def keys_of(path: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Key, ...]:
    """The keys of a file, and those in ``MLXENGINE_SERVE_KEYS`` (separated by line ends or commas).

    Raises:
        InvalidParameterError: the file cannot be read, others than its owner may read it, or a key is bad.
    """
    lines = environment.get(KEYS_VARIABLE, "").replace(",", "\n").splitlines()
    if path is not None:
        try:
            mode = path.stat().st_mode
            lines += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidParameterError(f"The keys cannot be read: {error}.") from error
        others = stat.S_IRGRP | stat.S_IROTH
        if str(path.parent) == environment.get(CREDENTIALS_VARIABLE):
            # systemd lets the service's user read by an ACL, whose mask shows as the group's rights
            others = stat.S_IROTH
        if os.name == "posix" and mode & others:
            raise InvalidParameterError(f"Others than its owner may read {path}.", hint=f"chmod 600 {path}")
    keys = read_keys(lines)
    if path is not None and not keys:
        raise InvalidParameterError(f"There is no key in {path}.", hint="Write one on a line.")
    return keys


@frozen(kw_only=True)
class ServedModel:
    """A model by the name that clients use, and what the engine is asked for.

    Args:
        name: what clients write.
        ref: ``"org/name"``, ``"org/name@revision"``, a folder or a GGUF file.
    """

    name: str
    ref: str

    @classmethod
    def of(cls, text: str) -> ServedModel:
        """``"NAME=REF"``, or a reference alone; a path is then called by its last part."""
        name, separator, ref = text.partition("=")
        if separator and name and ref and "/" not in name:
            return cls(name=name, ref=ref)
        path = Path(text).expanduser()
        return cls(name=path.name if path.exists() else text.partition("@")[0], ref=text)


def _positive(_options: Any, attribute: Attribute[Any], value: Any) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    if value is not None and not good:
        raise InvalidParameterError(f"{attribute.name}={value!r} must be a positive number.")


def _tuple(value: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(value)


def _models(value: Iterable[ServedModel | str]) -> tuple[ServedModel, ...]:
    return tuple(ServedModel.of(item) if isinstance(item, str) else item for item in value)


def _one_of_each(_options: Any, _attribute: Attribute[Any], value: tuple[ServedModel, ...]) -> None:
    names = [item.name for item in value]
    for name in names:
        if names.count(name) > 1:
            raise InvalidParameterError(
                f"Two models are called {name!r}.", hint="Call one of them otherwise: NAME=REF."
            )


@frozen(kw_only=True)
class ServerOptions:
    """What a server is made with.

    Args:
        models: the models that are served: `ServedModel` values, or texts as `ServedModel.of` reads them. The
            first one also serves requests that name none. Empty: all that are complete on this machine.
        aliases: further names, as (pattern, name of a model); in a pattern ``*`` stands for anything.
        keys: who may come; empty: everybody.
        hosts: what a request's ``Host`` may be, besides this machine's loopback names and any IP address;
            ``"*"`` allows all. It keeps a web page from reaching the server under a name of its own.
        origins: web origins whose pages may call; empty: none but pages of the server itself.
        remote_images: hosts that pictures may be fetched from by URLs that clients give: names, for https;
            ``"*"``, any public host by https; ``"http://NAME"``, this one without encryption too. Empty:
            none. Private addresses are never asked, whatever name leads there.
        fetch_seconds: how long the pictures of a request may take to come.
        manage: whether clients may load and unload models.
        max_body: most bytes of a request's body.
        body_seconds: how long a body may take to arrive.
        first_byte_seconds: how long an answer waits for its first event, so that an error of the engine is
            a status; then a stream begins without it.
        heartbeat_seconds: how long a stream may be silent.
        wait_seconds: how long a request may wait for its turn, its model's loading included (status 504).
        run_seconds: how long it may run then.
        stuck_seconds: how long a step may take before whatever waits for it ends with status 503. ``/ready``
            says so earlier where the step is known to be shorter.
        ready_seconds: how long ``/ready`` waits for a token, and believes in one.
        resume_seconds: how long a stream goes on whose connection was lost, for a client that comes back with
            ``Last-Event-ID``; ``None``: it ends at once.
        max_pixels, max_steps: most pixels of a picture, and most denoising steps.
        max_choices: most answers or pictures of one request.
    """

    models: tuple[ServedModel, ...] = field(default=(), converter=_models, validator=_one_of_each)
    aliases: tuple[tuple[str, str], ...] = field(default=(), converter=_tuple)
    keys: tuple[Key, ...] = field(default=(), converter=_tuple)
    hosts: tuple[str, ...] = field(default=(), converter=_tuple)
    origins: tuple[str, ...] = field(default=(), converter=_tuple)
    remote_images: tuple[str, ...] = field(default=(), converter=_tuple)
    fetch_seconds: float = field(default=20.0, validator=_positive)
    manage: bool = False
    max_body: int = field(default=32 << 20, validator=_positive)
    body_seconds: float = field(default=60.0, validator=_positive)
    first_byte_seconds: float = field(default=2.0, validator=_positive)
    heartbeat_seconds: float = field(default=10.0, validator=_positive)
    wait_seconds: float | None = field(default=None, validator=_positive)
    run_seconds: float | None = field(default=None, validator=_positive)
    stuck_seconds: float = field(default=20.0, validator=_positive)
    ready_seconds: float = field(default=5.0, validator=_positive)
    resume_seconds: float | None = field(default=None, validator=_positive)
    max_pixels: int = field(default=2048 * 2048, validator=_positive)
    max_steps: int = field(default=100, validator=_positive)
    max_choices: int = field(default=16, validator=_positive)

    def key(self, secret: str) -> Key | None:
        """Whose secret this is; every key is compared, each in constant time."""
        digest, found = _digest(secret), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def renamed(self, name: str) -> str:
        """What an alias stands for; any other name as it is."""
        if all(item.name != name for item in self.models):
            for pattern, target in self.aliases:
                if fnmatch.fnmatchcase(name, pattern):
                    return target
        return name


__all__ = ["Key", "ServedModel", "ServerOptions", "keys_of", "read_keys"]
