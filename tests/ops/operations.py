"""Every operation with more than one implementation, as a function of one small array."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax import ops
from aa_flax.ops.cpu.depthwise import Window
from aa_flax.ops.cpu.winograd import winograd_conv
from aa_flax.ops.dispatch import Multilinear, Static, apply


def arrays(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def conv(x, kernel, groups: int, stride: int = 1):
    padding = ((1, 1), (1, 1))
    return ops.conv_general_dilated(
        x, kernel, (stride, stride), padding, feature_group_count=groups
    )


def winograd(x, kernel):
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    definition = Static(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return apply(Multilinear(definition), {"cpu": winograd_conv(window)}, x, kernel)


IMAGE = (2, 4, 5, 4)
DEPTHWISE, GROUPED, DENSE = (3, 3, 1, 4), (3, 3, 2, 6), (3, 3, 2, 3)
NARROW = (2, 2, 2, 2)

# Functions, and the shapes of their arrays.
OPERATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], tuple[int, ...]]] = {
    "blur": (ops.blur_pool, IMAGE),
    "blur of an axis": (partial(ops.blur_pool, filter_size=3, padding="zero"), (2, 7, 3)),
    "gather": (partial(ops.blur_pool, filter_size=3, implementation="gather"), IMAGE),
    "matmul": (partial(ops.blur_pool, filter_size=3, implementation="matmul"), IMAGE),
    "upsample": (partial(ops.blur_upsample, size=(7, 10)), IMAGE),
    "depthwise": (lambda x: conv(x, arrays(*DEPTHWISE), 4, stride=2), IMAGE),
    "depthwise kernel": (lambda kernel: conv(arrays(*IMAGE), kernel, 4), DEPTHWISE),
    "both": (lambda x: conv(x, jnp.sin(x[:1, :3, :3]).sum(0)[:, :, None], 4), IMAGE),
    "grouped": (lambda x: conv(x, arrays(*GROUPED), 2), IMAGE),
    "grouped kernel": (lambda kernel: conv(arrays(*IMAGE), kernel, 2), GROUPED),
    "narrow": (lambda x: conv(x, arrays(*DENSE), 1), NARROW),
    "narrow kernel": (lambda kernel: conv(arrays(*NARROW), kernel, 1), DENSE),
    "winograd": (lambda x: winograd(x, arrays(*DENSE)), IMAGE[:3] + DENSE[2:3]),
    "winograd kernel": (lambda kernel: winograd(arrays(2, 4, 5, 2), kernel), DENSE),
    "max pool": (partial(ops.max_pool, window=3, stride=2, padding=1), IMAGE),
}
