"""From a request to an answer: routing, access, and the headers that the hub's clients depend on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from . import api
from .repos import Commit, HubFile, Repo

if TYPE_CHECKING:
    from .server import HubServer

_API = re.compile(
    r"/api/models/(?P<id>[^/]+(?:/[^/]+)??)"
    r"(?:/(?P<verb>revision|tree|paths-info|auth-check|refs|xet-read-token)(?:/(?P<rest>.*))?)?/?"
)
_RESOLVE = re.compile(r"/(?P<id>[^/]+(?:/[^/]+)?)/resolve/(?P<rest>.+)")
_CACHED = re.compile(r"/api/resolve-cache/models/(?P<id>[^/]+/[^/]+)/(?P<rest>.+)")
BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass
class Answer:
    """Status, headers, and a body: bytes, or a file of a repository (which Range applies to)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | HubFile = b""

    @classmethod
    def of_json(cls, value: Any, status: int = 200, **headers: str) -> Answer:
        return cls(
            status, {"Content-Type": "application/json; charset=utf-8", **headers}, json.dumps(value).encode()
        )

    @classmethod
    def error(cls, status: int, code: str | None, message: str, **headers: str) -> Answer:
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers
        return cls.of_json({"error": message}, status, **named)


@dataclass(frozen=True)
class Ask:
    """A request: method, raw path with query, headers (names in lower case), body."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None


class Denied(Exception):
    """Ends routing with an answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def respond(hub: HubServer, ask: Ask) -> Answer:
    """The hub's answer, before any fault."""
    try:
        return _route(hub, ask)
    except Denied as denied:
        return denied.answer
    except api.BadRequest as error:
        return Answer.error(400, None, str(error))


def _route(hub: HubServer, ask: Ask) -> Answer:
    path = ask.path
    user = _user(hub, ask)
    if path == "/api/whoami-v2":
        if user is None:
            raise Denied(Answer.error(401, None, "Invalid username or password."))
        return Answer.of_json(
            {"type": "user", "name": user.name, "fullname": user.name, "orgs": [], "auth": {}}
        )
    if path.rstrip("/") == "/api/models":
        found, cursor = api.list_models(hub.repos.all(), ask.query, hub.page_size)
        return Answer.of_json(found, **_next(hub, ask, cursor))
    if match := _CACHED.fullmatch(path):
        return _resolve(hub, ask, unquote(match["id"]), match["rest"], cached=True)
    if match := _API.fullmatch(path):
        return _api(hub, ask, unquote(match["id"]), match["verb"], match["rest"] or "")
    if match := _RESOLVE.fullmatch(path):
        return _resolve(hub, ask, unquote(match["id"]), match["rest"])
    return Answer.error(404, None, f"There is nothing at {path}.")


def _user(hub: HubServer, ask: Ask) -> Any:
    if ask.token is None:
        return None
    if ask.token not in hub.users:
        raise Denied(Answer.error(401, None, BAD_TOKEN))
    return hub.users[ask.token]


def _next(hub: HubServer, ask: Ask, cursor: int | None) -> dict[str, str]:
    if cursor is None:
        return {}
    query = urlencode(ask.query | {"cursor": [str(cursor)]}, doseq=True)
    return {"Link": f'<{hub.endpoint}{ask.path}?{query}>; rel="next"'}


def _repo(hub: HubServer, ask: Ask, repo_id: str) -> Repo:
    repo, user = hub.repos.get(repo_id), _user(hub, ask)
    if repo is None or (repo.private and (user is None or not user.may_read(repo.id))):
        status = 401 if user is None else 404
        raise Denied(Answer.error(status, "RepoNotFound", "Repository not found"))
    return repo


def _granted(hub: HubServer, ask: Ask, repo: Repo) -> None:
    user = _user(hub, ask)
    if repo.gated and (user is None or not user.may_read(repo.id)):
        place = f"{hub.endpoint}/{repo.id}"
        text = f"Access to model {repo.id} is restricted. Visit {place} to ask for access."
        raise Denied(Answer.error(401 if user is None else 403, "GatedRepo", text))


def _commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise Denied(Answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
    return commit


def _api(hub: HubServer, ask: Ask, repo_id: str, verb: str | None, rest: str) -> Answer:
    repo = _repo(hub, ask, repo_id)
    if verb is None:
        return Answer.of_json(api.model_info(repo, repo.head, ask.query))
    if verb == "auth-check":
        _granted(hub, ask, repo)
        return Answer.of_json({})
    if verb == "xet-read-token" and hub.xet is not None:
        _granted(hub, ask, repo)
        return Answer.of_json({}, **hub.xet.connection())
    if verb == "refs":
        return Answer.of_json(api.refs(repo))
    raw_revision, _, folder = rest.partition("/")
    commit = _commit(repo, unquote(raw_revision) or "main")
    stamp = {"X-Repo-Commit": commit.sha}
    if verb == "revision":
        return Answer.of_json(api.model_info(repo, commit, ask.query), **stamp)
    if verb == "tree":
        found, cursor = api.tree(commit, unquote(folder), ask.query, hub.page_size)
        if not found and folder:
            raise Denied(Answer.error(404, "EntryNotFound", f"{unquote(folder)} does not exist", **stamp))
        return Answer.of_json(found, **stamp, **_next(hub, ask, cursor))
    return Answer.of_json(api.paths_info(commit, _paths(ask)), **stamp)


def _paths(ask: Ask) -> list[str]:
    if "json" in ask.headers.get("content-type", ""):
        return list(json.loads(ask.body or b"{}").get("paths", []))
    return parse_qs(ask.body.decode()).get("paths", [])


def _resolve(hub: HubServer, ask: Ask, repo_id: str, rest: str, *, cached: bool = False) -> Answer:
    repo = _repo(hub, ask, repo_id)
    _granted(hub, ask, repo)
    raw_revision, _, raw_path = rest.partition("/")
    commit, path = _commit(repo, unquote(raw_revision)), unquote(raw_path)
    stamp = {"X-Repo-Commit": commit.sha}
    file = commit.files.get(path)
    if file is None:
        raise Denied(Answer.error(404, "EntryNotFound", f"{path} does not exist", **stamp))
    headers = stamp | {
        "ETag": f'"{file.etag}"',
        "X-Linked-Etag": f'"{file.etag}"',
        "X-Linked-Size": str(file.size),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if hub.xet is not None and file.lfs:
        place = f"{hub.endpoint}/api/models/{repo.id}/xet-read-token/{commit.sha}"
        headers |= {"X-Xet-Hash": hub.xet.put(file), "Link": f'<{place}>; rel="xet-auth"'}
    if hub.cdn_mode and file.lfs:
        return Answer(302, headers | {"Location": hub.sign(repo.id, file)})
    if hub.relative_redirects and not file.lfs and not cached:
        place = f"/api/resolve-cache/models/{repo.id}/{commit.sha}/{quote(path)}"
        return Answer(307, headers | {"Location": place})
    return Answer(200, headers, file)


def respond_cdn(hub: HubServer, ask: Ask) -> Answer:
    """The CDN's answer: the content, while the address's signature is valid. It knows no repositories."""
    file = hub.signed(ask.target)
    if file is None:
        return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
    headers = {
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    return Answer(200, headers, file)
