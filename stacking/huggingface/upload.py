"""Uploads an export to the Hugging Face Hub. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import join

from stacking.errors import StackingError, UserError, printable

MAIN = "main"
_OPTION = "--push-to-hub"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_REFUSED = {
    400: ("does not accept this name or --revision", "correct it"),
    401: ("does not accept the token", _LOG_IN),
    403: ("does not let this token write there", "use a token with write access, or a name of your own"),
}


@dataclass(frozen=True)
class Destination:
    """A model on the Hub."""

    repository: str
    """``OWNER/NAME``, or ``NAME`` of the token's owner."""
    revision: str = MAIN
    """The branch."""
    private: bool = False

    def command(self, folder: Path) -> str:
        """Returns the command of the Hub's own program that uploads ``folder`` here."""
        private = ["--private"] if self.private else []
        return join(["hf", "upload", self.repository, str(folder), ".", "--revision", self.revision, *private])


def require_uploadable(repository: str) -> None:
    """Rejects, before anything is exported, what could not be uploaded anyway. Asks no server.

    Raises:
        UserError: the name is invalid, there is no token, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{_OPTION} {repository}", f"is not a name ({error})", "write OWNER/NAME") from None
    if constants.HF_HUB_OFFLINE:
        where = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"
        raise UserError(where, "is set, so nothing can be uploaded", f"unset it, or omit {_OPTION}")
    if get_token() is None:
        raise UserError(_OPTION, "finds no token of the Hub", _LOG_IN)


def upload(folder: Path, to: Destination) -> str:
    """Uploads an export in one commit; the model and the branch are created if they are missing.

    Returns:
        The address of what was uploaded.

    Raises:
        UserError: the Hub refuses the token or a name, or has a public model of this name and ``to`` is private.
        StackingError: the Hub does not answer, or the upload failed. In any case ``folder`` stays as it is, and the
            message says how to try again.
    """
    try:
        return _upload(folder, to)
    except Exception as error:  # the library raises the errors of its HTTP client, which differs between versions
        raise _explained(error, folder, to) from error


def _upload(folder: Path, to: Destination) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    name = api.create_repo(to.repository, private=to.private or None, exist_ok=True).repo_id
    if to.private and not api.model_info(name).private:
        raise UserError(f"{_OPTION} {name}", "is a public model", "omit --private, or choose another name")
    if to.revision != MAIN:
        api.create_branch(name, branch=to.revision, exist_ok=True)
    message = "Upload by `stacking export`"
    api.upload_folder(repo_id=name, folder_path=folder, revision=to.revision, commit_message=message)
    return f"{api.endpoint}/{name}/tree/{to.revision}"


def _explained(error: Exception, folder: Path, to: Destination) -> StackingError:
    """Returns the error for a failed upload: what is wrong, and how to continue from the finished export."""
    again = f"{folder} is complete, `{to.command(folder)}` uploads it"
    if isinstance(error, UserError):
        return UserError(error.where, error.problem, f"{error.remedy}: {again}")
    where, status = f"{_OPTION} {to.repository}", getattr(getattr(error, "response", None), "status_code", 0)
    reason = (getattr(error, "server_message", None) or str(error) or type(error).__name__).splitlines()[0][:160]
    if status in _REFUSED:
        problem, remedy = _REFUSED[status]
        return UserError(where, f"the Hub {problem} ({status}: {reason})", f"{remedy}: {again}")
    return StackingError(printable(f"{where}: the upload failed ({type(error).__name__}: {reason}); {again}"))
