"""The mathematics of the layers, as functions on channels-last arrays.

Each operation has a definition in JAX's own terms and, where a measurement says so, a faster form
on CPU. One switch chooses by platform (`forms.py`); `definitions()` forces the definitions.
"""

from aa_flax.ops.blur import blur_pool
from aa_flax.ops.conv import conv_general_dilated
from aa_flax.ops.forms import definitions
from aa_flax.ops.materialise import materialised
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
