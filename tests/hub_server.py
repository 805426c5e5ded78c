"""A stand-in for the HTTP interface of the Hugging Face Hub: what downloads and uploads of files need."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Repositories are dicts of files, by their names, in the server's `repositories`."""

    def log_message(self, format, *args):
        self.server.seen.append(f"{self.command} {self.path}")

    def _answer(self, status, body=b"", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content))} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self):
        self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.server.repositories.get("/".join(parts[2:4]))
            if files is None:
                return self._missing()
            listed = [{"rfilename": name} for name in files]
            if "tree" in parts:
                return self._answer(200, [self._entry(n, c) for n, c in files.items()])
            return self._answer(200, {"id": "x", "sha": COMMIT, "siblings": listed})
        files = self.server.repositories.get("/".join(parts[:2]), {})
        content = files.get("/".join(parts[4:]))
        if parts[2:3] != ["resolve"] or content is None:
            return self._missing()
        etag = hashlib.sha1(content).hexdigest()
        return self._answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    @staticmethod
    def _entry(name, content):
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != "Bearer hf_friend":
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            name = json.loads(body)["name"]
            owner = json.loads(body).get("organization") or "friend"
            self.server.repositories.setdefault(f"{owner}/{name}", {})
            return self._answer(
                200, {"url": f"{self.server.url}/{owner}/{name}", "id": f"{owner}/{name}"}
            )
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        repository = "/".join(path.split("/")[3:5])
        files = self.server.repositories.get(repository)
        if files is None:
            return self._missing()
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            chosen = [{"path": f["path"], "uploadMode": "regular"} for f in asked]
            return self._answer(200, {"files": [c | {"shouldIgnore": False} for c in chosen]})
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            url = f"{self.server.url}/{repository}/commit/{COMMIT}"
            return self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})
        return self._missing()


@contextlib.contextmanager
def serving():
    """The server; its address is `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories = {}
    server.seen = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
