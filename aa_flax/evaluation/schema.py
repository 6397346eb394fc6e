"""Checks that the content of a JSON file is results of an evaluation, before anything reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aa_flax.errors import InputError
from aa_flax.evaluation.measure import MEASURES, Measure
from aa_flax.files import local_path

_DEPTH = 50  # of groups in groups
_MOST = 1e300  # of a number; also not NaN
_TYPES: Mapping[Any, Any] = {float: int | float}
# Types of what may be there, by name; numbers are floats unless they count something.
_WEIGHTS = {
    **dict.fromkeys(("kind", "model", "file", "sha256", "crc32"), str),
    **dict.fromkeys(("training", "licence"), (str, type(None))),
    **dict.fromkeys(("epoch", "step"), int),
    "options": dict,
}
_DATA = {
    **dict.fromkeys(("name", "path", "class_order", "digest", "interpolation"), str),
    **dict.fromkeys(("crop_size", "image_size", "resize_size"), int),
}
_FACTS = {
    "model": str,
    "num_images": int,
    "dtype": str,
    "options": dict,
    "data": _DATA,
    "measured": dict,
    "config": {"data": _DATA, "eval": {"shift_range": int, "passes": int}, "dtype": str},
}
_LEAST_STABLE = {
    **dict.fromkeys(("image", "class", "worst_class"), str),
    **dict.fromkeys(("probability", "worst_probability", "same_class"), float),
    "worst_shift": [int],
}
# Beside what a measure's line prints: what the report reads.
_MEASURED = {
    "shift": dict.fromkeys(("shift_range", "passes", "images_per_draw"), int),
    "diagonal": {"images": [int]},
    "images": {"digest": str, "within": int, "least_stable": [_LEAST_STABLE]},
    "clip": {"digest": str, "fps": float},
    "tiles": {"digest": str, "tile_size": int, "tile_overlap": int},
}


def why_no_results(results: Any, folder: Path) -> str:
    """Returns why a JSON value is not the results of an evaluation; empty if it is.

    A measure has to be able to print what is stored of it, unless a number is missing.

    Args:
        folder: of the file that it is from.
    """
    if not isinstance(results, dict) or "model" not in results:
        return "no model is named"
    if not _is_sound(results):
        return "with a number that is not finite, a text that is none, or nested too deeply"
    wrong = _misfit(results, _FACTS)
    for name, record in ({} if wrong else results.get("measured", {})).items():
        is_record = isinstance(record, dict) and "date" in record
        if not is_record or not all(isinstance(value, str) for value in record.values()):
            wrong = f"measured.{name} is {record!r:.99}"
    weights = results.get("weights")
    if not wrong and not isinstance(weights, str | None):
        wrong = _misfit(weights, _WEIGHTS, "weights")
    measures = [m for m in MEASURES.values() if m.name in results or m.found_in(results)]
    for measure in measures:
        file = {} if measure.name == "per_class" else {"file": str}  # a class may be called so
        kinds = {**file, **_MEASURED.get(measure.name, {})}
        wrong = wrong or _misfit(results.get(measure.name, {}), kinds, measure.name)
    return wrong or next((why for m in measures if (why := _unprintable(m, results, folder))), "")


def _unprintable(measure: Measure, results: Mapping[str, Any], folder: Path) -> str:
    found = measure.found_in(results) or {}
    try:
        if isinstance(file := found.get("file"), str):
            local_path(folder / file, "file")
        measure.line(found)
    except KeyError:  # what is there can be read all the same
        pass
    except (InputError, LookupError, TypeError, ValueError, AttributeError) as error:
        return f"{measure.name}: {type(error).__name__} {error}"[:200]
    return ""


def _is_sound(value: Any, depth: int = 0) -> bool:
    if isinstance(value, int | float):
        return abs(value) < _MOST
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return depth < _DEPTH and all(_is_sound(item, depth + 1) for item in value)
    return value is None


def _misfit(value: Any, kind: Any, name: str = "") -> str:
    """Returns which part of a value is not of the kind, in words; empty if all are.

    Args:
        kind: a type, or several; a mapping of kinds, by key; or a list of the kind of its items,
            which have all of their keys.
    """
    if isinstance(kind, Mapping) and isinstance(value, dict):
        shared = kind.keys() & value.keys()
        below = [(value[key], kind[key], f"{name}.{key}".lstrip(".")) for key in shared]
    elif isinstance(kind, list) and isinstance(value, list):
        keys = [*kind[0]] if isinstance(kind[0], Mapping) else []
        below = [(item, kind[0], name) for item in value]
        if any(not isinstance(item, dict) or key not in item for key in keys for item in value):
            return f"{name} lacks {' or '.join(keys)}"
    elif isinstance(kind, Mapping | list) or not isinstance(value, _TYPES.get(kind, kind)):
        return f"{name} is {value!r:.40}"
    else:
        return f"{name} is {value}" if isinstance(value, bool) else ""
    return next((wrong for part in below if (wrong := _misfit(*part))), "")
