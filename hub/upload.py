"""One push: a list of files with their sizes, and its upload as one commit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RevisionNotFoundError

from .errors import PushError, hub_errors

# A file of a push: one on the disk, or content that is made for the Hub.
Content = Path | bytes
MAIN = "main"


@dataclass(frozen=True)
class Target:
    """Where a push goes.

    Args:
        repo_id: OWNER/NAME.
        repo_type: "model", "dataset", "space" or "kernel".
        revision: the branch, created if it is missing.
        private: whether a new repository is private.
        token: of the Hub; None takes the one that `hf auth login` stored.
    """

    repo_id: str
    repo_type: str
    revision: str = MAIN
    private: bool = False
    token: str | None = None

    def __post_init__(self) -> None:
        if self.repo_id.count("/") != 1 or not all(self.repo_id.split("/")):
            raise PushError(f"{self.repo_id}: is no repository id; write OWNER/NAME, as in me/radfm-liver.")

    @property
    def api(self) -> HfApi:
        """The Hub's client, with the token."""
        return HfApi(token=self.token)


@dataclass(frozen=True)
class Push:
    """What a push would do.

    Args:
        target: the repository and branch.
        files: path in the repository → a file, or its content.
        replaced: patterns of paths. Files of an earlier push that match and are not in `files` are removed, such as the
            third shard of a model that now has two.
        main_files: files that are copied to the branch `main` too, where `target.revision` is another branch.
        space: arguments of `create_repo` for a Space.
        variables: environment variables of a Space.
    """

    target: Target
    files: Mapping[str, Content]
    replaced: Sequence[str] = ()
    main_files: Sequence[str] = ()
    space: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The page of the repository."""
        folder = {"model": ""}.get(self.target.repo_type, f"{self.target.repo_type}s/")
        return f"{self.target.api.endpoint}/{folder}{self.target.repo_id}"

    def sizes(self) -> dict[str, int]:
        """Path in the repository → bytes."""
        return {path: size_of(content) for path, content in sorted(self.files.items())}

    def upload(self, progress: Callable[[str], None] = lambda line: None) -> str:
        """Create the repository if it is missing, upload what it does not have yet, and commit; the commit's id.

        Large files go up before the commit, and the Hub keeps those that arrived: after an interruption the same push sends
        the rest.

        Raises:
            PushError: the Hub refuses, the connection breaks, or the disk is full.
        """
        target, api = self.target, self.target.api
        with hub_errors(target.repo_id, target.repo_type):
            self._create(api)
            progress(f"{len(self.files)} files, {sum(self.sizes().values()) / 1e6:,.1f} MB to {target.repo_id}")
            commit = self._commit(api, target.revision, self.files)
            if self.main_files and target.revision != MAIN:
                self._commit(api, MAIN, {path: self.files[path] for path in self.main_files})
            for key, value in self.variables.items():
                api.add_space_variable(target.repo_id, key, value)
        return commit

    def _create(self, api: HfApi) -> None:
        target = self.target
        api.create_repo(
            target.repo_id, repo_type=target.repo_type, private=target.private or None, exist_ok=True, **self.space
        )
        if target.private and not api.repo_info(target.repo_id, repo_type=target.repo_type).private:
            raise PushError(
                f"{target.repo_id}: exists already and is public, so --private would not hide what is pushed; make it "
                "private in its settings, or push to another name."
            )
        if target.revision != MAIN:
            api.create_branch(target.repo_id, repo_type=target.repo_type, branch=target.revision, exist_ok=True)

    def _commit(self, api: HfApi, branch: str, files: Mapping[str, Content]) -> str:
        target = self.target
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        if files is self.files:
            present = api.list_repo_files(target.repo_id, repo_type=target.repo_type, revision=branch)
            operations += [CommitOperationDelete(path) for path in present if path not in files and self._replaces(path)]
        commit = api.create_commit(
            target.repo_id,
            operations,
            repo_type=target.repo_type,
            revision=branch,
            commit_message="Push by radfm",
        )
        return str(commit.oid)

    def _replaces(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self.replaced)


def size_of(content: Content) -> int:
    """Bytes of a file of a push."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def read(content: Content) -> bytes:
    """The content of a file of a push."""
    return content if isinstance(content, bytes) else content.read_bytes()


def find_commit(repo_id: str, repo_type: str, revision: str | None, token: str | None) -> str:
    """The id of the commit that a branch, a tag, or None (`main`) names now.

    Raises:
        PushError: no such repository or revision, or no connection.
    """
    with hub_errors(repo_id, repo_type):
        try:
            info = HfApi(token=token).repo_info(repo_id, repo_type=repo_type, revision=revision)
        except RevisionNotFoundError as error:
            raise PushError(f"{repo_id}: has no branch, tag or commit {revision}.") from error
    if info.sha is None:
        raise PushError(f"{repo_id}: has no commit yet; push to it first.")
    return str(info.sha)
