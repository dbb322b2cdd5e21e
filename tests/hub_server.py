"""A Hub on the loopback interface: the part of its protocol that huggingface_hub speaks to fetch and push models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

LFS = (".safetensors", ".pth", ".bin", ".npz", "_IN21K")  # what the Hub keeps apart from git
TOKEN = "hf_of_the_owner"
NO_TOKEN, BAD_TOKEN = "Repository not found", "Invalid credentials in Authorization header"


class Request(NamedTuple):
    """One request as it came in; names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repo:
    """A repository: what its branches, tags and commits name, and who may read it."""

    access: str = "public"  # or "private" or "gated"
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Adds files to what the branch has; returns the commit's hash."""
        tree = {**self.files(branch), **files}
        content = f"{len(self.commits)} {branch} {sorted((name, oid(name, data)) for name, data in tree.items())}"
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = tree
        self.refs[branch] = commit
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """All files at a branch, tag or commit; none where it does not exist."""
        return dict(self.commits.get(self.refs.get(revision, revision), {}))


@dataclass
class Cut:
    """How often a file's transfer breaks off, after how many bytes, and whether by a reset."""

    after: int
    times: int
    reset: bool


def oid(name: str, data: bytes) -> str:
    """The ETag: sha256 of files apart from git, else git's own hash."""
    if name.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The server, and its switches for what goes wrong.

    Attributes:
        repos: Name -> repository.
        requests: All that came in so far, in order.
        instead: Name of a file -> what is sent in place of its content; what is announced of it stays true.
        then: Name of a file -> what happens as it is sent.
        status: If set, every request is answered with this status, as by a Hub in trouble.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.instead: dict[str, bytes] = {}
        self.then: dict[str, Callable[[], object]] = {}
        self.status: int | None = None
        self._cuts: dict[str, Cut] = {}
        self._server = self._bound(0)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}/cdn"  # another host to the client, which then keeps its token back
        self._thread: threading.Thread | None = None

    def _bound(self, port: int) -> ThreadingTCPServer:
        """A server that has its port but refuses connections: nobody else can take it."""
        server = _Server(("127.0.0.1", port), _Handler, bind_and_activate=False)
        server.hub = self
        server.server_bind()
        return server

    def start(self) -> None:
        """Accepts connections, at the same port as ever."""
        self._server.server_activate()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuses connections from now on."""
        self.close()
        self._server = self._bound(self.port)

    def close(self) -> None:
        """Ends the server for good."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def push(self, repo: str, files: Mapping[str, bytes] | Path, revision: str = "main", access: str = "") -> str:
        """Commits files, or the files of a folder, to a repository, made where it is not there; returns the commit."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        entry = self.repos.setdefault(repo, Repo())
        entry.access = access or entry.access
        return entry.commit(files, revision)

    def cut(self, name: str, after: int, times: int = 1, reset: bool = False) -> None:
        """Breaks off the next transfers of a file after so many bytes."""
        self._cuts[name] = Cut(after, times, reset)

    def seen(self, method: str, name: str = "") -> list[Request]:
        """The requests of this method whose path ends so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(name)]

    def next_cut(self, name: str) -> Cut | None:
        cut = self._cuts.get(name)
        if cut is None or cut.times == 0:
            return None
        cut.times -= 1
        return cut


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    hub: Hub


class Refusal(Exception):
    """What the Hub answers in place of a file."""

    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        self.headers |= {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Repo-Commit": commit} if commit else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self.answer(self.get)

    def do_GET(self) -> None:
        self.answer(self.get)

    def do_POST(self) -> None:
        self.answer(self.post)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def answer(self, serve: Any) -> None:
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.command, unquote(self.path), headers))
        try:
            if hub.status is not None:
                raise Refusal(hub.status, "", "the Hub is in trouble")
            serve(*([json.loads(line) for line in body.splitlines()],) if body else ())
        except Refusal as refusal:
            self.send(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)

    def send(self, status: int, body: bytes, headers: Mapping[str, str], cut: Cut | None = None) -> None:
        self.send_response(status)
        # One request for each connection: none outlives the server, nor the client's belief that it is up.
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[: cut.after])
        if cut is not None and cut.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # Who may read what

    def token(self) -> str:
        sent: str = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent not in ("", TOKEN, "hf_of_a_stranger"):
            raise Refusal(401, "", BAD_TOKEN)
        return sent

    def repo(self, name: str) -> Repo:
        token, repo = self.token(), self.server.hub.repos.get(name)
        if repo is None or (repo.access == "private" and token != TOKEN):
            raise Refusal(404 if token else 401, "RepoNotFound", NO_TOKEN)
        if repo.access == "gated" and token != TOKEN:
            raise Refusal(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        return repo

    def revision(self, repo: Repo, name: str) -> tuple[str, dict[str, bytes]]:
        commit = repo.refs.get(name, name)
        if commit not in repo.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {name}")
        return commit, repo.commits[commit]

    # Down

    def get(self) -> None:
        path = self.path
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})/(.+)", path):
            self.get_cdn(match[1], unquote(match[2]))
        elif match := re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            self.get_file(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self.get_api(match[1], match[2] or "", unquote(match[3] or "main"))
        else:
            raise Refusal(404, "", f"{path} is not served here")

    def get_file(self, name: str, revision: str, file: str) -> None:
        commit, files = self.revision(self.repo(name), revision)
        if file not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found", commit)
        data, tag = files[file], oid(file, files[file])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if not file.endswith(LFS):
            self.send_range(file, data, headers)
            return
        linked = {"X-Linked-ETag": f'"{tag}"', "X-Linked-Size": str(len(data))}
        self.send(302, b"", {**headers, **linked, "Location": f"{self.server.hub.cdn}/{tag}/{quote(file)}"})

    def get_cdn(self, tag: str, file: str) -> None:
        trees = [tree for repo in self.server.hub.repos.values() for tree in repo.commits.values()]
        data = next((tree[file] for tree in trees if file in tree and oid(file, tree[file]) == tag), None)
        if data is None:
            raise Refusal(403, "", "AccessDenied")
        self.send_range(file, data, {"ETag": f'"{tag}"', "Accept-Ranges": "bytes"})

    def send_range(self, file: str, data: bytes, headers: Mapping[str, str]) -> None:
        hub = self.server.hub
        body = data if self.command == "HEAD" else hub.instead.get(file, data)
        cut = None if self.command == "HEAD" else hub.next_cut(file)
        if self.command == "GET" and file in hub.then:
            hub.then.pop(file)()
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self.send(200, body, headers, cut)
            return
        first, last = int(match[1]), min(int(match[2] or len(body)), len(body) - 1)
        if first > last:
            self.send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            return
        self.send(206, body[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"}, cut)

    def get_api(self, name: str, kind: str, revision: str) -> None:
        commit, files = self.revision(self.repo(name), revision)
        if kind != "tree":
            self.send_json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
            return
        entries = [{"type": "file", "path": file, "size": len(files[file])} for file in files]
        for entry, (file, data) in zip(entries, files.items(), strict=True):
            entry["oid"] = hashlib.sha1(data).hexdigest()
            if file.endswith(LFS):
                entry["lfs"] = {"oid": oid(file, data), "size": len(data), "pointerSize": 134}
        self.send_json(entries)

    # Up

    def post(self, lines: list[Any]) -> None:
        path = self.path
        if self.token() != TOKEN:
            raise Refusal(401, "", BAD_TOKEN)
        if path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.post_repo(**lines[0])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            self.repo(match[1])
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.send_json({"files": [{"path": file["path"], **modes} for file in lines[0]["files"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self.post_commit(match[1], unquote(match[2]), lines)
        else:
            raise Refusal(404, "", f"{path} is not served here")

    def post_repo(self, name: str, organization: str | None = None, visibility: str = "", **_: Any) -> None:
        repo = f"{organization or 'owner'}/{name}"
        there = repo in self.server.hub.repos
        self.server.hub.repos.setdefault(repo, Repo("private" if visibility == "private" else "public"))
        answer = {"url": f"{self.server.hub.url}/{repo}", "name": repo}
        self.send(409 if there else 200, json.dumps(answer).encode(), {})

    def post_commit(self, name: str, branch: str, lines: list[Any]) -> None:
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        commit = self.repo(name).commit(added, branch)
        self.send_json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.server.hub.url}/{name}/commit/{commit}"}
        )
