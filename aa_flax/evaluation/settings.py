"""Settings of an evaluation: how images are cropped, shifted and batched."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from aa_flax.config import Config, DataConfig
from aa_flax.data.batches import Batch, evaluation_batches, evaluation_example
from aa_flax.data.sources import Source
from aa_flax.errors import InputError, integer
from aa_flax.models.model_config import Interpolation


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The part of a config that evaluations use: fields of its `data` and `eval`.

    Attributes:
        crop_size: side in pixels of the model's input.
        image_size: side of the centre that shifted crops are cut from.
        resize_size: length of the shorter side before cropping; 0: images are not resized.
        interpolation: of that resizing, `bilinear` or `bicubic`, antialiased.
        batch_size: largest batch over all devices of all hosts; 0: `batch` chooses.
        shift_range: crops are at offsets 0..shift_range-1 on each axis.
        passes: random pairs for each image. seed: of random offsets.
        num_workers, worker_type, on_error, class_order: see `docs/data.md`.
    """

    crop_size: int
    image_size: int
    resize_size: int
    interpolation: Interpolation = "bilinear"
    batch_size: int = 0
    shift_range: int
    passes: int = 5
    seed: int = 0
    num_workers: int = 0
    worker_type: str = "thread"
    on_error: str = "stop"
    class_order: str = ""

    def __post_init__(self):
        counts = {"crop_size", "image_size", "shift_range", "passes"}
        for name in (*sorted(counts), "batch_size", "resize_size", "seed", "num_workers"):
            value = integer(name, getattr(self, name), least=1 if name in counts else 0)
            object.__setattr__(self, name, value)  # Python's int, for JSON
        if self.image_size < self.crop_size:
            raise InputError(
                f"image_size {self.image_size} is smaller than crop_size {self.crop_size}, which "
                "is cut from it"
            )

    @classmethod
    def of(cls, config: Config) -> "Settings":
        """Returns the settings of a config."""
        parts = (config.data, config.eval)
        given: dict[str, Any] = {}
        for field in fields(cls):
            part = next((part for part in parts if hasattr(part, field.name)), None)
            if part is not None:
                given[field.name] = getattr(part, field.name)
        given["interpolation"] = given["interpolation"] or "bilinear"
        return cls(**given)

    def experiment(self) -> dict[str, Any]:
        """Returns the settings that every measured number depends on."""
        names = ("resize_size", "interpolation", "image_size", "crop_size", "on_error")
        return {name: getattr(self, name) for name in names}

    def batch(self, count: int | None = None) -> int:
        """Returns the batch size: at most what `count` images need on these devices."""
        size = self.batch_size or (32 if jax.default_backend() == "cpu" else 256)
        devices = jax.device_count()
        if self.batch_size % devices:
            return size  # which the loader refuses
        return -(-min(size, count or size) // devices) * devices

    def batches(self, source: Source, crop: int) -> Iterator[Batch]:
        """Yields centre crops of `crop` pixels of every image once, in order."""
        return evaluation_batches(source, self.batch(len(source)), self._data(), crop=crop)

    def image(self, source: Source, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """Returns the centre of one image, `image_size` pixels wide, for shifted crops."""
        return evaluation_example(source, self._data(), self.image_size, index)["image"]

    def _data(self) -> DataConfig:
        names = {f.name for f in fields(DataConfig)} & {f.name for f in fields(self)}
        return DataConfig(**{name: getattr(self, name) for name in names})


def digest_of(source: Source) -> dict[str, str]:
    """Returns the hash of a source's content, if it has one."""
    digest = getattr(source, "digest", None)
    return {} if digest is None else {"digest": str(digest())}
