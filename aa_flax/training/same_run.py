"""Whether a folder's run is the one that was asked for: its config, its data, and its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from aa_flax.config import Config
from aa_flax.data.sources import Source
from aa_flax.errors import InputError
from aa_flax.files import parse_json
from aa_flax.runtime import log_line
from aa_flax.training.checkpoints import Record
from aa_flax.weights.read import read_metadata

# What may change between two parts of a run: none of it changes what the parameters become.
_FREE = (
    "config.name",
    "config.remat",
    "config.profile",
    "config.log.",
    "config.checkpoint.",
    "config.eval.",
    "config.data.path",
    "config.data.num_workers",
    "config.data.worker_type",
    "config.data.on_error",  # up to now no image has made a difference, or the run had stopped
)
# What changes no number of the final results either.
_NO_FIGURE = tuple(key for key in _FREE if key not in ("config.eval.", "config.data.on_error"))
_OF_SCHEDULE = ("step_epochs", "step_factor", "per_step")
_SPLITS = {"train": "training set", "val": "validation set"}


def _shown(value: Any) -> str:
    return str(value) if value != "" else "''"


def check_same_config(config: Config, workdir: Path, latest: Record | None = None) -> None:
    """That the run in the folder, if there is one, was begun with this config.

    Args:
        latest: the run's latest checkpoint, which says it where `config.json` is gone.

    Raises:
        InputError: with every difference.
    """
    path = workdir / "config.json"
    if path.exists():
        before = _read(path, "config")
    elif latest is not None:
        before = latest.config
    else:
        return
    free = _FREE
    if config.optimizer.schedule == "step":  # a longer run begins as a shorter one
        free += ("config.num_epochs",)
    if config.optimizer.schedule == "one_cycle":  # ignores them
        free += tuple(f"config.optimizer.{name}" for name in _OF_SCHEDULE)
    changed = [
        f"{key}: {_shown(old)} there, {_shown(new)} now"
        for key, (old, new) in _differences(before, config.to_dict()).items()
        if not key.startswith(free)
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}); give another "
            "--workdir, or the same config to continue"
        )


def describe_data(sources: Mapping[str, Source], steps_per_epoch: int) -> dict[str, Any]:
    """What a run depends on of its data, for `data.json`."""
    described: dict[str, Any] = {"steps_per_epoch": steps_per_epoch}
    for split, source in sources.items():
        described[split] = {
            "images": len(source),
            "classes": [str(name) for name in source.class_names],
        }
        if (digest := getattr(source, "digest", None)) is not None:
            described[split]["digest"] = digest()
    return described


def check_same_data(
    data: dict[str, Any], config: Config, workdir: Path, latest: Record | None, *, accept: bool
) -> None:
    """That the data is what the run in the folder was begun with.

    A run of an earlier version, without `data.json`, is compared by its number of classes alone.

    Args:
        data: of `describe_data`.
        latest: the run's latest checkpoint.
        accept: go on with other images, after telling what changed. Other classes are never
            accepted: the logits would mean something else.

    Raises:
        InputError: with the differences, and the way on.
    """
    path, now = workdir / "data.json", len(data["train"]["classes"])
    if not path.exists():
        if latest is not None and latest.num_classes != now:
            message = f"the data has {now} classes, the run {latest.num_classes}"
            raise _other_classes(message, workdir)
        return
    before = _read(path, "data")
    try:
        changed = _changed_data(before, data, workdir)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not the data of a run; give another --workdir") from error
    if not changed:
        return
    if not accept:
        raise InputError(
            f"the data is not what the run in {workdir} was begun with: {'; '.join(changed)}. Give "
            "--accept_data_change to continue all the same, or another --workdir"
        )
    log_line(f"the data has changed, as accepted: {'; '.join(changed)}")
    if before["steps_per_epoch"] != data["steps_per_epoch"] and latest is not None:
        _check_some_left(before["steps_per_epoch"], data["steps_per_epoch"], config, latest.step)


def _changed_data(before: dict[str, Any], now: dict[str, Any], workdir: Path) -> list[str]:
    """Every change of images; of classes, an error."""
    for split, called in _SPLITS.items():
        _check_classes(before[split]["classes"], now[split]["classes"], called, workdir)
    return [
        text for split, called in _SPLITS.items() for text in _changes(before, now, split, called)
    ]


def _check_classes(before: list[str], now: list[str], called: str, workdir: Path) -> None:
    added = [name for name in now if name not in set(before)]
    removed = [name for name in before if name not in set(now)]
    if added or removed:
        changes = [
            f"{what} {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for what, names in (("added", added), ("removed", removed))
            if names
        ]
        message = f"the data has {len(now)} classes, the run {len(before)}: {'; '.join(changes)}"
        raise _other_classes(message, workdir)
    if before != now:
        first = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        order = f"the {called}'s classes have another order than the run's: logit {first} was "
        raise _other_classes(f"{order}{before[first]}, now {now[first]}", workdir)


def _other_classes(message: str, workdir: Path) -> InputError:
    return InputError(
        f"{message}. Restore the classes that the run in {workdir} was begun with, or give another "
        f"--workdir (with --config.init_from={workdir} it starts from these weights)"
    )


def _changes(before: dict, now: dict, split: str, called: str) -> list[str]:
    """What changed of a split's images: their number, or else which ones they are."""
    old, new = before[split], now[split]
    if old["images"] != new["images"]:
        text = f"the {called} has {new['images']} images, the run's had {old['images']}"
        if split == "train" and before["steps_per_epoch"] != now["steps_per_epoch"]:
            text += (
                f", so an epoch has {now['steps_per_epoch']} steps instead of "
                f"{before['steps_per_epoch']}: epochs and learning rate would shift"
            )
        return [text]
    if "digest" in old and "digest" in new and old["digest"] != new["digest"]:
        return [f"the {called} has other images or labels, as many as before"]
    return []


def _check_some_left(old_steps: int, new_steps: int, config: Config, step: int) -> None:
    """A run must not end untrained because its epochs have become shorter."""
    if step < config.num_epochs * old_steps and step >= config.num_epochs * new_steps:
        raise InputError(
            f"with {new_steps} steps an epoch step {step} is behind the last of "
            f"{config.num_epochs} epochs, so nothing is left to train; give another --workdir"
        )
    log_line(
        f"epochs are counted by steps: step {step} is behind {step / new_steps:.3g} of them now"
    )


def finished_results(
    config: Config,
    workdir: Path,
    data: dict[str, Any],
    latest: Record | None,
    best: Record | None,
) -> dict[str, Any] | None:
    """The results of a run that is done: trained, evaluated and written, with this config and data.

    None where anything is left to do.
    """
    weights, results = workdir / "weights.safetensors", workdir / "results.json"
    if latest is None or best is None or latest.top1 is None or latest.epoch < config.num_epochs:
        return None
    try:
        stored = parse_json(results.read_text())
        changed_data = data != parse_json((workdir / "data.json").read_text())
        top1 = read_metadata(weights)["top1"]
        late = results.stat().st_mtime_ns >= weights.stat().st_mtime_ns
        changed = _differences(stored["config"], config.to_dict())
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole
        return None
    same = all(key.startswith(_NO_FIGURE) for key in changed)
    return stored if late and same and not changed_data and top1 == f"{best.top1}" else None


def _differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    """By dotted name; what an earlier version did not have was at its default."""
    default = _flat(Config().to_dict())
    a, b = default | _flat(old), default | _flat(new)
    keys = sorted(a.keys() | b.keys())
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def _flat(config: dict) -> dict[str, Any]:
    return flatten_dict({"config": config}, sep=".")


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not the {what} of a run ({error}); give another --workdir"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not the {what} of a run; give another --workdir")
    return content
