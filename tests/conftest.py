"""Two CPU devices, so that every test of training and evaluation runs sharded."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads would spin

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
