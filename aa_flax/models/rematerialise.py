"""Blocks whose insides the backward pass computes again instead of keeping them."""

from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from flax import nnx


def rematerialised(block: Callable) -> Callable:
    """A block as it was, except that the backward pass keeps its input alone.

    Args:
        block: a module, a method of one, a function (lambdas, too), or a `partial` of any of these.
            The modules it holds or closes over are handed through, so that batch statistics and
            random counts that change inside have changed outside.
    """
    modules: list[nnx.Module] = []

    def collect(module: nnx.Module) -> nnx.Module:
        modules.append(module)
        return module

    _rebuilt(block, collect)

    def run(modules: tuple[nnx.Module, ...], *args):
        remaining = iter(modules)
        return _rebuilt(block, lambda _: next(remaining))(*args)

    return partial(nnx.remat(run), tuple(modules))


def _rebuilt(block: Any, replace: Callable[[nnx.Module], nnx.Module]) -> Any:
    """A callable as it was, of other modules: `replace` gives what takes the place of each."""
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
