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
    except HfHubHTTPError as error:
        raise PushError(_refusal(error, repo_id, repo_type)) from error
    except OfflineModeIsEnabled as error:
        raise PushError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it.") from error
    except LocalTokenNotFoundError as error:
        raise PushError(f"No token of the Hub was found: {SIGN_IN}.") from error
    except HFValidationError as error:
        raise PushError(f"{repo_id}: is no repository id ({str(error).splitlines()[0]}); write OWNER/NAME.") from error
    except HTTPError as error:
        raise PushError(f"The connection to the Hub broke ({_reason(error)}): {AGAIN}.") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = f" at {error.filename}" if error.filename else ""
            raise PushError(f"The disk is full{where}: free some space; {AGAIN}.") from error
        if isinstance(error, ConnectionError | TimeoutError):
            raise PushError(f"The connection to the Hub broke ({_reason(error)}): {AGAIN}.") from error
        raise
    except ValueError as error:
        # create_commit raises a plain ValueError where the Hub refuses the front matter of README.md.
        if isinstance(error, PushError) or "README.md" not in str(error):
            raise
        raise PushError(f"The Hub refuses the front matter of README.md: {_reason(error)}") from error


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
            f"{repo_id}: the account may not create kernel repositories (403): ask for kernel creation in the account settings "
            f"of the Hub (https://huggingface.co/settings/account), and push again.{message}"
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


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
