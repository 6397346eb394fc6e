"""The public surface: names, signatures, flags, keys of results, variables of models.

`python -m tests.surface` records it in `tests/surface.json`, which a test compares with it.
"""

import functools
import hashlib
import inspect
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from flax import nnx

import aa_flax
from aa_flax.models import registry
from aa_flax.models.registry import has_reference, hub_repository
from aa_flax.weights.building import abstract_model
from tests.evaluation.tiny import CROP, SIZE, Noise, Small

RECORD = Path(__file__).with_suffix(".json")
COMMANDS = ("train", "eval", "convert", "export", "report", "data.imagenet_val")
MEASURES = (
    *("accuracy", "shift", "worst_case", "circular", "subpixel", "jitter", "diagonal"),
    *("equivariance", "per_class", "time", "worst_within", "worst_circular", "stability"),
)
WITHIN = dict.fromkeys(("worst_within", "worst_circular", "stability"), 1)


def signatures() -> dict[str, str]:
    """Returns the signature of each public function, class and method, without modules."""
    found = {}
    for name in aa_flax.__all__:
        thing = getattr(aa_flax, name)
        found[name] = _signature(thing)
        if inspect.isclass(thing):
            methods = {k: getattr(thing, k) for k in dir(thing) if not k.startswith("_")}
            for key, value in methods.items():
                if _is_ours(value):
                    found[f"{name}.{key}"] = _signature(value)
    return dict(sorted(found.items()))


def _is_ours(value: object) -> bool:
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, functools.cached_property):
        value = value.func
    return str(getattr(value, "__module__", "")).startswith("aa_flax")


def _signature(thing: object) -> str:
    if isinstance(thing, property | functools.cached_property):
        return "property"
    if inspect.isclass(thing):
        thing = vars(thing).get("__init__", thing.__new__)
    if not callable(thing):
        return type(thing).__name__
    text = str(inspect.signature(thing))
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)|<(?:class|function) '?| at 0x\w+>?", "", text)


def flags() -> dict[str, list[str]]:
    """Returns the flags of each command, by its module."""

    def flags_of(command: str) -> list[str]:
        run = [sys.executable, "-m", f"aa_flax.{command}", "--help"]
        text = subprocess.run(run, capture_output=True, text=True, check=False).stdout
        return sorted(set(re.findall(r"^\s+(--\S+?)[:,]?(?=\s|$)", text, re.MULTILINE)))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(COMMANDS, pool.map(flags_of, COMMANDS), strict=True))


def result_keys() -> list[str]:
    """Returns the keys of the results of an evaluation, those of groups with dots."""
    sizes = {"crop_size": CROP, "image_size": SIZE, "resize_size": 0, "shift_range": 5, "passes": 2}
    with TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        options = sizes | WITHIN
        return sorted(_keys(aa_flax.evaluate(Small(), Noise(), MEASURES, output=output, **options)))


def _keys(results: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in results.items():
        key = f"{prefix}{key}"
        found += [key, *_keys(value, f"{key}.")] if isinstance(value, dict) else [key]
    return found


def variables() -> dict[str, str]:
    """Returns a digest of the names, shapes and types of the variables of each model."""
    ours = [n for n in registry.base_names() if has_reference(n) or hub_repository(n)]
    return {name: _digest(name) for name in ours}


def _digest(name: str) -> str:
    model = abstract_model(name, 10)
    paths = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    lines = [f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}" for path, leaf in paths]
    values = sum(int(np.prod(leaf.shape)) for _, leaf in paths)
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    return f"{len(lines)} arrays, {values} values, {digest[:16]}"


SURFACE = {
    "names": lambda: sorted(aa_flax.__all__),
    "signatures": signatures,
    "flags": flags,
    "result_keys": result_keys,
    "variables": variables,
}

if __name__ == "__main__":
    RECORD.write_text(json.dumps({k: f() for k, f in SURFACE.items()}, indent=1) + "\n")
