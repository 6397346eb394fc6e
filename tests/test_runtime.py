"""Programs on CPU: kept memory and oneDNN; progress bars on terminals only."""

import os
import platform
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import aa_flax
from aa_flax import runtime
from aa_flax.data.folder import scan
from aa_flax.runtime import progress_bar

PAGES = """
import resource, statistics
import jax, jax.numpy as jnp
import aa_flax
if {keep}:
    assert aa_flax.tune_cpu()
    assert aa_flax.tune_cpu()  # again: as before
x = jnp.ones((2**20, 16))  # 64 MiB

@jax.jit
def f(x):
    y = jax.lax.optimization_barrier(jnp.sin(x))  # an intermediate array as large
    return (y[::-1] * y).sum()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

counts = [faults()]
for _ in range(11):
    value = f(x).block_until_ready()
    counts.append(faults())
print(statistics.median(b - a for a, b in zip(counts, counts[1:])), value)
"""

LEFT = """
import jax, numpy as np, resource
import aa_flax
aa_flax.tune_cpu()
events = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
jax.jit(lambda x: x + 1)(1.0)
compiled = "/jax/core/compile/backend_compile_duration"
assert compiled in events

def resident():  # MiB
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() // 2**20

before = resident()
np.ones(2**25)  # 256 MiB, free at once
print(resident() - before)
for seconds in 0.1, 1.0:
    jax.monitoring.record_event_duration_secs(compiled, seconds)
    print(resident() - before)
"""
PRODUCT_AND_SUM = """
import jax, jax.numpy as jnp
from aa_flax.runtime import avoid_wrong_fusions
avoid_wrong_fusions()
x = jnp.stack([jnp.arange(32769.0), *jnp.zeros((2, 32769))], 1)
print(float(jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)[-1]))
"""
RESIDUAL_MEAN = """
import jax, jax.numpy as jnp
from jax import lax
from aa_flax.runtime import avoid_wrong_fusions
avoid_wrong_fusions("bfloat16")

def conv(x):
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return (y.astype(jnp.float32) - 0.1).astype(x.dtype)

kernel = jnp.full((1, 1, 64, 64), 1 / 64, jnp.bfloat16)
block = jax.jit(lambda x: jax.nn.relu(conv(jax.nn.relu(conv(x))) + x).mean((1, 2)))
print(float(block(jnp.ones((2, 8, 8, 64), jnp.bfloat16))[0, 0]))
"""
DRAW = """
from aa_flax.runtime import progress_bar
with progress_bar(3, "indexing") as bar:
    bar.update(3)
    bar.refresh()
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it needs glibc")


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@glibc
def test_a_pass_finds_its_memory_where_the_last_one_left_it():
    returned, kept = (run(PAGES.format(keep=keep)).split() for keep in (False, True))
    assert int(kept[0]) * 4 < int(returned[0])  # pages that the system clears and maps
    assert kept[1] == returned[1]


@glibc
def test_what_a_long_compilation_has_left_is_given_back():
    kept, after_a_short_one, after_a_long_one = map(int, run(LEFT).split())
    assert kept > 200
    assert after_a_short_one > 200
    assert after_a_long_one < 50


def test_a_fused_product_and_sum_reads_no_wrong_rows():
    assert float(run(PRODUCT_AND_SUM)) == 32768**2


def test_the_mean_over_a_residual_block_in_bfloat16_is_not_wrong():
    assert float(run(RESIDUAL_MEAN)) == pytest.approx(1.8, rel=0.01)


def test_several_devices_compute_as_before():
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2)\n"
        "import aa_flax, numpy as np; aa_flax.tune_cpu()\n"
        "from aa_flax.runtime import data_mesh, put_batch\n"
        "x = put_batch({'x': np.arange(8.0, dtype=np.float32)}, data_mesh())['x']\n"
        "f = jax.jit(lambda x: (x - x.mean()).sum() + x.sum())\n"
        "print([float(f(x + i)) for i in range(3)], len(x.devices()))"
    )
    assert run(code).strip() == "[28.0, 36.0, 44.0] 2"


def test_too_late_is_an_error():
    jnp.zeros(1)
    with pytest.raises(aa_flax.InputError, match="call it first"):
        aa_flax.tune_cpu()


def test_without_glibc_no_option_of_jax_changes(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(runtime, "_has_devices", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    before = dict(jax.config.values)
    assert not aa_flax.tune_cpu()
    assert dict(jax.config.values) == before


@pytest.mark.parametrize(
    ("version", "features", "flags", "expected"),
    [
        ("0.12.0.1", "avx2 avx512_bf16 fma", "--xla_a=1", True),
        ("0.12.3", "avx512_bf16", "", True),
        ("0.12.0", "avx2 avx512f", "", False),  # a processor without measurements
        ("0.13.0", "avx512_bf16", "", False),  # XLA ends the process at an unknown flag
        ("0.12.0", "avx512_bf16", "--xla_cpu_experimental_ynn_fusion_type=", False),  # the user's
    ],
)
def test_onednn_is_requested_where_it_is_faster(
    version, features, flags, expected, monkeypatch, tmp_path
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: fpu {features} sse2\n")
    monkeypatch.setattr(runtime, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(runtime.jaxlib_version, "__version__", version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    runtime._use_onednn()
    assert runtime.uses_onednn() == expected
    assert os.environ["XLA_FLAGS"].startswith(flags)
    assert (os.environ["XLA_FLAGS"] == flags) == (not expected)


def test_programs_that_the_compilation_cache_cannot_store_are_not_made(monkeypatch):
    asked = []
    monkeypatch.setattr(runtime, "_has_devices", lambda: False)
    monkeypatch.setattr(runtime, "_use_onednn", lambda: asked.append(True))
    monkeypatch.setattr(runtime, "_keep", lambda: True)
    name = "jax_compilation_cache_dir"
    before = jax.config.values[name]
    try:
        jax.config.update(name, "folder")
        aa_flax.tune_cpu()
        assert asked == []
        jax.config.update(name, None)
        aa_flax.tune_cpu()
        assert asked == [True]
    finally:
        jax.config.update(name, before)


def test_a_grouped_convolution_is_onednns_after_tune_cpu():
    code = (
        "import aa_flax, jax, jax.numpy as jnp\n"
        "jax.config.update('jax_compilation_cache_dir', None); aa_flax.tune_cpu()\n"
        "from aa_flax.ops import conv_general_dilated as conv\n"
        "from aa_flax.runtime import uses_onednn\n"
        "f = lambda x, k: conv(x, k, (1, 1), ((1, 1),) * 2, feature_group_count=32)\n"
        "x, k = jnp.ones((2, 8, 8, 32)), jnp.ones((3, 3, 1, 32))\n"
        "text = jax.jit(jax.grad(lambda x: (f(x, k) ** 2).sum())).lower(x).compile().as_text()\n"
        "print(text.count('__onednn$convolution') - 2 * uses_onednn())"
    )
    assert run(code).strip() == "0"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_commands_give_up_the_cache_for_onednn_in_bfloat16_alone(dtype):
    code = (
        f"import sys; sys.argv = ['x', '--config.dtype={dtype}']\n"
        "import jax; from aa_flax import cli, runtime\n"
        "jax.config.update('jax_compilation_cache_dir', None)\n"
        "cli.has_onednn = runtime.has_onednn = lambda: True; runtime._ONEDNN_FLAGS = ''\n"
        "cli.define_flags()\n"
        "cli.run(lambda: print(jax.config.values['jax_compilation_cache_dir'] is None), '')"
    )
    assert run(code).strip() == str(dtype == "bfloat16")


def test_commands_keep_theirs():
    code = (
        "import sys; sys.argv = ['x']\n"
        "import jax; from aa_flax import cli\n"
        "cli.define_flags()\n"
        "cli.run(lambda: print(jax.config.values['jax_cpu_enable_async_dispatch']), '')"
    )
    kept = platform.libc_ver()[0] == "glibc"
    assert run(code).split()[-1] == str(not kept)


def test_nothing_is_drawn_into_a_pipe(tmp_path, capfd):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a" / "b.png")
    assert scan(tmp_path).classes == ["a"]
    with progress_bar(3, "downloading", "B", unit_scale=True) as bar:
        bar.update(3)
    assert capfd.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", DRAW], stderr=theirs, check=True)
    os.write(theirs, b"end")  # so that there is some output in any case
    drawn = os.read(ours, 10000).decode()
    os.close(theirs)
    os.close(ours)
    assert "indexing: 100%" in drawn


def test_every_bar_is_made_in_one_place():
    calls = re.compile(r"\b(?:tqdm|trange)\(")
    found = [
        p.name for p in Path(aa_flax.__file__).parent.rglob("*.py") if calls.search(p.read_text())
    ]
    assert found == ["runtime.py"]
