"""Weight grids, the weighted sum against exact arithmetic, and the model card."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.grids import (
    box_grid,
    random_weights,
    simplex_grid,
    soup_name,
    validate_weights,
    weight_of_base,
    weights_name,
)
from vcsoup_dist.souping.kernels import kernel, numpy_kernel
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES, has_nonfinite
from vcsoup_dist.souping.output.model_card import card_text

# precision in bits, smallest and largest exponent
FORMATS = {"BF16": (8, -126, 127), "F16": (11, -14, 15), "F32": (24, -126, 127)}
NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def rounded(x: Fraction, dtype: str) -> float:
    """x to the nearest number of the format, ties to even, from the definition."""
    precision, low, high = FORMATS[dtype]
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    while Fraction(2) ** exponent > abs(x):
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, low) - precision + 1)
    nearest = round(x / unit) * unit  # Fraction rounds half to even
    if abs(nearest) >= Fraction(2) ** (high + 1):
        return math.copysign(math.inf, x)
    return float(nearest)


def to_float64(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (raw.view("<u2").astype("<u4") * 65536).view("<f4").astype("f8")
    return raw.view(NUMPY[dtype]).astype("f8")


def soup(chunks, dtypes, weights, out_dtype):
    """All soups, by the compiled kernel and by numpy, which must agree to the bit."""
    numel = chunks[0].nbytes // FLOAT_DTYPES[dtypes[0]]
    rows = np.array(weights, dtype="f8")
    results = []
    for sum_by in (kernel.weighted_sum, numpy_kernel.weighted_sum):
        out = [np.full(numel * FLOAT_DTYPES[out_dtype], 0xAA, np.uint8) for _ in weights]
        nonfinite = sum_by(chunks, dtypes, rows, out_dtype, out)
        assert nonfinite == [
            has_nonfinite(chunk, dtype) for chunk, dtype in zip(chunks, dtypes, strict=True)
        ]
        results.append(out)
    for compiled, plain in zip(*results, strict=True):
        assert np.array_equal(compiled, plain)
    return results[0]


def test_the_installation_has_compiled_the_kernel():
    assert kernel.implementation() == "compiled"


def cast(values, out_dtype):
    """One float64 after another, through the kernel, to another format."""
    raw = np.array(values, "<f8").view(np.uint8)
    return to_float64(soup([raw], ["F64"], [[1.0]], out_dtype)[0], out_dtype)


def bf16_words(rng, count):
    """Random bf16 of all exponents, sub-normal ones too, without NaN and infinity."""
    words = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    return words[(words & 0x7F80) != 0x7F80]


@pytest.mark.parametrize("dtype", FORMATS)
@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_float64_is_rounded_once_to_nearest_even(dtype, values):
    expected = [rounded(Fraction(value), dtype) for value in values]
    assert cast(values, dtype).tolist() == expected


@pytest.mark.parametrize("dtype", FORMATS)
def test_float64_beside_every_kind_of_tie_is_rounded_once(dtype):
    precision, low, high = FORMATS[dtype]
    rng = np.random.default_rng(1)
    values = []
    for exponent in [
        *range(low - precision - 2, low + 3),
        *range(-3, 4),
        *range(high - 2, high + 1),
    ]:
        for _ in range(40):
            unit = 2.0 ** (max(exponent, low) - precision + 1)
            tie = 2.0**exponent + (int(rng.integers(0, 1 << precision)) + 0.5) * unit
            for nudge in (0.0, 2.0**-40, 2.0**-30, 2.0**-20, 2.0**-13):
                values += [sign * tie * (1 + way * nudge) for sign in (1, -1) for way in (1, -1)]
    expected = [rounded(Fraction(value), dtype) for value in values]
    assert cast(values, dtype).tolist() == expected


def test_signs_of_zero_infinity_and_nan_survive():
    values = [0.0, -0.0, math.inf, -math.inf, 1e300, -1e300, 1e-300, -1e-300]
    for dtype in ("BF16", "F16", "F32", "F64"):
        result = cast(values, dtype)
        assert np.signbit(result).tolist() == [False, True] * 4
        assert np.isinf(result[2:4]).all() and (result[:2] == 0).all()
    # NaN of any payload, those that a rounding addition would carry into infinity or the sign.
    words = np.array([0x7F81, 0x7FFF, 0xFF81, 0xFFFF, 0x7FC0, 0x3F80], "<u2").view(np.uint8)
    (result,) = soup([words], ["BF16"], [[1.0]], "BF16")
    assert np.isnan(to_float64(result, "BF16")).tolist() == [True] * 5 + [False]
    other = np.full(6, 0x3F80, "<u2").view(np.uint8)
    for weights in ((0.3, 0.7), (0.7, -0.3)):
        (result,) = soup([words, other], ["BF16"] * 2, [weights], "BF16")
        assert np.isnan(to_float64(result, "BF16")).tolist() == [True] * 5 + [False]
    for dtype in ("BF16", "F16", "F32"):
        edges = stored(np.array([-0.0, 0.0, -0.0, math.inf, -math.inf, math.inf]), dtype)
        others = stored(np.array([-0.0, 0.0, 0.0, 1.0, -math.inf, -math.inf]), dtype)
        (result,) = soup([edges, others], [dtype] * 2, [(0.3, 0.7)], dtype)
        zeros, infinities = np.split(to_float64(result, dtype), [3])
        assert zeros.tolist() == [0.0] * 3 and np.signbit(zeros).tolist() == [True, False, False]
        assert infinities[:2].tolist() == [math.inf, -math.inf] and np.isnan(infinities[2])
    payloads = np.array([0x7FF0000000000001, 0x7FF0000020000000, -1, -(1 << 51)], "<i8")
    for dtype in ("BF16", "F16", "F32"):
        assert np.isnan(cast(payloads.view("<f8"), dtype)).all()


def stored(values, dtype):
    """float64 values as raw bytes of a format."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    return values.astype(NUMPY[dtype]).view(np.uint8)


def exact(raw, dtypes, weights, out_dtype):
    columns = zip(
        *(to_float64(*each).tolist() for each in zip(raw, dtypes, strict=True)), strict=True
    )
    return [
        rounded(
            sum(Fraction(w) * Fraction(x) for w, x in zip(weights, column, strict=True)), out_dtype
        )
        for column in columns
    ]


GRID_WEIGHTS = [
    (0.3, 0.7),
    (0.1, 0.2, 0.7),
    (0.5, 0.5),
    (1 / 3, 2 / 3),
    (1.7, -0.7),
    (0.9999999, 1e-7),
]


@pytest.mark.parametrize("spread", ["alike", "extreme", "cancelling"])
@pytest.mark.parametrize("weights", GRID_WEIGHTS)
def test_every_bf16_is_the_exact_sum_correctly_rounded(spread, weights):
    rng = np.random.default_rng(7)
    count = 4000
    if spread == "extreme":
        raw = [bf16_words(rng, 2 * count)[:count].view(np.uint8) for _ in weights]
    elif spread == "alike":
        start = rng.standard_normal(count) * 0.02
        raw = [stored(start + rng.standard_normal(count) * 1e-3, "BF16") for _ in weights]
    else:  # 0.3 * 7 - 0.7 * 3 is zero but for the last bits of 0.3 and 0.7
        raw = [
            stored(rng.integers(-12, 13, count) * 2.0 ** rng.integers(-3, 4, count), "BF16")
            for _ in weights
        ]
    dtypes = ["BF16"] * len(weights)
    result = to_float64(soup(raw, dtypes, [weights], "BF16")[0], "BF16")
    assert result.tolist() == exact(raw, dtypes, weights, "BF16")


@pytest.mark.parametrize(
    "dtypes", [("F16", "F16"), ("F32", "F32"), ("BF16", "F32"), ("F32", "F16")]
)
@pytest.mark.parametrize("out_dtype", ["BF16", "F16", "F32"])
def test_every_dtype_in_and_out_is_the_exact_sum_correctly_rounded(dtypes, out_dtype):
    rng = np.random.default_rng(8)
    start = rng.standard_normal(3000) * 10.0 ** rng.integers(-9, 3, 3000)
    for weights in ((0.3, 0.7), (1.25, -0.25)):
        raw = [stored(start * (1 + rng.integers(-8, 9, 3000) / 256), dtype) for dtype in dtypes]
        result = to_float64(soup(raw, dtypes, [weights], out_dtype)[0], out_dtype)
        assert result.tolist() == exact(raw, dtypes, weights, out_dtype)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
weight = st.floats(-4, 4).filter(lambda w: w == 0 or abs(w) > 1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(finite, weight), min_size=1, max_size=6), st.sampled_from(list(FORMATS)))
def test_any_sum_is_correctly_rounded_whatever_the_order_of_the_policies(terms, out_dtype):
    for order in (terms, terms[::-1]):
        raw = [np.array([value], "<f4").view(np.uint8) for value, _ in order]
        weights = [weight for _, weight in order]
        dtypes = ["F32"] * len(order)
        result = to_float64(soup(raw, dtypes, [weights], out_dtype)[0], out_dtype)
        assert result.tolist() == exact(raw, dtypes, weights, out_dtype)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_one_pass_of_all_soups_in_blocks_equals_one_soup_at_a_time(dtype, monkeypatch):
    rng = np.random.default_rng(3)
    raw = [stored(rng.standard_normal(2500), dtype) for _ in range(3)]
    grid = simplex_grid(3, 0.25)
    whole = [soup(raw, [dtype] * 3, [weights], dtype)[0] for weights in grid]
    monkeypatch.setattr(numpy_kernel, "BLOCK", 64)  # several blocks and a remainder
    for one, each in zip(whole, soup(raw, [dtype] * 3, grid, dtype), strict=True):
        assert np.array_equal(one, each)


def test_float64_policies_are_summed_in_float64_in_their_order():
    rng = np.random.default_rng(4)
    values = [rng.standard_normal(1000) for _ in range(3)]
    (result,) = soup([stored(v, "F64") for v in values], ["F64"] * 3, [(0.1, 0.2, 0.7)], "F64")
    plain = values[0] * 0.1 + values[1] * 0.2 + values[2] * 0.7
    assert np.array_equal(result.view("<f8"), plain)


def test_a_corner_of_the_simplex_is_the_policy_bit_for_bit():
    words = np.arange(1 << 16, dtype="<u2")
    words = words[(words & 0x7F80) != 0x7F80]  # every finite bf16, -0 and sub-normals too
    other = np.roll(words, 17)
    first, second = soup(
        [words.view(np.uint8), other.view(np.uint8)], ["BF16"] * 2, [(1, 0), (0, 1)], "BF16"
    )
    assert np.array_equal(first.view("<u2"), words)
    assert np.array_equal(second.view("<u2"), other)


def test_policies_of_different_dtypes_are_summed():
    half, single = np.array([1.5, -2.0], "<f2"), np.array([0.1, 8.0], "<f4")
    (result,) = soup(
        [half.view(np.uint8), single.view(np.uint8)], ["F16", "F32"], [(0.5, 0.5)], "F64"
    )
    assert result.view("<f8").tolist() == [0.75 + float(np.float32(0.1)) / 2, 3.0]


def test_arrays_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="same number"):
        soup([np.zeros(4, np.uint8), np.zeros(6, np.uint8)], ["BF16"] * 2, [(1, 0)], "BF16")
    with pytest.raises(ValueError, match=r"\[K, N\]"):
        soup([np.zeros(4, np.uint8)], ["BF16"], [(0.5, 0.5)], "BF16")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_nonfinite_numbers_are_found_wherever_they_are(dtype):
    width = FLOAT_DTYPES[dtype]
    for value in (math.nan, -math.nan, math.inf, -math.inf):
        raw = np.full(40_000 * width, 0x42, np.uint8)
        assert not has_nonfinite(raw, dtype)
        bits = np.array([value], "<f4" if dtype == "BF16" else NUMPY[dtype]).view(np.uint8)[-width:]
        raw[39_999 * width :] = bits
        assert has_nonfinite(raw, dtype)
    assert not has_nonfinite(np.zeros(0, np.uint8), dtype)


@given(st.integers(1, 5), st.integers(1, 12))
def test_a_simplex_grid_has_every_point_once(values, n):
    grid = simplex_grid(values, 1 / n, cap=10**6)
    assert len(grid) == len(set(grid)) == math.comb(n + values - 1, values - 1)
    assert grid == sorted(grid)
    for row in grid:
        parts = [round(weight * n) for weight in row]
        assert len(row) == values and sum(parts) == n and min(parts) >= 0
        assert list(row) == [part / n for part in parts]
        validate_weights(row)
    assert len({soup_name(dict(zip("abcde", row, strict=False))) for row in grid}) == len(grid)


@given(st.integers(1, 3), st.integers(-4, 4), st.integers(1, 8), st.sampled_from([0.5, 0.1, 0.25]))
def test_a_box_grid_has_every_point_once_but_theta_0(values, first, n, step):
    low, high = round(first * step, 9), round((first + n) * step, 9)
    grid = box_grid(values, low, high, step)
    assert len(grid) == len(set(grid)) == (n + 1) ** values - (first <= 0 <= first + n)
    assert grid == sorted(grid) and (0.0,) * values not in grid
    assert all(low <= weight <= high for row in grid for weight in row)
    entries = sorted({weight for row in grid for weight in row} | {low})
    assert np.diff(entries) == pytest.approx(step) or values == 1  # which lacks 0


@pytest.mark.parametrize("low, high, n", [(0, 1, 3), (0, 1, 10), (-1, 1, 7), (-0.5, 1.5, 4)])
def test_the_points_of_a_box_grid_on_the_simplex_are_those_of_a_simplex_grid(low, high, n):
    assert set(simplex_grid(3, 1 / n)) <= set(box_grid(3, low, high, 1 / n))


@pytest.mark.parametrize(
    ("box", "step", "message"),
    [((0, 1), 0.3, "divide 1"), ((0, 1), 1.5, "between"), ((0, 1), 0, "between"),
     ((-1, 1), 0.001, "points")],
)  # fmt: skip
def test_box_grids_without_sense_or_end_are_refused_at_once(box, step, message):
    with pytest.raises(UserError, match=message):
        box_grid(2, *box, step)


def test_theta_0_has_no_weight_where_only_rounding_is_left_of_1():
    assert weight_of_base((0.8, 0.5)) == pytest.approx(-0.3)
    assert weight_of_base((0.3333333, 0.3333333, 0.3333333)) == 0 == weight_of_base((0.1,) * 10)
    assert weight_of_base((0.5, 0.499998)) == pytest.approx(2e-6)
    assert weight_of_base(()) == 1


@pytest.mark.parametrize(
    ("values", "step", "message"),
    [(2, 0.3, "divide 1"), (2, 0.0, "between"), (2, math.nan, "between"), (2, 1e-300, "between"),
     (3, 1.5, "between"), (0, 0.5, "at least one"), (6, 0.05, "53,130 soups"), (3, 1e-6, "soups")],
)  # fmt: skip
def test_grids_without_sense_or_end_are_refused_at_once(values, step, message):
    with pytest.raises(UserError, match=message):
        simplex_grid(values, step)


def test_random_weights_are_uniform_on_the_simplex_and_fixed_by_the_seed():
    rows = np.array(random_weights(4, 20_000, seed=5))
    assert random_weights(4, 3, seed=5) == [tuple(row) for row in rows[:3].tolist()]
    assert random_weights(4, 3, seed=6) != random_weights(4, 3, seed=5)
    assert rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < 1e-12
    # Dirichlet(1, 1, 1, 1): mean 1/4, variance 3/80, P(first > 1/2) = 1/8
    assert np.abs(rows.mean(0) - 1 / 4).max() < 0.006
    assert np.abs(rows.var(0) - 3 / 80).max() < 0.002
    assert abs((rows[:, 0] > 0.5).mean() - 1 / 8) < 0.01
    assert random_weights(1, 2, seed=0) == [(1.0,), (1.0,)]


def test_weights_alone_make_a_name_too():
    assert weights_name((0.3, 0.7)) == "soup_0.30_0.70"
    assert weights_name((1.5, -0.5, -1e-9, 1 / 3)) == "soup_1.50_-0.50_0.00_0.333333"
    with pytest.raises(UserError, match="40 policies are too many"):
        weights_name([0.025] * 40)


def test_task_vectors_may_have_any_sum():
    validate_weights((0.8, 0.8), any_sum=True)
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        validate_weights((1.5, 0.2), any_sum=True)
    with pytest.raises(UserError, match="finite"):
        validate_weights((math.nan, 0.2), any_sum=True, extrapolate=True)


def test_soup_names_say_the_weights_and_are_folder_names():
    assert soup_name({"helpful": 0.3, "harmless": 0.7}) == "helpful-0.30_harmless-0.70"
    assert soup_name({"a": 0.125, "b": 1 / 3, "c": 1}) == "a-0.125_b-0.333333_c-1.00"
    assert soup_name({"a": 1.5, "b": -0.5, "c": -0.0, "d": -1e-9}) == "a-1.50_b--0.50_c-0.00_d-0.00"
    for name in ("../x", "a/b", "", ".hidden", "-x", "a b", "é"):
        with pytest.raises(UserError, match="folder name"):
            soup_name({name: 1.0})
    with pytest.raises(UserError, match="too long"):
        soup_name({"x" * 300: 1.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [((0.5, 0.6), "sum to 1"), ((math.nan, 1), "finite"), ((math.inf, -math.inf), "finite"),
     ((1.5, -0.5), r"\[0, 1\]"), ((), "sum to 1"), ((0.5, 0.50001), "sum to 1")],
)  # fmt: skip
def test_weights_that_make_no_soup_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        validate_weights(weights)


def test_weights_may_leave_the_simplex_only_when_asked():
    validate_weights((1.5, -0.5), extrapolate=True)
    validate_weights((0.333333, 0.333333, 0.333334))
    with pytest.raises(UserError, match="sum to 1"):
        validate_weights((1.5, -0.6), extrapolate=True)


def test_the_card_says_weights_and_sources():
    yaml = pytest.importorskip("yaml")
    text = card_text(
        "soup_0.30_0.70",
        weights={"helpful": 0.1 + 0.2, "harm|less\nly": 0.7},
        sources={"helpful": "xxh3:ab", "harm|less\nly": "xxh3:cd"},
        base=None,
        version="1.2.3",
    )
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["vc-soup", "merge"]}
    assert "| helpful | 0.30000000000000004 | `xxh3:ab` |" in body
    assert "| harm\\|less ly | 0.7 | `xxh3:cd` |" in body
    assert "# soup_0.30_0.70" in body and "vcsoup_dist 1.2.3" in body and "θ₀" not in body


@pytest.mark.parametrize("sources, shown", [({"base": "xxh3:ef"}, "xxh3:ef"), ({}, "cancels")])
def test_the_card_of_task_vectors_names_their_base(sources, shown):
    text = card_text(
        "x", weights={"p": 0.5}, sources={"p": "xxh3:ab"} | sources, base="base", version="1"
    )
    assert "θ(λ) = θ₀ + Σ λᵢ (θᵢ − θ₀)" in text
    assert f"| base (θ₀) | | `{shown}` |" in text
