"""Data sets of the Hugging Face Hub, and folders of parquet files, by the library `datasets`."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.data import classes
from aa_flax.data.cache import digest
from aa_flax.data.pixels import Example, ImageError, decode
from aa_flax.data.tfds import parse_name, part_of
from aa_flax.errors import InputError, first_line
from aa_flax.files import local_path, read_file

_SAVED = ("dataset_dict.json", "state.json")  # files that `save_to_disk` writes into a folder


class HFDS:
    """An image classification set that `datasets` reads, e.g. `ILSVRC/imagenet-1k`.

    Its images are the one column of type Image (or of files as bytes), else `image`; its labels the
    one of type ClassLabel, else `label`. Labels without declared classes are numbered, if they are
    integers, or sorted, if they are texts.

    Args:
        name: a name on the Hub, with a configuration `NAME:CONFIGURATION`; or a folder, of parquet
            files or written by `save_to_disk`. After `#` parts for training and validation,
            `NAME#train[:90%],train[90%:]`.
        cache_dir: where `datasets` caches what it has converted; "": its default.
        split: `train`; or `val`, its `validation`, `val`, `valid` or `test`, the first there is.
        class_order: see `declared_classes`.
    """

    def __init__(self, name: str, cache_dir: str, split: str, class_order: str = ""):
        self._name, expressions = parse_name(name)
        splits = _load(self._name, cache_dir)
        lengths = {key: len(part) for key, part in splits.items()}
        self._split, self._part = part_of(split, expressions, lengths, self._name)
        data = splits[self._split]
        self._images = _images(data, self._name)
        column = _label_column(data, self._name)
        labelled = {key: part for key, part in splits.items() if column in part.features}
        self.class_names, labels = _labels(labelled, self._split, column, class_order, self._name)
        self.num_classes = len(self.class_names)
        self._labels = labels[self._part.start : self._part.stop]
        classes.check_labels(self._labels, self.num_classes, self.name)

    def name(self, index: int) -> str:
        """Returns the set, split and number of an image."""
        return f"{self._name}/{self._split}[{self._part[index]}]"

    def digest(self) -> str:
        """Returns a hash of the split, its part, the labels and the classes."""
        part = f"{self._split} {self._part} of {len(self._images)}"
        return digest("hfds", part, self.class_names, self._labels)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Example:
        (file,) = self._images[self._part[index]].values()
        try:
            encoded = file["bytes"] if file["bytes"] is not None else read_file(file["path"])
        except (OSError, TypeError) as error:  # TypeError: neither bytes nor a path
            raise ImageError.of(self.name(index), error) from error
        return {"image": decode(encoded, self.name(index)), "label": int(self._labels[index])}


def _load(name: str, cache_dir: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "Hugging Face datasets is not installed; pip install 'aa_flax[hf]'"
        ) from error
    folder = local_path(name, "config.data.name")
    cache = str(local_path(cache_dir, "config.data.path")) if cache_dir else None
    if not os.path.isdir(folder) and name.startswith((".", "/", "~")):
        raise InputError(f"no folder {folder} (config.data.name=hfds:{name})")
    _check_files(folder)
    try:
        with _quiet_in_logs():
            if any(os.path.isfile(folder / name) for name in _SAVED):
                found: Any = datasets.load_from_disk(str(folder))
            elif os.path.isdir(folder):
                found = datasets.load_dataset(str(folder), cache_dir=cache)
            else:
                hub, _, configuration = name.partition(":")
                found = datasets.load_dataset(hub, configuration or None, cache_dir=cache)
    except Exception as error:  # of many types, from datasets, pyarrow and the network
        raise InputError(
            f"datasets cannot load {name}: {first_line(error)}; give a folder that contains it, or "
            "a name on the Hub and access to it (hf auth login where it is gated)"
        ) from error
    return found if isinstance(found, Mapping) else {str(found.split or "train"): found}


def _check_files(folder: Path) -> None:
    """Checks that parquet files declare the same classes: `datasets` reads those of one file."""
    import datasets
    from pyarrow.parquet import read_schema

    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        try:
            found[str(path)] = datasets.Features.from_arrow_schema(read_schema(path))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is not a whole parquet file ({first_line(error)}); replace it"
            ) from error
    for column in {name for features in found.values() for name in features}:
        declared = {path: _declared(features, column) for path, features in found.items()}
        if named := {path: names for path, names in declared.items() if names}:
            classes.check_classes_agree(
                named, "write the files with the same ClassLabel (cast_column)"
            )


@contextmanager
def _quiet_in_logs() -> Iterator[None]:
    """Disables the progress bars of `datasets` unless stderr is a terminal."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _images(data: Any, name: str) -> Any:
    """Returns the column of images alone, as files that are not decoded."""
    import datasets

    columns = data.features.items()
    found = [key for key, feature in columns if isinstance(feature, datasets.Image)]
    found = found or [key for key, feature in columns if _is_file(feature)]
    column = found[0] if len(found) == 1 else "image"
    if column not in found:
        raise InputError(
            f"{name} has {len(found)} columns of images among {', '.join(data.features)}; name the "
            "one to use image"
        )
    return data.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _is_file(feature: Any) -> bool:
    """Recognises a column of images in a parquet file that does not declare it."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(data: Any, name: str) -> str:
    import datasets

    found = [key for key, f in data.features.items() if isinstance(f, datasets.ClassLabel)]
    if len(found) == 1:
        return found[0]
    if "label" in data.features:
        return "label"
    raise InputError(
        f"{name} has {len(found)} columns of class labels and none named label, but "
        f"{', '.join(data.features)}; name the one to use label"
    )


def _labels(
    splits: Mapping[str, Any], split: str, column: str, class_order: str, name: str
) -> tuple[list[str], np.ndarray]:
    """Returns the classes in order, and the labels of a split."""
    names = {key: _declared(part.features, column) for key, part in splits.items()}
    declared, where = names[split], f"{name} (datasets)"
    if class_order in ("", "sorted"):
        classes.check_classes_agree({f"{name}/{key}": names[key] for key in (split, *names)})
    if declared:
        labels = _column(splits[split], column, f"{name}/{split}")
        classes.check_labels(labels, len(declared), lambda i: f"{name}/{split}[{i}]")
        order, logits = classes.declared_classes(declared, class_order, where)
        return order, logits[labels]
    # All splits are read, since training and validation must have the same classes.
    every = {key: _column(part, column, f"{name}/{key}") for key, part in splits.items()}
    integers = [key for key, labels in every.items() if labels.dtype.kind in "iu"]
    if 0 < len(integers) < len(every):
        raise InputError(
            f"column {column} of {where} has integers in {', '.join(integers)} and texts in other "
            "splits; give all of them the same labels"
        )
    if integers:
        count = max(int(labels.max(initial=0)) for labels in every.values()) + 1
        return classes.numbered_classes(count, class_order, where), every[split]
    found = sorted(set().union(*(labels.tolist() for labels in every.values())))
    order = classes.classes_in_order(class_order, found, where)
    return order, classes.logits_of(every[split].tolist(), order)


def _declared(features: Any, column: str) -> list[str]:
    """Returns the class names of a ClassLabel column; of another column none."""
    return list(getattr(features.get(column), "names", None) or [])


def _column(data: Any, column: str, name: str) -> np.ndarray:
    """Returns the labels of all images, integers or texts."""
    table = data.select_columns([column]).with_format("arrow")[:]
    labels = table[column].combine_chunks()
    if labels.null_count:
        first = labels.is_null().index(True).as_py()
        raise InputError(f"{name}[{first}] has no label (column {column})")
    found = labels.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "iu" and not all(isinstance(one, str) for one in found[:1]):
        raise InputError(f"column {column} of {name} contains {labels.type}, not integers or texts")
    return found
