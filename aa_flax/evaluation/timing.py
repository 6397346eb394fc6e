"""How long a forward pass takes."""

import time
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from aa_flax.evaluation.predict import predictor_of


class ForwardTime(TypedDict):
    """Milliseconds of one compiled forward pass of `batch_size` images on one device.

    Attributes:
        milliseconds: the median of `repeats` passes. milliseconds_quartiles: half of them are
            between these two.
    """

    milliseconds: float
    milliseconds_quartiles: list[float]
    batch_size: int
    crop_size: int
    repeats: int
    device: str


def time_forward(
    predict: Any, crop_size: int, *, batch_size: int = 48, repeats: int = 20
) -> ForwardTime:
    """Times a net on uint8 images that are on the device already, after two passes to warm up.

    The original's run times are of 48 images of 224x224.

    Args:
        predict: a net or a function, see `predictor_of`.
    """
    predictor = predictor_of(predict, crop_size=crop_size)
    images = jnp.zeros((batch_size, crop_size, crop_size, 3), jnp.uint8)
    seconds = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(predictor.logits(images))
        seconds.append(time.perf_counter() - began)
    low, median, high = (1000 * float(q) for q in np.quantile(seconds[2:], (0.25, 0.5, 0.75)))
    return {
        "milliseconds": median,
        "milliseconds_quartiles": [low, high],
        "batch_size": batch_size,
        "crop_size": crop_size,
        "repeats": repeats,
        "device": jax.devices()[0].device_kind,
    }
