"""timm's antialiased DenseNet, whose weights are under the Apache licence 2.0.

`densenetblur121d` differs from `densenet121_lpf3`: it has three 3x3 convolutions in the stem (He
et al., CVPR 2019, Sec. 4.1), and its transitions keep their average pools. BlurPool is in the stem
alone, after the max pool.

Source: timm's model of this name, by its behaviour; the tests compare with it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from aa_flax.models.densenet import DenseNet
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.registry import register_model
from aa_flax.models.torch_layout import Filter, Layers
from aa_flax.nn.blur import BlurPool


class TimmDenseNet(DenseNet):
    """A DenseNet antialiased as in timm.

    Args:
        block_config: number of layers in each of the blocks.
        num_classes, drop_rate, dtype: see `DenseNet`.
    """

    def __init__(
        self,
        block_config: Sequence[int],
        *,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"num_classes": num_classes, "drop_rate": drop_rate}
        options |= {"stem": "deep", "pool": partial(BlurPool, 3), "dtype": dtype, "rngs": rngs}
        super().__init__(block_config, **options)
        for transition in self.transitions:
            transition.pool = None  # an average pool

    def torch_layers(self) -> Layers:
        """Yields the layers of a plain DenseNet: timm's pools have no entry in a torch file."""
        return ((name, x) for name, x in super().torch_layers() if not isinstance(x, Filter))


register_model(
    "densenetblur121d",
    partial(TimmDenseNet, (6, 12, 24, 16)),
    config=ModelConfig(input_size=288, resize_size=303, interpolation="bicubic"),
    hub="timm/densenetblur121d.ra_in1k",
    licence="apache-2.0",
)
