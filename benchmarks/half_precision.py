"""Differences of bfloat16 logits from float64 on CPU: a table of docs/fidelity.md.

    python benchmarks/half_precision.py [--models resnet18_lpf4 ...] [--size 128]

The same random weights, batch statistics and images in each column: the operations' definitions,
the CPU kernels, and the kernels with oneDNN after `aa_flax.tune_cpu()` (empty where it is not
used). The number is the root mean square of the logits' differences over that of the logits.
"""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext

MODELS = ("resnet18", "resnet50", "resnext50_32x4d", "vgg16_bn", "densenet121", "mobilenet_v2")
VARIANTS = ("definitions", "kernels", "oneDNN")


def differences(variant: str, models: list[str], size: int) -> None:
    """Prints, as JSON, the difference of each model; an empty object without oneDNN."""
    import aa_flax
    from aa_flax.runtime import avoid_wrong_fusions, uses_onednn

    if variant != "oneDNN":
        avoid_wrong_fusions("bfloat16")
    else:
        aa_flax.tune_cpu()
        if not uses_onednn():
            print("{}")
            return

    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from aa_flax.nn.layers import BatchNorm

    jax.config.update("jax_enable_x64", True)
    images = np.random.default_rng(0).standard_normal((8, size, size, 3), np.float32)

    def logits(name: str, dtype: str) -> np.ndarray:
        model = aa_flax.create_model(name, dtype=dtype)
        rng = np.random.default_rng(0)
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, BatchNorm):
                shape = layer.mean.shape
                layer.mean.set_value(jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32))
                layer.var.set_value(jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32))
        graph, state = nnx.split(model)
        return np.asarray(jax.jit(lambda s, x: nnx.merge(graph, s)(x))(state, images), np.float64)

    found = {}
    for name in models:
        with aa_flax.ops.definitions():
            exact = logits(name, "float64")
        with aa_flax.ops.definitions() if variant == "definitions" else nullcontext():
            error = logits(name, "bfloat16") - exact
        found[name] = float(np.sqrt(np.square(error).mean() / np.square(exact).mean()))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=[f"{name}_lpf4" for name in MODELS])
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--variant", choices=VARIANTS, help="one column, as JSON")
    args = parser.parse_args()
    if args.variant:
        differences(args.variant, args.models, args.size)
        return
    columns = []
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant, "--size", str(args.size)]
        command += ["--models", *args.models]
        columns.append(json.loads(subprocess.check_output(command, text=True)))
    print(f"| bfloat16 | {' | '.join(VARIANTS)} |\n|---|---|---|---|")
    for name in args.models:
        cells = [f"{column[name]:.2%}" if column else "" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
