import pytest

from benchmarks.reference import abstract_model


@pytest.mark.parametrize("base", ["alexnet", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2"])
def test_every_block_has_a_name_of_its_own_with_and_without_blur(base):
    plain, antialiased = (
        [name for name, _ in abstract_model(name).named_blocks()] for name in (base, f"{base}_lpf4")
    )
    assert plain == antialiased
    assert len(set(plain)) == len(plain) >= 6
