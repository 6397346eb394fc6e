"""timm's antialiased ResNet-50s, whose weights are under the Apache licence 2.0.

They differ from `resnet50_lpf3`: the stem's max pool has a window of 3, or is an average pool; and
the shortcuts have a stride and no pool:

                          resnetblur50                          resnetaa50
    max pool, stride 2    max pool, stride 1 - BlurPool, k = 3  average pool, 2x2
    conv 3x3, stride 2    conv, stride 1 - ReLU - BlurPool      conv, stride 1 - ReLU - average pool
    1x1 conv, stride 2    unchanged                             unchanged

Source: timm's `resnetblur50` and `resnetaa50`, by their behaviour; the tests compare with them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.registry import register_model
from aa_flax.models.resnet import Bottleneck, Downsample, ResNet
from aa_flax.models.torch_layout import Filter, Layers
from aa_flax.nn.blur import BlurPool
from aa_flax.nn.layers import LayerFactory
from aa_flax.ops import avg_pool, max_pool


class AveragePool(nnx.Module):
    """The mean of 2x2 pixels that do not overlap: `(N, H, W, C)` to `(N, H // 2, W // 2, C)`."""

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
        return avg_pool(x, self.stride)


class StridedShortcutBlock(Bottleneck):
    """A bottleneck block with a pool in its main branch and a strided shortcut without one."""

    def __init__(
        self, make: LayerFactory, in_features: int, features: int, *, stride: int, **options: Any
    ):
        super().__init__(make, in_features, features, stride=stride, **options)
        if self.downsample is not None:
            plain = replace(make, pool_factory=None)
            self.downsample = Downsample(plain, in_features, features * self.expansion, stride)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        even = all(not isinstance(n, int) or n % 2 == 0 for n in x.shape[1:3])
        if isinstance(self.pool, AveragePool) and not even:
            raise InputError(
                f"average pools and strided shortcuts fit together for even sizes alone, got maps "
                f"of {x.shape[1]}x{x.shape[2]}; give images whose sides are multiples of 32"
            )
        return super().__call__(x)


class TimmResNet(ResNet):
    """A ResNet-50 antialiased as in timm.

    Args:
        pool: factory of the pools in the blocks and in the stem.
        stem_window: window of the stem's dense maximum, before the pool; None: no maximum.
        num_classes, zero_init_residual, dtype: see `ResNet`.
    """

    def __init__(
        self,
        pool: Callable[[int], nnx.Module],
        stem_window: int | None,
        *,
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.stem_window = stem_window
        options = {"num_classes": num_classes, "zero_init_residual": zero_init_residual}
        options |= {"pool": pool, "dtype": dtype, "rngs": rngs}
        super().__init__(StridedShortcutBlock, (3, 4, 6, 3), **options)

    def _stem_pool(self, x: Float[Array, "N H W 64"]) -> Float[Array, "N h w 64"]:
        if self.stem_window is not None:
            x = max_pool(x, self.stem_window, stride=1, padding=self.stem_window // 2)
        return self.pool(x)

    def torch_layers(self) -> Layers:
        """Yields the layers of a plain ResNet: timm's pools have no entry in a torch file."""
        for name, layer in super().torch_layers():
            if not isinstance(layer, Filter):
                yield name.replace("conv3.1", "conv3"), layer


register_model(
    "resnetblur50",
    partial(TimmResNet, partial(BlurPool, 3), 3),
    config=ModelConfig(input_size=288, resize_size=303, interpolation="bicubic"),
    hub="timm/resnetblur50.bt_in1k",
)
register_model(
    "resnetaa50",
    partial(TimmResNet, AveragePool, None),
    config=ModelConfig(input_size=288, resize_size=288, interpolation="bicubic"),
    hub="timm/resnetaa50.a1h_in1k",
)
