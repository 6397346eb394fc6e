"""What images a net expects, and where its weights come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from aa_flax.errors import InputError, integer, real

# Of each channel of ImageNet's training images, of values in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["bilinear", "bicubic"]
_LARGEST = 65_535  # pixels of a side, as of a config
_FARTHEST = 10_000.0  # for means and standard deviations, whose images may be of any unit
IMAGE_FIELDS = ("input_size", "resize_size", "interpolation", "mean", "std")  # kept with weights


@dataclass(frozen=True)
class ModelConfig:
    """What images a net expects, and where its weights come from.

    Attributes:
        input_size: side of the square centre crop, in pixels.
        resize_size: shorter side that an image is resized to before, in pixels; 0: as it is.
        interpolation: of that resizing, antialiased.
        mean, std: of each channel, of values in 0..1; images are normalised by them.
        weights: the file, address or folder that the weights come from; None: they are random.
        sha256: of that file, or the beginning of it, in hexadecimal; None: it is not known.
        licence: that the weights are under; None: it is not known.
        class_names: of the classes that the weights were trained on, in the order of the logits;
            empty: they are not known.

    Raises:
        InputError: a size, an interpolation, a mean or a standard deviation that makes no sense.
    """

    input_size: int = 224
    resize_size: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    # Not compared: what a net computes, and so what is compiled for it, is the same.
    weights: str | None = field(default=None, compare=False)
    sha256: str | None = field(default=None, compare=False)
    licence: str | None = field(default=None, compare=False)
    class_names: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("input_size", 1), ("resize_size", 0)):
            side = integer(name, getattr(self, name), least=least)
            real(name, side, least=least, most=_LARGEST)
            object.__setattr__(self, name, side)
        if self.interpolation not in get_args(Interpolation):
            known = " or ".join(get_args(Interpolation))
            raise InputError(f"interpolation must be {known}, got {self.interpolation!r}")
        for name, least in (("mean", -_FARTHEST), ("std", 1 / _FARTHEST)):
            object.__setattr__(self, name, _of_channels(name, getattr(self, name), least))


def _of_channels(name: str, values: Any, least: float) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or len(values) != 3:
        raise InputError(f"{name} must be three numbers, one a channel, got {values!r}")
    entry = f"every entry of {name}"
    return tuple(real(entry, value, least=least, most=_FARTHEST) for value in values)
