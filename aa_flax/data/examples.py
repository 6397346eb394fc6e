"""One example of a batch: an image read, cropped, and what is random about it drawn."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from aa_flax.config import DataConfig
from aa_flax.data.classes import check_labels
from aa_flax.data.crops import center_image, center_within, random_resized_crop
from aa_flax.data.images import ImageError
from aa_flax.data.sources import Source
from aa_flax.errors import InputError

Crop = Callable[[Image.Image], Any]  # what becomes of an image

_REPLACEMENTS = 20  # bad images in a row, after which something else is wrong


def training_example(
    source: Source, data: DataConfig, seed: int, place: tuple[int, int]
) -> dict[str, Any]:
    """An image as the recipe augments it, following from `seed` and `place`: (epoch, index).

    With `data.on_error` "skip", an image that cannot be read gives its place to the next that can,
    and `skipped` is its index (else -1).
    """
    epoch, index = place
    rng = np.random.default_rng((seed, epoch, index))

    def crop(image: Image.Image) -> np.ndarray:
        if data.augmentation == "random_resized_crop":
            return random_resized_crop(image, data.crop_size, rng)
        size = data.crop_size if data.augmentation == "center_crop" else data.image_size
        return center_image(image, data.resize_size, size)

    pixels, label, skipped = _read(source, data, index, crop)
    example = {"image": pixels, "label": np.int32(label), "skipped": skipped}
    if data.augmentation == "random_shift":
        shifts = data.image_size - data.crop_size + 1
        example["offset"] = rng.integers(0, shifts, 2, np.int32)
    if data.flip:
        example["flip"] = rng.random() < 0.5
    return example


def evaluation_example(source: Source, data: DataConfig, crop: int, index: int) -> dict[str, Any]:
    """The centre of an image; `mask` is false beyond the last one, and for a skipped one.

    `center` is where in it the centre crop of `data.crop_size` pixels lies: (top, left).
    """

    def look(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        center = center_within(image.size, data.resize_size, crop, data.crop_size)
        interpolation: Any = data.interpolation or "bilinear"
        return center_image(image, data.resize_size, crop, interpolation), center

    mask, skipped = index < len(source), -1
    index = min(index, len(source) - 1)
    try:
        (pixels, center), label = _cropped(source, index, look)
    except ImageError as error:
        if data.on_error == "stop":
            raise error.skippable() from error
        skipped = index if mask else -1
        pixels, center = np.zeros((crop, crop, 3), np.uint8), np.zeros(2, np.int32)
        label, mask = 0, False
    return {
        "image": pixels,
        "center": center,
        "label": np.int32(label),
        "index": index,
        "mask": mask,
        "skipped": skipped,
    }


def _read(source: Source, data: DataConfig, index: int, crop: Crop) -> tuple[np.ndarray, int, int]:
    """A crop, its label, and what it stands in for: `index`, or -1 if it is that."""
    for step in range(_REPLACEMENTS):
        try:
            pixels, label = _cropped(source, (index + step) % len(source), crop)
            return pixels, label, index if step else -1
        except ImageError as error:
            if data.on_error == "stop":
                raise error.skippable() from error
    raise ImageError(
        f"{_REPLACEMENTS} images in a row cannot be read, from {source.name(index)} on; "
        "something is wrong with all of them"
    )


def _cropped(source: Source, index: int, crop: Crop) -> tuple[Any, int]:
    image, label = read_example(source, index)
    try:
        return crop(image), label
    except InputError as error:
        raise ImageError.of(source.name(index), error) from error


def read_example(source: Source, index: int) -> tuple[Image.Image, int]:
    """An image in mode RGB and its label, checked: anyone may have written the source.

    Raises:
        ImageError: the image cannot be read.
        InputError: what the source gives is no image, or no label of its classes.
    """
    example = source[index]
    try:
        image, label = example["image"], operator.index(example["label"])
    except (TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"{source.name(index)}: a source gives a dict of image and an integer label, got "
            f"{_described(example)}"
        ) from error
    check_labels(np.array([label]), source.num_classes, lambda _: source.name(index))
    if isinstance(image, Image.Image) and image.mode == "RGB":
        return image, label
    if (
        isinstance(image, np.ndarray)
        and (image.dtype, image.shape[2:]) == (np.uint8, (3,))
        and image.size
    ):
        return Image.fromarray(image), label
    raise InputError(
        f"{source.name(index)}: a source gives images as PIL images in mode RGB or uint8 arrays "
        f"(H, W, 3), got {_described(image)}"
    )


def _described(thing: Any) -> str:
    """What something is, in a few words."""
    if isinstance(thing, Image.Image):
        return f"a PIL image in mode {thing.mode}"
    if isinstance(thing, dict):
        return "{" + ", ".join(f"{key}: {_described(value)}" for key, value in thing.items()) + "}"
    shape = getattr(thing, "shape", None)
    what = f"{getattr(thing, 'dtype', '')} {tuple(shape)}" if shape is not None else ""
    return f"{type(thing).__name__} {what}".rstrip()
