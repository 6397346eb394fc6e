"""Re-estimated batch statistics, compared with torch's cumulative average."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import InputError, create_model, fuse, load_torch_state_dict, recalibrate_batch_norm
from aa_flax.models.resnet import BasicBlock, ResNet
from aa_flax.nn.layers import BatchNorm
from aa_flax.runtime import data_mesh, put_batch
from benchmarks.reference import reference_model


def images(count=4, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 64, 64, 3), np.float32)


def statistics(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def tiny(**options):
    return ResNet(
        BasicBlock, (1, 1, 1, 1), filter_size=2, num_classes=3, rngs=nnx.Rngs(0), **options
    )


def fused():
    model = tiny()
    model.eval()
    return fuse(model, image_size=64)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_statistics_are_torchs_cumulative_average_over_the_same_batches():
    options = {"width_mult": 0.25, "num_classes": 5}
    reference = reference_model("mobilenet_v2_lpf4", **options)
    model = load_torch_state_dict(
        create_model("mobilenet_v2_lpf4", **options), reference.state_dict()
    )
    batches = [images(4), images(6, seed=1)]
    recalibrate_batch_norm(model, batches)
    loader = [torch.tensor(x.transpose(0, 3, 1, 2).copy()) for x in batches]
    torch.optim.swa_utils.update_bn(loader, reference)
    expected = load_torch_state_dict(
        create_model("mobilenet_v2_lpf4", **options), reference.state_dict()
    )
    assert_close(statistics(model), statistics(expected))


def test_one_batch_gives_its_own_statistics_and_changes_nothing_else():
    model = tiny()
    before = nnx.to_pure_dict(nnx.state(nnx.clone(model), nnx.Param))
    assert recalibrate_batch_norm(model, images()) is model
    first = model.conv1(images())
    np.testing.assert_allclose(model.bn1.mean[...], first.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(model.bn1.var[...], first.var((0, 1, 2), ddof=1), rtol=1e-4)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model, nnx.Param)), before
    )
    assert model.bn1.use_running_average
    assert model.bn1.momentum == 0.9


def test_a_batch_split_over_devices_has_the_statistics_of_the_whole():
    whole, split = tiny(), tiny()
    recalibrate_batch_norm(whole, images())
    mesh = data_mesh()
    recalibrate_batch_norm(split, [put_batch(images(), mesh)], mesh=mesh)
    assert_close(statistics(split), statistics(whole))


def test_batch_norms_of_flax_are_estimated_too():
    class Model(nnx.Module):
        def __init__(self):
            self.bn = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.bn(x)

    model = recalibrate_batch_norm(Model(), images())
    np.testing.assert_allclose(model.bn.var[...], images().var((0, 1, 2)), rtol=1e-4)


class Shared(nnx.Module):
    """Calls one batch norm twice, one never, and one with an explicit mode."""

    def __init__(self):
        self.twice, self.never = (BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
        self.frozen = nnx.BatchNorm(3, use_fast_variance=False, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.frozen(self.twice(x) + self.twice(3 * x + 5), use_running_average=True)


def test_all_calls_of_a_batch_norm_count_as_in_torch():
    layer = torch.nn.BatchNorm2d(3, momentum=None)
    batches = [images(4), images(6, seed=1)]
    for batch in batches:
        for x in (batch, 3 * batch + 5):
            layer(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    model = recalibrate_batch_norm(Shared(), batches)
    found = (model.twice.mean[...], model.twice.var[...])
    assert_close(found, (layer.running_mean.numpy(), layer.running_var.numpy()))
    assert (model.never.mean[...] == 0).all()
    assert (model.never.var[...] == 1).all()
    assert (model.frozen.var[...] > 3).all()  # of a sum of two normalised maps, one of the other


def test_previous_statistics_that_are_not_finite_have_no_influence():
    model, broken = tiny(), tiny()
    broken.bn1.var.set_value(broken.bn1.var[...] * np.nan)
    assert_close(*(statistics(recalibrate_batch_norm(m, images())) for m in (broken, model)))


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (lambda: create_model("alexnet", num_classes=0), images(), "alexnet has no batch norm"),
        (fused, images(), "recalibrate the model that aa_flax.fuse"),
        (tiny, [], "no images to estimate"),
        (tiny, [(images(), 0)], "got a tuple; give the images alone"),
        (tiny, images() * np.nan, "not finite; nothing is changed"),
    ],
)
def test_invalid_input_is_refused_and_nothing_is_changed(make, given, message):
    model = make()
    with pytest.raises(InputError, match=message):
        recalibrate_batch_norm(model, given)
    layers = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, BatchNorm)]
    assert all((layer.mean[...] == 0).all() for layer in layers)
