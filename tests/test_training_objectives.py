"""Objectives against TRL's trainers on a real model, and against numpy in float64."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import save_tiny_model, write_pairs

from vcsoup_dist.forward.answers import AnswerLogps, pack_answers, sum_per_sequence
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.objectives import OBJECTIVES, PairLogps, dpo

pytestmark = pytest.mark.models

PAIRS = 8

Batch = dict[str, torch.Tensor]
Gradients = dict[str, torch.Tensor]


@dataclass
class Models:
    """Folders of two different models, and preference pairs of their tokenizer."""

    policy: Path
    reference: Path
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"objectives-{seed}")
        save_tiny_model(folder, seed)
        # Fresh weights are nearly uniform; stronger ones spread the ratios of pi to ref.
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        for parameter in model.parameters():
            parameter.data += 0.08 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        folders.append(folder)
    write_pairs(folders[0] / "pairs.jsonl", PAIRS)
    texts = [json.loads(line) for line in (folders[0] / "pairs.jsonl").read_text().splitlines()]
    rows = [
        {
            "prompt": [{"role": "user", "content": each["prompt"]}],
            "chosen": [{"role": "assistant", "content": each["chosen"]}],
            "rejected": [{"role": "assistant", "content": each["rejected"]}],
        }
        for each in texts
    ]
    return Models(*folders, rows)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trainer_arguments(folder: Path) -> dict[str, Any]:
    return dict(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=PAIRS,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )


@pytest.fixture(scope="module")
def dpo_trainer(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=load(models.policy),
        ref_model=load(models.reference),
        args=DPOConfig(**trainer_arguments(tmp_path_factory.mktemp("dpo"))),
        train_dataset=Dataset.from_list(models.rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(models.policy),
    )


@pytest.fixture(scope="module")
def cpo_trainer(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(
        model=load(models.policy),
        args=CPOConfig(
            **trainer_arguments(tmp_path_factory.mktemp("cpo")),
            loss_type="simpo",
            cpo_alpha=0.0,
            max_length=256,
        ),
        train_dataset=Dataset.from_list(models.rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(models.policy),
    )


@pytest.fixture(scope="module")
def batch(dpo_trainer: Any) -> Batch:
    """TRL's own tokens of all pairs: rows [chosen, rejected], padded on the right."""
    (only,) = dpo_trainer.get_train_dataloader()
    assert len(only["input_ids"]) == 2 * PAIRS
    return dict(only)


@pytest.fixture(scope="module")
def policy(models: Models) -> AnswerLogps:
    return packed_model(models.policy)


@pytest.fixture(scope="module")
def reference(models: Models) -> AnswerLogps:
    return packed_model(models.reference)


def packed_model(folder: Path) -> AnswerLogps:
    model = load(folder)
    model.set_attn_implementation(choose_attention("auto", "cpu", torch.float32))
    return AnswerLogps(model)


def one_pair(batch: Batch, pair: int) -> Batch:
    """That pair's two rows, with the padding of the whole batch."""
    return {key: value[[pair, len(value) // 2 + pair]] for key, value in batch.items()}


def unpadded(batch: Batch) -> list[Encoded]:
    keys = ("input_ids", "attention_mask", "completion_mask")
    rows = zip(*(batch[key] for key in keys), strict=True)
    return [
        Encoded(ids[: int(seen.sum())].tolist(), int(seen.sum() - answer.sum()))
        for ids, seen, answer in rows
    ]


def pair_logps(policy: AnswerLogps, reference: AnswerLogps, encoded: list[Encoded]) -> PairLogps:
    """Of conversations [chosen, rejected]; only the policy's carry gradients."""
    answers = pack_answers(encoded)
    chosen, rejected = sum_per_sequence(policy(answers), answers, len(encoded)).chunk(2)
    with torch.no_grad():
        of_reference = sum_per_sequence(reference(answers), answers, len(encoded)).chunk(2)
    lengths = torch.tensor([float(each.answer_length) for each in encoded])
    return PairLogps(chosen, rejected, *of_reference, *lengths.chunk(2))


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> Gradients:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def trl_loss(
    trainer: Any, batch: Batch, training: Training, losses: dict[str, float]
) -> tuple[torch.Tensor, Gradients]:
    """Value and gradients of TRL's weighted sum of losses, by its trainer's own code."""
    trainer.beta = training.beta
    trainer.label_smoothing = training.label_smoothing
    trainer.loss_types, trainer.loss_weights = list(losses), list(losses.values())
    loss = trainer._compute_loss(trainer.model, batch, False)
    return loss.detach(), gradients(loss, trainer.model)


def assert_equal_losses(
    ours: torch.Tensor, policy: AnswerLogps, expected: tuple[torch.Tensor, Gradients]
) -> None:
    value, slopes = expected
    torch.testing.assert_close(ours.detach().float(), value, atol=1e-5, rtol=1e-5)
    found = gradients(ours, policy.model)
    assert found.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(
            found[name], slope, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("trl_type", "training"),
    [
        ("sigmoid", Training(objective="dpo", beta=0.1)),
        ("sigmoid", Training(objective="dpo", beta=0.7)),
        ("hinge", Training(objective="hinge", beta=0.4)),
        ("ipo", Training(objective="ipo", beta=0.3)),
        ("robust", Training(objective="robust", beta=0.2, label_smoothing=0.1)),
        ("robust", Training(objective="robust", beta=0.5, label_smoothing=0.4)),
    ],
    ids=lambda each: each if isinstance(each, str) else f"{each.beta}, {each.label_smoothing}",
)
def test_an_objective_equals_trls_in_value_and_gradient(
    trl_type, training, dpo_trainer, batch, policy, reference
):
    pairs = pair_logps(policy, reference, unpadded(batch))
    ours = OBJECTIVES[training.objective].loss(pairs, training)
    assert ours.shape == (PAIRS,)
    assert_equal_losses(
        ours.mean(), policy, trl_loss(dpo_trainer, batch, training, {trl_type: 1.0})
    )


def test_the_pairs_that_are_compared_lie_on_both_sides_of_the_hinge(batch, policy, reference):
    pairs = pair_logps(policy, reference, unpadded(batch))
    losses = OBJECTIVES["hinge"].loss(pairs, Training(beta=0.4))
    assert 0 < (losses == 0).sum() < PAIRS
    assert (pairs.ratio_chosen - pairs.ratio_rejected).abs().min() > 0.05
    assert len(set(pairs.chosen_tokens.tolist())) > 2


@pytest.mark.parametrize("pair", range(3))
def test_smoothed_dpo_equals_trls_aot_of_one_pair_which_is_cdpo(
    pair, dpo_trainer, batch, policy, reference
):
    """AOT sorts over the batch; of one pair there is nothing to sort."""
    training = Training(objective="dpo", beta=0.3, label_smoothing=0.2)
    one = one_pair(batch, pair)
    (ours,) = dpo(pair_logps(policy, reference, unpadded(one)), training)
    assert_equal_losses(ours, policy, trl_loss(dpo_trainer, one, training, {"aot": 1.0}))


@pytest.mark.parametrize("objective", ["dpo", "ipo", "hinge"])
def test_an_added_likelihood_per_token_equals_trls_weighted_sum(
    objective, dpo_trainer, batch, policy, reference
):
    training = Training(objective=objective, beta=0.3, sft_weight=0.7)
    pairs = pair_logps(policy, reference, unpadded(batch))
    likelihood = OBJECTIVES["sft"].loss(pairs, training).sum() / pairs.chosen_tokens.sum()
    ours = OBJECTIVES[objective].loss(pairs, training).mean() + training.sft_weight * likelihood
    trl_type = {"dpo": "sigmoid"}.get(objective, objective)
    losses = {trl_type: 1.0, "sft": training.sft_weight}
    assert_equal_losses(ours, policy, trl_loss(dpo_trainer, batch, training, losses))


def test_sft_over_the_chosen_tokens_equals_trls(dpo_trainer, batch, policy, reference):
    training = Training(objective="sft")
    pairs = pair_logps(policy, reference, unpadded(batch))
    ours = OBJECTIVES["sft"].loss(pairs, training).sum() / pairs.chosen_tokens.sum()
    assert_equal_losses(ours, policy, trl_loss(dpo_trainer, batch, training, {"sft": 1.0}))


@pytest.mark.parametrize(("beta", "margin"), [(2.0, 1.0), (0.1, 0.5), (2.5, 0.0)])
def test_simpo_equals_trls_in_value_and_gradient(
    beta, margin, cpo_trainer, batch, policy, reference
):
    training = Training(objective="simpo", beta=beta, simpo_margin=margin)
    (padded,) = cpo_trainer.get_train_dataloader()
    cpo_trainer.beta, cpo_trainer.simpo_gamma = beta, margin
    loss, _ = cpo_trainer.get_batch_loss_metrics(cpo_trainer.model, padded)
    expected = loss.detach(), gradients(loss, cpo_trainer.model)

    encoded = [
        Encoded(ids[seen.bool()].tolist(), int(((labels == -100) & seen.bool()).sum()))
        for side in ("chosen", "rejected")
        for ids, seen, labels in zip(
            *(padded[f"{side}_{key}"] for key in ("input_ids", "attention_mask", "labels")),
            strict=True,
        )
    ]
    # Both trainers read the same text in the same tokens, only their order may differ.
    assert sorted(each.ids for each in encoded) == sorted(each.ids for each in unpadded(batch))
    ours = OBJECTIVES["simpo"].loss(pair_logps(policy, reference, encoded), training)
    assert_equal_losses(ours.mean(), policy, expected)


def test_simpo_and_sft_need_no_reference(batch, policy, reference):
    pairs = pair_logps(policy, reference, unpadded(batch))
    zeros = torch.zeros(PAIRS)
    without = replace(pairs, reference_chosen=zeros, reference_rejected=zeros)
    changed = {
        name
        for name, objective in OBJECTIVES.items()
        if not torch.equal(objective.loss(pairs, Training()), objective.loss(without, Training()))
    }
    assert changed == {"dpo", "robust", "hinge", "ipo"}


@pytest.fixture(scope="module")
def together_and_alone(
    batch: Batch, policy: AnswerLogps, reference: AnswerLogps
) -> tuple[PairLogps, list[PairLogps]]:
    with torch.no_grad():
        alone = [pair_logps(policy, reference, unpadded(one_pair(batch, i))) for i in range(PAIRS)]
        return pair_logps(policy, reference, unpadded(batch)), alone


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_pairs_loss_does_not_depend_on_what_it_is_packed_with(objective, together_and_alone):
    training = Training(beta=0.3, label_smoothing=0.1)
    together, alone = together_and_alone
    expected = torch.cat([OBJECTIVES[objective].loss(each, training) for each in alone])
    torch.testing.assert_close(
        OBJECTIVES[objective].loss(together, training), expected, atol=1e-5, rtol=0
    )


def test_trls_loss_of_a_batch_with_more_padding_equals_ours(dpo_trainer, batch, policy, reference):
    training = Training(beta=0.3)
    pad = dpo_trainer.processing_class.pad_token_id
    wider = {
        key: torch.nn.functional.pad(value, (0, 17), value=pad if key == "input_ids" else 0)
        for key, value in batch.items()
    }
    assert unpadded(wider) == unpadded(batch)
    ours = dpo(pair_logps(policy, reference, unpadded(wider)), training).mean()
    assert_equal_losses(ours, policy, trl_loss(dpo_trainer, wider, training, {"sigmoid": 1.0}))


@pytest.mark.parametrize(
    ("objective", "start"),
    [("dpo", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0), ("ipo", 25.0)],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_where_the_policy_is_the_reference_the_loss_is_the_same_for_every_pair(
    objective, start, smoothing, batch, policy
):
    pairs = pair_logps(policy, policy, unpadded(batch))
    losses = OBJECTIVES[objective].loss(pairs, Training(beta=0.1, label_smoothing=smoothing))
    torch.testing.assert_close(
        losses, torch.full((PAIRS,), start, dtype=torch.float64), atol=1e-6, rtol=1e-6
    )
