"""Models as folders and repositories of the Hugging Face Hub: saved, pushed and loaded.

A folder has the Hub's files: `model.safetensors`, `config.json` in timm's form (architecture, image
sizes and normalization, licence, names of the classes) and `README.md`, the model card. Loading
runs no code from it.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aa_flax.create import create_model
from aa_flax.errors import InputError, first_line
from aa_flax.evaluation.text import markdown
from aa_flax.files import check_directory, local_path, read_file, replacing, writing
from aa_flax.models.classifier import Classifier
from aa_flax.report import legend, table
from aa_flax.report.rows import circumstances, conditions, gather
from aa_flax.weights.fit import options_of
from aa_flax.weights.hub import PREFIX, hub_json, hub_module, parse_hub_name
from aa_flax.weights.locate import InFile
from aa_flax.weights.read import json_in
from aa_flax.weights.save_load import save_weights, write_torch_file
from aa_flax.weights.state_dicts import to_torch_state_dict

_WEIGHTS, _CONFIG, _CARD, _TORCH = "model.safetensors", "config.json", "README.md", "torch.pth"
_FIGURE = "shifts.png"


def save_pretrained(
    model: Classifier,
    folder: str | Path,
    *,
    licence: str | None = None,
    results: str | Path | None = None,
    torch: bool = False,
) -> Path:
    """Writes a model as a folder in the form of the Hub; returns its path.

    Args:
        model: a classifier of `create_model`.
        folder: made if it is missing; files of these names in it are replaced.
        licence: of the weights, e.g. `apache-2.0`; default: that of `model.config`.
        results: a results file of `aa_flax.evaluate`, whose numbers the model card shows, with
            their intervals and the figure of `diagonal`.
        torch: whether to write `torch.pth`, too: a state dict with torchvision's names.

    Raises:
        InputError: no licence is known; no classifier of `create_model`; results of another model;
            or a folder that cannot be written.

    Examples:
        >>> import aa_flax
        >>> model = aa_flax.create_model("resnet18_lpf4", num_classes=10)
        >>> folder = aa_flax.save_pretrained(model, "my_model", licence="apache-2.0")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        >>> aa_flax.from_pretrained(folder).num_classes
        10
    """
    folder = local_path(folder, "folder")
    check_directory(folder, "the folder of the model")
    _write(model, folder, folder.name, licence, results, torch)
    return folder


def from_pretrained(source: str | Path, **options: Any) -> Classifier:
    """Loads a model from a folder of `save_pretrained`, or from a repository on the Hub.

    Args:
        source: a folder, or `OWNER/NAME[@REVISION][#sha256=HEX]` with or without `hf-hub:` in
            front; a folder of that name has precedence. timm's repositories of models that
            `list_models` has are loaded, too.
        options: of `create_model`, such as `num_classes`, `features_only` or `dtype`.

    Returns:
        The model, in evaluation mode; `model.config` has its images and the names of its classes.

    Raises:
        InputError: no such folder or repository, files that are missing or damaged, an
            architecture that is not known here, or a hash that differs.

    Examples:
        >>> import aa_flax
        >>> model = aa_flax.create_model("resnet18_lpf4", num_classes=10)
        >>> folder = aa_flax.save_pretrained(model, "my_model", licence="apache-2.0")
        >>> aa_flax.from_pretrained(folder, num_classes=0).num_classes
        0
    """
    is_folder = not str(source).startswith(PREFIX) and Path(source).expanduser().is_dir()
    if is_folder:
        folder = local_path(source, "folder")
        text, weights = read_file(folder / _CONFIG).decode(errors="replace"), folder / _WEIGHTS
        facts = json_in({_CONFIG: text}, _CONFIG, folder)
    else:
        weights = PREFIX + str(source).removeprefix(PREFIX)
        facts = hub_json(parse_hub_name(weights), _CONFIG)
    name = facts.get("architecture")
    if not isinstance(name, str):
        raise InputError(
            f"{source}: {_CONFIG} names no architecture; load its weights file by "
            "create_model(NAME, pretrained=...)"
        )
    known = facts.get("aa_flax") or {}
    saved = known.get("options") if isinstance(known, dict) else None
    if not isinstance(saved, dict | None):
        raise InputError(f"{source}: {_CONFIG}: options must be a mapping, got {saved!r:.99}")
    model = create_model(name, pretrained=weights, **{**(saved or {}), **options})
    names = _class_names(facts, source)
    if len(names) == getattr(model, "num_classes", None):
        model.config = replace(model.config, class_names=names)
    return model


def push_to_hub(
    model: Classifier,
    repository: str,
    *,
    licence: str | None = None,
    results: str | Path | None = None,
    torch: bool = False,
    private: bool = False,
    message: str = "Upload model",
) -> str:
    """Writes a model to a repository on the Hugging Face Hub, made if it is missing.

    `HF_TOKEN` and `HF_ENDPOINT` have the meaning that huggingface_hub gives them.

    Args:
        repository: `OWNER/NAME`.
        private: whether a repository that is made is private.
        message: of the commit.
        model, licence, results, torch: as in `save_pretrained`.

    Returns:
        `hf-hub:OWNER/NAME@COMMIT#sha256=HEX`, by which `create_model` and `from_pretrained` load
        exactly these weights.

    Raises:
        InputError: as `save_pretrained`; huggingface_hub is not installed; or the Hub refuses.
    """
    name = parse_hub_name(PREFIX + repository.removeprefix(PREFIX))
    if name.revision or name.sha256:
        raise InputError(f"push_to_hub writes to OWNER/NAME, got {repository}")
    hub = hub_module()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        _write(model, folder, name.repository, licence, results, torch)
        digest = InFile(folder / _WEIGHTS, model.name).description()["sha256"]
        try:
            api = hub.HfApi()
            api.create_repo(name.repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name.repository, folder_path=folder, commit_message=message
            )
        except Exception as error:  # of the hub, of HTTP and of the file system
            raise InputError(
                f"{PREFIX}{name.repository} could not be written: {first_line(error)}. Check the "
                "name, HF_TOKEN and the connection; save_pretrained writes the same files locally"
            ) from None  # the hub's chain of errors would be printed before the cause
    return f"{PREFIX}{name.repository}@{commit.oid}#sha256={digest}"


def _class_names(facts: Mapping[str, Any], source: object) -> tuple[str, ...]:
    names = facts.get("label_names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{source}: {_CONFIG}: label_names must be texts, got {names!r:.99}")
    return tuple(names)


def _write(
    model: Classifier,
    folder: Path,
    name: str,
    licence: str | None,
    results: str | Path | None,
    torch: bool,
) -> None:
    """Writes the files of `save_pretrained`, of a model that is loaded by that name."""
    if not isinstance(model, Classifier) or not model.name:
        given = type(model).__name__
        raise InputError(f"save_pretrained saves a classifier of create_model, got a {given}")
    licence = licence or model.config.licence
    if not licence:
        raise InputError(
            f"the licence of these weights of {model.name} is not known; give licence=, e.g. "
            "licence='apache-2.0'"
        )
    card, figure = _card(model, name, licence, results)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(model, folder / _WEIGHTS, licence=licence)
        config = json.dumps(hub_config(model, licence), indent=2, ensure_ascii=False)
        for file, text in ((_CONFIG, config + "\n"), (_CARD, card)):
            with replacing(folder / file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if figure:
            shutil.copyfile(figure, folder / _FIGURE)
        if torch:
            write_torch_file(to_torch_state_dict(model), folder / _TORCH)


def hub_config(model: Classifier, licence: str) -> dict[str, Any]:
    """Returns the `config.json` of a model, in timm's form."""
    images, side = model.config, model.config.input_size
    crop = side / images.resize_size if images.resize_size else None
    if crop and int(side / crop) < images.resize_size:  # readers round down
        crop = math.nextafter(crop, 0)
    return {
        "architecture": model.name,
        "num_classes": model.num_classes,
        **({"label_names": list(images.class_names)} if images.class_names else {}),
        "aa_flax": {"options": options_of(model)},
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "crop_pct": crop,
            "interpolation": images.interpolation,
            "mean": list(images.mean),
            "std": list(images.std),
            "num_classes": model.num_classes,
            "license": licence,
        },
    }


def _card(
    model: Classifier, name: str, licence: str, results: str | Path | None
) -> tuple[str, Path | None]:
    """Returns the model card, and the figure that it shows."""
    facts = {
        "license": licence.lower().replace(" ", "-"),
        "library_name": "aa_flax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "flax", "jax", "antialiased-cnns"],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in facts.items())
    images = model.config
    size = f"{images.input_size}x{images.input_size} pixels"
    if images.resize_size:
        size += f", the centre of images resized to {images.resize_size} ({images.interpolation})"
    weights = images.weights or ""  # a path would be one of the writer's machine
    is_address = weights.startswith(PREFIX) or "://" in weights
    origin = f" The weights are from {markdown(weights)}." if is_address else ""
    numbers, figure = _numbers(model, results) if results else ([], None)
    parts = [
        f"---\n{head}\n---",
        f"# {model.name}",
        f"A classifier of {model.num_classes} classes, for JAX and Flax. Images are {size}; the "
        f"mean of the channels is {list(images.mean)} and their deviation {list(images.std)}."
        f"{origin} Licence of the weights: {markdown(licence)}.",
        f"```python\nimport aa_flax\n\nmodel = aa_flax.from_pretrained({name!r})\n```",
        *numbers,
        "The antialiased models are those of Zhang, *Making Convolutional Networks "
        "Shift-Invariant Again*, ICML 2019.",
    ]
    return "\n\n".join(parts) + "\n", figure


def _numbers(model: Classifier, results: str | Path) -> tuple[list[str], Path | None]:
    rows, _ = gather([results])
    if len(rows) != 1 or rows[0].model != model.name:
        found = ", ".join(row.title for row in rows)
        raise InputError(f"{results} has results of {found}; give those of {model.name} alone")
    (row,) = rows
    how = f"{markdown(conditions(rows))}; measured {markdown(circumstances(rows))}"
    parts = ["## Results", table(rows), legend(rows), f"Percentages, with 95 % intervals: {how}."]
    figure = (row.first("diagonal") or {}).get("figure")
    path = local_path(results, "results")
    shown = (path.parent if path.is_file() else path) / figure if figure else None
    if shown and shown.is_file():
        parts.append(f"![Probability of the true class along a shift]({_FIGURE})")
        return parts, shown
    return parts, None
