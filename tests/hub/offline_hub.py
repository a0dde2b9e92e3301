"""A Hub for the tests: the part of huggingface.co's API that the real clients call, in memory, on a port of this machine.

    with OfflineHub() as hub:  # HF_ENDPOINT=hub.url and HF_HUB_DISABLE_XET=1 in the environment of the clients
        ...

Repositories of all four types with commits, branches and tags; files above `REGULAR_BYTES` and weights go through Git LFS.
`hub.fail(method, path, status, …)` makes the next matching requests fail.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TYPES = {"models": "", "datasets": "datasets/", "spaces": "spaces/", "kernels": "kernels/"}
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".zip")
REGULAR_BYTES = 1 << 20


@dataclass
class Blob:
    """Content of a file; `sha256` is set if Git LFS stores it."""

    content: bytes
    sha256: str | None

    @property
    def oid(self) -> str:
        """Git's name of the content, or of the LFS pointer."""
        content = self.content if self.sha256 is None else pointer(self.sha256, len(self.content))
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that Git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass
class Repository:
    """Commits (id → files), and the branches and tags that name them."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    created_with: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        """Add a commit to a branch; its id."""
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}\n{self.branches.get(branch)}\n{listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or an id names."""
        return self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path → content at a revision."""
        return {path: blob.content for path, blob in self.commits[self.find(revision) or ""].items()}


@dataclass
class Failure:
    """An answer of `status` to the next `times` matching requests."""

    method: str
    path: re.Pattern[str]
    status: int
    message: str
    times: int


class OfflineHub:
    """The server, in a thread. `repositories` maps ("models", "me/radfm") to what was pushed; `requests` lists the calls."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS: sha256 → content
        self.requests: list[str] = []
        self.failures: list[Failure] = []
        self.token: str | None = None  # if set, writing needs it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: uvicorn.Server | None = None

    def __enter__(self) -> "OfflineHub":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve; after a `stop`, on the same port with the same content."""
        config = uvicorn.Config(make_app(self), host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop serving; connections are cut."""
        if self._server is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join()
            self._server = None

    def fail(self, method: str, path: str, status: int, message: str = "", times: int = 1) -> None:
        """Let the next `times` requests whose path has a match of the regular expression fail."""
        self.failures.append(Failure(method, re.compile(path), status, message, times))

    def repository(self, kind: str, repo_id: str) -> Repository:
        """A repository by type ("models", "datasets", "spaces", "kernels") and id."""
        return self.repositories[kind, repo_id]

    def next_failure(self, request: Request) -> Failure | None:
        """The planted failure that this request meets."""
        for failure in self.failures:
            if failure.times and failure.method == request.method and failure.path.search(request.url.path):
                failure.times -= 1
                return failure
        return None


def problem(status: int, message: str, code: str | None = None, commit: str | None = None) -> JSONResponse:
    """An error as the Hub sends it: the client reads the headers."""
    headers = {"X-Error-Message": message}
    headers |= {"X-Error-Code": code} if code else {}
    headers |= {"X-Repo-Commit": commit} if commit else {}
    return JSONResponse({"error": message}, status, headers)


def make_app(hub: OfflineHub) -> FastAPI:
    """The routes."""
    app = FastAPI()

    @app.middleware("http")
    async def meet_failures(request: Request, call_next: Any) -> Response:
        hub.requests.append(f"{request.method} {request.url.path}")
        if failure := hub.next_failure(request):
            return problem(failure.status, failure.message)
        writes = request.method in ("POST", "PUT", "DELETE") and "/paths-info/" not in request.url.path
        guarded = writes and hub.token is not None and request.url.path.startswith("/api/")
        if guarded and request.headers.get("authorization") != f"Bearer {hub.token}":
            return problem(401, "Invalid username or password.")
        return await call_next(request)

    add_account_routes(app, hub)
    add_upload_routes(app, hub)
    add_read_routes(app, hub)
    return app


def add_account_routes(app: FastAPI, hub: OfflineHub) -> None:
    """Who am I, new repositories, branches, tags, variables of a Space."""

    @app.get("/api/whoami-v2")
    async def whoami() -> Any:
        return {"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        body = await request.json()
        kind = body.get("type", "model") + "s"
        repo_id = f"{body.get('organization') or 'me'}/{body['name']}"
        url = f"{hub.url}/{TYPES[kind]}{repo_id}"
        if (kind, repo_id) in hub.repositories:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        repository = Repository(body.get("visibility") == "private", created_with=body)
        repository.variables = {entry["key"]: entry["value"] for entry in body.get("variables", [])}
        hub.repositories[kind, repo_id] = repository
        return JSONResponse({"url": url, "name": repo_id})

    @app.post("/api/validate-yaml")
    async def validate() -> Any:
        return {"errors": [], "warnings": []}

    @app.post("/api/{kind}/{owner}/{name}/{what}/{revision:path}")
    async def name_commit(kind: str, owner: str, name: str, what: str, revision: str, request: Request) -> Response:
        repository = hub.repositories.get((kind, f"{owner}/{name}"))
        if repository is None:
            return problem(404, "Repository not found", "RepoNotFound")
        if what == "preupload":
            return await preupload(hub, repository, revision, request)
        if what == "commit":
            return await commit(hub, repository, f"{TYPES[kind]}{owner}/{name}", revision, request)
        if what == "paths-info":
            return await paths_info(repository, revision, request)
        body = await request.json()
        if what == "tag":
            repository.tags[body["tag"]] = repository.find(revision) or ""
            return JSONResponse({})
        if revision in repository.branches:
            return problem(409, "Reference already exists")
        repository.branches[revision] = repository.find(body.get("startingPoint", "main")) or ""
        return JSONResponse({})

    @app.post("/api/spaces/{owner}/{name}/variables")
    async def set_variable(owner: str, name: str, request: Request) -> Any:
        body = await request.json()
        variables = hub.repositories["spaces", f"{owner}/{name}"].variables
        variables[body["key"]] = body["value"]
        return {key: {"value": value} for key, value in variables.items()}


async def preupload(hub: OfflineHub, repository: Repository, revision: str, request: Request) -> Response:
    """How each file is to be uploaded, and the id of the version that the repository has."""
    sha = repository.find(revision)
    if sha is None:
        return problem(404, "Invalid rev id", "RevisionNotFound")
    answer = []
    for file in (await request.json())["files"]:
        path = file["path"]
        lfs = path.endswith(LFS_SUFFIXES) or file["size"] > REGULAR_BYTES
        known = repository.commits[sha].get(path)
        oid = None if known is None else known.sha256 or known.oid
        answer.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
    return JSONResponse({"files": answer})


async def commit(hub: OfflineHub, repository: Repository, url: str, revision: str, request: Request) -> Response:
    """A commit, as lines of JSON."""
    if revision not in repository.branches:
        return problem(404, "Invalid rev id", "RevisionNotFound")
    files = dict(repository.commits[repository.branches[revision]])
    for line in (await request.body()).splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), None)
        elif entry["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                return problem(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = Blob(hub.objects[value["oid"]], value["oid"])
        elif entry["key"] == "deletedFile":
            files.pop(value["path"])
        elif entry["key"] == "deletedFolder":
            files = {path: blob for path, blob in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
    sha = repository.commit(revision, files)
    return JSONResponse({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{url}/commit/{sha}"})


async def paths_info(repository: Repository, revision: str, request: Request) -> Response:
    """Size and id of some paths."""
    sha = repository.find(revision)
    if sha is None:
        return problem(404, "Invalid rev id", "RevisionNotFound")
    paths = (await request.json())["paths"]
    return JSONResponse([entry for entry in tree_entries(repository.commits[sha], "", True) if entry["path"] in paths])


def add_upload_routes(app: FastAPI, hub: OfflineHub) -> None:
    """Git LFS."""

    @app.post("/{prefix:path}.git/info/lfs/objects/batch")
    async def batch(prefix: str, request: Request) -> Any:
        objects = []
        for entry in (await request.json())["objects"]:
            oid = entry["oid"]
            actions = {"upload": {"href": f"{hub.url}/lfs-upload/{oid}"}, "verify": {"href": f"{hub.url}/lfs-verify"}}
            objects.append({**entry, **({} if oid in hub.objects else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    @app.put("/lfs-upload/{oid}")
    async def upload(oid: str, request: Request) -> Response:
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return problem(400, "The content has another SHA-256")
        hub.objects[oid] = content
        return Response()

    @app.post("/lfs-verify")
    async def verify(request: Request) -> Response:
        return Response(status_code=200 if (await request.json())["oid"] in hub.objects else 404)


def tree_entries(files: dict[str, Blob], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder, as the Hub lists them."""
    prefix = f"{folder}/" if folder else ""
    entries: list[dict[str, Any]] = []
    folders: set[str] = set()
    for path, blob in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        folders |= {prefix + "/".join(parts[:i]) for i in range(1, len(parts) if recursive else min(len(parts), 2))}
        if recursive or len(parts) == 1:
            entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
            if blob.sha256 is not None:
                size = len(pointer(blob.sha256, len(blob.content)))
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": size}
            entries.append(entry)
    oids = {path: hashlib.sha1(path.encode()).hexdigest() for path in folders}
    entries += [{"type": "directory", "path": path, "size": 0, "oid": oid} for path, oid in oids.items()]
    return sorted(entries, key=lambda entry: entry["path"])


def add_read_routes(app: FastAPI, hub: OfflineHub) -> None:
    """Information, trees and files."""

    def find(kind: str, repo_id: str, revision: str) -> tuple[Repository, str] | JSONResponse:
        repository = hub.repositories.get((kind, repo_id))
        if repository is None:
            return problem(404, "Repository not found", "RepoNotFound")
        sha = repository.find(revision)
        return (repository, sha) if sha else problem(404, "Invalid rev id", "RevisionNotFound")

    def info(kind: str, repo_id: str, revision: str) -> Response:
        found = find(kind, repo_id, revision)
        if isinstance(found, Response):
            return found
        repository, sha = found
        siblings = [{"rfilename": path, "size": len(blob.content)} for path, blob in repository.commits[sha].items()]
        body = {"id": repo_id, "modelId": repo_id, "_id": repo_id, "sha": sha, "private": repository.private}
        body |= {"author": repo_id.split("/")[0], "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        return JSONResponse({**body, "gated": False, "disabled": False})

    @app.get("/api/{kind}/{owner}/{name}")
    async def newest(kind: str, owner: str, name: str) -> Response:
        return info(kind, f"{owner}/{name}", "main")

    @app.get("/api/{kind}/{owner}/{name}/revision/{revision:path}")
    async def at_revision(kind: str, owner: str, name: str, revision: str) -> Response:
        return info(kind, f"{owner}/{name}", revision)

    @app.get("/api/{kind}/{owner}/{name}/refs")
    async def refs(kind: str, owner: str, name: str) -> Response:
        found = find(kind, f"{owner}/{name}", "main")
        if isinstance(found, Response):
            return found

        def listed(where: str, named: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": key, "ref": f"refs/{where}/{key}", "targetCommit": sha} for key, sha in named.items()]

        names = {"branches": listed("heads", found[0].branches), "tags": listed("tags", found[0].tags)}
        return JSONResponse({**names, "converts": []})

    @app.get("/api/{kind}/{owner}/{name}/tree/{rest:path}")
    async def tree(kind: str, owner: str, name: str, rest: str, recursive: bool = False) -> Response:
        revision, _, folder = rest.partition("/")
        found = find(kind, f"{owner}/{name}", revision.replace("%2F", "/"))
        if isinstance(found, Response):
            return found
        entries = tree_entries(found[0].commits[found[1]], folder, recursive)
        if folder and not entries:
            return problem(404, f"{folder} does not exist on {revision}", "EntryNotFound", found[1])
        return JSONResponse(entries)

    def resolve(kind: str, repo_id: str, rest: str, request: Request) -> Response:
        revision, _, path = rest.partition("/")
        found = find(kind, repo_id, revision.replace("%2F", "/"))
        if isinstance(found, Response):
            return found
        repository, sha = found
        blob = repository.commits[sha].get(path)
        if blob is None:
            return problem(404, "Entry not found", "EntryNotFound", sha)
        size = len(blob.content)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "ETag": f'"{blob.sha256 or blob.oid}"'}
        if blob.sha256 is not None:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not asked:
            return Response(blob.content, headers=headers)
        first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
        if first >= size:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        part = blob.content[first : last + 1]
        return Response(part, 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})

    for kind in ("datasets", "spaces", "kernels"):
        # A loop variable of its own for each route.
        def route(owner: str, name: str, rest: str, request: Request, kind: str = kind) -> Response:
            return resolve(kind, f"{owner}/{name}", rest, request)

        app.add_api_route(f"/{kind}/{{owner}}/{{name}}/resolve/{{rest:path}}", route, methods=["GET", "HEAD"])

    @app.api_route("/{owner}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
    def model_file(owner: str, name: str, rest: str, request: Request) -> Response:
        return resolve("models", f"{owner}/{name}", rest, request)
