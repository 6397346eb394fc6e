import pytest

from aa_flax import InputError, create_model, list_models


def test_every_net_is_listed_as_baseline_and_with_seven_filter_sizes():
    assert list_models("resnet18*") == ["resnet18", *(f"resnet18_lpf{k}" for k in range(1, 8))]
    assert len(list_models()) % 8 == 0


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
