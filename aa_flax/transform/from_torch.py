"""`from_torch(model, example)`: a PyTorch model as a JAX function."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from threading import RLock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JAXIndexError, JAXTypeError

from aa_flax.errors import InputError, first_line

_INSTALL = "pip install 'aa_flax[from_torch]'"


def from_torch(model: Any, example: Any) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    """Converts a PyTorch model in evaluation mode to a JAX function of its parameters and inputs.

    The model is run on the example, once in torch and once in JAX, and the outputs are compared.
    The function is pure and jitted; differentiate it, vectorise it, or give it to
    `aa_flax.antialias`.

    Args:
        model: a `torch.nn.Module`. It is not changed: a copy in evaluation mode is converted, also
            of a model in training mode.
        example: an input of the model, an array or a tensor, e.g. images `(N, C, H, W)`, or a list
            or dict of them; a tuple has several inputs. The function also accepts other sizes, at
            which it is not compared: choose those that you will use.

    Returns:
        `function, params`. `function(params, *inputs)` takes arrays in torch's layout and returns
        the model's outputs (also in tuples, lists and dicts) as arrays. `params` has copies of the
        floating-point parameters and buffers by torch's names; a shared one has the first of its
        names. Integers, such as indices, are constants of the function.

    Raises:
        InputError: torchax is missing or does not fit the installed torch; the model does not
            accept the example, has operations that torchax lacks or control flow that depends on
            values, or outputs that differ from torch's by more than 1e-3 of the largest value (5e-2
            in half precision).

    Source: torchax, https://github.com/google/torchax, which implements torch's operations in JAX.

    Examples:
        >>> import numpy as np, torch
        >>> from aa_flax import antialias, from_torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, stride=2), torch.nn.ReLU())
        >>> images = np.ones((1, 8, 16, 16), np.float32)
        >>> function, params = from_torch(model, images)
        >>> sorted(params)
        ['0.bias', '0.weight']
        >>> antialias(function)(params, images).shape
        (1, 8, 7, 7)
    """
    torch, torchax = _packages()
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"from_torch takes a torch.nn.Module, got a {type(model).__name__}")
    name, env, lock = type(model).__name__, torchax.tensor.Environment(), RLock()
    run = torch.func.functional_call
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    try:
        inputs = jax.tree.map(
            lambda x: x.clone() if torch.is_tensor(x) else torch.from_numpy(np.array(jnp.array(x))),
            example if isinstance(example, tuple) else (example,),
        )
        arrays = jax.tree.map(jnp.array, env.t2j_copy(inputs))  # the model may change its inputs
        shell = _without_values(model, tensors.values(), torch)
        with torch.no_grad():
            expected = env.t2j_copy(run(shell, tensors, inputs))
    except Exception as error:
        shapes = jax.tree.map(np.shape, example)
        raise InputError(
            f"{name} does not run on the example (of shape {shapes}) in torch: {first_line(error)}"
        ) from error
    state = jax.tree.map(jnp.array, env.t2j_copy(tensors))
    params = {k: x for k, x in state.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    constants = {k: np.asarray(x) for k, x in state.items() if k not in params}
    names = set(params)

    def function(params: dict[str, jax.Array], *inputs: Any) -> Any:
        if set(params) != names:
            raise InputError(f"params of {name} must have the names that from_torch returned")
        values = jax.tree.map(jnp.asarray, params | constants)
        # Tracing puts its values into the one shell, and random numbers, if any, change a key.
        with lock, _settings(torch), env.override_property(prng=jax.random.key(0)), env:
            outputs = run(shell, *env.j2t_iso((values, inputs)))
            return jax.tree.map(env.t2j_iso, outputs)

    function.__name__ = name
    function = jax.jit(function)
    try:
        found = function(params, *arrays)
    except Exception as error:
        raise InputError(f"{name} cannot be converted: {_reason(error)}") from error
    jax.tree.map(partial(_check_equal, name), found, expected)
    return function, params


def _packages() -> tuple[Any, Any]:
    """Imports torch and torchax, without what torchax changes in torch and in the environment."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"from_torch needs torch and torchax: {_INSTALL}") from error
    attention, telemetry = torch.backends.mha, "ENABLE_RUNTIME_UPTIME_TELEMETRY"
    fused, was_set = attention.get_fastpath_enabled(), telemetry in os.environ
    loaded = hasattr(torch, "jax")  # by the user, who may need that device
    try:
        import torchax.device_module
    except Exception as error:  # no ImportError where it does not fit
        raise InputError(
            f"from_torch needs the torchax that fits torch {torch.__version__}, but importing it "
            f"failed: {first_line(error)}; {_INSTALL}"
        ) from error
    finally:
        attention.set_fastpath_enabled(fused)
        if not was_set:
            os.environ.pop(telemetry, None)
    if not loaded:  # else torch.compile and DataParallel would choose it as accelerator
        torchax.device_module.is_available = lambda: False
    return torch, torchax


@contextmanager
def _settings(torch: Any) -> Iterator[None]:
    """Creates new tensors in torchax, and turns off fused attention, which it lacks."""
    attention = torch.backends.mha
    fused = attention.get_fastpath_enabled()
    attention.set_fastpath_enabled(False)
    try:
        with torch.device("jax:0"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype")  # torch's int64
            yield
    finally:
        attention.set_fastpath_enabled(fused)


def _without_values(model: Any, tensors: Iterable[Any], torch: Any) -> Any:
    """Copies a model, in evaluation mode, with tensors that only have shapes.

    Its modules name their operations (`layer1/0/conv1`), for reports and profiles.
    """
    memo = {}
    for tensor in tensors:
        empty = tensor.detach().to("meta")
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(empty, False) if is_parameter else empty
    shell = deepcopy(model, memo).eval()
    scopes: list[Any] = []

    def enter(name: str, *_: Any) -> None:
        scopes.append(jax.named_scope(name))
        scopes[-1].__enter__()

    def leave(*_: Any) -> None:
        scopes.pop().__exit__(None, None, None)

    for path, module in shell.named_modules():
        if path:
            module.register_forward_pre_hook(partial(enter, path.rpartition(".")[2]), prepend=True)
            module.register_forward_hook(leave, always_call=True)
    return shell


def _reason(error: Exception) -> str:
    """Returns why torchax cannot run a model, and what to do."""
    reason = first_line(error)
    if isinstance(error, JAXTypeError | JAXIndexError):
        return f"its control flow or shapes depend on values of tensors, write it without: {reason}"
    if type(error).__name__ == "OperatorNotFound":
        return f"torchax lacks an operation, use others: {reason}"
    if isinstance(error, AssertionError) and "mixed math" in reason:
        return "it computes with a tensor that is neither parameter nor buffer: register_buffer it"
    return reason


def _check_equal(name: str, found: jax.Array, expected: jax.Array) -> None:
    """Checks an output of the function against torch's."""
    x, y = (np.asarray(each, np.complex128) for each in (found, expected))
    half = jnp.issubdtype(found.dtype, jnp.floating) and found.dtype.itemsize < 4
    difference, largest = (np.abs(each).max(initial=0) for each in (x - y, y))
    if not difference <= (5e-2 if half else 1e-3) * largest:
        raise InputError(
            f"{name} in JAX differs from torch on the example by {difference:.1e}, where the "
            f"largest value is {largest:.1e}: it draws random numbers, or torchax computes an "
            "operation differently"
        )
