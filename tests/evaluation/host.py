"""One of two processes that evaluate together: host.py PORT PROCESS OUTPUT."""

import sys
from pathlib import Path

import jax

from aa_flax.evaluation import evaluate as module
from tests.evaluation.tiny import Noise, Small, noise_config

if __name__ == "__main__":
    port, process, output = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    module.make_source = lambda data, split: Noise()
    measures = {"shift": True, "worst_case": True, "equivariance": True, "per_class": True}
    found = module.evaluate(
        Small(), noise_config(), weights="none", output=Path(output), **measures
    )
    print(f"host {process}: {found['top1']:.4f} {found['consistency']:.4f}")
