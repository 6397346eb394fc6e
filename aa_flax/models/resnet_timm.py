"""timm's antialiased ResNets, whose weights are under the Apache licence 2.0.

They differ from `resnet50_lpf3`: the stem's max pool has a window of 3, or is an average pool; and
the shortcuts of the first two have a stride and no pool:

                          resnetblur50                          resnetaa50
    max pool, stride 2    max pool, stride 1 - BlurPool, k = 3  average pool, 2x2
    conv 3x3, stride 2    conv, stride 1 - ReLU - BlurPool      conv, stride 1 - ReLU - average pool
    1x1 conv, stride 2    unchanged                             unchanged

Those with a `d` in their names (ResNet-D; He et al., CVPR 2019, Sec. 4.1) have the pools of
`resnetaa50`, three 3x3 convolutions in the stem, and in the shortcuts

    1x1 conv, stride 2    average pool - 1x1 conv

`seresnextaa101d_32x8d` is also a ResNeXt and scales the channels of each residual branch.

Source: timm's models of these names, by their behaviour; the tests compare with them.
"""

from collections.abc import Callable, Mapping, Sequence
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
    """A ResNet antialiased as in timm.

    Args:
        block: `StridedShortcutBlock`, or `Bottleneck`, whose shortcuts have the pool.
        layers: number of blocks in each of the four stages.
        pool: factory of the pools in the blocks and in the stem.
        stem_window: window of the stem's dense maximum, before the pool; None: no maximum.
        architecture: further arguments of `ResNet`.
        num_classes, zero_init_residual, dtype: see `ResNet`.
    """

    def __init__(
        self,
        block: type[Bottleneck],
        layers: Sequence[int],
        pool: Callable[[int], nnx.Module],
        stem_window: int | None,
        architecture: Mapping[str, Any],
        *,
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.stem_window = stem_window
        options = {"num_classes": num_classes, "zero_init_residual": zero_init_residual}
        options |= {"pool": pool, "dtype": dtype, "rngs": rngs}
        super().__init__(block, layers, **architecture, **options)

    def _stem_pool(self, x: Float[Array, "N H W 64"]) -> Float[Array, "N h w 64"]:
        if self.stem_window is not None:
            x = max_pool(x, self.stem_window, stride=1, padding=self.stem_window // 2)
        return self.pool(x)

    def torch_layers(self) -> Layers:
        """Yields the layers of a plain ResNet: timm's pools have no entry in a torch file."""
        # In timm's ResNet-D, index 0 of a shortcut is its pool, even for stride 1.
        is_d = not isinstance(self.layer1[0], StridedShortcutBlock)
        renamed = {f"layer1.0.downsample.{i}": f"layer1.0.downsample.{i + 1}" for i in range(2)}
        for name, layer in super().torch_layers():
            if not isinstance(layer, Filter):
                name = renamed.get(name, name) if is_d else name
                yield name.replace("conv3.1", "conv3"), layer


_D = {"stem": "deep"}
_SE_NEXT = {"groups": 32, "width_per_group": 8, "squeeze_excitation": True}
for _name, _arguments, _tag, _sizes in (
    (
        "resnetblur50",
        (StridedShortcutBlock, (3, 4, 6, 3), partial(BlurPool, 3), 3, {}),
        "bt_in1k",
        (288, 303),
    ),
    (
        "resnetaa50",
        (StridedShortcutBlock, (3, 4, 6, 3), AveragePool, None, {}),
        "a1h_in1k",
        (288, 288),
    ),
    (
        "resnetaa50d",
        (Bottleneck, (3, 4, 6, 3), AveragePool, None, _D),
        "sw_in12k_ft_in1k",
        (288, 288),
    ),
    (
        "resnetaa101d",
        (Bottleneck, (3, 4, 23, 3), AveragePool, None, _D),
        "sw_in12k_ft_in1k",
        (288, 288),
    ),
    (
        "seresnextaa101d_32x8d",
        (Bottleneck, (3, 4, 23, 3), AveragePool, None, _D | _SE_NEXT),
        "sw_in12k_ft_in1k_288",
        (320, 320),
    ),
):
    register_model(
        _name,
        partial(TimmResNet, *_arguments),
        config=ModelConfig(*_sizes, interpolation="bicubic"),
        hub=f"timm/{_name}.{_tag}",
        licence="apache-2.0",
    )
