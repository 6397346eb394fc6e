"""Image classification sets of TensorFlow Datasets, read without TensorFlow.

The notation of splits, `NAME#train[:90%],train[90%:]`, is also that of `hfds`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aa_flax.data.cache import digest
from aa_flax.data.classes import check_labels, declared_classes
from aa_flax.data.pixels import Example, ImageError, decode
from aa_flax.errors import InputError, first_line
from aa_flax.files import local_path

_USUAL = {"train": ("train",), "val": ("validation", "val", "valid", "test")}
_NOTATION = "NAME#TRAIN,VAL, e.g. NAME#train[:90%],train[90%:]"


class TFDS:
    """A data set that TFDS has prepared as array_record files, e.g. `imagenet2012`.

    Args:
        name: `imagenet2012`, with a version `imagenet2012:5.1.0`, or with parts of its splits
            `NAME#train[:90%],train[90%:]`, for training and validation.
        data_dir: the folder TFDS prepared it in; "": its default.
        split: `train`; or `val`, TFDS's `validation` or, where there is none, `test`.
        class_order: see `declared_classes`.


    Raises:
        InputError: TFDS is not installed; the set is unknown, not prepared, prepared in another
            format, or lacks that split, or images and class labels; later on, a label is not a
            class.
    """

    def __init__(self, name: str, data_dir: str, split: str, class_order: str = ""):
        self._name, expressions = parse_name(name)
        builder = _builder(self._name, data_dir)
        features, splits = builder.info.features, builder.info.splits
        if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
            raise InputError(
                f"{self._name} has no features image and label, so it is not an image "
                f"classification set; it has {', '.join(features)}"
            )
        lengths = {key: part.num_examples for key, part in splits.items()}
        self._split, self._part = part_of(split, expressions, lengths, self._name)
        self._shards = splits[self._split]
        self._source = _data_source(builder, self._name, self._split)
        self._version = builder.info.full_name
        names, where = features["label"].names, f"{self._name} (TFDS)"
        self.class_names, self._logits = declared_classes(names, class_order, where)
        self.num_classes = len(self.class_names)

    def name(self, index: int) -> str:
        """Returns the set, split and number of an image."""
        return f"{self._name}/{self._split}[{self._part[index]}]"

    def digest(self) -> str:
        """Returns a hash of the set, its version, split and part, and the classes."""
        part = f"{self._version} {self._split} {self._part} of {len(self._source)}"
        return digest("tfds", part, self.class_names)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Example:
        try:
            example = self._source[self._part[index]]
            encoded, label = example["image"], int(example["label"])
        except Exception as error:  # of many types, from array_record and TFDS
            ends = np.cumsum(self._shards.shard_lengths)
            file = self._shards.filepaths[np.searchsorted(ends, self._part[index], "right")]
            reason = f"its record in {file} is missing or damaged ({first_line(error)})"
            raise ImageError.of(self.name(index), reason) from error
        check_labels(np.array([label]), len(self._logits), lambda _: self.name(index))
        return {"image": decode(encoded, self.name(index)), "label": int(self._logits[label])}


def _builder(name: str, data_dir: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            "TensorFlow Datasets is not installed; pip install 'aa_flax[tfds]'"
        ) from error
    if data_dir:
        data_dir = str(local_path(data_dir, "config.data.path"))
    where = data_dir or "TFDS's default folder"
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(f"TFDS has no data set {name!r}, nor is it in {where}") from error
    except Exception as error:  # of many types, from JSON, protobuf and TFDS
        raise InputError(
            f"TFDS cannot read {name} in {where}: {first_line(error)}; prepare it again: "
            f"{_prepare(name, data_dir)}"
        ) from error
    if not builder.info.splits:
        raise InputError(
            f"{name} is not prepared in {builder.data_path}; give its --config.data.path, or "
            f"prepare it: {_prepare(name, data_dir)}"
        )
    return builder


def _data_source(builder: Any, name: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise InputError(
            f"{name} in {builder.data_path} is prepared in a format without random access; prepare "
            f"it again: {_prepare(name, '')}"
        ) from error


def _prepare(name: str, data_dir: str) -> str:
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"tfds build {name} --file_format=array_record{where}"


def parse_name(text: str) -> tuple[str, dict[str, str]]:
    """Parses `NAME#TRAIN,VAL`: the name, and expressions for `train` and `val`, if any."""
    name, mark, given = text.partition("#")
    expressions = given.split(",")
    if mark and len(expressions) != 2:
        raise InputError(
            f"config.data.name {text!r} does not say what train and val are; give {_NOTATION}"
        )
    return name, dict(zip(("train", "val"), expressions, strict=True)) if mark else {}


def part_of(
    split: str, expressions: Mapping[str, str], lengths: Mapping[str, int], name: str
) -> tuple[str, range]:
    """Returns which of the data's splits `train` or `val` is, and which images of it.

    Args:
        expressions: `SPLIT`, or a part such as `train[:90%]`, `train[-500:]`, as TFDS writes them.
            Without one, `val` is `validation`, `val`, `valid` or `test`, the first there is.
        lengths: the data's splits, and the number of images in each.
        name: of the data, for the errors.
    """
    if not expressions:
        usual = next((one for one in _USUAL[split] if one in lengths), None)
        if usual is None:
            raise InputError(
                f"{name} has no split {' or '.join(_USUAL[split])}; it has {', '.join(lengths)}; "
                f"say what is train and what is val: {_NOTATION}"
            )
        return usual, range(lengths[usual])
    text = expressions[split].strip()
    bound = r"(-?\d+%?)?"
    match = re.fullmatch(rf"([^\[\]]+)(?:\[{bound}:{bound}\])?", text)
    if not match:
        raise InputError(f"config.data.name: {text!r} is not a part of a split; give {_NOTATION}")
    own, start, stop = match.groups()
    if own not in lengths:
        raise InputError(f"{name} has no split {own!r}; it has {', '.join(lengths)}")
    part = range(lengths[own])[_index(start, lengths[own]) : _index(stop, lengths[own])]
    if not part:
        raise InputError(f"{text} of {name} is empty; {own} has {lengths[own]} images")
    return own, part


def _index(bound: str | None, length: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * length / 100) if bound.endswith("%") else int(bound)
