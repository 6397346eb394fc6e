"""Runs one of two processes that evaluate together: host.py PORT PROCESS OUTPUT."""

import sys
from pathlib import Path

import jax

from aa_flax.evaluation.by_config import evaluate_config
from tests.evaluation.tiny import Noise, Small, noise_config

if __name__ == "__main__":
    port, process, output = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    found = evaluate_config(
        Small(),
        noise_config(),
        weights={"kind": "run", "file": "none"},
        output=Path(output),
        measures=("shift", "worst_case", "equivariance", "per_class"),
        source=Noise(),
    )
    print(f"host {process}: {found['top1']:.4f} {found['consistency']:.4f}")
