"""Reference models of PyTorch, and comparisons with them."""

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


def reference_model(name: str, **options) -> torch.nn.Module:
    """Returns torchvision's model, or for `..._lpf<k>` the original's, in evaluation mode.

    All weights, biases and batch statistics are random, and scaled so that every layer matters for
    the logits: a missing or misplaced one is noticed.
    """
    base, filter_size = parse_name(name)
    if filter_size is None:
        model = getattr(torchvision.models, base)(**options)
    else:
        model = getattr(antialiased_cnns, base)(filter_size=filter_size, **options)
    return randomised(model)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
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
    return model.eval()


def relative_difference(x: jax.Array | np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest difference over the largest value of the reference."""
    return float(np.abs(np.asarray(x) - reference).max() / np.abs(reference).max())


def compiled(model: Classifier) -> Callable[[np.ndarray], jax.Array]:
    """Returns the model as a compiled function of images, which leaves its state unchanged."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda x: run(state, x)


def assert_same_model(
    model: Classifier, reference: torch.nn.Module, *sizes: tuple[int, int]
) -> None:
    """Asserts that torch's weights load by name and convert back, and that logits agree."""
    weights = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    load_torch_state_dict(model, weights)
    returned = to_torch_state_dict(model)
    assert list(returned) == list(weights)
    assert all(np.array_equal(returned[name], weights[name]) for name in weights)

    logits = compiled(model)
    for height, width in sizes:
        x = np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)
        with torch.no_grad():
            expected = reference(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
        difference = relative_difference(logits(x), expected)
        assert difference <= 1e-5, f"{model.name} at {height}x{width}: {difference:.1e}"


def assert_same_as_reference(name: str, *sizes: tuple[int, int], **options) -> None:
    """Asserts the same for a registered model and its reference."""
    assert_same_model(create_model(name, **options), reference_model(name, **options), *sizes)


def logits_shape(model: Classifier, size: int) -> tuple[int, ...]:
    """Returns the logits' shape for one square image by tracing, with the errors of a run."""
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, image).shape


def abstract_model(name: str, **options) -> Classifier:
    """Returns a model without values, which is fast to build, to trace and to compare."""
    return abstract(lambda rngs: create_model(name, rngs=rngs, **options))


def state_shapes(model: Classifier) -> dict[tuple, tuple[str, tuple[int, ...]]]:
    """Returns type and shape of every variable by its path."""
    state = nnx.to_flat_state(nnx.state(model))
    return {path: (type(v).__name__, tuple(v.shape)) for path, v in state}
