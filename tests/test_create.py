import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError, create_model


def test_a_net_is_a_linen_module_through_flaxs_bridge(rng):
    x = jnp.asarray(rng.standard_normal((1, 40, 40, 3)), jnp.float32)
    net = nnx.bridge.to_linen(create_model, "mobilenet_v2_lpf4", num_classes=10)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(net.init)(keys, x)
    assert variables.keys() == {"params", "batch_stats"}
    model = create_model("mobilenet_v2_lpf4", num_classes=10)
    weights = {k: variables[k] for k in ("params", "batch_stats")}
    flat = {p: v for part in weights.values() for p, v in jax.tree_util.tree_leaves_with_path(part)}
    assert len(flat) == len(jax.tree.leaves(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    assert np.isfinite(jax.jit(net.apply)(variables, x)).all()


def test_an_empty_name_of_weights_is_not_taken_for_none():
    with pytest.raises(InputError, match=r"weights are True, one of pretrained, .*; got ''"):
        create_model("resnet18", pretrained="")
