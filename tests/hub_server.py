"""The few endpoints of the Hugging Face Hub that a small model repository needs, on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse


@dataclass
class Repository:
    """Files by commit, and the commit of each branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def files_at(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))

    def commit(self, branch: str, changes: dict[str, bytes]) -> str:
        files = {**(self.files_at(branch) or {}), **changes}
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid


class LocalHub(ThreadingHTTPServer):
    """A hub with one user, whose token is ``token``."""

    daemon_threads = True
    token = "a-token"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.bytes_sent = 0
        self.after_download: Callable[[], object] = lambda: None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _authorized(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {self.server.token}"

    def _reply(self, status: int, document: object, **headers: str) -> None:
        self._send(status, json.dumps(document).encode(), **headers)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.server.bytes_sent += len(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlparse(self.path)
        self.server.requests.append(("POST", url.path))
        if url.path == "/api/validate-yaml":
            return self._reply(200, {})
        if not self._authorized():
            return self._reply(401, {"error": "Invalid username or password."})
        if url.path == "/api/repos/create":
            return self._create(json.loads(body))
        owner, name, action, branch = url.path.removeprefix("/api/models/").split("/", 3)
        if action == "preupload":
            wanted = json.loads(body)["files"]
            plan = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted
            ]
            return self._reply(200, {"files": plan})
        return self._commit(f"{owner}/{name}", unquote(branch), body, parse_qs(url.query))

    def _create(self, request: dict[str, str]) -> None:
        repo_id = f"{request['organization']}/{request['name']}"
        url = f"{self.server.endpoint}/{repo_id}"
        if repo_id in self.server.repositories:
            return self._reply(409, {"error": "You already created this model repo", "url": url})
        # huggingface_hub before 1.0 says so in a field of its own.
        private = request.get("visibility") == "private" or request.get("private") is True
        self.server.repositories[repo_id] = Repository(private)
        return self._reply(200, {"url": url, "name": repo_id})

    def _commit(self, repo_id: str, branch: str, body: bytes, query: dict[str, list[str]]) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        changes = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        proposal = "create_pr" in query
        repository = self.server.repositories[repo_id]
        oid = repository.commit("refs/pr/1" if proposal else branch, changes)
        page = f"{self.server.endpoint}/{repo_id}"
        reply = {"commitUrl": f"{page}/commit/{oid}", "commitOid": oid}
        self._reply(200, reply | ({"pullRequestUrl": f"{page}/discussions/1"} if proposal else {}))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        if path.startswith("/api/models/"):
            return self._reply(401, {"error": "Invalid username or password."})
        if path.count("/") < 5:  # a name without an owner is no repository here
            return self._reply(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        owner, name, _, revision, file = path.lstrip("/").split("/", 4)
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None or (repository.private and not self._authorized()):
            return self._reply(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        files = repository.files_at(revision)
        if files is None:
            return self._reply(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        oid = repository.branches.get(revision, revision)
        if file not in files:
            return self._reply(
                404, {"error": "no entry"}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid
            )
        etag = hashlib.sha1(files[file]).hexdigest()
        self._send(200, files[file], X_Repo_Commit=oid, ETag=f'"{etag}"')
        if self.command == "GET":
            self.server.after_download()
        return None
