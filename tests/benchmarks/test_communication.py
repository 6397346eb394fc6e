import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import aa_flax
from aa_flax.runtime import data_mesh
from benchmarks.communication import Collective, collectives, sent

PROGRAM = """
  %all-reduce.1 = f32[64]{0} all-reduce(%a), channel_id=1, to_apply=%sum
  %sub.2 = f32[64]{0} subtract(%all-reduce.1, %b)
  %all-reduce.3 = (f32[3,3,64]{2,1,0}, bf16[10]{0}) all-reduce(%c, %d), to_apply=%sum
  %gather = (f32[2]{0}, f32[8]{0}) all-gather-start(%e), dimensions={0}
  %done = f32[8]{0} all-gather-done(%gather)
"""


def test_every_operation_is_counted_once_with_the_bytes_of_its_result():
    found = collectives(PROGRAM)
    assert found == [
        Collective("all-reduce", 256),
        Collective("all-reduce", 9 * 64 * 4 + 20),
        Collective("all-gather", 32),
    ]


def test_a_ring_sends_all_but_one_part_twice():
    assert Collective("all-reduce", 800).sent(8) == 2 * 700
    assert sent([Collective("all-reduce", 800), Collective("all-gather", 800)], 8) == 2100
    assert Collective("all-reduce", 800).sent(1) == 0


several_devices = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


@several_devices
def test_the_sum_of_a_batch_over_devices_is_one_all_reduce():
    mesh = data_mesh()
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.device_put(jnp.ones((2 * mesh.size, 5)), NamedSharding(mesh, PartitionSpec("data")))
    program = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile()
    assert collectives(program.as_text()) == [Collective("all-reduce", 20)]


@several_devices
def test_a_training_step_reduces_gradients_and_statistics_and_gathers_nothing():
    model = aa_flax.create_model("resnet18_lpf4", num_classes=3)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def gradients(params, rest, images):
        def loss(params):
            return jnp.square(nnx.merge(graphdef, params, rest, copy=True)(images)).mean()

        return jax.grad(loss)(params)

    mesh = data_mesh()
    batch = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    whole = NamedSharding(mesh, PartitionSpec())
    images = jax.ShapeDtypeStruct((2 * mesh.size, 64, 64, 3), jnp.float32, sharding=batch)
    step = jax.jit(gradients, in_shardings=(whole, whole, batch), out_shardings=whole)
    program = step.lower(params, rest, images).compile().as_text()
    found = collectives(program)
    assert {operation.kind for operation in found} == {"all-reduce"}
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert sum(operation.num_bytes for operation in found) == pytest.approx(size, rel=0.005)
