"""Files of results: one JSON file per model, with arrays and plots next to it.

A file is about one model with one set of weights on one set of data. It has the numbers of each
measure with its settings. A measurement with other settings never replaces these numbers, but goes
to the next file: `results.json`, `results_2.json`, and so on. Several processes may write to one
name at the same time.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from aa_flax.errors import InputError, cause
from aa_flax.evaluation.schema import why_no_results
from aa_flax.files import parse_json, replacing, writing
from aa_flax.runtime import log_line

Results = dict[str, Any]

# The experiment: equal for everything in one file, together with the weights.
_EXPERIMENT = ("model", "options", "dtype", "data")
# Keys of `shift` that are also at the top level.
_OF_SHIFT = (
    *("consistency", "consistency_interval", "consistent_and_correct", "probability_change"),
    *("top1_shifted", "crop_size", "shift_range", "passes", "seed", "images_per_draw"),
)


def next_to(output: Path, name: str) -> Path:
    """Returns `runs/a/results_diagonal.npz` for `runs/a/results.json` and `diagonal.npz`."""
    return output.with_name(f"{output.stem}_{name}")


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file; raises an InputError if it cannot be written."""
    with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_results(output: Path) -> Results:
    """Returns the content of a results file, checked so that any reader can rely on it.

    A missing or empty file has none; other content, or a truncated file, is an InputError.
    """
    try:
        text = output.read_text() if output.is_file() else ""
        results = parse_json(text) if text.strip() else {}
    except OSError as error:
        raise InputError(f"{output} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(
            f"{output} is truncated, or has no results of an evaluation ({error}); remove it, or "
            "give another --output"
        ) from error
    if results != {} and (why := why_no_results(results, output.parent)):
        raise InputError(f"{output} has no results of an evaluation ({why}); give another --output")
    return results


def with_shift_on_top(results: Results) -> Results:
    """Returns the results with the numbers of `shift` also at the top level."""
    shift = results.get("shift", {})
    return results | {key: shift[key] for key in _OF_SHIFT if key in shift}


def as_json(value: Any) -> Any:
    """Returns a value as it comes back from a JSON file; raises a TypeError or ValueError."""
    return json.loads(json.dumps(value, allow_nan=False))


def same_experiment(results: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Checks if both are of one model, with the same weights and data."""
    same = all(results.get(key) == others.get(key) for key in _EXPERIMENT)
    return same and same_weights(results.get("weights"), others.get("weights"))


def same_weights(one: Any, other: Any) -> bool:
    """Compares two descriptions of weights by their hash, or else by their file.

    Weights without a description are never the same.
    """
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one == other and bool(one)
    files = [str(weights.get("file", "")) for weights in (one, other)]
    parts = {file.partition("#")[2] for file in files}  # `ema` for averaged weights
    if "sha256" in one and "sha256" in other:
        keys = ("sha256",)
    else:
        if len({os.path.abspath(os.path.expanduser(file)) for file in files}) > 1:
            return False
        checked = ("crc32",) if "crc32" in one and "crc32" in other else ()
        keys = ("kind", "model", "training", "epoch", "step", *checked)
    return len(parts) == 1 and all(one.get(key) == other.get(key) for key in keys)


def has_measured(
    results: Mapping[str, Any], name: str, settings: Mapping[str, Any], folder: Path
) -> bool | None:
    """Checks if results have a measure's numbers with these settings; None: with others.

    Numbers whose arrays are missing in the results' folder do not count.
    """
    found = results.get(name)
    if found is None:
        return False
    if any(found.get(key) != value for key, value in as_json(settings).items()):
        return None
    file = found.get("file")  # or a class of that name, whose numbers are a dict
    return not isinstance(file, str) or (folder / file).is_file()


def find_file(
    output: Path,
    experiment: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    mine: Mapping[str, Any] | None = None,
) -> tuple[Path, Results]:
    """Finds the first of `results.json`, `results_2.json`, ... without a conflicting measurement.

    Returns its path, and its content if that is of the same experiment. An incomplete file of
    results is an InputError.

    Args:
        experiment: model, weights and data of the measurement.
        settings: of each measure, by its name.
        mine: content of a file that belongs to this evaluation, although its weights are unknown.
    """
    path = output
    for number in count(2):
        here = read_results(path)
        if same_experiment(here, experiment):
            if None not in [has_measured(here, n, s, path.parent) for n, s in settings.items()]:
                return path, here
        elif not here or here == mine:
            return path, {}
        path = output.with_name(f"{output.stem}_{number}{output.suffix}")
    raise AssertionError


def write_results(
    output: Path,
    results: Results,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    arrays: Path | None = None,
    mine: Results | None = None,
    replace: bool = False,
) -> tuple[Path, Results]:
    """Adds results to the file that `find_file` returns, atomically; returns it and its content.

    Reading, deciding and writing happen under one lock, so that results which another process
    writes at the same time are kept.

    Args:
        settings: of each measure, by its name.
        arrays: a path of `temporary_output`; the files next to it move next to the results.
        mine: the content that the previous call of this evaluation returned.
        replace: use `output` itself; its results of another experiment are removed.
    """
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with _locked(output.parent):
            if replace:
                path, before = output, {}
                with suppress(InputError):  # a damaged file
                    found = read_results(output)
                    before = found if same_experiment(found, results) else {}
            else:
                path, before = find_file(output, results, settings or {}, mine)
            measured = before.get("measured", {}) | results.get("measured", {})
            results = before | {k: v for k, v in results.items() if not (before and k == "config")}
            results |= {"measured": measured} if measured else {}
            results = with_shift_on_top(_with_arrays(results, arrays, path))
            if "config" in results:  # at the end
                results["config"] = results.pop("config")
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    return path, as_json(results)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other evaluations from writing results to a folder; a killed process leaves no lock."""
    path = folder / ".results.lock"
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _report_no_lock(folder, cause(error))
    try:
        yield
    finally:
        if lock.is_locked:  # a process that waits for it sees that the file is gone, and retries
            path.unlink(missing_ok=True)
        lock.release()


@cache
def _report_no_lock(folder: Path, reason: str) -> None:
    log_line(f"{folder} cannot be locked ({reason}); run one evaluation at a time there")


@contextmanager
def temporary_output(output: Path) -> Iterator[Path]:
    """Yields a path for measures to write next to until the file of their results is known."""
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    with folder as name:
        yield Path(name) / output.name


def _with_arrays(results: Results, arrays: Path | None, path: Path) -> Results:
    """Moves a measure's files next to the results, and renames them accordingly."""
    if arrays is None:
        return results
    names = {}
    for file in arrays.parent.iterdir():
        moved = next_to(path, file.name.removeprefix(f"{arrays.stem}_"))
        names[file.name] = moved.name
        file.replace(moved)

    def renamed(found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        return {k: names.get(v, v) if isinstance(v, str) else v for k, v in found.items()}

    return {key: renamed(value) for key, value in results.items()}
