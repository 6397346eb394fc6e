"""Rematerialised blocks: the backward pass recomputes their activations instead of storing them."""

from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from flax import nnx


def rematerialised(block: Callable) -> Callable:
    """Returns the same block, of which the backward pass stores the input alone.

    It is a module, a method of one, a function (or lambda), or a `partial` of any of these. The
    modules in it, closures included, become arguments of `nnx.remat`, so that batch statistics and
    random counts that change inside change outside.
    """
    modules: list[nnx.Module] = []
    _rebuilt(block, lambda module: modules.append(module) or module)  # collects them

    def run(modules: tuple[nnx.Module, ...], *args):
        remaining = iter(modules)
        return _rebuilt(block, lambda _: next(remaining))(*args)

    return partial(nnx.remat(run), tuple(modules))


def _rebuilt(block: Any, replace: Callable[[nnx.Module], Any]) -> Any:
    """Returns the same callable with each of its modules replaced by `replace(module)`."""
    rebuilt = partial(_rebuilt, replace=replace)
    if isinstance(block, nnx.Module):
        return replace(block)
    if isinstance(block, MethodType):
        return MethodType(block.__func__, rebuilt(block.__self__))
    if isinstance(block, partial):
        keywords = {name: rebuilt(value) for name, value in block.keywords.items()}
        return partial(rebuilt(block.func), *map(rebuilt, block.args), **keywords)
    if isinstance(block, FunctionType) and (block.__closure__ or block.__defaults__):
        cells = tuple(CellType(rebuilt(cell.cell_contents)) for cell in block.__closure__ or ())
        defaults = tuple(map(rebuilt, block.__defaults__ or ()))
        return FunctionType(block.__code__, block.__globals__, block.__name__, defaults, cells)
    return block
