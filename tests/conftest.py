"""Two CPU devices, so that every test of training and evaluation runs sharded."""

import gc
import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads would spin
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one test compiled, no other does again
    compiled = tempfile.TemporaryDirectory(prefix="aa_flax_compiled_")  # gone at the end
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name  # for the processes that share the work
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# Much of the time goes into compiling; programs this small run as fast without what LLVM would do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest

# Compiled programs and their caches are millions of objects; by default Python looks for cycles
# among them so often that it takes a sixth of the suite's time.
gc.set_threshold(50_000, 20, 100)

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(autouse=True, scope="module")
def _keep_objects_of_earlier_modules():
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def hub_files(tmp_path, monkeypatch):
    """The files of `me/net` on a local server that answers as the Hugging Face Hub does."""
    from tests.hub_server import serve

    yield from serve(tmp_path, monkeypatch)
