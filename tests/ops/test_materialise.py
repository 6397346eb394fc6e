import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from aa_flax import blur_pool, ops

before_0_12 = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12)


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


@pytest.mark.skipif(before_0_12, reason="XLA drops the barrier of a bfloat16 before it fuses")
def test_a_narrow_blur_is_not_computed_again_by_what_reads_it():
    x = jnp.ones((1, 16, 16, 8), jnp.bfloat16)
    pooled = jax.jit(lambda x: ops.max_pool(blur_pool(x, 4), 3, stride=1))
    program = pooled.lower(x).compile().as_text() or ""
    fusions = [part for part in program.split("\n\n") if "ENTRY" not in part]
    looks_up = ["gather(" in fusion for fusion in fusions]
    compares = ["direction=GE" in fusion for fusion in fusions]  # the pool's
    assert any(looks_up)
    assert any(compares)
    assert not any(map(all, zip(looks_up, compares, strict=True)))
