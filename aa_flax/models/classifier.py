"""What every net of this package offers."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float


class Classifier(nnx.Module):
    """A net that maps images `(N, H, W, 3)` to logits `(N, classes)`.

    Attributes:
        name: the name `create_model` built it by, e.g. `resnet50_lpf4`.
        filter_size: taps of its BlurPools; None: the baseline.
        remat: recompute the blocks in the backward pass instead of keeping their insides: less
            memory, for about a second forward pass (on CPU XLA merges the two again: neither
            memory nor time changes). AlexNet has no blocks.
    """

    name: str = ""
    filter_size: int | None = None
    remat: bool = False

    def run(self, block: nnx.Module, x: Any) -> Array:
        """`block(x)`, rematerialised if the net is."""
        call: Any = type(block).__call__
        return nnx.remat(call)(block, x) if self.remat else call(block, x)

    def features(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """The last feature map, before it is pooled and classified."""
        raise NotImplementedError

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        raise NotImplementedError
