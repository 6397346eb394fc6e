"""Models with another pool instead of BlurPool."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError, to_torch_state_dict
from aa_flax.models.densenet import DenseNet
from aa_flax.models.resnet import BasicBlock, Downsample
from aa_flax.nn.initializers import ones
from aa_flax.nn.layers import LayerFactory
from aa_flax.ops import circular_padding
from benchmarks.reference import abstract_model, logits_shape, state_shapes
from tests.compiled import run
from tests.nn.toys import LargestPhase, WeightedBox, box

BASES = ("alexnet", "vgg11", "resnet18", "densenet121", "mobilenet_v2")


@pytest.mark.parametrize("base", BASES)
def test_a_pool_without_variables_leaves_the_baselines_state(base):
    options = {"dropout": 0.2} if base == "mobilenet_v2" else {}
    model = abstract_model(base, pool=box, **options)
    assert model.is_antialiased
    assert model.filter_size is None
    assert model.name == base
    assert state_shapes(model) == state_shapes(abstract_model(base, **options))
    assert logits_shape(model, 128) == (1, 1000)


@pytest.mark.parametrize("base", BASES)
def test_every_stride_of_the_antialiased_model_is_a_pools(base):
    def places(model, kind):
        modules = nnx.iter_modules(model)
        return [path for path, module in modules if type(module).__name__ == kind]

    expected = places(abstract_model(f"{base}_lpf4"), "BlurPool")
    assert len(expected) >= 4
    assert places(abstract_model(base, pool=box), "Box") == expected


def test_a_pools_name_builds_the_model_of_its_filter_size(rng):
    x = jnp.asarray(rng.standard_normal((1, 16, 16, 3), np.float32))
    by_name, by_size = (
        DenseNet((1, 1), growth_rate=4, num_init_features=8, rngs=nnx.Rngs(0), **options)
        for options in ({"pool": "binomial2"}, {"filter_size": 2})
    )
    np.testing.assert_array_equal(run(by_name, x), run(by_size, x))
    assert to_torch_state_dict(by_name).keys() == to_torch_state_dict(by_size).keys()
    by_name, by_size = abstract_model("resnet18", pool="binomial4"), abstract_model("resnet18_lpf4")
    assert by_name.options == {"pool": "binomial4"}
    assert [n for n, _ in by_name.torch_layers()] == [n for n, _ in by_size.torch_layers()]


@pytest.mark.parametrize("base", BASES)
def test_without_taps_the_torch_layout_is_the_antialiased_models_without_filters(base):
    given = [name for name, _ in abstract_model(base, pool=box).torch_layers()]
    of_lpf4 = abstract_model(f"{base}_lpf4").torch_layers()
    assert given == [name for name, layer in of_lpf4 if type(layer).__name__ != "Filter"]


@pytest.mark.parametrize("base", BASES)
def test_pools_with_weights_have_as_many_as_they_see_channels(base):
    model = abstract_model(base, pool=WeightedBox)
    assert logits_shape(model, 128) == (1, 1000)
    with pytest.raises(InputError, match="WeightedBox has variables has no torch layout"):
        list(model.torch_layers())


def residual_block(seed: int) -> BasicBlock:
    make = LayerFactory(nnx.Rngs(seed), pool_factory=LargestPhase)
    width = {"groups": 1, "base_width": 64, "last_scale": ones}
    block = BasicBlock(make, 4, 8, stride=2, dilations=(1, 1), **width)
    block.eval()
    return block


def test_the_shortcut_keeps_the_positions_that_the_main_branch_chose(rng, monkeypatch):
    seen = []
    call = Downsample.__call__
    monkeypatch.setattr(
        Downsample, "__call__", lambda self, x, choice: seen.append(choice) or call(self, x, choice)
    )
    choose, chosen = LargestPhase.choose, []
    monkeypatch.setattr(
        LargestPhase, "choose", lambda self, x: chosen.append(choose(self, x)) or chosen[-1]
    )
    x = jnp.asarray(rng.standard_normal((5, 8, 8, 4), np.float32))
    residual_block(0)(x)
    assert len(chosen) == len(seen) == 1
    np.testing.assert_array_equal(seen[0], chosen[0])


def test_a_block_that_chooses_phases_commutes_with_every_shift(rng):
    """A stride of 2 fails this test, as would separate choices in branch and shortcut."""
    x = jnp.asarray(rng.standard_normal((4, 8, 8, 4), np.float32))
    block = residual_block(0)
    with circular_padding():
        still = np.asarray(block(x))
        for shift in ((0, 1), (1, 0), (1, 1), (3, 2)):
            moved = np.asarray(block(jnp.roll(x, shift, (1, 2))))
            for image, other in zip(still, moved, strict=True):
                rolled = [np.roll(image, (i, j), (0, 1)) for i in range(4) for j in range(4)]
                assert min(np.abs(r - other).max() for r in rolled) < 1e-4


def test_a_pool_and_a_filter_size_exclude_each_other():
    with pytest.raises(InputError, match="exclude each other"):
        abstract_model("resnet18_lpf4", pool=box)
    with pytest.raises(InputError, match="filter_size is part of the model's name"):
        abstract_model("resnet18", filter_size=4)


def test_a_factory_is_recorded_by_its_name():
    assert abstract_model("vgg11", pool=box).options == {"pool": "tests.nn.toys.box"}


@pytest.mark.parametrize("base", ["resnet18", "densenet121"])
def test_a_dense_stem_has_its_own_pool(base):
    model = abstract_model(base, pool=WeightedBox, pool_only=False)
    paths = {path for path, _ in state_shapes(model).items()}
    assert {("pool", "scale"), ("conv_pool", "scale")} <= paths
    assert logits_shape(model, 64) == (1, 1000)
    with pytest.raises(InputError, match="give a filter_size or a pool"):
        abstract_model(base, pool_only=False)
