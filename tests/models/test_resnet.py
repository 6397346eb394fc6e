import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError, create_model, list_models, load_torch_state_dict, save_weights
from aa_flax.models.registry import has_reference
from aa_flax.weights.state_dicts import to_torch_state_dict
from benchmarks.reference import (
    abstract_model,
    assert_same_as_reference,
    assert_same_model,
    randomised,
    reference_model,
    state_shapes,
)
from tests.compiled import run
from tests.sweeps import slow_but

QUICK = ("resnet18", "resnet50_lpf3")
FAMILY = [
    name
    for name in filter(has_reference, list_models("*resne[tx]*"))
    if "_lpf" not in name or name[-1] in "2345"
]
OTHER_SIZES = [f"resnet18_lpf{k}" for k in (1, 6, 7)]


@pytest.mark.parametrize(
    "name",
    slow_but(QUICK, FAMILY + OTHER_SIZES),
)
def test_the_model_is_the_references(name):
    assert_same_as_reference(name, (224, 224), (101, 75))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18_lpf4", {"pool_only": False}),
        ("resnet18_lpf2", {"num_classes": 7}),
    ],
)
def test_with_options_the_model_is_the_references(name, options):
    assert_same_as_reference(name, (101, 75), **options)


@pytest.mark.parametrize(
    ("name", "output_stride", "dilated"),
    [("resnet50_lpf4", 8, (False, True, True)), ("resnet50", 16, (False, False, True))],
)
def test_an_output_stride_is_torchvisions_dilation(name, output_stride, dilated):
    model = create_model(name, output_stride=output_stride)
    reference = reference_model(name, replace_stride_with_dilation=dilated)
    assert_same_model(model, reference, (101, 75))


def test_basic_blocks_are_dilated_as_timms_are():
    timm = pytest.importorskip("timm")
    model = randomised(timm.create_model("resnet18", output_stride=8))
    assert_same_model(create_model("resnet18", output_stride=8), model, (70, 64))


def test_any_weights_serve_an_output_stride_that_is_asked_for(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(create_model("resnet18"), path)
    assert create_model("resnet18", pretrained=path, output_stride=16).output_stride == 16
    save_weights(create_model("resnet18", output_stride=8), path)
    with pytest.raises(InputError, match="has weights of resnet18 with output_stride=8, this"):
        create_model("resnet18", pretrained=path)


@pytest.mark.parametrize("base", ["resnet18", "resnext50_32x4d"])
def test_a_baseline_and_its_antialiased_models_have_the_same_state_tree(base):
    expected = state_shapes(abstract_model(base))
    for k in range(1, 8):
        assert state_shapes(abstract_model(f"{base}_lpf{k}")) == expected


def test_zero_init_residual_starts_every_block_as_its_shortcut():
    model = create_model("resnet18_lpf4", zero_init_residual=True)
    scales = [block.bn2.scale[...] for block in (*model.layer1, *model.layer4)]
    assert not any(np.any(scale) for scale in scales)
    assert np.all(model.layer1[0].bn1.scale[...])


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(rng):
    x = jnp.asarray(rng.standard_normal((2, 64, 64, 3)), jnp.float32)
    model = create_model("resnet18_lpf4", dtype=jnp.bfloat16)
    half, full = run(model, x), run(create_model("resnet18_lpf4"), x)
    assert half.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.05 * np.abs(full).max())


def test_features_are_what_the_classifier_averages(rng):
    x = rng.standard_normal((1, 64, 64, 3), np.float32)
    model = create_model("resnet18_lpf4")
    features = model.forward_features(x)
    assert features.shape == (1, 2, 2, 512)
    np.testing.assert_allclose(model.fc(features.mean((1, 2))), model(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"pool_only": False}, "give a filter_size"),
        ("resnet50", {"output_stride": "8"}, "output_stride must be 8, 16 or 32, got '8'"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize("file_of", ["resnet18_lpf3", "resnet18"])
def test_weights_for_another_filter_size_are_refused(file_of):
    weights = to_torch_state_dict(create_model(file_of))
    with pytest.raises(InputError, match=r"filter size 3|baseline"):
        load_torch_state_dict(create_model("resnet18_lpf4"), weights)


def test_weights_that_do_not_fit_list_both_missing_sides_and_change_nothing():
    model = create_model("resnet18_lpf4")
    weights = to_torch_state_dict(create_model("resnet18_lpf4", rngs=nnx.Rngs(1)))
    weights["fc.wait"] = weights.pop("fc.weight")
    weights["bn1.bias"] = np.zeros(3)
    before = jax.tree.leaves(nnx.state(model))
    with pytest.raises(InputError, match=r"fc\.weight.*fc\.wait.*bn1\.bias \(3,\).*\(64,\)"):
        load_torch_state_dict(model, weights)
    for old, new in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(old, new)
