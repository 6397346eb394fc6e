"""The models this project is measured against, and the comparison with them."""

import sys
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# PyPI's torchvision has compiled operators for CUDA builds of torch only; its models need none.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent"))

import antialiased_cnns
import torch
import torchvision

from aa_flax import create_model, load_torch_state_dict, to_torch_state_dict
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.nn.initializers import abstract


def reference_net(name: str, **options) -> torch.nn.Module:
    """torchvision's model, or for `..._lpf<k>` the original antialiased one, in evaluation mode.

    All weights, biases and batch statistics are random, and of a size that keeps each layer's
    share in the logits: a layer that is left out or mixed up shows.
    """
    base, filter_size = parse_name(name)
    if filter_size is None:
        net = getattr(torchvision.models, base)(**options)
    else:
        net = getattr(antialiased_cnns, base)(filter_size=filter_size, **options)
    return randomised(net)


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            mean, variance = layer.running_mean, layer.running_var
            assert mean is not None
            assert variance is not None
            mean.normal_(0, 0.3, generator=generator)
            variance.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            std = (2 / layer.weight[0].numel()) ** 0.5
            layer.weight.data.normal_(0, std, generator=generator)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, torch.Tensor):
            bias.data.normal_(0, 0.3, generator=generator)
    return net.eval()


def relative_difference(x: jax.Array | np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, over the largest value of the reference."""
    return float(np.abs(np.asarray(x) - reference).max() / np.abs(reference).max())


def compiled(model: Classifier) -> Callable[[np.ndarray], jax.Array]:
    """The model as a compiled function of images; its state stays as it is."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda x: run(state, x)


def assert_same_net(model: Classifier, net: torch.nn.Module, *sizes: tuple[int, int]) -> None:
    """torch's weights fit by name and order and survive the way back; logits agree."""
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    load_torch_state_dict(model, weights)
    returned = to_torch_state_dict(model)
    assert list(returned) == list(weights)
    assert all(np.array_equal(returned[name], weights[name]) for name in weights)

    logits = compiled(model)
    for height, width in sizes:
        x = np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)
        with torch.no_grad():
            expected = net(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
        difference = relative_difference(logits(x), expected)
        assert difference <= 1e-5, f"{model.name} at {height}x{width}: {difference:.1e}"


def assert_same_as_reference(name: str, *sizes: tuple[int, int], **options) -> None:
    """`assert_same_net` for a model of the table."""
    assert_same_net(create_model(name, **options), reference_net(name, **options), *sizes)


def logits_shape(model: Classifier, size: int) -> tuple[int, ...]:
    """The logits' shape for one square image, by tracing alone; raises what a run would raise."""
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, image).shape


def abstract_model(name: str, **options) -> Classifier:
    """A model of shapes alone: fast to build, to trace and to compare."""
    return abstract(lambda rngs: create_model(name, rngs=rngs, **options))


def state_shapes(model: Classifier) -> dict[tuple, tuple[str, tuple[int, ...]]]:
    """Kind and shape of every variable, by its path."""
    state = nnx.to_flat_state(nnx.state(model))
    return {path: (type(v).__name__, tuple(v.shape)) for path, v in state}
