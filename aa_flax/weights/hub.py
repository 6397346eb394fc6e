"""Weights in a repository on the Hugging Face hub, as `hf-hub:OWNER/NAME@REVISION#sha256=HEX`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aa_flax.errors import InputError, first_line, real
from aa_flax.weights.content import checked_images, mapping_in, naming

PREFIX = "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_FORM = re.compile(
    r"hf-hub:(?!.*\.\.)(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^@#\s]+))?(#sha256=(?P<sha256>\w+))?"
)


class HubName(NamedTuple):
    """What a `hf-hub:` name says; the hash is one of the file, or its first 8 digits or more."""

    repository: str
    revision: str | None
    sha256: str | None


class HubFile(NamedTuple):
    """A downloaded file of weights of the commit `revision`.

    Attributes:
        images: what it says of them, as fields of `ModelConfig`.
    """

    path: Path
    revision: str
    images: Mapping[str, Any]
    licence: str | None


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
        return HubFile(path, _commit(path) or name.revision or "main", *_facts(name))
    raise InputError(
        f"{PREFIX}{name.repository} holds none of {', '.join(_FILES)}"
        + (f" at {name.revision}" if name.revision else "")
        + f" ({first_line(errors[0]).rstrip('.')})"
    )


def _download(name: HubName, filename: str) -> Path:
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(name.repository, filename, revision=name.revision))
    except hub.errors.EntryNotFoundError as error:
        if isinstance(error, hub.errors.LocalEntryNotFoundError):  # no connection, says the hub
            raise _not_had(name, error) from None
        raise
    except Exception as error:  # of the hub, of HTTP and of the file system
        raise _not_had(name, error) from None


def _not_had(name: HubName, error: Exception) -> InputError:
    """The cause in one line; raised without the hub's chain of errors, which would come first."""
    cause = first_line(error).rstrip(".")
    return InputError(
        f"{PREFIX}{name.repository} could not be had: {cause}. Download its file of weights by "
        "other means and give its path"
    )


def _commit(path: Path) -> str:
    """The commit that a file of the hub's cache is of: `snapshots/COMMIT/file`; "": not said."""
    return path.parent.name if path.parent.parent.name == "snapshots" else ""


def _facts(name: HubName) -> tuple[dict[str, Any], str | None]:
    """What timm keeps beside weights: the images they expect, and their licence."""
    label, file = f"{PREFIX}{name.repository}", "config.json"
    try:
        text = _download(name, file).read_text(errors="replace")
    except _hub().errors.EntryNotFoundError:
        return {}, None
    facts = mapping_in({file: text}, file, label).get("pretrained_cfg") or {}
    with naming(f"{label}: {file}: pretrained_cfg"):
        if not isinstance(facts, dict):
            raise InputError(f"must be a mapping, got {facts!r:.99}")
        licence = facts.get("license")
        if not isinstance(licence, str | None):
            raise InputError(f"license must be a text, got {licence!r:.99}")
        return image_config(facts), licence


def image_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `pretrained_cfg` says of images, as fields of `ModelConfig`; nothing where it is silent.

    Sizes are those of the test, where there are any.

    Raises:
        InputError: it says what makes no sense.
    """
    found = {key: facts[key] for key in ("mean", "std") if facts.get(key) is not None}
    if facts.get("interpolation") in ("bilinear", "bicubic"):
        found["interpolation"] = facts["interpolation"]
    size = facts.get("test_input_size") or facts.get("input_size")
    share = facts.get("test_crop_pct") or facts.get("crop_pct")
    if size and share:
        side = _side(size)
        share = real("crop_pct", share, least=0.01, most=1)
        found |= {"input_size": side, "resize_size": int(side / share)}
    return checked_images(found)


def _side(size: Any) -> int:
    """The side of the square in `[channels, height, width]`."""
    if not isinstance(size, list | tuple) or len(size) != 3 or size[1] != size[2]:
        raise InputError(f"input_size must be [3, SIDE, SIDE], got {size!r:.99}")
    return checked_images({"input_size": size[-1]})["input_size"]


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            "weights on the hub need huggingface_hub: pip install 'aa_flax[hub]'"
        ) from error
    return huggingface_hub
