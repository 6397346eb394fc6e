"""What evaluations leave: one JSON file of results a net, arrays and figures beside it.

A file holds one net with one set of weights on one set of data, and of each measure the numbers
with the settings they were found with. What was measured otherwise is never written over it, but
beside it: `results.json`, `results_2.json`, and so on.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.disk import parse_json, replacing
from aa_flax.errors import InputError

Results = dict[str, Any]

# What a measurement is of; all of it is the same for whatever one file holds.
_EXPERIMENT = ("model", "options", "dtype", "data")
# Keys that the numbers of `shift` also have at the top, where they alone once stood.
_OF_SHIFT = (
    "consistency",
    "consistency_interval",
    "consistent_and_correct",
    "probability_change",
    "top1_shifted",
    "crop_size",
    "shift_range",
    "passes",
    "seed",
    "images_per_draw",
)


def beside(output: Path, name: str) -> Path:
    """`runs/a/results_diagonal.npz` for `runs/a/results.json` and `diagonal.npz`."""
    return output.with_name(f"{output.stem}_{name}")


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_results(output: Path) -> Results:
    """What a results file holds; nothing, if there is none or it is empty.

    Raises:
        InputError: a file that holds something else, or a part of results.
    """
    try:
        text = output.read_text() if output.is_file() else ""
        results = parse_json(text) if text.strip() else {}
    except OSError as error:
        raise InputError(f"{output} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(
            f"{output} is cut, or no results of an evaluation ({error}); remove it, or give "
            "another --output"
        ) from error
    if not isinstance(results, dict) or (results and "model" not in results):
        raise InputError(f"{output} holds no results of an evaluation; give another --output")
    if "shift" not in results and "consistency" in results:  # as they once were written
        keys = ("num_images", *_OF_SHIFT)
        results["shift"] = {key: results[key] for key in keys if key in results}
    return results


def with_aliases(results: Results) -> Results:
    """The results as they are written: the numbers of `shift` also where they once stood."""
    shift = results.get("shift", {})
    return results | {key: shift[key] for key in _OF_SHIFT if key in shift}


def as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file: tuples become lists.

    Raises:
        TypeError, ValueError: it is nothing for JSON; numbers that are not finite are not.
    """
    return json.loads(json.dumps(value, allow_nan=False))


def same_experiment(results: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether both are of one net, with the same weights and data."""
    return all(results.get(key) == others.get(key) for key in _EXPERIMENT) and same_weights(
        results.get("weights"), others.get("weights")
    )


def same_weights(one: Any, other: Any) -> bool:
    """Whether two descriptions are of the same weights: by their hash, or else by their file.

    Weights of which nothing is known are never the same.
    """
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one == other and bool(one)
    if "sha256" in one and "sha256" in other:
        return _told(one, "sha256") == _told(other, "sha256")
    checked = ("crc32",) if "crc32" in one and "crc32" in other else ()
    keys = ("kind", "model", "training", "epoch", "step", *checked)
    return _place(one) == _place(other) and _told(one, *keys) == _told(other, *keys)


def _told(weights: Mapping[str, Any], *keys: str) -> list[Any]:
    """Those facts, and which of a file's weights are meant: `#ema` at the end of its path."""
    return [weights.get(key) for key in keys] + [str(weights.get("file")).partition("#")[2]]


def _place(weights: Mapping[str, Any]) -> str:
    return os.path.abspath(Path(weights.get("file", "")).expanduser())


def has_measured(
    results: Mapping[str, Any], name: str, settings: Mapping[str, Any], folder: Path
) -> bool | None:
    """Whether results hold a measure's numbers with those settings; None: they hold others.

    Args:
        folder: of the results file. Numbers whose arrays are gone do not count.
    """
    found = results.get(name)
    if not isinstance(found, dict):
        return False
    if any(found.get(key) != value for key, value in as_json(settings).items()):
        return None
    file = found.get("file")  # or a class of that name, whose numbers are a dict
    return not isinstance(file, str) or (folder / file).is_file()


def candidates(output: Path) -> Iterator[Path]:
    """`results.json`, `results_2.json`, ...: where results may stand."""
    yield output
    number = 2
    while True:
        yield output.with_name(f"{output.stem}_{number}{output.suffix}")
        number += 1


def place_of(
    output: Path,
    experiment: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    with_accuracy: bool = True,
) -> tuple[Path, bool]:
    """The first of the candidates that holds nothing of another experiment or other settings.

    Args:
        experiment: net, weights and data of what is to be measured.
        settings: of each measure, by its name.
        with_accuracy: whether accuracy is to be measured, too.

    Returns:
        Its path, and whether it has all of the measures already.

    Raises:
        InputError: a candidate that is no whole file of results.
    """
    for path in candidates(output):
        here = read_results(path)
        if not here:
            return path, False
        if same_experiment(here, experiment):
            there = [has_measured(here, n, s, path.parent) for n, s in settings.items()]
            if None not in there:
                return path, ("top1" in here or not with_accuracy) and all(there)
    raise AssertionError


def write_results(output: Path, results: Results, *, replace: bool = False) -> Results:
    """Adds to a file of the same experiment; never half a file.

    Args:
        replace: what the file holds of another experiment, or is damaged, goes.

    Returns:
        What it holds now.

    Raises:
        InputError: it cannot be written.
    """
    try:
        before = read_results(output)
    except InputError:
        if not replace:
            raise
        before = {}
    if same_experiment(before, results):
        measured = before.get("measured", {}) | results.get("measured", {})
        results = before | {key: value for key, value in results.items() if key != "config"}
        results |= {"measured": measured} if measured else {}
    results = with_aliases(results)
    if "config" in results:  # at the end
        results["config"] = results.pop("config")
    try:
        with replacing(output) as temporary:
            temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise _unwritable(output, error) from error
    return results


def check_writable(path: Path) -> None:
    """Raises an InputError if no file can be written there; makes its folder."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if path.exists() and not path.is_file():
            raise OSError(0, "it is a device or a pipe")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written: {error.strerror or error}; make room or change its "
        "permissions, or give another path"
    )
