"""Models with true ImageNet weights on photographs, compared with torch."""

import jax
import numpy as np
import pytest
import torch

from aa_flax import InputError
from aa_flax.data.pixels import center_image, normalise
from benchmarks import packaged
from benchmarks.reference import relative_difference
from benchmarks.true_parity import our_trunk, run, their_model, their_trunk

pytestmark = pytest.mark.true_weights


@pytest.fixture(scope="module")
def x():
    """Returns two preprocessed photographs; skips without the packages."""
    try:
        images = [center_image(image, 256, 224) for image, _ in packaged.photographs()[:2]]
        for name in ("alexnet", "mobilenet_v2"):
            packaged.trunk(name)
    except InputError as reason:
        pytest.skip(str(reason))
    return np.asarray(jax.jit(normalise)(np.stack(images)))


@pytest.mark.parametrize(
    "name",
    [
        "alexnet_lpf4",
        "mobilenet_v2",
        pytest.param("mobilenet_v2_lpf4", marks=pytest.mark.slow),
        pytest.param("vgg16", marks=pytest.mark.slow),
        pytest.param("vgg16_lpf4", marks=pytest.mark.slow),
    ],
)
def test_true_weights_give_torchs_maps_on_photographs(x, name):
    base, _, _ = name.partition("_lpf")
    theirs = their_trunk(their_model(name, packaged.trunk(base)), name)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative_difference(run(our_trunk(name), x), expected) <= 2e-5


def test_antialiasing_alone_makes_true_features_steadier(x):
    moved = {}
    for name in ("alexnet", "alexnet_lpf4"):
        model = our_trunk(name)
        here, there = (run(model, part).mean((2, 3)) for part in (x[:, :-1, :-1], x[:, 1:, 1:]))
        moved[name] = np.linalg.norm(here - there) / np.linalg.norm(here[0] - here[1])
    assert moved["alexnet_lpf4"] < moved["alexnet"] / 1.5
