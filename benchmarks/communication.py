"""Communication between devices in a compiled program, read from its text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_ITEM_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CALL = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """An operation between devices; `num_bytes` is the size of its result on each of them."""

    kind: str
    num_bytes: int

    def sent(self, devices: int) -> float:
        """Returns the bytes that each device sends, in a ring of a number of devices."""
        others = devices - 1
        return self.num_bytes * {
            "all-reduce": 2 * others / devices,
            "all-gather": others / devices,
            "reduce-scatter": others,
            "all-to-all": others / devices,
            "collective-permute": 1,
        }.get(self.kind, 0)


def collectives(program: str) -> list[Collective]:
    """Returns the collectives of `jax.jit(f).lower(...).compile().as_text()`, in order."""
    found = []
    for line in program.splitlines():
        if match := _CALL.search(line):
            shape, kind, start = match.groups()
            arrays = [_num_bytes(*array) for array in _ARRAY.findall(shape)]
            # The start of a gather or a permutation returns its operand as well, before the result.
            whole = kind == "all-reduce" or not start
            found.append(Collective(kind, sum(arrays) if whole else arrays[-1]))
    return found


def sent(operations: Iterable[Collective], devices: int) -> float:
    """Returns the bytes that each device sends in all collectives."""
    return sum(operation.sent(devices) for operation in operations)


def _num_bytes(item: str, sizes: str) -> int:
    return _ITEM_BYTES[item] * prod(int(n) for n in sizes.split(",") if n)
