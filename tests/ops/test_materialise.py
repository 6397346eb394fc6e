import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from aa_flax import ops


def twice(x):
    return jnp.sin(ops.materialised(jnp.cos(x)))


def test_it_is_the_identity_with_all_derivatives():
    x = jnp.arange(3.0)
    for transform in (jax.vmap, jax.jacfwd, jax.jacrev, jax.hessian, jax.checkpoint):
        expected = transform(lambda x: jnp.sin(jnp.cos(x)))(x)
        np.testing.assert_allclose(jax.jit(transform(twice))(x), expected, atol=1e-6)


def test_only_the_cpus_programs_hold_a_barrier():
    def program(platform):
        return export.export(jax.jit(twice), platforms=[platform])(jnp.ones(3)).mlir_module()

    assert "optimization_barrier" in program("cpu")
    assert "optimization_barrier" not in program("cuda")


def test_within_definitions_there_is_none():
    with ops.definitions():
        program = str(jax.make_jaxpr(jax.grad(lambda x: twice(x).sum()))(jnp.ones(3)))
    assert "barrier" not in program
    assert "aa_flax_form" not in program
