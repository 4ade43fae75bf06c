"""DPO losses on held-out pairs along the lines between policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_model_files, write_pairs

from vcsoup_dist.forward.template import Encoded, Unusable
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.heldout_logps import HeldoutLogps
from vcsoup_dist.records.tokens import PairTokens, join_parts, write_part
from vcsoup_dist.report.heldout import dpo_losses
from vcsoup_dist.report.statistics.connectivity import find_edges
from vcsoup_dist.report.statistics.evaluated import Evaluated

RECIPE = {
    "name": "x",
    "model": "base",
    "values": {
        name: {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:length"}}
        for name in ("a", "b", "c")
    },
    "soup": {"box": [0, 1], "grid": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heldout")
    write_model_files(folder / "base")
    write_pairs(folder / "pairs.jsonl", 5)
    (folder / "rewards.py").write_text("def length(p, r): ...\n")
    return folder


def evaluations(folder: Path, heldout_pairs: int | None) -> dict[str, tuple[str, int]]:
    """Name -> fingerprint and number of token files that it reads."""
    section = {} if heldout_pairs is None else {"heldout_pairs": heldout_pairs}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"evaluation": section}))
    plan = make_plan(load_recipe(folder / "recipe.yaml"), Hashes(folder / "hashes.json"))
    return {
        each.name: (each.fingerprint, len(each.inputs_of("tokens")))
        for each in plan
        if each.stage == "evaluate"
    }


def test_only_theta_0_and_soups_between_two_policies_are_measured_and_made_anew(folder):
    without, some = evaluations(folder, None), evaluations(folder, 4)
    assert evaluations(folder, 0) == without
    changed = {name.removeprefix("evaluation/vc_soup/seed-0/") for name in some
               if some[name] != without[name]}  # fmt: skip
    half, one, none = "0.50", "1.00", "0.00"
    rows = [(one, none, none), (none, one, none), (none, none, one), (half, half, none),
            (half, none, half), (none, half, half)]  # fmt: skip
    assert changed == {"evaluation/base", *(f"a-{a}_b-{b}_c-{c}" for a, b, c in rows)}
    assert {reads for _, reads in without.values()} == {0}
    assert evaluations(folder, 5)["evaluation/base"] != some["evaluation/base"]


@pytest.mark.models
def test_log_probs_are_those_of_the_models_own_logits(tiny_model):
    import torch

    from vcsoup_dist.evaluation.generate import load_model
    from vcsoup_dist.evaluation.heldout_pairs import answer_logp

    model, _ = load_model(str(tiny_model), None, "fp32", "cpu")
    ids = np.random.default_rng(0).integers(2, model.config.vocab_size, 30).astype(np.int32)
    for start in (1, 12, 29):
        with torch.no_grad():
            logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0].double()
        every = logits.log_softmax(dim=-1)
        expected = sum(float(every[i - 1, ids[i]]) for i in range(start, 30))
        assert answer_logp(model, Encoded(ids, start)) == pytest.approx(expected, rel=1e-5)


def test_the_pairs_are_the_first_usable_held_out_ones_by_id(tmp_path):
    from vcsoup_dist.evaluation.heldout_pairs import choose_pairs

    def usable(start: int) -> PairTokens:
        return PairTokens((Encoded(np.arange(9), start), Encoded(np.arange(7), start)))

    write_part(tmp_path / "train", ["0", "1"], [usable(1), usable(2)])
    write_part(tmp_path / "more", ["f", "d"], [usable(3), PairTokens(Unusable.TOO_LONG)])
    write_part(tmp_path / "last", ["e", "c"], [usable(4), usable(5)])
    (tmp_path / "tokens").mkdir()
    join_parts(tmp_path / "tokens", [tmp_path / "train"], [tmp_path / "more", tmp_path / "last"])
    for count, expected in ((2, ["c", "e"]), (9, ["c", "e", "f"]), (0, [])):
        chosen = choose_pairs({"data": tmp_path / "tokens"}, count)
        assert [pair.id for pair in chosen] == expected
    first = choose_pairs({"data": tmp_path / "tokens"}, 1)[0]
    assert (first.dataset, first.sides[1].start, len(first.sides[1].ids)) == ("data", 5, 7)


def test_log_probs_come_back_from_their_file(tmp_path):
    written = HeldoutLogps(["x", "y"], ["a", "b"], np.array([[-1.5, -2.0], [-0.25, -8.0]]))
    written.write(tmp_path)
    read = HeldoutLogps.read(tmp_path)
    assert (read.ids, read.datasets) == (written.ids, written.datasets)
    np.testing.assert_array_equal(read.logps, written.logps)


def test_the_loss_is_dpos_and_without_training_log_2():
    logps = np.array([[-3.0, -5.0], [-900.0, -1.0]])
    assert dpo_losses(logps, logps, 0.1) == pytest.approx([np.log(2)] * 2)
    reference = logps - [[2.0, -1.0], [0.0, 0.0]]  # h = 3 and 0
    assert dpo_losses(logps, reference, 0.5)[0] == pytest.approx(-np.log(1 / (1 + np.exp(-1.5))))
    huge = dpo_losses(np.array([[-1e5, 0.0]]), np.zeros((1, 2)), 1.0)
    assert huge.tolist() == [1e5]


def soup(weight: float, losses: dict, seed: int = 0) -> Evaluated:
    return Evaluated(f"{weight}/{seed}", "m", seed, {"a": 1 - weight, "b": weight},
                     {"r": np.array([0.0, 1.0])}, losses=losses)  # fmt: skip


def test_a_rise_of_the_loss_above_the_line_is_a_barrier():
    draw = np.random.default_rng(0)
    pairs = draw.exponential(size=40)

    def edge(rise: float):
        soups = [
            soup(at, {"a": pairs + at + rise * (at == 0.5) + 0.1 * draw.normal(size=40)}, seed)
            for at in (0, 0.5, 1)
            for seed in (0, 1, 2)
        ]
        (found,) = find_edges(soups, "ab", 200, 0.95)
        return found.losses["a"]

    bent, straight = edge(1.0), edge(0.0)
    assert bent.rise.is_barrier and bent.rise.mean[0] == pytest.approx(1, abs=0.1)
    assert not straight.rise.is_barrier and bent.pairs == 40
    assert bent.loss[2] - bent.loss[0] == pytest.approx(1, abs=0.1)


def test_losses_that_a_soup_lacks_or_of_one_pair_are_left_out():
    one, two = {"a": np.zeros(1)}, {"a": np.zeros(2), "b": np.ones(2)}
    for losses in ([one, one, one], [two, {}, two]):
        soups = [soup(at, each) for at, each in zip((0, 0.5, 1), losses, strict=True)]
        (edge,) = find_edges(soups, "ab", 100, 0.95)
        assert edge.losses == {}
    soups = [soup(at, two) for at in (0, 0.5, 1)]
    soups[1] = replace(soups[1], losses={"a": np.zeros(2)})
    assert list(find_edges(soups, "ab", 100, 0.95)[0].losses) == ["a"]
