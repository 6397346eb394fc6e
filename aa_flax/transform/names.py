"""What to call a place: by its modules, its parameter or its line of code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax._src import source_info_util  # the lines that a traced operation comes from; no public way

# Frameworks whose own lines say nothing about the reader's net.
_LIBRARIES = ("/flax/", "/haiku/", "/equinox/", "/jax/", "/aa_flax/ops/", "/aa_flax/nn/")


def layer_name(eqn: Any, parameters: Sequence[str]) -> str:
    """The name of the layer that an equation comes from, as well as it is known."""
    scope = str(eqn.source_info.name_stack)
    if parameters and (not scope or "eqx.nn." in scope):  # Equinox's scopes are names of classes
        return parameters[0]
    if scope:
        return scope
    return _line(eqn)


def _line(eqn: Any) -> str:
    frames = list(source_info_util.user_frames(eqn.source_info.traceback))
    own = [f for f in frames if not any(part in f.file_name for part in _LIBRARIES)]
    for frame in (own or frames)[:1]:
        return f"{Path(frame.file_name).name}:{frame.start_line} ({frame.function_name})"
    return "unknown"
