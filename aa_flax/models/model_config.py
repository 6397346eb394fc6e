"""The images a model expects, and the origin of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from aa_flax.errors import InputError, choice, integer, real

# Statistics of the channels of ImageNet's training images, of values in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["bilinear", "bicubic"]
_LARGEST = 65_535  # pixels of a side, as in a config
_FARTHEST = 10_000.0  # means and standard deviations may be of images in any unit
IMAGE_FIELDS = ("input_size", "resize_size", "interpolation", "mean", "std")  # saved with weights


@dataclass(frozen=True)
class ModelConfig:
    """The images a model expects, and the origin of its weights.

    Attributes:
        input_size: side of the square centre crop, in pixels.
        resize_size: shorter side to which an image is resized before, in pixels; 0: not resized.
        interpolation: that of the resize, which is antialiased.
        mean, std: of each channel, for normalisation after scaling values to 0..1.
        weights: file, address or folder of the weights; None: they are random.
        sha256: SHA-256 of that file in hexadecimal, or its beginning; None: unknown.
        licence: licence of the weights; None: unknown.
        class_names: those the weights were trained on, in the order of the logits; empty: unknown.

    Examples:
        >>> import aa_flax
        >>> aa_flax.ModelConfig(input_size=288, resize_size=303).interpolation
        'bilinear'
    """

    input_size: int = 224
    resize_size: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    # Not compared: they do not change the computation, and so not the compiled program.
    weights: str | None = field(default=None, compare=False)
    sha256: str | None = field(default=None, compare=False)
    licence: str | None = field(default=None, compare=False)
    class_names: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("input_size", 1), ("resize_size", 0)):
            side = integer(name, getattr(self, name), least=least)
            real(name, side, least=least, most=_LARGEST)
            object.__setattr__(self, name, side)
        choice("interpolation", self.interpolation, Interpolation)
        for name, least in (("mean", -_FARTHEST), ("std", 1 / _FARTHEST)):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or len(values) != 3:
                raise InputError(f"{name} must be three numbers, one a channel, got {values!r}")
            entry, bounds = f"every entry of {name}", {"least": least, "most": _FARTHEST}
            object.__setattr__(self, name, tuple(real(entry, v, **bounds) for v in values))
