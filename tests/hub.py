"""A stand-in for the Hugging Face Hub: one process, everything in memory, no accounts.

It speaks what huggingface_hub speaks when it makes a repository, uploads (small files in the
commit, weights over Git LFS), lists and downloads. Xet is not spoken: HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_LFS = ".safetensors"


class Hub:
    """The stand-in; use as a context manager.

    Attributes:
        commits: By repository, the files of each commit by path.
        messages: By repository, the summaries of its commits.
        tags: Number of the commit that a name stands for, by repository and name.
        large: Objects that were uploaded over LFS, by SHA-256.
        requests: ``(method, path)`` of everything that was asked.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.messages: dict[str, list[str]] = {}
        self.tags: dict[tuple[str, str], int] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        """Return the files of a repository as they are now."""
        return self.commits[repo][-1]

    def sha(self, repo: str, number: int = -1) -> str:
        """Return the name of a repository's commit, the last one if none is given."""
        number %= len(self.commits[repo])
        return hashlib.sha1(f"{repo} {number + 1}".encode()).hexdigest()  # noqa: S324

    def number(self, repo: str, revision: str | None) -> int | None:
        """Return which commit a revision stands for, ``None`` for no commit of the repository."""
        count = len(self.commits[repo])
        names = {self.sha(repo, number): number for number in range(count)}
        names |= {tag: number for (of, tag), number in self.tags.items() if of == repo}
        return {**names, "main": count - 1}.get(revision or "main")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                answer(self, body, **match.groupdict())
                return
        self._send(404, b"{}")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, data: Any, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), Content_Type="application/json")

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = name in self.hub.commits
        self.hub.commits.setdefault(name, [{}])
        self.hub.messages.setdefault(name, [])
        self._json({"url": f"{self.hub.url}/{name}", "name": name}, 409 if known else 200)

    def preupload(self, body: bytes, repo: str) -> None:
        asked = json.loads(body)["files"]
        modes = [("lfs" if one["path"].endswith(_LFS) else "regular", one["path"]) for one in asked]
        files = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for mode, p in modes]
        self._json({"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        found = hashlib.sha256(body).hexdigest() == oid
        if found:
            self.hub.large[oid] = body
        self._send(200 if found else 400, b"")

    def commit(self, body: bytes, repo: str) -> None:
        files = dict(self.hub.files(repo))
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages[repo].append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        self.hub.commits[repo].append(files)
        sha = self.hub.sha(repo)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def _commit(self, repo: str, revision: str | None) -> int | None:
        """Return which commit is asked for; where there is none, answer so."""
        known = repo in self.hub.commits
        number = self.hub.number(repo, revision) if known else None
        if number is None:
            kind = "RevisionNotFound" if known else "RepoNotFound"
            self._send(404, b"{}", X_Error_Code=kind)
        return number

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        number = self._commit(repo, revision)
        if number is None:
            return
        siblings = [{"rfilename": path} for path in sorted(self.hub.commits[repo][number])]
        sha = self.hub.sha(repo, number)
        self._json({"id": repo, "sha": sha, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        number = self._commit(repo, revision)
        if number is None:
            return
        entries = []
        for path, content in sorted(self.hub.commits[repo][number].items()):
            oid = hashlib.sha1(content).hexdigest()  # noqa: S324
            entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(content), "path": path}
            if path.endswith(_LFS):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        number = self._commit(repo, revision)
        if number is None:
            return
        commit = {"X_Repo_Commit": self.hub.sha(repo, number)}
        content = self.hub.commits[repo][number].get(path)
        if content is None:
            self._send(404, b"", X_Error_Code="EntryNotFound", **commit)
            return
        self._send(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', **commit)


_ROUTES: list[tuple[str, Any]] = [
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/models/{_REPO}/preupload/[^/]+", _Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/[^/]+", _Handler.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", _Handler.put),
    (r"POST /api/validate-yaml", lambda self, body: self._json({"errors": [], "warnings": []})),
    (rf"GET /api/models/{_REPO}(?:/revision/(?P<revision>.+))?", _Handler.info),
    (rf"GET /api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
