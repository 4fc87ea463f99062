"""Uploads a student with its card to the Hugging Face Hub, or to another server of that protocol (`HF_ENDPOINT`)."""

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from leadspan.digests import DIGESTS_FILE, fault
from leadspan.errors import RunError, SettingsError


def check_push(name: str) -> None:
    """Refuse a name that is not valid on the Hub, and an upload without a token.

    Raises:
        SettingsError: The name is not valid, or no token is stored.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingsError(f"push: {name!r} is no valid name on the Hub ({error}); write it as USER/MODEL") from None
    if get_token() is None:
        raise SettingsError(f"push: {name}: there is no token for the Hub; run `hf auth login`, or set HF_TOKEN")


def push_student(student: Path, name: str, private: bool | None = None) -> str:
    """Upload a student's directory without its digests; creates the repository if it does not exist.

    Args:
        student: Its directory.
        name: `USER/MODEL`.
        private: Whether a new repository is private; the account's default when None.

    Returns:
        Address of the commit.

    Raises:
        SettingsError: As in `check_push`.
        RunError: The student is missing or damaged, or the Hub refuses it or cannot be reached; no local file changes.
    """
    # Again, though the command has asked before: a token may go while a run trains.
    check_push(name)
    wrong = fault(student) if student.is_dir() else "there is no such directory"
    if wrong:
        raise RunError(f"{student}: {wrong}; only an undamaged student can be pushed: `distill --resume` makes it anew")
    api = HfApi(library_name="leadspan")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=student,
            ignore_patterns=[DIGESTS_FILE],  # they guard the local files; the Hub has its own
            commit_message="Student and model card",
        )
    # Before the errors of the network, of which it is one.
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it"
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = f"; use a token that may write to {name}" if status in (401, 403) else ""
        reason = f"refused ({status}: {error.server_message or _first_line(error)}){remedy}"
    except (httpx2.HTTPError, OSError, ValueError) as error:
        reason = f"{api.endpoint} cannot be reached ({_first_line(error)}); check the network and HF_ENDPOINT"
    else:
        return commit.commit_url
    again = f"leadspan push {student.parent} {name}"
    raise RunError(f"push {name}: {reason}; the local files are unchanged, try again with: {again}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
