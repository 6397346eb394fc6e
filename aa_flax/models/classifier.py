"""What every net of this package offers."""

from collections.abc import Callable, Iterator

from flax import nnx
from jaxtyping import Array, Float

NamedBlocks = Iterator[tuple[str, Callable[[Array], Array]]]


class Classifier(nnx.Module):
    """A net that maps images `(N, H, W, 3)` to logits `(N, classes)`.

    Attributes:
        name: the name `create_model` built it by, e.g. `resnet50_lpf4`.
        filter_size: taps of its BlurPools; None: the baseline.
    """

    name: str = ""
    filter_size: int | None = None

    def features(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """The last feature map, before it is pooled and classified."""
        raise NotImplementedError

    def named_blocks(self) -> NamedBlocks:
        """Name and function of every block, in order: one after the other they are `features`."""
        raise NotImplementedError

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        raise NotImplementedError
