"""The weighted sum by itself: rates of both kernels, and what other arithmetics round wrongly.

    python tools/bench_kernel.py

Two policies of 4 Mi bf16 numbers each: `independent`, or `near` as policies of one model are
(the second is the first plus a thousandth, at weights of 0.02). One thread; the best of five.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.souping.kernels import kernel, numpy_kernel

NUMEL = 1 << 22
SOUPS = {
    "0.3, 0.7": [(0.3, 0.7)],
    "0.5, 0.5": [(0.5, 0.5)],
    "0.3137, 0.6863": [(0.3137, 0.6863)],
    "four on a grid of 0.1": [(0.1, 0.9), (0.3, 0.7), (0.6, 0.4), (0.8, 0.2)],
}

Words = NDArray[np.uint16]


def main() -> None:
    draw = np.random.default_rng(0)
    first = draw.standard_normal(NUMEL, np.float32) * np.float32(0.02)
    noise = draw.standard_normal(NUMEL, np.float32)
    pairs = {"independent": noise * np.float32(0.02), "near": first + noise * np.float32(1e-3)}
    columns = ("policies", "weights", "compiled ns/number", "GB/s", "numpy ns/number")
    others = ("float64 differs", "float32 differs", "bf16 differs")
    print("| " + " | ".join((*columns, *others)) + " |")
    print("| --- | --- |" + " ---: |" * 6)
    for relation, second in pairs.items():
        policies = [to_bf16(first), to_bf16(second)]
        for name, rows in SOUPS.items():
            print(f"| {relation} | {name} | {row(policies, rows)} |")


def row(policies: list[Words], rows: list[tuple[float, float]]) -> str:
    chunks = [each.view(np.uint8) for each in policies]
    weights = np.array(rows)
    out = [np.empty(2 * NUMEL, np.uint8) for _ in rows]
    seconds = []
    for sums, repeats in ((kernel.weighted_sum, 5), (numpy_kernel.weighted_sum, 1)):
        best = float("inf")
        for _ in range(repeats):
            began = time.perf_counter()
            sums(chunks, ["BF16"] * 2, weights, "BF16", out)
            best = min(best, time.perf_counter() - began)
        seconds.append(best)
    moved = (len(chunks) + len(rows)) * 2 * NUMEL
    exact = out[0].view(np.uint16)
    a, b = map(to_float32, policies)
    (wa, wb) = rows[0]
    others = {
        "float64": to_bf16_from_float64(wa * a.astype(np.float64) + wb * b.astype(np.float64)),
        "float32": to_bf16(np.float32(wa) * a + np.float32(wb) * b),
        "bf16": to_bf16(
            to_float32(to_bf16(rounded(wa) * a)) + to_float32(to_bf16(rounded(wb) * b))
        ),
    }
    wrong = [f"{(words != exact).mean():.3%}" for words in others.values()]
    return " | ".join(
        [
            f"{seconds[0] / NUMEL * 1e9:.2f}",
            f"{moved / seconds[0] / 1e9:.1f}",
            f"{seconds[1] / NUMEL * 1e9:.1f}",
            *wrong,
        ]
    )


def to_bf16(values: NDArray[np.float32]) -> Words:
    """To nearest even; finite numbers only."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_bf16_from_float64(values: NDArray[np.float64]) -> Words:
    """Rounded once: to float32 towards odd, then to nearest even."""
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    inexact = (single != values) & (bits & 1 == 0)
    towards_zero = np.abs(single) > np.abs(values)
    bits += np.where(inexact, np.where(towards_zero, 0xFFFFFFFF, 1), 0).astype(np.uint32)
    return to_bf16(single)


def to_float32(words: Words) -> NDArray[np.float32]:
    return (words.astype(np.uint32) << 16).view(np.float32)


def rounded(weight: float) -> np.float32:
    """The weight as bf16 holds it."""
    return np.float32(to_float32(to_bf16(np.array([weight], np.float32)))[0])


if __name__ == "__main__":
    main()
