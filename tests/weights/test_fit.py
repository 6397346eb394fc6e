"""Every name of a file has its variable; otherwise there is one error and no change."""

import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file

from aa_flax import InputError, create_model, load_torch_state_dict, load_weights, save_weights
from aa_flax import to_torch_state_dict as torch_weights
from aa_flax.weights.building import abstract_model, complete, filled, fitted
from aa_flax.weights.convert_files import whole_model
from aa_flax.weights.fit import fit, last_layer, named_weights
from aa_flax.weights.locate import locate
from aa_flax.weights.read import weights_in
from benchmarks.reference import antialiased_cnns, reference_model, torchvision

NAME, OPTIONS = "mobilenet_v2_lpf4", {"width_mult": 0.25}
FILTER = "features.2.conv.2.filt"


@pytest.fixture(scope="module")
def state():
    """Returns the state dict of the original's narrow model."""
    return reference_model(NAME, num_classes=5, **OPTIONS).state_dict()


@pytest.fixture
def model():
    return abstract_model(NAME, 5, **OPTIONS)


def zeros(reference):
    return {name: np.zeros(t.shape, np.float32) for name, t in reference.state_dict().items()}


def test_every_name_of_the_original_has_its_variable(model, state):
    load_torch_state_dict(model, state)
    found = torch_weights(model)
    assert list(found) == list(state)
    assert all(np.array_equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {"pool_only": False}), ("alexnet", {"relu_first": False})]
)
def test_weights_of_a_model_built_with_other_options_are_refused(name, options):
    with torch.device("meta"):
        reference = getattr(antialiased_cnns, name)(filter_size=4, num_classes=3, **options)
    with pytest.raises(
        InputError, match=r"missing in the weights: .*filt; not in the model: .*filt"
    ):
        load_torch_state_dict(abstract_model(f"{name}_lpf4", 3), zeros(reference))


@pytest.mark.parametrize(("given", "asked"), [("resnet18", "resnet50"), ("vgg13", "vgg11")])
def test_weights_of_another_model_are_one_error_whatever_their_shapes(given, asked):
    with torch.device("meta"):
        reference = getattr(antialiased_cnns, given)(filter_size=4)
    with pytest.raises(InputError, match="other shapes: "):
        load_torch_state_dict(abstract_model(f"{asked}_lpf4", 1000), zeros(reference))


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, FILTER), f"weights: {FILTER}; all but filters fits"),
        (lambda s: {**s, "blur.filt": s[FILTER]}, r"not in the model: blur\.filt"),
        (lambda s: {**s, "x.num_batches_tracked": 0 * s[FILTER]}, "not in the model: x.num_bat"),
        (lambda s: {**s, FILTER: s[FILTER] * 2}, f"{FILTER} is not the model's filter"),
        (lambda s: {k: v for k, v in s.items() if "filt" not in k}, r"no fixed filters \(\.filt\)"),
        (lambda s: {**s, "classifier.0.bias": torch.ones(5).int()}, "bias is of type int32"),
        (lambda s: {**s, "classifier.0.bias": s["classifier.0.bias"] * np.nan}, "not finite"),
        (lambda s: {**s, "classifier.0.bias": 1e300 * torch.ones(5).double()}, "not finite"),
        (
            lambda s: {**s, "classifier.0.bias": torch.ones(7)},
            r"other shapes: classifier\.0\.bias \(7,\), the model has \(5,\)$",
        ),
        (
            lambda s: without(s, "classifier.0.weight", "classifier.0.bias"),
            r"weights: classifier\.0\.weight, classifier\.0\.bias; these are the weights of a trunk"
            ": create_model.* gives it a new classifier, features_only=True leaves",
        ),
        (
            lambda s: {f"enc.{i}.w": v for i, v in enumerate(s.values())},
            r"found are .* under enc\.",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(
    change, message, model, state
):
    load_torch_state_dict(model, state)
    with pytest.raises(InputError, match=message):
        load_torch_state_dict(model, change({name: tensor + 0 for name, tensor in state.items()}))
    found = torch_weights(model)
    assert all(np.array_equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("source", [["a"], None, torch.nn.Linear(1, 1)])
def test_an_object_that_is_no_state_dict_is_refused_by_its_type(source, model):
    with pytest.raises(InputError, match="weights are a file or a state dict"):
        load_torch_state_dict(model, source)


def test_safetensors_with_torchs_names_load_as_ours_do(model, state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    other = create_model(f"{NAME}_finetune", pretrained=tmp_path / "w.safetensors", **OPTIONS)
    for found in (model, other):
        bias = torch_weights(found)["classifier.0.bias"]
        assert np.array_equal(bias, state["classifier.0.bias"])


def build(*, num_classes, rngs):
    return abstract_model(NAME, num_classes, **OPTIONS)


def test_a_backbone_without_its_head_needs_a_number_of_classes(state):
    trunk = without(state, "classifier.0.weight", "classifier.0.bias")
    weights = fitted(weights_in(trunk, "trunk.pth"), NAME, OPTIONS)
    assert weights.num_classes is None
    with pytest.raises(InputError, match=r"trunk\.pth contains no classifier, .*; give num_"):
        complete(weights, build, None, nnx.Rngs(0))
    model = filled(weights, build, 7)
    kernel = state["features.0.0.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.stem.conv.kernel[...], kernel)
    assert model.classifier.kernel.shape == (1280, 7)


def test_another_number_of_classes_leaves_out_the_last_layer_alone(state):
    weights = fitted(weights_in(state, "x"), NAME, OPTIONS)
    assert weights.num_classes == 5
    model = filled(weights, build, 7)
    left = {
        name
        for name, variable in named_weights(model).items()
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    }
    assert left == {"classifier.kernel", "classifier.bias"}
    assert model.classifier.kernel.shape == (1280, 7)


@pytest.fixture(scope="module")
def trunk():
    """Returns VGG's `features.*` alone, as in a file."""
    with torch.device("meta"):
        reference = torchvision.models.vgg11()
    return {name: a for name, a in zeros(reference).items() if name.startswith("features.")}


def vgg(*, num_classes, rngs=None):
    return abstract_model("vgg11", num_classes)


def test_a_trunk_alone_warns_of_layers_that_are_random(trunk):
    weights = fitted(weights_in(trunk, "vgg.pth"), "vgg11", {})
    assert weights.num_classes is None
    with pytest.warns(UserWarning, match=r"vgg\.pth does not contain fc1\.bias, fc1\.kernel, fc2"):
        filled(weights, vgg, 7)
    with pytest.warns(UserWarning, match="fc2.kernel: random; features_only=True gives the maps"):
        filled(weights, vgg, 0)
    filled(weights, vgg, 0, trunk_only=True)  # without a warning


def test_a_trunk_alone_gives_its_maps(trunk, tmp_path):
    path = tmp_path / "vgg.pth"
    kernel = np.arange(9 * 3 * 64, dtype=np.float32).reshape(64, 3, 3, 3)
    torch.save({**trunk, "features.0.weight": torch.tensor(kernel)}, path)
    backbone = create_model("vgg11", pretrained=path, features_only=True)
    found = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(nnx.state(backbone))}
    first = next(v for name, v in found.items() if v.shape == (3, 3, 3, 64))
    np.testing.assert_array_equal(first[...], kernel.transpose(2, 3, 1, 0))


def test_a_trunk_is_neither_loaded_nor_converted_as_a_whole_model(trunk, tmp_path):
    with pytest.raises(InputError, match=r"classifier\.0\.weight.*features_only=True leaves"):
        load_torch_state_dict(vgg(num_classes=7), trunk)
    with pytest.raises(InputError, match=r"fc1\.bias.*too; the trunk needs no conversion: .*True"):
        whole_model(fitted(weights_in(trunk, "vgg.pth"), "vgg11", {}))


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "densenet121", NAME])
def test_the_last_layer_of_each_family_is_known(name):
    model = abstract_model(name, 7)
    assert model.num_classes == 7
    shapes = {tuple(v.shape) for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    head = last_layer(model)
    assert len(head) == 2
    assert sum(shape[-1] == 7 for shape in shapes) == len(head)


def test_options_stored_with_weights_are_compared(model, state, tmp_path):
    load_torch_state_dict(model, state)
    path = tmp_path / "w.safetensors"
    save_weights(model, path, options=json.dumps({"pool_only": False}))
    with pytest.raises(InputError, match=f"weights of {NAME} with pool_only=False, this model has"):
        load_weights(model, path)
    assert locate(path, model=NAME).description()["options"] == {"pool_only": False}


def test_a_file_builds_the_model_with_its_own_options(model, state, tmp_path):
    load_torch_state_dict(model, state)
    save_weights(model, tmp_path / "w.safetensors")
    other = locate(tmp_path / "w.safetensors", model=NAME).load_model()
    assert other.options == model.options == OPTIONS
    assert fit(other, weights_in(torch_weights(other), "x")).keys()


def test_the_advice_to_copy_weights_warns_about_their_statistics(state):
    with pytest.raises(
        InputError, match=r"nnx\.update.*statistics .* no longer fit.*match_statistics"
    ):
        load_torch_state_dict(abstract_model("mobilenet_v2_lpf3", 5, **OPTIONS), state)
