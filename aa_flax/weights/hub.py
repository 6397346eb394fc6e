"""Weights in a repository on the Hugging Face hub, as `hf-hub:OWNER/NAME@REVISION#sha256=HEX`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aa_flax.errors import InputError, first_line, real
from aa_flax.weights.read import checked_images, json_in, prefixed

PREFIX = "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_SYNTAX = re.compile(
    r"hf-hub:(?!.*\.\.)(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^@#\s]+))?(#sha256=(?P<sha256>[0-9A-Fa-f]{8,64}))?"
)


class HubName(NamedTuple):
    """The parts of a `hf-hub:` name; the hash is the file's, or its first 8 digits or more."""

    repository: str
    revision: str | None
    sha256: str | None


class HubFile(NamedTuple):
    """A downloaded weights file of the commit `revision`."""

    path: Path
    revision: str
    images: Mapping[str, Any]  # that the model expects, as fields of `ModelConfig`
    licence: str | None


def parse_hub_name(name: str) -> HubName:
    """Splits `hf-hub:OWNER/NAME[@REVISION][#sha256=HEX]`; raises an InputError for others."""
    match = _SYNTAX.fullmatch(name)
    if match is None:
        raise InputError(
            f"weights on the hub are hf-hub:OWNER/NAME, followed by @REVISION and #sha256=HEX (8 "
            f"to 64 digits) if they are to be compared; got {name}"
        )
    digest = match["sha256"]
    return HubName(match["repository"], match["revision"], digest and digest.lower())


def hub_file(name: HubName) -> HubFile:
    """Downloads a repository's weights, or finds them in the hub's cache.

    safetensors is preferred to torch's file. `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and
    `HF_HUB_OFFLINE` have the meaning that huggingface_hub gives them.

    Raises:
        InputError: huggingface_hub is not installed, no such repository, revision or file, or no
            connection.
    """
    errors: list[Exception] = []
    for filename in _FILES:
        try:
            path = _download(name, filename)
        except hub_module().errors.EntryNotFoundError as error:
            errors.append(error)
            continue
        # The hub's cache has `snapshots/COMMIT/file`.
        commit = path.parent.name if path.parent.parent.name == "snapshots" else ""
        return HubFile(path, commit or name.revision or "main", *_facts(name))
    raise InputError(
        f"{PREFIX}{name.repository} contains none of {', '.join(_FILES)}"
        + (f" at {name.revision}" if name.revision else "")
        + f" ({first_line(errors[0]).rstrip('.')})"
    )


def _download(name: HubName, filename: str) -> Path:
    """Raises the hub's EntryNotFoundError for an absent file, an InputError for all else."""
    hub = hub_module()
    try:
        return Path(hub.hf_hub_download(name.repository, filename, revision=name.revision))
    except Exception as error:  # of the hub, of HTTP and of the file system
        absent = isinstance(error, hub.errors.EntryNotFoundError)
        # The subclass LocalEntryNotFoundError reports a missing connection.
        if absent and not isinstance(error, hub.errors.LocalEntryNotFoundError):
            raise
        cause = first_line(error).rstrip(".")
        raise InputError(
            f"{PREFIX}{name.repository} could not be downloaded: {cause}. Download its weights "
            "file by other means and give its path"
        ) from None  # the hub's chain of errors would be printed before the cause


def _facts(name: HubName) -> tuple[dict[str, Any], str | None]:
    """Returns what timm stores next to weights: the images they expect, and their licence."""
    label, file = f"{PREFIX}{name.repository}", "config.json"
    try:
        text = _download(name, file).read_text(errors="replace")
    except hub_module().errors.EntryNotFoundError:
        return {}, None
    facts = json_in({file: text}, file, label).get("pretrained_cfg") or {}
    with prefixed(f"{label}: {file}: pretrained_cfg"):
        if not isinstance(facts, dict):
            raise InputError(f"must be a mapping, got {facts!r:.99}")
        licence = facts.get("license")
        if not isinstance(licence, str | None):
            raise InputError(f"license must be a text, got {licence!r:.99}")
        return image_config(facts), licence


def image_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the images that a `pretrained_cfg` describes, as fields of `ModelConfig`, checked.

    Sizes are those of the test, where there are any; fields that it does not have are left out.

    Raises:
        InputError: a size or crop that images cannot have.
    """
    found = {key: facts[key] for key in ("mean", "std") if facts.get(key) is not None}
    if facts.get("interpolation") in ("bilinear", "bicubic"):
        found["interpolation"] = facts["interpolation"]
    size = facts.get("test_input_size") or facts.get("input_size")
    crop = facts.get("test_crop_pct") or facts.get("crop_pct")
    if size and crop:
        if not isinstance(size, list | tuple) or len(size) != 3 or size[1] != size[2]:
            raise InputError(f"input_size must be [3, SIDE, SIDE], got {size!r:.99}")
        side = checked_images({"input_size": size[-1]})["input_size"]
        crop = real("crop_pct", crop, least=0.01, most=1)
        found |= {"input_size": side, "resize_size": int(side / crop)}
    return checked_images(found)


def hub_json(name: HubName, filename: str) -> dict[str, Any]:
    """Returns a JSON file of a repository, a mapping.

    Raises:
        InputError: no such repository or file, no mapping, or no connection.
    """
    label = f"{PREFIX}{name.repository}"
    try:
        text = _download(name, filename).read_text(errors="replace")
    except hub_module().errors.EntryNotFoundError:
        raise InputError(f"{label} has no {filename}") from None
    return json_in({filename: text}, filename, label)


def hub_module() -> Any:
    """Returns huggingface_hub; an InputError says how to install it.

    Raises:
        InputError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            "weights on the hub need huggingface_hub: pip install 'aa_flax[hub]'"
        ) from error
    return huggingface_hub
