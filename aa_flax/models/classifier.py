"""What every net of this package offers."""

from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType

from flax import nnx
from jaxtyping import Array, Float


class Classifier(nnx.Module):
    """A net that maps images `(N, H, W, 3)` to logits `(N, classes)`.

    Attributes:
        name: the name `create_model` built it by, e.g. `resnet50_lpf4`.
        filter_size: taps of its BlurPools; None: the baseline.
        remat: compute the blocks again in the backward pass instead of keeping their insides: less
            memory, for about a second forward pass (on CPU XLA merges the two again: neither
            memory nor time changes). May be set at any time before the model is split.
    """

    name: str = ""
    filter_size: int | None = None
    remat: bool = False

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        """The blocks in order, by name: one after the other they compute `features`."""
        raise NotImplementedError

    def features(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """The last feature map, before it is pooled and classified."""
        for _, block in self.named_blocks():
            x = (rematerialised(block) if self.remat else block)(x)
        return x

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        raise NotImplementedError


def rematerialised(block: Callable) -> Callable:
    """A module or method whose insides the backward pass computes again; else the block itself."""
    if isinstance(block, nnx.Module):
        return partial(nnx.remat(type(block).__call__), block)
    if isinstance(block, MethodType):
        return partial(nnx.remat(block.__func__), block.__self__)
    return block
