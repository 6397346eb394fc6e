"""From files to logits on real photographs, against torchvision's pipeline and the original net."""

import jax
import numpy as np
import pytest
import torch

from aa_flax import create_model, load_torch_state_dict
from aa_flax.configs import imagenet
from aa_flax.data.batches import evaluation_batches
from aa_flax.data.pixels import preprocess_batch
from aa_flax.data.sources import make_source
from benchmarks.photos import write_photos
from benchmarks.reference import compiled, reference_net, relative_difference, torchvision

COUNT, BATCH = 208, 26
NORMALISE = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "val", COUNT)


def reference_batches(folder, resize, crop):
    steps = torchvision.transforms
    transform = steps.Compose(
        [steps.Resize(resize), steps.CenterCrop(crop), steps.PILToTensor()]  # bytes
    )
    images = torchvision.datasets.ImageFolder(folder, transform)
    return torch.utils.data.DataLoader(images, BATCH)


def our_batches(folder, resize, crop):
    data = imagenet.get_config().data
    data.update({"path": str(folder.parent), "resize_size": resize})
    batches = evaluation_batches(make_source(data, "val"), BATCH, data, crop=crop)
    normalised = jax.jit(lambda batch: preprocess_batch(batch, data))
    return ((batch, normalised(batch)) for batch in batches)


@pytest.mark.parametrize(
    ("resize", "crop"), [(128, 112), pytest.param(256, 224, marks=pytest.mark.slow)]
)
def test_every_photograph_has_the_originals_pixels_logits_and_class(photos, resize, crop):
    net = reference_net("resnet18_lpf4")
    model = create_model("resnet18_lpf4")
    load_torch_state_dict(model, {name: x.numpy() for name, x in net.state_dict().items()})
    logits = compiled(model)
    found, expected = [], []
    for (batch, images), (pixels, labels) in zip(
        our_batches(photos, resize, crop), reference_batches(photos, resize, crop), strict=True
    ):
        np.testing.assert_array_equal(batch["image"], pixels.permute(0, 2, 3, 1))
        np.testing.assert_array_equal(batch["label"], labels)
        found += list(np.asarray(logits(images)))
        with torch.no_grad():
            expected += list(net(NORMALISE(pixels / 255)).numpy())
    found, expected = np.stack(found), np.stack(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_difference(ours, theirs) <= 1e-5
    # A random net prefers a few classes; less its mean logits, it tells many photographs apart.
    for mean in (0, np.mean(expected, 0)):
        classes = (expected - mean).argmax(1)
        np.testing.assert_array_equal((found - mean).argmax(1), classes)
    assert len(set(classes.tolist())) > 30
