"""Answers of a model to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.forward.end_tokens import end_tokens
from vcsoup_dist.forward.template import RefusedByTemplate, encode_prompt
from vcsoup_dist.in_context.prompts import AddedText
from vcsoup_dist.recipe import Evaluation
from vcsoup_dist.training.base_checks.lengths import check_answer_lengths, context_length

PLAIN: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (None, 1)),
    **dict.fromkeys(("typical_p", "guidance_scale", "num_beams"), (None, 1)),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff"), (None, 0)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (None, 0)),
    **dict.fromkeys(("min_length", "min_new_tokens", "token_healing"), (None, 0)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), (None, [])),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "sequence_bias"), (None,)),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config"), (None,)),
    "dola_layers": (None,),
}
"""Keys of a generation config that change the probabilities of tokens -> what does not."""


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    prompt: Prompt
    text: str
    ids: Sequence[int]
    """Generated tokens, the end token included."""
    finished: bool
    """Whether it ended by itself, within the limit."""
    asked: Sequence[int]
    """The prompt's tokens as the model read them."""
    plain: Sequence[int]
    """The same without what was added to the prompt for this model."""

    @property
    def tokens(self) -> int:
        """Generated tokens, the end token included."""
        return len(self.ids)


def load_model(source: str, revision: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """A causal model and its tokenizer, ready to generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision,
        dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
        # All GPUs that the actor was given: a large soup may need several.
        device_map="auto" if device == "cuda" else None,
    )
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    return model.eval(), tokenizer


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    added: AddedText | None = None,
) -> list[Answer]:
    """One answer per prompt, in the order of the prompts.

    Over-long prompts are left out, and those that the chat template does not take: the same ones
    whatever is `added` to them, so that all models answer the same prompts.

    Batches are cut from the prompts sorted by length, and each is seeded by its number, so the
    same model and prompts give the same answers.
    """
    context = context_length(model.config)
    if context is not None:
        check_answer_lengths(context, settings, model.config.name_or_path)
    encoded = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    fitting = [i for i, ids in enumerate(encoded) if 0 < len(ids) <= settings.max_prompt_tokens]
    if not fitting:
        if not any(encoded):  # with the template's own reason
            encode_prompt(tokenizer, prompts[0].messages)
        raise UserError("evaluation.max_prompt_tokens: every held-out prompt is longer")
    fitting.sort(key=lambda i: (len(encoded[i]), i))
    plain = list(encoded)
    if added is not None:
        for i in fitting:
            encoded[i] = encode_prompt(tokenizer, added.to(prompts[i].messages))
        _check_room(context, max(len(encoded[i]) for i in fitting), settings)
    answers: dict[int, Answer] = {}
    for start in range(0, len(fitting), settings.batch):
        batch = fitting[start : start + settings.batch]
        torch.manual_seed(settings.seed + start)
        outputs = _generate(model, tokenizer, [encoded[i] for i in batch], settings)
        for i, (ids, finished) in zip(batch, outputs, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            answers[i] = Answer(prompts[i], text, ids, finished, encoded[i], plain[i])
    return [answers[i] for i in sorted(answers)]


def draws_from_model(model: Any, settings: Evaluation) -> bool:
    """Whether `generate_answers` draws every token from the model's own probabilities.

    That is at temperature 1 and top_p 1, and where the model's generation config changes none.
    """
    config = model.generation_config
    changed = [name for name, plain in PLAIN.items() if getattr(config, name, None) not in plain]
    return settings.temperature == 1 and settings.top_p == 1 and not changed


def _check_room(context: int | None, longest: int, settings: Evaluation) -> None:
    """UserError where a prompt of `longest` tokens leaves too few positions for an answer."""
    if context is not None and longest + settings.max_new_tokens > context:
        excess = longest + settings.max_new_tokens - context
        raise UserError(
            f"evaluation.max_prompt_tokens: with the scores in it, the longest prompt and "
            f"evaluation.max_new_tokens: {settings.max_new_tokens} are {excess} more than the "
            f"{context} positions of the model; lower evaluation.max_prompt_tokens"
        )


def _prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Tokens of a prompt; none where the chat template does not take it."""
    try:
        return encode_prompt(tokenizer, prompt.messages)
    except RefusedByTemplate:
        return []


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], settings: Evaluation
) -> list[tuple[list[int], bool]]:
    """Generated ids of each prompt up to and with its end token, and whether there was one."""
    ends = end_tokens(tokenizer, model.generation_config)
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else next(iter(ends), 0)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(each)) + list(each) for each in prompts])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
    sampling = (
        {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,
        }
        if settings.temperature > 0
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    with torch.inference_mode():
        outputs = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends or None,
            **sampling,
        )
    results = []
    for row in outputs[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        results.append((row, False) if end is None else (row[: end + 1], True))
    return results
