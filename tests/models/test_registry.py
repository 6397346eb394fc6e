import jax.numpy as jnp
import pytest
from flax import nnx

from aa_flax import InputError, create_model, list_models
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.nn.layers import linear
from benchmarks.reference import abstract_model


def test_every_model_is_listed_as_baseline_and_with_seven_filter_sizes():
    assert list_models("resnet18*") == ["resnet18", *(f"resnet18_lpf{k}" for k in range(1, 8))]
    published = [name for name in list_models() if registry.has_reference(name)]
    assert len(published) == 8 * 23


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet_50_lpf4", "resnet50_lpf4"),
        ("resnet50_lpf9", "resnet50_lpf"),
        ("Resnet18", "resnet18"),
    ],
)
def test_a_misspelt_name_suggests_the_nearest(name, suggestion):
    with pytest.raises(InputError, match=f"unknown model '{name}'; did you mean .*{suggestion}"):
        create_model(name)


def test_models_are_created_in_evaluation_mode_and_know_their_name():
    model = create_model("resnet18_lpf2", num_classes=3)
    assert model.name == "resnet18_lpf2"
    assert model.filter_size == 2
    assert model.bn1.use_running_average


def test_published_models_alone_have_a_reference_and_only_some_names_have_weights(own_model):
    assert registry.has_reference("resnet50_lpf4")
    assert not registry.has_reference(own_model)
    names = list_models(pretrained=True)
    assert {"resnet50", "resnet50_lpf5", "vgg16_bn_lpf2"} <= set(names) <= set(list_models())
    assert not set(names) & {"resnet50_lpf1", "resnet50_lpf6", own_model}
    assert list_models("resnet18*", pretrained=True) == [f"resnet18{e}" for e in ENDINGS]


ENDINGS = ("", "_lpf2", "_lpf3", "_lpf4", "_lpf5")


class Own(Classifier):
    def __init__(self, *, num_classes=2, filter_size=None, width=4, rngs):
        super().__init__(num_classes=num_classes, filter_size=filter_size)
        self.fc = linear(3, num_classes, rngs=rngs)

    def named_blocks(self):
        yield "halves", lambda x: x[:, ::2, ::2]

    def __call__(self, x):
        return self.fc(self.forward_features(x).mean((1, 2)))


@pytest.fixture
def own_model(monkeypatch):
    """Registers a user's model for one test."""
    monkeypatch.setattr(registry._MODELS, "_items", dict(registry._MODELS._items))
    registry.register_model("own.net", Own)
    return "own.net"


def test_a_custom_model_is_listed_built_and_has_its_filter_sizes(own_model):
    assert list_models("own*") == [own_model, *(f"{own_model}_lpf{k}" for k in range(1, 8))]
    model = registry.build("own.net_lpf3", width=8, rngs=nnx.Rngs(0))
    assert (model.name, model.filter_size, model.num_classes) == ("own.net_lpf3", 3, 2)
    assert model.options == {"width": 8}
    assert model(jnp.ones((1, 4, 4, 3))).shape == (1, 2)
    with pytest.raises(InputError, match="no torch layout is known for Own"):
        model.torch_layers()


def test_a_constructor_without_filter_size_makes_the_plain_model_alone(own_model):
    registry.register_model("plain", lambda *, num_classes, rngs: Own(num_classes=4, rngs=rngs))
    registry.register_model("two", Own, filter_sizes=(2, 4))
    assert list_models("plain*") == ["plain"]
    assert list_models("two*") == ["two", "two_lpf2", "two_lpf4"]
    for name in ("plain_lpf4", "two_lpf3"):
        with pytest.raises(InputError, match=f"unknown model '{name}'; did you mean"):
            registry.parse_name(name)


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("own_lpf4", Own, "would be the antialiased version of another model"),
        ("own_lpf3_finetune", Own, "would be the antialiased version of another model"),
        ("a/b", Own, "name has letters, digits"),
        ("", Own, "name has letters, digits"),
        ("resnet18", Own, "there is a model 'resnet18' already"),
        ("other", None, "build must be a class or function"),
    ],
)
def test_what_is_no_model_is_refused(name, build, message):
    with pytest.raises(InputError, match=message):
        registry.register_model(name, build)


@pytest.mark.parametrize("base", ["alexnet", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2"])
def test_every_block_has_its_own_name_with_and_without_blur(base):
    plain, antialiased = (
        [name for name, _ in abstract_model(name).named_blocks()] for name in (base, f"{base}_lpf4")
    )
    assert plain == antialiased
    assert len(set(plain)) == len(plain) >= 6
