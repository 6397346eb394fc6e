"""Outputs of evaluations: one JSON file of results per model, with arrays and plots next to it.

A file is about one model with one set of weights on one set of data. It has the numbers of each
measure with the settings they were found with. Whatever was measured otherwise is never replaced,
but gets the next name: `results.json`, `results_2.json`, and so on. Several processes may write to
one name at the same time.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from aa_flax.errors import InputError
from aa_flax.evaluation.schema import why_no_results
from aa_flax.files import parse_json, replacing
from aa_flax.runtime import log_line

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
    """Returns the content of a results file: checked, so that any reader can rely on it.

    Returns:
        Nothing, if there is no such file or it is empty.

    Raises:
        InputError: the file has some other content, or a part of results.
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
    if results != {} and (why := why_no_results(results, output.parent)):
        raise InputError(
            f"{output} holds no results of an evaluation ({why}); give another --output"
        )
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
    return os.path.abspath(os.path.expanduser(weights.get("file", "")))


def has_measured(
    results: Mapping[str, Any], name: str, settings: Mapping[str, Any], folder: Path
) -> bool | None:
    """Whether results hold a measure's numbers with those settings; None: they hold others.

    Args:
        folder: of the results file. Numbers whose arrays are gone do not count.
    """
    found = results.get(name)
    if found is None:
        return False
    if any(found.get(key) != value for key, value in as_json(settings).items()):
        return None
    file = found.get("file")  # or a class of that name, whose numbers are a dict
    return not isinstance(file, str) or (folder / file).is_file()


def candidates(output: Path) -> Iterator[Path]:
    """`results.json`, `results_2.json`, ...: the files that results may go to."""
    yield output
    number = 2
    while True:
        yield output.with_name(f"{output.stem}_{number}{output.suffix}")
        number += 1


def place_of(
    output: Path,
    experiment: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    mine: Mapping[str, Any] | None = None,
) -> tuple[Path, Results]:
    """Finds the first of the candidates without another experiment or other settings.

    Args:
        experiment: model, weights and data of what is measured.
        settings: of each measure, by its name.
        mine: content of a file that belongs to this evaluation, although its weights are unknown.

    Returns:
        Its path, and what it has of the same experiment already.

    Raises:
        InputError: a candidate that is not a whole file of results.
    """
    for path in candidates(output):
        here = read_results(path)
        if same_experiment(here, experiment):
            if None not in [has_measured(here, n, s, path.parent) for n, s in settings.items()]:
                return path, here
        elif not here or here == mine:
            return path, {}
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
    """Adds results to the first file that has room for them; never half a file.

    Reading, deciding and writing happen under one lock, so that nothing is lost that another
    process writes meanwhile.

    Args:
        settings: of each measure, by its name.
        arrays: a path of `unplaced`; the files next to it move next to the results.
        mine: what the previous call of this evaluation returned.
        replace: use `output` itself; what it has of another experiment is removed.

    Returns:
        The file, and its content now.

    Raises:
        InputError: it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _locked(output.parent):
            if replace:
                place, before = output, _same_record(output, results)
            else:
                place, before = place_of(output, results, settings or {}, mine)
            measured = before.get("measured", {}) | results.get("measured", {})
            results = before | {k: v for k, v in results.items() if not (before and k == "config")}
            results |= {"measured": measured} if measured else {}
            results = with_aliases(_with_arrays(results, arrays, place))
            if "config" in results:  # at the end
                results["config"] = results.pop("config")
            with replacing(place) as temporary:
                temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise _unwritable(output, error) from error
    return place, as_json(results)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other evaluations from writing results to a folder; a killed process leaves no lock."""
    path = folder / ".results.lock"
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _report_no_lock(folder, str(getattr(error, "strerror", None) or error))
    try:
        yield
    finally:
        if lock.is_locked:  # whoever waits for it sees that the file is gone, and makes another
            path.unlink(missing_ok=True)
        lock.release()


@cache
def _report_no_lock(folder: Path, reason: str) -> None:
    log_line(f"{folder} cannot be locked ({reason}); let one evaluation at a time write there")


def _same_record(output: Path, results: Results) -> Results:
    try:
        before = read_results(output)
    except InputError:
        return {}
    return before if same_experiment(before, results) else {}


@contextmanager
def unplaced(output: Path) -> Iterator[Path]:
    """Gives a path for a measure to write next to, until the place of its results is decided."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise _unwritable(output, error) from error
    with folder as name:
        yield Path(name) / output.name


def _with_arrays(results: Results, arrays: Path | None, place: Path) -> Results:
    """Moves a measure's files next to the results, where they are called after these."""
    if arrays is None:
        return results
    names = {}
    for file in arrays.parent.iterdir():
        moved = beside(place, file.name.removeprefix(f"{arrays.stem}_"))
        names[file.name] = moved.name
        file.replace(moved)
    return {key: _renamed(value, names) for key, value in results.items()}


def _renamed(found: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(found, dict):
        return found
    return {k: names.get(v, v) if isinstance(v, str) else v for k, v in found.items()}


def check_writable(path: Path) -> None:
    """Raises an InputError if no file can be written there; makes its folder."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if path.exists() and not path.is_file():
            raise OSError(0, "it is a device or a pipe")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as file:
            file.write(bytes(2**16))  # a full disk may still have room for a name
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written: {error.strerror or error}; make room or change its "
        "permissions, or give another path"
    )
