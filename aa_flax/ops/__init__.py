"""Operations of the layers, as functions of channels-last arrays.

Each operation has a definition in terms of JAX's own operations and, where it is measurably faster,
a CPU kernel in `cpu/`. The platform decides (`dispatch.py`); `definitions()` overrides it.
"""

from aa_flax.ops.blur import blur_pool
from aa_flax.ops.conv import conv_general_dilated
from aa_flax.ops.dispatch import definitions, materialised
from aa_flax.ops.padding import circular_padding
from aa_flax.ops.pool import adaptive_avg_pool, avg_pool, max_pool
from aa_flax.ops.upsample import blur_upsample

__all__ = [
    "adaptive_avg_pool",
    "avg_pool",
    "blur_pool",
    "blur_upsample",
    "circular_padding",
    "conv_general_dilated",
    "definitions",
    "materialised",
    "max_pool",
]
