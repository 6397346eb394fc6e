"""Image classification sets of TensorFlow Datasets, read without TensorFlow."""

from typing import Any

import numpy as np

from aa_flax.data.classes import check_labels, declared_classes
from aa_flax.data.digest import digest
from aa_flax.data.images import Example, ImageError, decode
from aa_flax.data.splits import parse_name, part_of
from aa_flax.errors import InputError, first_line
from aa_flax.files import local_path


class TFDS:
    """A data set that TFDS has prepared as array_record files, e.g. `imagenet2012`.

    Args:
        name: `imagenet2012`, with a version `imagenet2012:5.1.0`, or with parts of its splits
            `NAME#train[:90%],train[90%:]`, for training and validation.
        data_dir: the folder TFDS prepared it in; "": its default.
        split: `train`; or `val`, TFDS's `validation` or, where there is none, `test`.
        class_order: see `declared_classes`.

    Raises:
        InputError: TFDS is not installed; a set that is unknown, not prepared, prepared in another
            format, without that split, or without images and class labels; later on, an image
            with a label that is no class.
    """

    def __init__(self, name: str, data_dir: str, split: str, class_order: str = ""):
        self._name, expressions = parse_name(name)
        builder = _builder(self._name, data_dir)
        features = builder.info.features
        if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
            raise InputError(
                f"{self._name} has no features image and label, so it is not an image "
                f"classification set; it has {', '.join(features)}"
            )
        lengths = {key: part.num_examples for key, part in builder.info.splits.items()}
        self._split, self._part = part_of(split, expressions, lengths, self._name)
        self._shards = builder.info.splits[self._split]
        self._source = _data_source(builder, self._name, self._split)
        self._version = builder.info.full_name
        where = f"{self._name} (TFDS)"
        names = features["label"].names
        self.class_names, self._label_of = declared_classes(names, class_order, where)
        self.num_classes = len(self.class_names)

    def name(self, index: int) -> str:
        """The set, split and number of an image."""
        return f"{self._name}/{self._split}[{self._part[index]}]"

    def digest(self) -> str:
        """A hash of the set, its version and split, which images of it, and the classes."""
        part = f"{self._version} {self._split} {self._part} of {len(self._source)}"
        return digest("tfds", part, self.class_names)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Example:
        try:
            example = self._source[self._part[index]]
            encoded, label = example["image"], int(example["label"])
        except Exception as error:  # of many types, from array_record and TFDS
            where = f"its record in {self._file(index)} is missing or damaged"
            reason = ValueError(f"{where} ({first_line(error)})")
            raise ImageError.of(self.name(index), reason) from error
        check_labels(np.array([label]), len(self._label_of), lambda _: self.name(index))
        image = decode(encoded, self.name(index))
        return {"image": image, "label": int(self._label_of[label])}

    def _file(self, index: int) -> str:
        ends = np.cumsum(self._shards.shard_lengths)
        return str(self._shards.filepaths[np.searchsorted(ends, self._part[index], "right")])


def _builder(name: str, data_dir: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            "TensorFlow Datasets is not installed; pip install 'aa_flax[tfds]'"
        ) from error
    if data_dir:
        data_dir = str(local_path(data_dir, "config.data.path"))
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        where = data_dir or "TFDS's default folder"
        raise InputError(f"TFDS knows no data set {name!r}, nor is it in {where}") from error
    except Exception as error:  # of many types, from JSON, protobuf and TFDS
        where = data_dir or "TFDS's default folder"
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
