"""Checks that the content of a JSON file is results of an evaluation, before it is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aa_flax.errors import InputError
from aa_flax.evaluation.measure import MEASURES, Measure
from aa_flax.files import local_path

_MOST_NESTED = 50  # groups in groups
_MOST = 1e300  # of a number; excludes NaN, too
_TYPES: Mapping[Any, Any] = {float: int | float}
# Types of what may be present, by name; numbers are floats unless they count something.
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
    "config": {"eval": {"shift_range": int, "passes": int}},
}
_LEAST_STABLE = {
    **dict.fromkeys(("image", "class", "worst_class"), str),
    **dict.fromkeys(("probability", "worst_probability", "same_class"), float),
    "worst_shift": [int],
}
# Numbers and facts of measures that the report uses, in addition to those of their lines.
_MEASURED = {
    "shift": dict.fromkeys(("shift_range", "passes", "images_per_draw"), int),
    "diagonal": {"images": [int]},
    "images": {"digest": str, "within": int, "least_stable": [_LEAST_STABLE]},
    "drift": {"digest": str, "within": int},
    "clip": {"digest": str, "fps": float},
    "tiles": {"digest": str, "tile_size": int, "tile_overlap": int},
}


def why_no_results(results: Any, folder: Path) -> str:
    """Returns why a JSON value is not the results of an evaluation; empty if it is.

    Each measure must be able to print its part, unless a number is missing.
    """
    if not isinstance(results, dict) or "model" not in results:
        return "it names no model"
    if not _is_sound(results):
        return "it has a number that is not finite, an invalid text, or too many nested groups"
    wrong = _misfit(results, _FACTS)
    for name, record in ({} if wrong else results.get("measured", {})).items():
        is_record = isinstance(record, dict) and "date" in record
        if not is_record or not all(isinstance(value, str) for value in record.values()):
            wrong = f"measured.{name} is {record!r:.99}"
    if not wrong and results.get("weights") is not None:
        wrong = _misfit(results["weights"], _WEIGHTS, "weights")
    measures = [m for m in MEASURES.values() if m.name in results or m.found_in(results)]
    for measure in measures:
        file = {} if measure.name == "per_class" else {"file": str}  # there it may be a class
        kinds = {**file, **_MEASURED.get(measure.name, {})}
        wrong = wrong or _misfit(results.get(measure.name, {}), kinds, measure.name)
    return wrong or next((why for m in measures if (why := _unprintable(m, results, folder))), "")


def _unprintable(measure: Measure, results: Mapping[str, Any], folder: Path) -> str:
    found = measure.found_in(results) or {}
    try:
        if isinstance(file := found.get("file"), str):
            local_path(folder / file, "file")
        measure.line(found)
    except KeyError:  # a number is missing; the others can be used
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
        return depth < _MOST_NESTED and all(_is_sound(item, depth + 1) for item in value)
    return value is None


def _misfit(value: Any, kind: Any, name: str = "") -> str:
    """Returns which part of a value is of another kind, in words; empty if none is.

    A kind is a type, or several; a mapping of kinds, by key; or a list with the kind of its items,
    each of which must have all of the keys.
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
