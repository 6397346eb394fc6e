"""Reads results files, and gathers into one row the results that differ only in their seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from aa_flax.errors import InputError
from aa_flax.evaluation.measure import Column, columns
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.results import Results, read_results
from aa_flax.evaluation.row import Row
from aa_flax.files import local_path
from aa_flax.models.registry import list_models
from aa_flax.weights.locate import describe

_OTHER_FILES = ("config.json", "data.json", "versions.json")  # in the folder of a run
_NO_MEASURES = ("weights", "data", "config", "options", "measured")  # mappings in the results
# Facts of an evaluation; models that differ in one of them are not comparable.
CONDITIONS = ("data", "path", "images", "crop", "shift_range")
_SIZES = ("image_size", "resize_size")
_MEASURED_BY = (*CONDITIONS, *_SIZES, "passes", "images_per_draw", "dtype")
_ALWAYS_KNOWN = (*_MEASURED_BY, "options", "weights")  # not only for training runs
# Fields of a run's config that do not distinguish experiments: they do not change the training, or
# are among the other facts.
_NO_FACTS = (
    *("name", "model", "pool", "model_options", "seed", "dtype", "remat", "profile", "log"),
    *("checkpoint", "eval", "data.name", "data.path", "data.image_size", "data.resize_size"),
    *("data.crop_size", "data.num_workers", "data.worker_type"),
)


class Gathered(NamedTuple):
    """The rows of a report, and a line for everything that was found but left out of them."""

    rows: list[Row]
    left_out: list[str]


def gather(paths: Iterable[str | Path]) -> Gathered:
    """Reads results and gathers them by model and by what was run, in the registry's order.

    Args:
        paths: results files, as an evaluation writes them, or folders that contain some.
    """
    groups: dict[Any, list[Results]] = {}
    left_out: list[str] = []
    for path in paths:
        for results in _read(local_path(path, "RESULTS"), left_out):
            facts = sorted((name, str(value)) for name, value in _facts(results).items())
            groups.setdefault((results["model"], *facts), []).append(results)
    rows = [Row(one["model"], _merged([one, *more]), _facts(one)) for one, *more in groups.values()]
    order = {name: i for i, name in enumerate(list_models())}
    rows.sort(key=lambda row: (order.get(row.base, len(order)), row.model))
    return Gathered([replace(row, label=_label(row, rows)) for row in rows], left_out)


def _read(path: Path, left_out: list[str]) -> list[Results]:
    """Reads a results file, or those in a folder; adds a line for each that cannot be read."""
    if path.is_file():
        return [_read_file(path, left_out)]
    found = []
    for file in sorted(path.glob("*.json")):
        if file.name not in _OTHER_FILES:
            try:
                found.append(_read_file(file, left_out))
            except InputError as error:
                left_out.append(str(error))
    if not found:
        below = min(path.glob("*/results*.json"), default=None)
        hint = f"; subfolders are not searched, give them, e.g. {below.parent}" if below else ""
        raise InputError(f"no results in {path}: give results files, or folders of them{hint}")
    return found


def _read_file(file: Path, left_out: list[str]) -> Results:
    """Reads results whose paths can be opened; adds a line for each measure that is left out."""
    results = read_results(file)
    if not {"model", "num_images"} <= results.keys():
        raise InputError(f"{file} contains no results of an evaluation; give another file")
    for name, found in list(results.items()):
        if not isinstance(found, dict) or name in _NO_MEASURES:
            continue
        if name not in MEASURES:
            left_out.append(f"{file}: {name}, which is not a known measure; give its --plugin")
        elif isinstance(found.get("file"), str):  # and not a class of that name
            arrays = file.parent / found["file"]
            if arrays.is_file():
                results[name] = found | {"file": str(arrays)}
            else:
                left_out.append(f"{file}: {name}, since {arrays} is missing")
                del results[name]
    return results


def _facts(results: Results) -> dict[str, Any]:
    """Returns what was run, by name: results with equal facts differ only in their seed."""
    data, config = results.get("data", {}), results.get("config", {})
    shift, settings = results.get("shift", {}), config.get("eval", {})
    weights = results.get("weights") or {}
    is_run = weights.get("kind") == "run"
    per_draw = shift.get("images_per_draw")
    facts = {
        "data": data.get("name"),
        "path": data.get("path"),
        "images": results["num_images"] or None,
        "crop": data.get("crop_size"),
        "image_size": data.get("image_size"),
        "resize_size": data.get("resize_size"),
        "shift_range": shift.get("shift_range", settings.get("shift_range")),
        "passes": shift.get("passes", settings.get("passes")),
        "images_per_draw": None if per_draw == 1 else per_draw,  # 1: each has its own
        "dtype": results.get("dtype"),
        "options": results.get("options"),
        "weights": "run" if is_run else weights.get("training") or weights.get("file"),
    }
    if is_run:
        unused = tuple(f"{name}." for name in _NO_FACTS)
        fields = flatten_dict(config, sep=".").items()
        facts |= {name: value for name, value in fields if not f"{name}.".startswith(unused)}
    return {name: value for name, value in facts.items() if value not in (None, "", {})}


def _merged(group: Sequence[Results]) -> tuple[Results, ...]:
    """Joins files with different measures of the same weights, recognised by equal accuracy."""
    keys = ("weights", "top1", "loss", "config")
    merged: list[Results] = []
    for results in group:
        for same in merged:
            if "loss" in same and all(same.get(key) == results.get(key) for key in keys):
                measured = results.get("measured", {}) | same.get("measured", {})
                same |= {**results, **same, "measured": measured}
                break
        else:
            merged.append(dict(results))
    return tuple(merged)


def _label(row: Row, rows: Sequence[Row]) -> str:
    """Returns the conditions that differ in the report, and what else distinguishes the model.

    A run is distinguished from other runs by its training. For a weights file the training is
    unknown, so the label says only which of the two the weights are.
    """
    alike = [other for other in rows if other.model == row.model]
    weights = row.facts.get("weights")
    runs = [other for other in alike if other.facts.get("weights") == weights == "run"]

    def differs(name: str, among: Sequence[Row]) -> bool:
        return any(other.facts.get(name) != row.facts[name] for other in among)

    shown = {
        name: value
        for name, value in row.facts.items()
        if differs(name, alike if name in _ALWAYS_KNOWN else runs)
        or (name in _MEASURED_BY and differs(name, rows))
    }
    if "weights" in shown:
        shown["weights"] = _tail(str(weights), {str(o.facts.get("weights")) for o in alike})
    return _in_words(shown)


def _tail(path: str, among: set[str]) -> str:
    """Returns the shortest end of a path that no other of these paths has."""
    parts = path.split("/")
    tails = ("/".join(parts[-count:]) for count in range(1, len(parts)))
    return next((t for t in tails if sum(f"/{o}".endswith(f"/{t}") for o in among) == 1), path)


def _in_words(facts: Mapping[str, Any]) -> str:
    return ", ".join(_fact_in_words(name, value) for name, value in facts.items())


def _fact_in_words(name: str, value: Any) -> str:
    if name in ("images", "weights"):
        return f"{value} {name}"
    if name == "shift_range":
        return f"offsets 0..{value - 1}"
    if name == "options":
        return ", ".join(f"{option} {given}" for option, given in value.items())
    return f"{name if '.' in name else name.replace('_', ' ')} {value}"


def conditions(rows: Sequence[Row]) -> str:
    """Returns the conditions that all rows have in common, in words."""
    first, *others = [row.facts for row in rows] or [{}]
    common = [n for n in _MEASURED_BY if n in first and all(f.get(n) == first[n] for f in others)]
    return _in_words({name: first[name] for name in common})


def circumstances(rows: Iterable[Row]) -> str:
    """Returns when, on what and with which versions the numbers were measured, where recorded."""
    found: dict[str, set[str]] = {}
    measured = (results.get("measured", {}) for row in rows for results in row.results)
    for facts in (facts for of_measures in measured for facts in of_measures.values()):
        for name, value in facts.items():
            found.setdefault(name, set()).add(str(value))
    if not found:
        return ""
    values = {name: " and ".join(sorted(found[name])) for name in found}
    date = " to ".join(dict.fromkeys((min(found["date"]), max(found["date"]))))
    versions = ", ".join(f"{n} {values[n]}" for n in ("aa_flax", "jax", "Python") if n in values)
    device = f" on {values['device']}" if "device" in values else ""
    return f"{date}{device}, with {versions}"


def weights_of(row: Row) -> str:
    """Returns the weights of each result, in words."""
    found = [describe(w) for results in row.results if (w := results.get("weights"))]
    return "; ".join(dict.fromkeys(found))


def by_conditions(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Groups rows of one baseline and its antialiased models that were measured alike, by title."""
    names = (*CONDITIONS, *_SIZES)
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.base, *(str(row.facts.get(n)) for n in names)), []).append(row)
    bases = [base for base, *_ in groups]
    titled = {}
    for (base, *_), members in groups.items():
        facts = members[0].facts
        words = _in_words({name: facts[name] for name in names if name in facts})
        titled[base if bases.count(base) == 1 else f"{base} ({words})"] = members
    return titled


def shown_columns(rows: Sequence[Row]) -> list[tuple[Column, tuple[str, ...]]]:
    """Returns the columns that have a number, with its path in the results."""
    return [(column, path) for column, path in columns() if any(row.values(path) for row in rows)]


def explained_columns(rows: Sequence[Row]) -> dict[str, str]:
    """Returns a line about each of the shown columns, by its title."""
    return {
        column.title: column.note or measure.options[0].help
        for measure in MEASURES.values()
        for column in measure.columns
        if any(row.values(measure.path(column)) for row in rows)
    }
