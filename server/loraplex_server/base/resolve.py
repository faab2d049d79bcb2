"""Turns what a user names as base, a folder or an id, into a complete local folder."""

from __future__ import annotations

import re
from pathlib import Path

from loraplex_server.base.fetch import DEFAULT_BASE_ID, StageProgress, fetch_default_base
from loraplex_server.errors import BaseModelError, BaseModelInvalidError
from loraplex_server.model.checkpoint import weight_files
from loraplex_server.model.config import DecoderConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Never a pickle and never code: those are not even downloaded.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


def resolve_base(
    path_or_id: str | None,
    progress: StageProgress | None = None,
    cache_dir: Path | None = None,
    allow_download: bool = True,
) -> Path:
    """Folder of the base that `path_or_id` names, checked to be complete and of a supported architecture.

    None and "smollm2-135m-instruct" take the default base; a folder is taken as it is; "organisation/name" is looked
    up in the local Hugging Face cache and, where `allow_download`, on the hub. `progress` reports the default base's
    download and conversion.

    Raises BaseModelError with a message of one line.
    """
    if path_or_id is None or path_or_id.lower() == DEFAULT_BASE_ID:
        return fetch_default_base(progress, cache_dir)
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        check_complete(path)
        return path.resolve()
    if path.is_file():
        raise BaseModelInvalidError(f"'{path_or_id}' is a file; give the Hugging Face folder of the base")
    if not _HUB_ID.fullmatch(path_or_id):
        raise BaseModelInvalidError(
            f"no folder '{path_or_id}'; give a Hugging Face folder, an id like organisation/name, "
            f"or {DEFAULT_BASE_ID}"
        )
    return _from_hub_cache(path_or_id) or _from_hub(path_or_id, allow_download)


def check_complete(folder: Path) -> None:
    """Raises BaseModelError unless config, safetensors weights and tokenizer are all there."""
    DecoderConfig.from_folder(folder)
    weight_files(folder)
    if not (folder / "tokenizer.json").is_file():
        raise BaseModelInvalidError(
            f"the base's folder '{folder}' has no tokenizer.json; save its fast tokenizer there"
        )


def _from_hub_cache(hub_id: str) -> Path | None:
    """The id's snapshot if an earlier download left a complete one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=_HUB_FILES))
        check_complete(folder)
    except HFValidationError as error:
        raise BaseModelInvalidError(f"'{hub_id}' is no Hugging Face id: {error}") from None
    except (LocalEntryNotFoundError, BaseModelInvalidError):
        return None  # absent, or cut off half-way: a download completes it
    return folder


def _from_hub(hub_id: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not allow_download:
        raise BaseModelError(f"base '{hub_id}' is not in the local Hugging Face cache; give its folder")
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise BaseModelError(
            f"base '{hub_id}' is neither a folder nor in the local Hugging Face cache, and the hub does not give it: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from None
    check_complete(folder)
    return folder
