"""Image classification sets of TensorFlow Datasets, read without TensorFlow."""

from typing import Any

from aa_flax.data.classes import classes_in_order, imagenet_classes
from aa_flax.data.images import Example, decode
from aa_flax.errors import InputError

_SPLITS = {"train": ("train",), "val": ("validation", "test")}


class TFDS:
    """A data set that TFDS has prepared as array_record files, e.g. `imagenet2012`.

    Args:
        name: `imagenet2012`, or with a version, `imagenet2012:5.1.0`.
        data_dir: the folder TFDS prepared it in; "": its default.
        split: `train`; or `val`, TFDS's `validation` or, where there is none, `test`.
        class_order: see `classes_in_order`; "" is TFDS's order, for ImageNet's thousand classes
            that of the published nets.

    Raises:
        InputError: TFDS is not installed; a set that is unknown, not prepared, prepared in another
            format, without that split, or without images and class labels.
    """

    def __init__(self, name: str, data_dir: str, split: str, class_order: str = ""):
        builder = _builder(name, data_dir)
        features = builder.info.features
        if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
            raise InputError(
                f"{name} has no features image and label, so it is not an image classification "
                f"set; it has {', '.join(features)}"
            )
        self._split = _split_of(builder, name, split)
        self._name = name
        self._source = _data_source(builder, name, self._split)
        names = features["label"].names
        if not class_order:
            class_order = "imagenet" if set(names) == set(imagenet_classes()) else "sorted"
        self.class_names = classes_in_order(class_order, names, f"{name} (TFDS)")
        self.num_classes = len(self.class_names)
        place = {name: i for i, name in enumerate(self.class_names)}
        self._label_of = [place[name] for name in names]

    def name(self, index: int) -> str:
        """The set, split and number of an image."""
        return f"{self._name}/{self._split}[{index}]"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        image = decode(example["image"], self.name(index))
        return {"image": image, "label": self._label_of[example["label"]]}


def _builder(name: str, data_dir: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            "TensorFlow Datasets is not installed; pip install 'aa_flax[tfds]'"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        where = data_dir or "TFDS's default folder"
        raise InputError(f"TFDS knows no data set {name!r}, nor is it in {where}") from error
    if not builder.info.splits:
        raise InputError(
            f"{name} is not prepared in {builder.data_path}; give its --config.data.path, or "
            f"prepare it: {_prepare(name, data_dir)}"
        )
    return builder


def _split_of(builder: Any, name: str, split: str) -> str:
    there = list(builder.info.splits)
    for candidate in _SPLITS[split]:
        if candidate in there:
            return candidate
    raise InputError(
        f"{name} has no split {' or '.join(_SPLITS[split])}; it has {', '.join(there)}"
    )


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
