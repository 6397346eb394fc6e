"""Models as files of ONNX and StableHLO, to run without this package or without JAX.

`aa_flax.export` is this module, and it can be called: `aa_flax.export(model, path)` is `export` of
`aa_flax.export.write`; `python -m aa_flax.export` is the command.
"""

import sys
from types import ModuleType

from aa_flax.export.write import Exported, export

__all__ = ["Exported", "export"]


class _CallableModule(ModuleType):
    """A module that is also the function of its name, whoever imports it first."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _CallableModule
__doc__ = export.__doc__  # so that help(aa_flax.export) describes the function
