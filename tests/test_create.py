from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError, create_model, register_model
from aa_flax.models.densenet import DenseNet


def test_a_model_is_a_linen_module_through_flaxs_bridge(rng):
    tiny = partial(DenseNet, (1, 1), growth_rate=4, num_init_features=8, drop_rate=0.1)
    register_model("tiny_bridged", tiny, replace=True)
    x = jnp.asarray(rng.standard_normal((1, 40, 40, 3)), jnp.float32)
    bridged = nnx.bridge.to_linen(create_model, "tiny_bridged_lpf4", num_classes=10)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(bridged.init)(keys, x)
    assert variables.keys() == {"params", "batch_stats"}
    model = create_model("tiny_bridged_lpf4", num_classes=10)
    weights = {k: variables[k] for k in ("params", "batch_stats")}
    flat = {p: v for part in weights.values() for p, v in jax.tree_util.tree_leaves_with_path(part)}
    assert len(flat) == len(jax.tree.leaves(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    assert np.isfinite(jax.jit(bridged.apply)(variables, x)).all()


def test_an_empty_name_of_weights_is_an_error():
    with pytest.raises(InputError, match=r"weights are True, one of pretrained, .*; got ''"):
        create_model("resnet18", pretrained="")
