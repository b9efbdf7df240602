"""CPU features, as listed by Linux."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16_PRODUCTS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # flags of x86 and of Arm


def multiplies_bf16() -> bool | None:
    """Whether the CPU has bfloat16 multiply instructions (without them products are computed in float32); None if unknown."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((value.split() for key, _, value in lines if key.strip() in ("flags", "Features")), None)
    return None if flags is None else not BF16_PRODUCTS.isdisjoint(flags)
