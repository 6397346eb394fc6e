"""Two CPU devices, so that every test of training and evaluation runs sharded."""

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
