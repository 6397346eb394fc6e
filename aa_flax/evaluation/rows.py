"""Reads results, and gathers those that differ in their seed alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from aa_flax.errors import InputError
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.results import Results, read_results
from aa_flax.evaluation.row import Row
from aa_flax.files import local_path
from aa_flax.models.registry import list_models
from aa_flax.weights.locate import describe

# Files of a run's folder that are no results.
_OTHER_FILES = ("config.json", "data.json", "versions.json")
# Mappings in the results that are no measure's.
_NO_MEASURES = ("weights", "data", "config", "options", "measured")
# Facts of an evaluation; nets that differ in one of them are not comparable.
CONDITIONS = ("data", "path", "images", "crop", "shift_range")
_MEASURED_BY = (*CONDITIONS, "image_size", "resize_size", "passes", "images_per_draw", "dtype")
_KNOWN = (*_MEASURED_BY, "options", "weights")  # of any results, not of a run's alone
# Of a run's config: what changes nothing, what is no part of the training, and what is told by
# other facts.
_NO_FACTS = (
    "name",
    "model",
    "pool",
    "model_options",
    "seed",
    "dtype",
    "remat",
    "profile",
    "log",
    "checkpoint",
    "eval",
    "data.name",
    "data.path",
    "data.image_size",
    "data.resize_size",
    "data.crop_size",
    "data.num_workers",
    "data.worker_type",
)


class Gathered(NamedTuple):
    """The rows of a report, and a line for each thing that was found and is not in them."""

    rows: list[Row]
    left_out: list[str]


def gather(paths: Iterable[str | Path]) -> Gathered:
    """Reads results, and gathers by net and by what was run, in the order of the registry.

    Args:
        paths: results files, as an evaluation writes them, or folders of them.

    Raises:
        InputError: a file that holds no results, or a folder without any.
    """
    groups: dict[Any, list[Results]] = {}
    left_out: list[str] = []
    for path in paths:
        for results in _read(local_path(path, "RESULTS"), left_out):
            facts = facts_of(results)
            groups.setdefault(_key(results["model"], facts), []).append(results)
    rows = [Row(all[0]["model"], _merged(all), facts_of(all[0])) for all in groups.values()]
    order = {name: place for place, name in enumerate(list_models())}
    rows.sort(key=lambda row: (order.get(row.base, len(order)), row.model))
    return Gathered([replace(row, label=_label(row, rows)) for row in rows], left_out)


def _read(path: Path, left_out: list[str]) -> list[Results]:
    if path.is_file():
        return [_opened(path, left_out)]
    found = []
    for file in sorted(path.glob("*.json")):
        if file.name not in _OTHER_FILES:
            try:
                found.append(_opened(file, left_out))
            except InputError as error:
                left_out.append(str(error))
    if not found:
        below = next(iter(sorted(path.glob("*/results*.json"))), None)
        hint = f"; folders below are not read, give them, e.g. {below.parent}" if below else ""
        raise InputError(
            f"no results in {path}: give files that hold results, or their folders{hint}"
        )
    return found


def _opened(file: Path, left_out: list[str]) -> Results:
    """The results in a file; the paths in them can be opened."""
    results = read_results(file)
    if not {"model", "num_images"} <= results.keys():
        raise InputError(f"{file} holds no results of an evaluation")
    for name, found in list(results.items()):
        if not isinstance(found, dict) or name in _NO_MEASURES:
            continue
        if name not in MEASURES:
            left_out.append(f"{file}: {name}, which is no measure known here; give its --plugin")
        elif isinstance(found.get("file"), str):  # and no class of that name
            arrays = file.parent / found["file"]
            if arrays.is_file():
                results[name] = found | {"file": str(arrays)}
            else:
                left_out.append(f"{file}: {name}, since {arrays} is gone")
                del results[name]
    return results


def facts_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What was run, by name: two results with equal facts differ in their seed alone."""
    config = results.get("config") or {}
    data = results.get("data") or config.get("data") or {}
    shift, drawn = results.get("shift") or {}, config.get("eval") or {}
    kind, weights = _weights_of(results.get("weights"))
    facts = {
        "data": data.get("name"),
        "path": data.get("path"),
        "images": results["num_images"] or None,
        "crop": data.get("crop_size"),
        "image_size": data.get("image_size"),
        "resize_size": data.get("resize_size"),
        "shift_range": shift.get("shift_range", drawn.get("shift_range")),
        "passes": shift.get("passes", drawn.get("passes")),
        "images_per_draw": shift.get("images_per_draw"),
        "dtype": results.get("dtype", config.get("dtype")),
        "options": results.get("options"),
        "weights": weights,
    }
    if facts["images_per_draw"] == 1:  # each image has its own
        facts["images_per_draw"] = None
    if kind == "run":
        facts |= {key: value for key, value in _flat(config).items() if _is_fact(key)}
    return {name: value for name, value in facts.items() if value not in (None, "", {})}


def _weights_of(weights: Any) -> tuple[str, str]:
    """What kind of weights, and what tells them from others of that kind but for the seed."""
    if isinstance(weights, str):  # as they once were described
        return ("run", "run") if " (epoch" in weights else ("file", weights)
    weights = weights or {}
    kind = weights.get("kind", "")
    if kind == "run":
        return kind, "run"
    return kind, str(weights.get("training") or weights.get("file") or "")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _is_fact(key: str) -> bool:
    return not any(key == name or key.startswith(f"{name}.") for name in _NO_FACTS)


def _key(model: str, facts: Mapping[str, Any]) -> tuple:
    return model, *sorted((name, str(value)) for name, value in facts.items())


def _merged(all: Sequence[Results]) -> tuple[Results, ...]:
    """Files with other measures of the same weights, found by equal accuracy, are one result."""
    merged: list[Results] = []
    for results in all:
        same = next((one for one in merged if _is_same(one, results)), None)
        if same is None:
            merged.append(dict(results))
        else:
            measured = results.get("measured", {}) | same.get("measured", {})
            same |= {key: value for key, value in results.items() if key not in same}
            same["measured"] = measured
    return tuple(merged)


def _is_same(one: Results, other: Results) -> bool:
    keys = ("weights", "top1", "loss", "config")
    return "loss" in one and all(one.get(key) == other.get(key) for key in keys)


def _label(row: Row, rows: Sequence[Row]) -> str:
    """Conditions that differ in the report, and whatever tells it from rows of the same net.

    How a run was trained tells it from other runs; from a file, of which that is not known, it is
    told by being a run.
    """
    alike = [other for other in rows if other.model == row.model]
    weights = row.facts.get("weights")
    runs = [other for other in alike if other.facts.get("weights") == weights == "run"]
    told = {
        name: value
        for name, value in row.facts.items()
        if any(other.facts.get(name) != value for other in (alike if name in _KNOWN else runs))
        or (name in _MEASURED_BY and any(other.facts.get(name) != value for other in rows))
    }
    if "weights" in told:
        told["weights"] = _tail(weights, {str(other.facts.get("weights")) for other in alike})
    return ", ".join(_told(name, value) for name, value in told.items())


def _tail(path: Any, among: set[str]) -> str:
    """As much of the end of a path as no other of these has."""
    parts = str(path).split("/")
    tails = ("/".join(parts[-count:]) for count in range(1, len(parts)))
    return next((t for t in tails if sum(f"/{o}".endswith(f"/{t}") for o in among) == 1), str(path))


def _told(name: str, value: Any) -> str:
    if name == "images":
        return f"{value} images"
    if name == "shift_range":
        return f"offsets 0..{value - 1}"
    if name == "options":
        return ", ".join(f"{option} {given}" for option, given in value.items())
    if name == "weights":
        return f"{value} weights"
    return f"{name.replace('_', ' ') if '.' not in name else name} {value}"


def conditions(rows: Sequence[Row]) -> str:
    """The conditions that all rows have in common, in words."""
    first = rows[0].facts if rows else {}
    common = {
        name: first[name]
        for name in _MEASURED_BY
        if name in first and all(row.facts.get(name) == first[name] for row in rows)
    }
    return ", ".join(_told(name, value) for name, value in common.items())


def circumstances(rows: Sequence[Row]) -> str:
    """When, on what and with which versions the numbers were measured, where that is recorded."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for results in row.results:
            for facts in results.get("measured", {}).values():
                for name, value in facts.items():
                    found.setdefault(name, set()).add(str(value))
    if not found:
        return ""
    told = {name: " and ".join(sorted(values)) for name, values in found.items()}
    dates = sorted(found["date"])
    date = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(f"{n} {told[n]}" for n in ("aa_flax", "jax", "Python") if n in told)
    device = f" on {told['device']}" if "device" in told else ""
    return f"{date}{device}, with {versions}"


def weights_of(row: Row) -> str:
    """The weights of each result, in words."""
    found = [describe(w) for results in row.results if (w := results.get("weights"))]
    return "; ".join(dict.fromkeys(found))


def by_conditions(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of a net and its antialiased ones that were measured alike, by a title of their own."""
    names = (*CONDITIONS, "image_size", "resize_size")
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.base, *(str(row.facts.get(n)) for n in names)), []).append(row)
    bases = [base for base, *_ in groups]
    titled = {}
    for (base, *_), members in groups.items():
        facts = members[0].facts
        told = [_told(name, facts[name]) for name in names if name in facts]
        titled[base if bases.count(base) == 1 else f"{base} ({', '.join(told)})"] = members
    return titled
