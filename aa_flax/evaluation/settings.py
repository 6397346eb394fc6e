"""Settings of an evaluation: how images are cropped, shifted and batched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8

from aa_flax.config import Config, DataConfig
from aa_flax.data.batches import Batch, evaluation_batches, evaluation_example
from aa_flax.data.sources import Source
from aa_flax.errors import InputError, integer, unknown
from aa_flax.models.model_config import Interpolation

T = TypeVar("T")
_WORDS = {f.name: f.metadata["known"] for f in fields(DataConfig) if "known" in f.metadata}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The part of a config that evaluations use: fields of its `data` and `eval`, see there."""

    crop_size: int
    image_size: int
    resize_size: int
    interpolation: Interpolation = "bilinear"
    batch_size: int = 0  # at most; 0: `batch` chooses
    shift_range: int
    passes: int = 5
    seed: int = 0
    num_workers: int = 0
    worker_type: str = "thread"
    on_error: str = "stop"
    class_order: str = ""

    def __post_init__(self):
        counts = ("crop_size", "image_size", "passes", "shift_range")
        for name in (*counts, "batch_size", "resize_size", "seed", "num_workers"):
            value = integer(name, getattr(self, name), least=1 if name in counts else 0)
            object.__setattr__(self, name, value)  # Python's int, for JSON
        for name in ("interpolation", "worker_type", "on_error"):
            if (value := getattr(self, name)) not in _WORDS[name]:
                raise InputError(unknown(name, value, list(_WORDS[name])))
        if self.image_size < self.crop_size:
            raise InputError(
                f"image_size {self.image_size} is smaller than crop_size {self.crop_size}, which "
                "is cut from it"
            )

    @classmethod
    def of(cls, config: Config) -> "Settings":
        """Returns the settings of a config."""
        given: dict[str, Any] = {**config.data.to_dict(), **config.eval.to_dict()}
        given["interpolation"] = given["interpolation"] or "bilinear"
        return cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})

    def to(self, kind: Callable[..., T], **others: Any) -> T:
        """Makes a dataclass, such as views, of the settings with the names of its fields."""
        names = {f.name for f in fields(kind)} & vars(self).keys()  # pyright: ignore
        return kind(**{name: getattr(self, name) for name in names}, **others)

    def experiment(self) -> dict[str, Any]:
        """Returns the settings that every measured number depends on."""
        names = ("resize_size", "interpolation", "image_size", "crop_size", "on_error")
        return {name: getattr(self, name) for name in names}

    def of_pairs(self) -> dict[str, int]:
        """Returns the settings that pairs of crops at random offsets depend on, besides those."""
        return {"shift_range": self.shift_range, "passes": self.passes, "seed": self.seed}

    def batch(self, count: int | None = None) -> int:
        """Returns the batch size: at most what `count` images need on these devices."""
        size = self.batch_size or (32 if jax.default_backend() == "cpu" else 256)
        devices = jax.device_count()
        if self.batch_size % devices:
            return size  # which the loader refuses
        return -(-min(size, count or size) // devices) * devices

    def batches(self, source: Source, crop: int) -> Iterator[Batch]:
        """Yields centre crops of `crop` pixels of every image once, in order."""
        return evaluation_batches(source, self.batch(len(source)), self.to(DataConfig), crop=crop)

    def image(self, source: Source, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """Returns the centre of one image, `image_size` pixels wide, for shifted crops."""
        return evaluation_example(source, self.to(DataConfig), self.image_size, index)["image"]


def digest_of(source: Source) -> dict[str, str]:
    """Returns the hash of a source's content, if it has one."""
    digest = getattr(source, "digest", None)
    return {} if digest is None else {"digest": str(digest())}
