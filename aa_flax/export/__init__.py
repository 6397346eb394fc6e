"""Nets for where there is no JAX, or none of this package: files of ONNX and of StableHLO.

`aa_flax.export` is this module, and it can be called: `aa_flax.export(model, path)` is `export` of
`aa_flax.export.write`; `python -m aa_flax.export` is the command.
"""

import sys
from types import ModuleType

from aa_flax.export.write import Exported, export

__all__ = ["Exported", "export"]


class _CallableModule(ModuleType):
    """A module and the function of the same name: Python puts the module in the package's
    attribute, whoever imports it first."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _CallableModule
