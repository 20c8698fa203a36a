"""A stand-in for Hugging Face's hub on this machine: as much of its protocol as `huggingface_hub` uses to fetch and to
push small files."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/main")
_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/main")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/main")
_FILE = re.compile(r"/(.+?/.+?)/resolve/(.+?)/(.+)")


class HubServer(ThreadingHTTPServer):
    """Serves folders as models, each with the one revision `main`, and with `refs` to the same commit.

    Attributes:
        models: folders by `owner/name`.
        refs: names of the commit.
        token: what reads the model `owner/private`; a model `owner/gated` refuses everybody.
        answer: a status that everything gets, or None.
        cut: bytes after which the connection breaks when a larger file is fetched, once; or None.
        requests: method, path, and range of all requests.
        root: where repositories that are made get their folders.
        private: those that were made private.
        cards: what the head of a card says, by `owner/name`.
        login: what the hub knows of who has the token.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Path] = {}
        self.refs = {"main", "v1", "refs/pr/1", COMMIT}
        self.token = "hf_right"
        self.answer: int | None = None
        self.cut: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.root: Path | None = None
        self.private: set[str] = set()
        self.cards: dict[str, dict[str, str]] = {}
        self.login = {"name": "owner", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str]:
        """Names of the files that were sent, without what only their heads were asked of."""
        found = (_FILE.fullmatch(path) for method, path, _ in self.requests if method == "GET")
        return [match[3] for match in found if match]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if path == "/api/whoami-v2":
            return self._json(self.server.login) if self._known() else self._fail(401)
        if found := _TREE.fullmatch(path):
            return self._json(
                [{"type": "file", "path": n, "oid": "0", "size": 1} for n in _names(self.server.models[found[1]])]
            )
        info, file = _INFO.fullmatch(path), _FILE.fullmatch(path)
        match = info or file
        if self.server.answer or not match:
            return self._fail(self.server.answer or 404)
        name, revision = match[1], (match[2] or "main")
        if file and match[1].startswith("api/"):
            return self._fail(404)
        folder = self.server.models.get(name)
        if name == "owner/private" and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._fail(401, "RepoNotFound")
        if name == "owner/gated" and file:
            return self._fail(403, "GatedRepo")
        if folder is None:
            return self._fail(404, "RepoNotFound")
        if revision not in self.server.refs:
            return self._fail(404, "RevisionNotFound")
        if info:
            siblings = [
                {"rfilename": n, "size": (folder / n).stat().st_size, "blobId": _etag(folder / n)}
                for n in _names(folder)
            ]
            more = {"private": name in self.server.private, "cardData": self.server.cards.get(name)}
            return self._json({"id": name, "sha": COMMIT, "siblings": siblings, **more})
        where = folder / match[3]
        if not where.is_file():
            return self._fail(404, "EntryNotFound")
        self._file(where)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, None))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._known():
            return self._fail(401)
        if self.server.answer:
            return self._fail(self.server.answer)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if _PREUPLOAD.fullmatch(path):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if found := _COMMIT.fullmatch(path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        self._fail(404)

    def _create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if name in self.server.models:
            return self._json({"url": f"{self.server.url}/{name}"}, 409)
        assert self.server.root
        self.server.models[name] = self.server.root / name
        self.server.models[name].mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self._json({"url": f"{self.server.url}/{name}"})

    def _commit(self, name: str, lines: list[dict]) -> None:
        folder = self.server.models[name]
        for line in lines:
            where = folder / line["value"].get("path", "")
            if line["key"] == "file":
                where.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                where.unlink()
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, path: Path) -> None:
        body = path.read_bytes()
        headers, status = {"ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}, 200
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        cut = self.server.cut
        if self.command == "GET" and cut is not None and len(body) > cut:
            self.server.cut = None
            self._send(status, body, headers, cut)
            self.close_connection = True
            self.connection.close()
            return
        self._send(status, body, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str], most: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:most])
            self.wfile.flush()

    def _fail(self, status: int, code: str | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[HubServer]:
    """Runs a stand-in until the block ends."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def take_for_the_hub(server, monkeypatch, folder):
    """Makes huggingface_hub ask this server, with a cache and no login of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
