"""Weights in a repository on the Hugging Face hub, as `hf-hub:OWNER/NAME@REVISION#sha256=HEX`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aa_flax.disk import parse_json
from aa_flax.errors import InputError

PREFIX = "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_FORM = re.compile(
    r"hf-hub:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^@#\s]+))?(#sha256=(?P<sha256>\w+))?"
)


class HubName(NamedTuple):
    """What a `hf-hub:` name says; the hash is one of the file, or its first 8 digits or more."""

    repository: str
    revision: str | None
    sha256: str | None


class HubFile(NamedTuple):
    """A downloaded file of weights; `revision` is the commit, `facts` its `pretrained_cfg`."""

    path: Path
    revision: str
    facts: Mapping[str, Any]


def parse_hub_name(name: str) -> HubName:
    """The parts of `hf-hub:OWNER/NAME[@REVISION][#sha256=HEX]`.

    Raises:
        InputError: another form.
    """
    match = _FORM.fullmatch(name)
    digest = (match["sha256"] or "").lower() if match else ""
    if match is None or (digest and not re.fullmatch("[0-9a-f]{8,64}", digest)):
        raise InputError(
            f"weights on the hub are hf-hub:OWNER/NAME, with @REVISION and #sha256=HEX (8 to 64 "
            f"digits) behind it if they are to be compared; got {name}"
        )
    return HubName(match["repository"], match["revision"], digest or None)


def hub_file(name: HubName) -> HubFile:
    """Downloads a repository's weights, or finds them in the hub's cache.

    safetensors is taken where there is one, else torch's file. `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`
    and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub.

    Raises:
        InputError: no huggingface_hub, no such repository, revision or file, or no connection.
    """
    errors: list[Exception] = []
    for filename in _FILES:
        try:
            path = _download(name, filename)
        except _hub().errors.EntryNotFoundError as error:
            errors.append(error)
            continue
        return HubFile(path, _commit(path) or name.revision or "main", _facts(name))
    raise InputError(
        f"{PREFIX}{name.repository} holds none of {', '.join(_FILES)}"
        + (f" at {name.revision}" if name.revision else "")
        + f" ({_first_line(errors[0])})"
    )


def _download(name: HubName, filename: str) -> Path:
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(name.repository, filename, revision=name.revision))
    except hub.errors.EntryNotFoundError as error:
        if isinstance(error, hub.errors.LocalEntryNotFoundError):  # no connection, says the hub
            raise _not_had(name, error) from error
        raise
    except Exception as error:  # of the hub, of HTTP and of the file system
        raise _not_had(name, error) from error


def _not_had(name: HubName, error: Exception) -> InputError:
    return InputError(
        f"{PREFIX}{name.repository} could not be had: {_first_line(error)}. Download its file of "
        "weights by other means and give its path"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


def _commit(path: Path) -> str:
    """The commit that a file of the hub's cache is of: `snapshots/COMMIT/file`; "": not said."""
    return path.parent.name if path.parent.parent.name == "snapshots" else ""


def _facts(name: HubName) -> Mapping[str, Any]:
    """What timm keeps beside weights: the images they expect, and their licence."""
    try:
        content = parse_json(_download(name, "config.json").read_text())
    except (_hub().errors.EntryNotFoundError, ValueError):
        return {}
    facts = content.get("pretrained_cfg") if isinstance(content, dict) else None
    return facts if isinstance(facts, dict) else {}


def image_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `pretrained_cfg` says of images, as fields of `ModelConfig`; nothing where it is silent.

    Sizes are those of the test, where there are any.
    """
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        if len(facts.get(key) or ()) == 3:
            found[key] = tuple(float(value) for value in facts[key])
    if facts.get("interpolation") in ("bilinear", "bicubic"):
        found["interpolation"] = facts["interpolation"]
    size = facts.get("test_input_size") or facts.get("input_size")
    share = facts.get("test_crop_pct") or facts.get("crop_pct")
    if size and share:
        found |= {"input_size": int(size[-1]), "resize_size": int(size[-1] / share)}
    return found


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            "weights on the hub need huggingface_hub: pip install 'aa_flax[hub]'"
        ) from error
    return huggingface_hub
