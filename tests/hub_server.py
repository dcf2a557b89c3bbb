"""A server that speaks the part of the Hugging Face Hub's API that uploads and downloads of models use."""

import base64
import fnmatch
import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import yaml

TOKEN = "hf_the_right_token"
USER, ORGANIZATIONS = "my-name", {"my-name", "lab"}

# What the Hub puts into a new repository, as far as models of this package need it
GITATTRIBUTES = b"".join(
    b"%s filter=lfs diff=lfs merge=lfs -text\n" % pattern
    for pattern in (b"*.pkl", b"*.pickle", b"*.pt", b"*.pth", b"*.safetensors", b"*.zip", b"*.npz")
)


@dataclass
class Blob:
    """A file: what it holds, and whether it is kept as a large file."""

    data: bytes
    is_large: bool = False

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git keeps of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def git_id(self) -> str:
        content = self.pointer if self.is_large else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class XetBlob(Blob):
    """A large file that the client keeps in Xet storage, where the Hub itself does not look."""

    def __init__(self, xet_hash: str, sha256: str, size: int) -> None:
        super().__init__(b"", is_large=True)
        self.xet_hash, self._sha256, self._size = xet_hash, sha256, size

    size = property(lambda self: self._size)  # type: ignore[assignment]
    sha256 = property(lambda self: self._sha256)  # type: ignore[assignment]


@dataclass
class Commit:
    id: str
    message: str
    files: dict[str, Blob]


@dataclass
class Repository:
    is_private: bool
    commits: list[Commit] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, Blob]) -> Commit:
        text = repr((len(self.commits), message, sorted((path, blob.git_id) for path, blob in files.items())))
        self.commits.append(Commit(hashlib.sha1(text.encode()).hexdigest(), message, files))
        return self.commits[-1]

    def find(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.id == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        """What the newest commit holds."""
        return {path: blob.data for path, blob in self.commits[-1].files.items()}


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


class Disconnected(Exception):
    """The connection breaks, without an answer."""


class HubServer(ThreadingHTTPServer):
    """The Hub, on a free port of this machine, with one user."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        # Another host, as the client sees it: tokens must not be sent there
        self.storage_url = f"http://localhost:{self.server_port}/storage"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.unverified: dict[str, bytes] = {}
        self.xet_folder: Path | None = None  # storage for clients that prefer Xet
        self.requests: list[str] = []  # "METHOD path"
        self.disturb: Callable[[str], None] = lambda request: None  # is called first, and may raise
        self.lock = threading.RLock()

    def xet_files(self) -> dict[str, XetBlob]:
        """
        :return: files in Xet storage by SHA-256, from its shards. These are made of records of 48 bytes: for each file
            its hash and the number of its parts, then these with their sizes, their checksums, and the SHA-256
        """
        blobs = {}
        for path in self.xet_folder.rglob("shards/*.mdb") if self.xet_folder else []:
            records = [path.read_bytes()[start : start + 48] for start in range(48, path.stat().st_size - 47, 48)]
            while records and records[0][:32] != b"\xff" * 32:
                _, n_parts = struct.unpack("<II", records[0][32:40])
                parts = records[1 : 1 + n_parts]
                size = sum(struct.unpack("<I", part[36:40])[0] for part in parts)
                blob = XetBlob(xet_hex(records[0]), xet_hex(records[1 + 2 * n_parts]), size)
                blobs[blob.sha256] = blob
                records = records[2 + 2 * n_parts :]
        return blobs

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of broken connections."""


def xet_hex(record: bytes) -> str:
    """
    :param record: of a shard
    :return: the hash that it begins with, as Xet writes it
    """
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", record[:32]))


@contextmanager
def running_hub() -> Any:
    """
    :return: a server that answers as long as the context lasts
    """
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


NAME = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
ROUTES = {
    r"POST /api/repos/create": "create_repository",
    r"GET /api/whoami-v2": "tell_who",
    r"POST /api/validate-yaml": "validate_yaml",
    rf"GET /api/models/{NAME}(/revision/(?P<revision>[^/]+))?": "describe",
    rf"GET /api/models/{NAME}/tree/(?P<revision>[^/]+)": "list_tree",
    rf"POST /api/models/{NAME}/preupload/(?P<revision>[^/]+)": "preupload",
    rf"POST /api/models/{NAME}/commit/(?P<revision>[^/]+)": "commit",
    rf"POST /{NAME}\.git/info/lfs/objects/batch": "batch",
    rf"GET /api/models/{NAME}/xet-(read|write)-token/(?P<revision>[^/]+)": "xet_token",
    r"PUT /storage/(?P<sha256>\w+)": "put_large_file",
    rf"POST /api/models/{NAME}/verify": "verify",
    rf"(HEAD|GET) /{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "resolve",
    rf"(HEAD|GET) /api/resolve-cache/models/{NAME}/(?P<revision>[^/]+)/(?P<path>.+)": "get_small_file",
    r"(HEAD|GET) /storage/(?P<sha256>\w+)": "get_large_file",
}


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        request = f"{self.command} {unquote(urlsplit(self.path).path)}"
        with self.server.lock:
            self.server.requests.append(request)
        try:
            self.server.disturb(request)
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            for pattern, name in ROUTES.items():
                match = re.fullmatch(pattern, request)
                if match:
                    with self.server.lock:
                        getattr(self, name)(**match.groupdict())
                    return
            raise Refused(404, f"no such address: {request}")
        except Disconnected:
            self.close_connection = True
            self.connection.close()
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            self.send(json.dumps(refused.body).encode(), refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send(self, data: bytes = b"", status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    # --- who may do what ---

    def is_logged_in(self) -> bool:
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            raise Refused(401, "Invalid credentials in Authorization header")
        return authorization is not None

    def find(self, repo_id: str, is_write: bool = False) -> Repository:
        is_logged_in = self.is_logged_in()
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.is_private and not is_logged_in):
            raise Refused(404 if is_logged_in else 401, "Repository not found", "RepoNotFound")
        if is_write and (not is_logged_in or repo_id.split("/")[0] not in ORGANIZATIONS):
            raise Refused(403, "You don't have the rights")
        return repository

    def find_commit(self, repo_id: str, revision: str | None) -> Commit:
        commit = self.find(repo_id).find(revision or "main")
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- the API ---

    def create_repository(self) -> None:
        if not self.is_logged_in():
            raise Refused(401, "Invalid username or password.")
        payload = json.loads(self.body)
        organization = payload["organization"] or USER
        repo_id = f"{organization}/{payload['name']}"
        url = f"{self.server.url}/{repo_id}"
        if organization not in ORGANIZATIONS:
            raise Refused(403, f"You don't have the rights to create a model under the namespace {organization!r}")
        if repo_id in self.server.repositories:
            raise Refused(409, "You already created this model repo", url=url)
        repository = self.server.repositories[repo_id] = Repository(payload.get("visibility") == "private")
        repository.commit("initial commit", {".gitattributes": Blob(GITATTRIBUTES)})
        self.send_json({"url": url, "name": repo_id, "id": repo_id})

    def tell_who(self) -> None:
        if not self.is_logged_in():
            raise Refused(401, "Invalid username or password.")
        self.send_json({"type": "user", "name": USER, "orgs": [{"name": name} for name in ORGANIZATIONS - {USER}]})

    def validate_yaml(self) -> None:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        metadata = yaml.safe_load(match.group(1)) if match else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("tags"), list):
            raise Refused(400, "Invalid YAML", errors=[{"message": "there must be tags"}], warnings=[])
        self.send_json({"errors": [], "warnings": []})

    def describe(self, repo_id: str, revision: str | None) -> None:
        commit = self.find_commit(repo_id, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        self.send_json({"id": repo_id, "modelId": repo_id, "sha": commit.id, "siblings": siblings, "tags": []})

    def list_tree(self, repo_id: str, revision: str) -> None:
        entries: list[dict[str, Any]] = []
        for path, blob in self.find_commit(repo_id, revision).files.items():
            entry = {"type": "file", "path": path, "oid": blob.git_id, "size": blob.size}
            if blob.is_large:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
            if isinstance(blob, XetBlob):
                entry["xetHash"] = blob.xet_hash
            entries.append(entry)
        self.send_json(entries)

    def preupload(self, repo_id: str, revision: str) -> None:
        files = (self.find(repo_id, is_write=True).find(revision) or Commit("", "", {})).files
        patterns = re.findall(r"^(\S+) filter=lfs", files[".gitattributes"].data.decode(), re.MULTILINE)
        answers = []
        for file in json.loads(self.body)["files"]:
            name = PurePosixPath(file["path"]).name
            is_binary = b"\0" in base64.b64decode(file["sample"])
            is_large = file["size"] > 10 * 2**20 or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
            known = files.get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_large or is_binary else "regular",
                    "shouldIgnore": False,
                    "oid": None if known is None else known.sha256 if known.is_large else known.git_id,
                }
            )
        self.send_json({"files": answers})

    def batch(self, repo_id: str) -> None:
        self.find(repo_id, is_write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.server.large_files:
                upload = {"href": f"{self.server.storage_url}/{item['oid']}"}
                verify = {"href": f"{self.server.url}/api/models/{repo_id}/verify"}
                item = {**item, "authenticated": True, "actions": {"upload": upload, "verify": verify}}
            objects.append(item)
        self.send_json({"transfer": "basic", "objects": objects})

    def put_large_file(self, sha256: str) -> None:
        self.check_no_token()
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refused(400, "the file is not what was announced")
        self.server.unverified[sha256] = self.body
        self.send()

    def verify(self, repo_id: str) -> None:
        self.find(repo_id, is_write=True)
        item = json.loads(self.body)
        data = self.server.unverified.pop(item["oid"], None)
        if data is None or len(data) != item["size"]:
            raise Refused(400, "no such file was uploaded")
        self.server.large_files[item["oid"]] = data
        self.send_json({})

    def xet_token(self, repo_id: str, revision: str) -> None:
        self.find(repo_id)
        values = {"casUrl": f"local://{self.server.xet_folder}", "accessToken": "any", "exp": 2**40}
        names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        self.send(json.dumps(values).encode(), headers=dict(zip(names, map(str, values.values()), strict=True)))

    def commit(self, repo_id: str, revision: str) -> None:
        repository = self.find(repo_id, is_write=True)
        files = dict(self.find_commit(repo_id, revision).files)
        message = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif operation["key"] == "lfsFile":
                blobs = {oid: Blob(data, is_large=True) for oid, data in self.server.large_files.items()}
                blobs |= self.server.xet_files()
                if value["oid"] not in blobs:
                    raise Refused(400, f"the large file {value['path']} was not uploaded")
                files[value["path"]] = blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"unknown operation {operation['key']}")
        commit = repository.commit(message, files)
        url = f"{self.server.url}/{repo_id}/commit/{commit.id}"
        self.send_json({"success": True, "commitUrl": url, "commitOid": commit.id, "pullRequestUrl": None})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self.find_commit(repo_id, revision)
        headers = {"X-Repo-Commit": commit.id}
        blob = commit.files.get(path)
        if blob is None:
            data = b"Entry not found"
            self.send(data, 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif blob.is_large:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            if isinstance(blob, XetBlob):
                route = f"{self.server.url}/api/models/{repo_id}/xet-read-token/{commit.id}"
                headers |= {"X-Xet-Hash": blob.xet_hash, "X-Xet-Refresh-Route": route}
            self.send(b"", 302, {**headers, "Location": f"{self.server.storage_url}/{blob.sha256}"})
        else:
            location = f"/api/resolve-cache/models/{repo_id}/{commit.id}/{quote(path)}"
            self.send(b"", 307, {**headers, "ETag": f'"{blob.git_id}"', "Location": location})

    def get_small_file(self, repo_id: str, revision: str, path: str) -> None:
        commit = self.find_commit(repo_id, revision)
        blob = commit.files[path]
        self.send(blob.data, headers={"X-Repo-Commit": commit.id, "ETag": f'"{blob.git_id}"'})

    def check_no_token(self) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, "the token went to the storage host")

    def get_large_file(self, sha256: str) -> None:
        self.check_no_token()
        self.send(self.server.large_files[sha256], headers={"ETag": f'"{sha256}"'})
