"""Log-probs of a model's own answers, under it and theta_0, and how these repeat themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import save_tiny_model
from evaluation_world import PROMPTS, SETTINGS
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.evaluation import answer_logps as packed
from vcsoup_dist.evaluation.answer_logps import answer_logps
from vcsoup_dist.evaluation.generate import draws_from_model, generate_answers, load_model
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.evaluation.repetition import repeated_share
from vcsoup_dist.evaluation.tasks import EvaluationTask, VirtualSoup
from vcsoup_dist.evaluation.worker import EvaluationWorker
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.identity import Located
from vcsoup_dist.in_context.prompts import AddedText
from vcsoup_dist.launch.worker import PoolWorker
from vcsoup_dist.recipe import Evaluation
from vcsoup_dist.records.answers import Answers


def expected_logp(model, encoded: Encoded) -> float:
    """By transformers alone: all logits of one sequence."""
    import torch

    ids = torch.tensor([list(encoded.ids)])
    with torch.no_grad():
        every = model(ids).logits[0].double().log_softmax(dim=-1)
    return float(sum(every[i - 1, ids[0, i]] for i in range(encoded.start, len(encoded.ids))))


@pytest.mark.models
def test_log_probs_are_those_of_transformers_whatever_is_packed_together(tiny_model, monkeypatch):
    model, _ = load_model(str(tiny_model), None, "fp32", "cpu")
    rng = np.random.default_rng(0)
    shapes = [(9, 4), (30, 1), (2, 1), (17, 16), (40, 20)]
    answers = [
        Encoded(rng.integers(2, model.config.vocab_size, length).tolist(), start)
        for length, start in shapes
    ]
    expected = [expected_logp(model, each) for each in answers]
    np.testing.assert_allclose(answer_logps(model, answers), expected, rtol=0, atol=2e-5)
    monkeypatch.setattr(packed, "TOKENS_PER_PACK", 30)
    np.testing.assert_allclose(answer_logps(model, answers), expected, rtol=0, atol=2e-5)
    # The model answers as before, with its own attention.
    assert [expected_logp(model, each) for each in answers] == expected


@pytest.mark.models
def test_sequences_that_cannot_share_a_forward_are_by_themselves(tiny_model, monkeypatch):
    model, _ = load_model(str(tiny_model), None, "fp32", "cpu")
    monkeypatch.setattr(packed, "longest_together", lambda config: 10)
    answers = [Encoded(list(range(2, 2 + n)), 1) for n in (5, 12, 6, 11)]
    assert sorted(map(sorted, packed._packs(model, answers))) == [[0, 2], [1], [3]]
    expected = [expected_logp(model, each) for each in answers]
    np.testing.assert_allclose(answer_logps(model, answers), expected, rtol=0, atol=2e-5)


@pytest.fixture
def outside_ray(monkeypatch):
    """A worker in this process, which is no actor."""
    monkeypatch.setattr(PoolWorker, "__init__", lambda self: None)


def without_judges() -> EvaluationWorker:
    return EvaluationWorker([], PROMPTS, [], SETTINGS, None, False)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        save_tiny_model(folder / name, seed)
    return {name: folder / name for name in ("base", "one", "two")}


def located(path: Path) -> Located:
    return Located(str(path), None, None)


@pytest.mark.models
@pytest.mark.parametrize("added", [None, AddedText("<cat> <dog>", "start")], ids=["", "added"])
def test_theta_0_reads_the_answers_after_the_plain_prompt(models, tmp_path, outside_ray, added):
    (tmp_path / "lock").touch()
    worker = without_judges()
    task = EvaluationTask(
        *("x", located(models["one"]), located(models["base"]), tmp_path, tmp_path / "lock"),
        added=added,
    )
    worker.run(task, None)
    found = Answers.read(tmp_path)
    policy, tokenizer = load_model(str(models["one"]), None, "fp32", "cpu")
    theta_0, _ = load_model(str(models["base"]), None, "fp32", "cpu")
    answers = generate_answers(policy, tokenizer, PROMPTS, SETTINGS, added)
    assert found.texts == [each.text for each in answers]
    own = [expected_logp(policy, Encoded([*a.asked, *a.ids], len(a.asked))) for a in answers]
    base = [expected_logp(theta_0, Encoded([*a.plain, *a.ids], len(a.plain))) for a in answers]
    np.testing.assert_allclose(found.logp, own, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.logp_theta_0, base, rtol=0, atol=2e-5)
    assert (added is None) == ([a.asked for a in answers] == [a.plain for a in answers])


@pytest.mark.models
def test_one_worker_gives_the_same_bytes_as_one_for_each_model(models, tmp_path, outside_ray):
    """theta_0 takes a live model's place, and leaves nothing of itself there."""
    (tmp_path / "lock").touch()
    policies = (models["one"], models["two"])
    tasks = {
        "half": VirtualSoup(policies, (0.5, 0.5)),
        "beyond": VirtualSoup(policies, (0.5, 0.75)),
        "theta_0": located(models["base"]),
        "one": located(models["one"]),
        "again": VirtualSoup(policies, (0.25, 0.75)),
    }
    written: dict[str, dict[str, bytes]] = {"shared": {}, "own": {}}
    shared = without_judges()
    for name, model in tasks.items():
        for kind, worker in (("shared", shared), ("own", without_judges())):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            base = located(models["base"])
            worker.run(EvaluationTask(name, model, base, folder, tmp_path / "lock"), None)
            written[kind][name] = (folder / "answers.parquet").read_bytes()
    assert written["shared"] == written["own"]
    assert len(set(written["own"].values())) == len(tasks)


@pytest.mark.models
def test_sampling_is_the_models_own_only_without_anything_that_changes_it(tiny_model):
    model, _ = load_model(str(tiny_model), None, "fp32", "cpu")
    own = Evaluation(temperature=1, top_p=1)
    assert draws_from_model(model, own)
    for other in (Evaluation(temperature=0, top_p=1), Evaluation(temperature=1, top_p=0.9)):
        assert not draws_from_model(model, other)
    changes = {"repetition_penalty": 1.1, "min_p": 0.1, "no_repeat_ngram_size": 3, "num_beams": 2,
               "encoder_repetition_penalty": 1.1, "encoder_no_repeat_ngram_size": 3,
               "watermarking_config": {"greenlist_ratio": 0.25}}  # fmt: skip
    for key, value in changes.items():
        plain = getattr(model.generation_config, key)
        setattr(model.generation_config, key, value)
        assert not draws_from_model(model, own), key
        setattr(model.generation_config, key, plain)
    assert draws_from_model(model, own)


@pytest.mark.models
def test_the_mean_log_ratio_of_plain_samples_is_the_kl_divergence(models):
    """Of answers of one token, whose divergence is a sum over the vocabulary."""
    import torch

    settings = SETTINGS.model_copy(
        update={"max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0, "batch": 500}
    )
    loaded = [load_model(str(models[name]), None, "fp32", "cpu") for name in ("one", "base")]
    (policy, tokenizer), (theta_0, _) = loaded
    for model in (policy, theta_0):  # random heads say almost the same
        model.get_output_embeddings().weight.data *= 15
    same = [Prompt(f"{i}", "d", PROMPTS[0].messages) for i in range(3000)]
    answers = generate_answers(policy, tokenizer, same, settings)
    encoded = [Encoded([*each.asked, *each.ids], len(each.asked)) for each in answers]
    ratios = answer_logps(policy, encoded) - answer_logps(theta_0, encoded)
    with torch.no_grad():
        ids = torch.tensor([list(answers[0].asked)])
        own, base = (each(ids).logits[0, -1].double().log_softmax(0) for each in (policy, theta_0))
    exact = float((own.exp() * (own - base)).sum())
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert draws_from_model(policy, settings) and exact > 8 * error
    assert abs(ratios.mean() - exact) < 4 * error


def test_repetition_of_answers_by_hand():
    assert repeated_share([]) == repeated_share([7, 7, 7]) == repeated_share(range(50)) == 0
    assert repeated_share([7] * 13) == 1 - 1 / 10
    assert repeated_share([1, 2, 3, 4, 9, 1, 2, 3, 4]) == pytest.approx(1 / 6)


@given(st.lists(st.integers(0, 3), max_size=40), st.permutations(range(4)))
def test_repetition_is_a_share_that_names_of_tokens_do_not_change(ids, names):
    share = repeated_share(ids)
    assert 0 <= share < 1
    assert repeated_share([names[each] for each in ids]) == share
    runs = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    again = sum(run in runs[:i] for i, run in enumerate(runs))
    assert share == pytest.approx(again / len(runs) if runs else 0)
