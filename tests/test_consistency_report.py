"""What a filtered set's report says: conflicts, the comparison of rules, the page, the plots."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from vcsoup_dist.consistency.comparison import (
    compare,
    conflict_matrix,
    lossless_threshold,
    safe_threshold,
)
from vcsoup_dist.consistency.gaps import (
    consistency,
    count_patterns,
    named_patterns,
    sign_patterns,
)
from vcsoup_dist.consistency.markdown import table, wrapped
from vcsoup_dist.consistency.measured_pairs import PairColumns
from vcsoup_dist.consistency.page import write_page
from vcsoup_dist.consistency.plots import plot_consistency, plot_correlation, plot_gaps
from vcsoup_dist.consistency.rules import by_threshold, keep
from vcsoup_dist.errors import UserError
from vcsoup_dist.records.filter_report import FilterReport, HeldOut, PairCounts, PairsFile
from vcsoup_dist.records.keep_rule import KeepRule

VALUES = ["helpful", "harmless", "concise", "honest", "kind", "witty"]
PARSER = MarkdownIt("commonmark").enable("table")
RULES = [
    KeepRule("threshold", 0.35),
    KeepRule("threshold", 0.5),
    KeepRule("ratio", ratio=0.3),
    KeepRule("ratio", ratio=0.25),
    KeepRule("all_positive"),
    KeepRule("random", ratio=0.3),
    KeepRule("all"),
]


def columns_of(gaps: np.ndarray, unusable: int = 0, min_norm: float = 0.0) -> PairColumns:
    """Of pairs with these gaps [P, N], of which the first so many may not be used."""
    cosines = consistency(gaps)
    usable = np.arange(len(gaps)) >= unusable
    eligible = usable & ~np.isnan(cosines) & (np.linalg.norm(gaps, axis=1) >= min_norm)
    ids = np.random.default_rng(len(gaps)).permutation(len(gaps)).astype(np.uint64)
    return PairColumns(ids, cosines, sign_patterns(gaps), usable, eligible)


def small_gaps(values: int):
    """Gaps [P, N] in which ties, zeros and every sign are common."""
    gap = st.integers(-2, 2).map(float)
    row = st.lists(gap, min_size=values, max_size=values)
    return st.lists(row, min_size=1, max_size=40).map(np.array)


@given(st.integers(1, 4).flatmap(small_gaps))
def test_a_conflict_is_a_pair_in_which_two_values_prefer_different_answers(gaps):
    n = gaps.shape[1]
    matrix = conflict_matrix(named_patterns(count_patterns(sign_patterns(gaps)), n))
    for i, j in itertools.product(range(n), repeat=2):
        opposed = sum(g[i] * g[j] < 0 for g in gaps)
        assert matrix[i, j] == opposed / len(gaps)


def test_no_pairs_have_no_conflicts():
    assert conflict_matrix({}).shape == (0, 0)


@given(
    st.integers(1, 4).flatmap(small_gaps),
    st.integers(0, 3),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from(RULES),
)
@settings(deadline=None)
def test_the_comparison_counts_what_each_rule_keeps(gaps, unusable, min_norm, rule):
    columns, n = columns_of(gaps, unusable, min_norm), gaps.shape[1]
    own = replace(rule, min_norm=min_norm)
    found = compare(columns, own, n)
    assert found.usable == columns.usable.sum() and found.eligible == columns.eligible.sum()

    members = []
    kept_by_own = keep(own, columns, n)
    for row in found.rules:
        mask = keep(row.rule, columns, n, int(kept_by_own.sum()))
        kept = set(np.flatnonzero(mask).tolist())
        members.append(kept)
        assert row.count == len(kept)
        assert row.share == (len(kept) / found.usable if found.usable else None)
        positive = sum(bool((gaps[i] > 0).all()) for i in kept)
        assert row.all_positive == (positive / len(kept) if kept else None)
    for one, line in zip(members, found.overlap, strict=True):
        assert line == [len(one & other) / len(one) if one else None for other in members]

    owns = [i for i, row in enumerate(found.rules) if row.is_own]
    assert len(owns) == (own.kind != "all")
    assert all(members[i] == set(np.flatnonzero(kept_by_own).tolist()) for i in owns)
    assert len({row.name for row in found.rules}) == len(found.rules)
    as_many = compare(columns, KeepRule("as_many_as", min_norm=min_norm), n, own)
    assert as_many.rules == found.rules or own.kind == "all"


def test_the_comparison_counts_pairs_at_the_very_edge_of_a_threshold():
    gaps = np.array([[1.0, 0.0], [0.0, 3.0], [0.3, -0.1 - 0.2], [1.0, -2.0], [2.0, 2.0]])
    found = compare(columns_of(gaps), KeepRule("threshold", 1.0), 2).rules
    counts = {row.rule.threshold: row.count for row in found if row.rule.kind == "threshold"}
    assert counts == {0.0: 4, 0.5: 3, math.sqrt(1 / 2): 3, 1.0: 1}


@pytest.mark.parametrize("values", range(1, 7))
def test_the_comparison_has_the_thresholds_that_mean_something_once_each(values):
    gaps = np.random.default_rng(0).normal(size=(50, values))
    found = compare(columns_of(gaps), KeepRule("threshold", 0.5), values).rules
    thresholds = [row.rule.threshold for row in found if row.rule.kind == "threshold"]
    for wanted in (0.0, 0.5, math.sqrt(1 / values), math.sqrt((values - 1) / values)):
        assert sum(abs(each - wanted) < 1e-9 for each in thresholds) == 1
    assert thresholds == sorted(thresholds)
    assert [row.rule.ratio for row in found if row.rule.kind == "ratio"] == [0.5, 0.25]


@pytest.mark.parametrize("kind", ["threshold", "ratio", "random", "as_many_as"])
def test_a_rule_without_its_number_is_refused(kind):
    with pytest.raises(ValueError, match="lacks its threshold, ratio or size"):
        keep(KeepRule(kind), columns_of(GAPS[2]), 2)


@given(st.integers(1, 6), st.data())
@settings(deadline=None)
def test_the_two_bounds_hold_for_any_gaps(values, data):
    gaps = np.array([data.draw(st.lists(st.floats(-9, 9), min_size=values, max_size=values))])
    cosines, one = consistency(gaps), np.ones(1, dtype=bool)
    if by_threshold(cosines, one, safe_threshold(values)):
        assert (gaps >= -1e-11 * np.abs(gaps).max()).all()
    if (gaps > 0).all():
        assert by_threshold(cosines, one, lossless_threshold(values))


def report_of(gaps: np.ndarray, rule: KeepRule | None = None, **fields) -> FilterReport:
    n = gaps.shape[1]
    rule = rule or KeepRule("threshold", 0.0)
    columns, copied = columns_of(gaps), KeepRule("threshold", 0.0)
    kept = keep(rule, columns, n, 200)
    patterns = named_patterns(count_patterns(columns.patterns), n)
    counts = PairCounts(
        pairs=len(gaps),
        kept=int(kept.sum()),
        dropped={"zero gap": 3, "no reward": 1234, "by rule": 0},
        unscored=1234,
        swapped=77,
        swapped_kept=55,
        sign_patterns=patterns,
        sign_patterns_kept=named_patterns(count_patterns(columns.patterns[kept]), n),
    )
    report = FilterReport(
        method="vc_soup",
        rule=rule,
        size_of="strict" if rule.kind == "as_many_as" else None,
        value="helpful",
        values=VALUES[:n],
        datasets=["helpful", "concise"],
        normalisation="zscore",
        scope="dataset",
        counts=counts,
        heldout=HeldOut(pairs=5678, kept=4321),
        scale={"helpful": {value: 0.5 + i for i, value in enumerate(VALUES[:n])}},
        equal_pairs={"a": {}},
        correlation=[[1.0 if i == j else None for i in range(n)] for j in range(n)],
        conflicts=conflict_matrix(patterns).tolist(),
        comparison=compare(columns, rule, n, copied if rule.kind == "as_many_as" else None),
        files=[PairsFile("pairs-00000.parquet", int(kept.sum()))],
    )
    return replace(report, **fields)


def pair_of(prompt: list[tuple[str, str]], chosen: str, rejected: str) -> dict:
    return {
        "id": "00ff",
        "prompt": [{"role": role, "content": content} for role, content in prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "dataset": "concise",
        "swapped": True,
        "consistency": -0.25,
        "norm": 1.5,
        **{f"gap_{value}": -1.25 for value in VALUES},
    }


def written(path: Path, report: FilterReport, most=(), least=()) -> str:
    write_page(path, report, most, least)
    page = path.read_bytes()
    write_page(path, report, most, least)
    assert path.read_bytes() == page
    return page.decode()


GAPS = {n: np.random.default_rng(n).normal(0.3, 1.0, size=(400, n)) for n in (1, 2, 3, 6)}


def cells(page: str, first: str) -> list[str]:
    """The cells after `first` of the only table row that begins with it."""
    (line,) = re.findall(rf"^\| {re.escape(first)} *\|(.*)\|$", page, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_the_page_shows_every_count(tmp_path: Path):
    report = report_of(GAPS[3], KeepRule("threshold", 0.35))
    page = written(tmp_path / "report.md", report)
    kept = report.counts.kept
    assert f"keeps {kept} ({100 * kept / 400:.1f} %): those with `c >= 0.35`." in page
    assert "400 training pairs of helpful, concise" in page
    assert cells(page, "left out: zero gap") == ["3", "0.8 %"]
    assert "left out: by rule" not in page
    assert "1,234 pairs have no reward" in page and "4,321 held-out pairs are not" in page
    assert "77 pairs are swapped" in page and "55 of them" in page
    assert re.search(r"^\| helpful +\| +0\.5 \| +1\.5 \| +2\.5 \|$", page, re.MULTILINE)
    for pattern, count in report.counts.sign_patterns.items():
        left = report.counts.sign_patterns_kept.get(pattern, 0)
        shares = [f"{100 * count / 400:.1f} %", f"{100 * left / count:.1f} %"]
        assert cells(page, f"`{pattern}`") == [str(count), shares[0], str(left), shares[1]]
    for row in report.comparison.rules:
        mark = " (this set)" if row.is_own else ""
        assert f"{row.name}{mark} " in page
        assert f"| {row.count:>5} | {100 * row.share:>5.1f} % |" in page
    assert page.count("(this set)") == 1
    assert "`c >= 0.5774`, 1/sqrt(N) for N = 3" in page
    assert "`c >= 0.8165`, sqrt((N-1)/N)" in page
    for name in ("histogram.png", "gaps.png", "correlation.png"):
        assert f"]({name})" in page


def test_the_page_names_the_worst_conflict(tmp_path: Path):
    gaps = np.tile(
        [[1.0, 1.0, -1.0], [1.0, -1.0, 1.0], [1.0, -1.0, -1.0], [1.0, 1.0, -2.0]], (5, 1)
    )
    page = written(tmp_path / "report.md", report_of(gaps))
    flat = " ".join(page.split())
    worst = (
        "between helpful and concise: they prefer different answers in 75.0 % of the usable pairs"
    )
    assert worst in flat
    agreeing = written(tmp_path / "report.md", report_of(np.abs(gaps)))
    assert "No two values prefer different answers in any pair." in agreeing


def test_rare_sign_patterns_share_one_row(tmp_path: Path):
    report = report_of(GAPS[6])
    page = written(tmp_path / "report.md", report)
    counts = sorted(report.counts.sign_patterns.values(), reverse=True)
    assert len(counts) > 27
    others = cells(page, f"{len(counts) - 27} others")
    assert others[0] == str(sum(counts[27:]))


@pytest.mark.parametrize("values", [1, 2])
def test_few_values_are_explained_in_their_own_words(tmp_path: Path, values: int):
    page = written(tmp_path / "report.md", report_of(GAPS[values]))
    assert ("With one value" in page) == (values == 1)
    assert ("for N = 2 values: keeps no negative gap" in page) == (values == 2)
    assert ("Which values conflict" in page) == (values == 2)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (KeepRule("ratio", ratio=0.3), "the 30 % with the largest c."),
        (KeepRule("random", ratio=0.3), "30 % at random."),
        (KeepRule("all_positive"), "those whose gaps are all positive."),
        (KeepRule("as_many_as"), "as many as strict keeps, at random."),
        (KeepRule("all"), "all that are usable."),
    ],
)
def test_the_page_says_what_a_rule_keeps(tmp_path: Path, rule: KeepRule, said: str):
    page = written(tmp_path / "report.md", report_of(GAPS[2], rule))
    assert said in " ".join(page.split())
    assert page.count("(this set)") == 1
    assert page.count("(strict)") == (rule.kind == "as_many_as")


def test_without_a_filter_no_other_rule_is_marked_or_copied():
    found = compare(columns_of(GAPS[3]), KeepRule("all"), 3)
    assert not any(row.is_own for row in found.rules)
    assert {row.rule.kind for row in found.rules} == {"all", "threshold", "ratio", "all_positive"}


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path):
    for rule in RULES:
        report = report_of(GAPS[2], rule)
        report.write(tmp_path)
        assert FilterReport.read(tmp_path) == report


def test_a_report_of_another_version_is_refused_in_one_line(tmp_path: Path):
    SMALL.write(tmp_path)
    file = tmp_path / "report.json"
    file.write_text(file.read_text().replace('"version": 2', '"version": 0'))
    with pytest.raises(UserError, match=r"report.json: has version 0.* reads version 2") as raised:
        FilterReport.read(tmp_path)
    assert "\n" not in str(raised.value)


def shown(text: str) -> str:
    """A text as a page shows it."""
    text = text.replace("\r\n", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda c: chr(0x2400 + ord(c.group())), text)
    return re.sub(
        r"[\x80-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text.replace("\x7f", "␡")
    )


ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text("`~\n\r #>|-*<\x1b", max_size=40)
SMALL = report_of(GAPS[2])


def headings(page: str) -> list[str]:
    return [token.tag for token in PARSER.parse(page) if token.type == "heading_open"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """A page of two harmless pairs, to be written over."""
    file = tmp_path_factory.mktemp("page") / "report.md"
    pair = pair_of([("user", "a"), ("assistant", "b"), ("user", "c")], "d", "e")
    write_page(file, SMALL, [pair], [pair])
    return file


@pytest.fixture(scope="module")
def plain_headings(page_file: Path) -> list[str]:
    return headings(page_file.read_text())


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
@example("```\n# x\n````", "``` `````\n~~~", "\x1b[31m\r\n<script>")
@settings(deadline=None, max_examples=40)
def test_no_text_breaks_out_of_its_block(plain_headings, page_file, question, chosen, rejected):
    prompt = [("user", question), ("assistant", chosen), ("user", rejected)]
    pair = pair_of(prompt, chosen, rejected)
    write_page(page_file, SMALL, [pair], [pair])
    page = page_file.read_bytes().decode()
    blocks = [token.content for token in PARSER.parse(page) if token.type == "fence"]
    texts = [question, chosen, rejected, chosen, rejected]
    assert blocks == [shown(text) + "\n" for text in texts * 2]
    assert headings(page) == plain_headings
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


def test_the_extremes_are_shown_in_full(tmp_path: Path):
    prompt = [("system", "Be kind."), ("user", "Hi?"), ("assistant", "Yes?"), ("user", "x " * 9000)]
    page = written(tmp_path / "report.md", SMALL, [pair_of(prompt, "Good.", "Bad.")], [])
    speakers = re.findall(r"^\*\*(.*)\*\*$", page, re.MULTILINE)
    assert speakers == ["Prompt (system)", "Prompt (user)", "Prompt (assistant)", "Prompt (user)",
                        "Chosen", "Rejected"]  # fmt: skip
    assert "x " * 9000 in page
    assert "### 1. c = -0.2500" in page and "helpful -1.25, harmless -1.25; norm 1.5" in page
    assert "data of concise, swapped; id `00ff`" in page
    assert page.endswith("## The least consistent pairs\n\nThere are none.\n")


def test_a_table_is_aligned_and_its_cells_cannot_end_early():
    lines = table(["a|b", "n"], [["x", "1"], ["y", "12345"]]).splitlines()
    assert lines == [
        "| a\\|b |     n |",
        "| ---- | ----: |",
        "| x    |     1 |",
        "| y    | 12345 |",
    ]


def test_a_wrapped_paragraph_never_begins_a_line_with_the_marks_inside_code():
    for length in range(60, 110):
        lines = wrapped("- " + "x" * length + " `c > 0` is `a - b`").splitlines()
        assert all(line.startswith("  ") for line in lines[1:])
        assert "`c > 0`" in " ".join(lines) and not re.search(r"^ *[>-] ?0", "\n".join(lines), re.M)


def draw_all(folder: Path, values: int) -> dict[str, bytes]:
    gaps, names = GAPS[values], VALUES[:values]
    cosines = consistency(gaps)
    cosines[:3] = np.nan
    kept = np.nan_to_num(cosines, nan=-1) >= 0.3
    correlation: list[list[float | None]] = np.corrcoef(gaps.T).reshape(values, values).tolist()
    correlation[0][-1] = None
    plot_consistency(folder / "histogram.png", cosines, kept, 0.3, values)
    plot_gaps(folder / "gaps.png", gaps, names)
    plot_correlation(folder / "correlation.png", correlation, names)
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("values", [1, 2, 3])
def test_the_same_numbers_give_the_same_pictures_whatever_the_users_settings(tmp_path, values):
    first = draw_all(tmp_path, values)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 40}):
        assert draw_all(tmp_path, values) == first
    assert len(first) == 3 and all(b"Software" not in png for png in first.values())


def test_the_pictures_show_threshold_and_numbers(tmp_path: Path):
    cosines, kept = np.linspace(-1, 1, 50), np.arange(50) > 20
    pictures = []
    for threshold, values in ((None, 3), (0.3, 3), (0.3, 2), (0.3, 1)):
        plot_consistency(tmp_path / "one.png", cosines, kept, threshold, values)
        pictures.append((tmp_path / "one.png").read_bytes())
    for number in (0.25, 0.26, None):
        plot_correlation(tmp_path / "one.png", [[1.0, number], [number, 1.0]], ["a", "b"])
        pictures.append((tmp_path / "one.png").read_bytes())
    assert len(set(pictures)) == len(pictures)
