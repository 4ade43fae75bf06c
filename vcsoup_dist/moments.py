"""Means and squared deviations of columns of numbers, in parts that are merged in order.

The merge is Chan, Golub and LeVeque's. Every sum here is numpy's own pairwise one and none is
BLAS's, whose bits depend on its number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of N columns, each with a count of its own."""

    count: Array
    """[N]."""
    mean: Array
    """[N]; 0 where the count is."""
    squares: Array
    """[N] sum of squared deviations from the mean."""

    def merged(self, other: Moments) -> Moments:
        """Of both parts together."""
        count = self.count + other.count
        part = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        shift = np.where(self.count > 0, other.mean - self.mean, other.mean)
        return Moments(
            count,
            self.mean + shift * part,
            self.squares + other.squares + np.square(shift) * self.count * part,
        )

    def std(self) -> Array:
        """Standard deviation [N] with ddof = 0; NaN where the count is 0."""
        variance = np.full_like(self.squares, np.nan)
        np.divide(self.squares, self.count, out=variance, where=self.count > 0)
        deviation: Array = np.sqrt(variance)
        return deviation


def moments(columns: Array) -> Moments:
    """Of [P, N] numbers; NaNs are left out."""
    there = ~np.isnan(columns)
    count = there.sum(axis=0).astype(np.float64)
    n = columns.shape[1]
    mean, squares = np.zeros(n), np.zeros(n)
    for j in np.flatnonzero(count):
        column = columns[there[:, j], j]
        # By its first number a constant column has deviations of exactly 0.
        moved = column - column[0]
        mean[j] = column[0] + moved.mean()
        squares[j] = np.square(moved - moved.mean()).sum()
    return Moments(count, mean, squares)


@dataclass(frozen=True)
class CoMoments:
    """Of N columns of the same P rows."""

    count: int
    mean: Array
    """[N]."""
    products: Array
    """[N, N] sums of products of two columns' deviations from their means."""

    def merged(self, other: CoMoments) -> CoMoments:
        """Of both parts together."""
        count = self.count + other.count
        part = other.count / count if count else 0.0
        shift = other.mean - self.mean if self.count else other.mean
        between = shift[:, None] * shift[None, :] * (self.count * part)
        return CoMoments(count, self.mean + shift * part, self.products + other.products + between)

    def correlation(self) -> list[list[float | None]]:
        """Pearson's r [N, N] of the columns; None where one of the two does not vary."""
        spread = np.sqrt(np.diag(self.products))
        n = len(spread)
        found: list[list[float | None]] = [[None] * n for _ in range(n)]
        for i, j in np.argwhere((spread[:, None] > 0) & (spread[None, :] > 0)).tolist():
            r = float(self.products[i, j] / spread[i] / spread[j])
            found[i][j] = 1.0 if i == j else min(1.0, max(-1.0, r))
        return found


def co_moments(columns: Array) -> CoMoments:
    """Of [P, N] numbers without NaN; P may be 0."""
    rows, n = columns.shape
    products = np.zeros((n, n))
    if not rows:
        return CoMoments(0, np.zeros(n), products)
    moved = columns - columns[0]
    mean = moved.mean(axis=0)
    moved = moved - mean
    for i in range(n):
        for j in range(i + 1):
            products[i, j] = products[j, i] = (moved[:, i] * moved[:, j]).sum()
    return CoMoments(rows, columns[0] + mean, products)
