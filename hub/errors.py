"""What can go wrong in a push, each as one sentence with the remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

AGAIN = "the same command goes on where this one stopped"
SIGN_IN = "run `hf auth login`, or pass --token with a token that may write"


class PushError(ValueError):
    """Why something was not pushed: one sentence that names the thing and the remedy."""


@contextmanager
def hub_errors(repo_id: str, repo_type: str) -> Iterator[None]:
    """Raise `PushError` for an error of the Hub's client, of the network or of the disk."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        sentence = None if isinstance(error, PushError) else explain(error, repo_id, repo_type)
        if sentence is None:
            raise
        raise PushError(sentence) from error


def explain(error: BaseException, repo_id: str, repo_type: str) -> str | None:
    """The sentence for an error in a push; None for one that is no fault of Hub, network, disk or arguments."""
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo_id, repo_type)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it."
    if isinstance(error, LocalTokenNotFoundError):
        return f"No token of the Hub was found: {SIGN_IN}."
    if isinstance(error, HFValidationError):
        return f"{repo_id}: is no repository id ({_reason(error)}); write OWNER/NAME."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" at {error.filename}" if error.filename else ""
        return f"The disk is full{where}: free some space; {AGAIN}."
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        # The client wraps what ended the upload of one file.
        cause = error.__cause__
        if isinstance(cause, RuntimeError | AttributeError) and cause.__cause__ is None:
            # Uploads share a connection. One that broke is closed under the others: "the client has been closed", or, in
            # the moment of closing, "'NoneType' object has no attribute 'request'".
            return f"The connection to the Hub broke ({_reason(cause)}): {AGAIN}."
        return explain(cause, repo_id, repo_type) or f"{_reason(error)} {_reason(cause)} Try again: {AGAIN}."
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        return f"The connection to the Hub broke ({_reason(error)}): {AGAIN}."
    # create_commit raises a plain ValueError where the Hub refuses the front matter of README.md.
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"The Hub refuses the front matter of README.md: {_reason(error)}"
    return None


def _refusal(error: HfHubHTTPError, repo_id: str, repo_type: str) -> str:
    """A sentence for an answer of the Hub with an error status."""
    status = error.response.status_code
    message = f" The Hub says: {error.server_message}" if error.server_message else ""
    if status == 401:
        return f"{repo_id}: the Hub does not accept the token, or there is none (401): {SIGN_IN}.{message}"
    if status == 402:
        return (
            f"{repo_id}: the account may not have this {repo_type} for free (402): a Gradio Space needs a PRO account, or "
            f"ZeroGPU hardware, of which an account has two.{message}"
        )
    if status == 403 and repo_type == "kernel":
        return (
            f"{repo_id}: the account may not create kernel repositories (403): ask for kernel creation in the "
            f"settings of the account (https://huggingface.co/settings/account), and push again.{message}"
        )
    if status == 403:
        return f"{repo_id}: the token may not write there (403): use another owner, or a token that may write.{message}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id}: has no such branch, tag or commit; `hf repos branch` lists what there is."
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo_id}: the Hub has no such {repo_type}, or the token may not see it (404); check the id, or {SIGN_IN}."
    if status == 429:
        return f"The Hub takes no more requests for now (429): wait some minutes; {AGAIN}."
    if status >= 500:
        return f"The Hub is out of order ({status}): wait some minutes; {AGAIN}."
    return f"{repo_id}: the Hub refuses the push ({status}).{message}"


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
