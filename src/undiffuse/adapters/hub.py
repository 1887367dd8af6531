"""Downloads models from the Hugging Face Hub (`hf:google/ddpm-cifar10-32`) with huggingface_hub (the extra "hub").

Downloads only a model's configurations and one set of its weights, into huggingface_hub's own cache. `HF_ENDPOINT` sets
another server, `HF_HOME` another cache, and `HF_TOKEN` the access token for gated models.
"""

from __future__ import annotations

import os
from pathlib import Path

from undiffuse.downloads import DownloadError

PREFIX = "hf:"
_CONFIGURATIONS = ("model_index.json", "config.json", "scheduler_config.json", "undiffuse.json")
_FOLDERS = ("", "unet/", "scheduler/")
_STEM = "diffusion_pytorch_model"


def is_reference(reference: str) -> bool:
    """Returns whether a reference names a model on the Hub."""
    return reference.startswith(PREFIX)


def snapshot(reference: str) -> Path:
    """Downloads a model, unless it is in the cache, and returns its folder.

    Args:
        reference: "hf:OWNER/NAME", or "hf:OWNER/NAME@REVISION".

    Raises:
        DownloadError: huggingface_hub is not installed, or the download failed.
        ValueError: The reference is malformed.
    """
    name, _, revision = reference.removeprefix(PREFIX).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"{reference}: expected hf:OWNER/NAME, for example hf:google/ddpm-cifar10-32")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise DownloadError(
            f'{reference} requires huggingface_hub: pip install "undiffuse[hub]". Or download the folder yourself and '
            "give its path"
        ) from None
    if os.environ.get("UNDIFFUSE_OFFLINE", "") not in ("", "0"):
        for file in ("model_index.json", "unet/config.json", "config.json"):
            found = huggingface_hub.try_to_load_from_cache(name, file, revision=revision or None)
            if isinstance(found, str):
                return Path(found).parents[file.count("/")]
        raise DownloadError(f"cannot download {reference} in offline mode, and it is not in the cache")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        files = huggingface_hub.HfApi(endpoint).list_repo_files(name, revision=revision or None)
        patterns = wanted(files)
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=patterns, endpoint=endpoint
            )
        )
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(f"cannot download {reference}: {reason}") from error


def wanted(files: list[str]) -> list[str]:
    """Chooses which of a model's files to download: the configurations and one set of weights, safetensors first.

    Args:
        files: Paths of all files.
    """
    chosen = [f"{folder}{name}" for folder in _FOLDERS for name in _CONFIGURATIONS if f"{folder}{name}" in files]
    for folder in _FOLDERS:
        own = [f for f in files if f.startswith(f"{folder}{_STEM}") and "/" not in f.removeprefix(folder)]
        plain = [f for f in own if f.removeprefix(f"{folder}{_STEM}").startswith((".safetensors", "-"))]
        weights = [f for f in plain if ".safetensors" in f] or [
            f for f in own if f.removeprefix(f"{folder}{_STEM}").startswith((".bin", "-"))
        ]
        chosen += weights or [f for f in own if ".safetensors" in f] or own
    return chosen
