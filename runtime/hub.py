"""Upload a finished model to the Hugging Face Hub, as a private repository. No torch.

The token comes from the environment variable HF_TOKEN only. It is sent in the Authorization header
and is in no message.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from runtime.errors import UserError, first_line

TOKEN_VARIABLE = "HF_TOKEN"
TOKEN_CHARACTERS = re.compile(r"[A-Za-z0-9_.~+/=-]+")  # of a bearer token, RFC 6750


def token_errors(name: str) -> list[str]:
    """Why nothing can be uploaded to the repository `name`: there is no token, or none that can be
    sent."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        return [
            f"--push_to_hub is {name}, but {TOKEN_VARIABLE} is not set; put an access token with "
            "write permission into this environment variable"
        ]
    if not TOKEN_CHARACTERS.fullmatch(token):
        return [
            f"--push_to_hub is {name}, but {TOKEN_VARIABLE} has a blank or another character that "
            "no token has"
        ]
    return []


def reason_of(error: Exception) -> str:
    """The first line of an error, without the token if a server repeats it."""
    return first_line(error).replace(os.environ[TOKEN_VARIABLE], "***")


def check_repository(name: str) -> None:
    """Raise UserError if the hub cannot be reached, rejects the token, or already has a public
    repository of this name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=os.environ[TOKEN_VARIABLE])
    is_public = False
    try:
        owner = api.whoami()["name"]
        is_public = not api.model_info(name if "/" in name else f"{owner}/{name}").private
    except RepositoryNotFoundError:
        pass  # it is created after the run
    except Exception as error:  # of HTTP, of the connection, or of the certificate
        raise UserError(f"--push_to_hub is {name}, but the hub says: {reason_of(error)}") from None
    if is_public:
        raise UserError(
            f"--push_to_hub is {name}, but that repository is public, and the files of a run may "
            "quote your texts; give another name, or make it private first"
        )


def upload_model(directory: Path, name: str) -> str:
    """Upload all files of a directory to the private repository `name`, which is created if it
    does not exist; returns its address.

    UserError if this fails: it says how to repeat the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ[TOKEN_VARIABLE])
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=directory,
            commit_message=f"Upload {directory.name}",
        )
    except Exception as error:  # of HTTP, of the connection, or of the certificate
        command = shlex.join(["hf", "upload", "--private", name, str(directory), "."])
        raise UserError(
            f"--push_to_hub is {name}, but the upload failed: {reason_of(error)}; the model is "
            f"complete in {directory}; to upload it later: {command}"
        ) from None
    return str(repository)
