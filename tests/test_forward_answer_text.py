"""Whether an answer's text is in its tokens: templates that lose it, tokenizers that change it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vcsoup_dist.forward.answer_text import kept_answer
from vcsoup_dist.forward.template import encode_answer, encode_prompt

PROMPT = [{"role": "user", "content": "Say yes, or say no."}]
HEAD = "{% for m in messages %}<|{{ m.role }}|>"
TAIL = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
CORPUS = ["Say yes, or say no.", "<think>why</think>", "an answer of several words", "42 + 1 = 43"]
KEEPING = {
    "as it is": "{{ m.content }}",
    "trimmed": "{{ m.content | trim }}",
    "a space before": " {{ m.content }}",
    "reasoning taken apart and put together": (
        "{% if '</think>' in m.content %}{% set parts = m.content.split('</think>') %}"
        "{{ parts[0] }}</think>\n\n{{ parts[1] }}{% else %}{{ m.content }}{% endif %}"
    ),
}
LOSING = {
    "all up to </think>": "{{ m.content.split('</think>')[-1] }}",
    "what is long": "{{ m.content[:9] }}",
    "its start": "{{ m.content[3:] }}",
    "escaped": "{{ m.content | e }}",
    "replaced": "{{ m.content | replace('w', 'v') }}",
    "the last message": "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}",
    "the case": "{{ m.content | upper }}",
}
ANSWER = "<think>why & how</think>\n\nan answer of several words, or say no."


def with_template(tokenizer: Tokenizer, content: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = HEAD + content + TAIL
    return fast


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer


def word_pieces() -> Tokenizer:
    """As BERT's: lower case, no accents, unknown characters."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's and XLM-R's: NFKC, a space before the first word, unknown characters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's: a space before the first word, unknown characters as their bytes."""
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    letters = sorted({*"".join(CORPUS).replace(" ", "▁"), "▁"})
    special = ["<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, *pieces, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


TOKENIZERS = {
    "byte-level": byte_level(),
    "word pieces": word_pieces(),
    "unigram": unigram(),
    "byte fallback": byte_fallback(),
}


def is_kept(tokenizer: PreTrainedTokenizerFast, answer: str) -> bool:
    encoded = encode_answer(tokenizer, PROMPT, encode_prompt(tokenizer, PROMPT), answer)
    return kept_answer(tokenizer, encoded.ids, encoded.start, answer)


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("content", KEEPING.values(), ids=KEEPING)
@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        "yes",
        "  Ça coûte ½ €, ﬁne\u00a0! ",
        "日本語 and 🙂🙂",
        "A\u0301 combining start",
        "\n\n42 + 1 = 43\n",
        "İstanbul ΑΣ ß",
        "an <|end|> in it",
    ],
)
def test_changes_by_the_tokenizer_itself_do_not_count_as_dropped(tokenizer, content, answer):
    assert is_kept(with_template(tokenizer, content), answer)


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=[pytest.mark.processes] if each == "replaced" else [])
        for each in LOSING
    ],
)
def test_dropped_text_is_found(tokenizer, name):
    kept = is_kept(with_template(tokenizer, LOSING[name]), ANSWER)
    # A tokenizer without case reads the same text.
    assert kept == (name == "the case" and tokenizer is TOKENIZERS["word pieces"])


def test_an_answer_that_only_the_prompt_quotes_is_lost():
    tokenizer = with_template(byte_level(), LOSING["the last message"])
    assert not is_kept(tokenizer, "yes")


def test_an_answer_may_begin_with_what_the_generation_prompt_ends_with():
    tokenizer = with_template(byte_level(), "{{ m.content }}")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|assistant|>{% endif", "<|assistant|><think>{% endif"
    )
    prompt_ids = encode_prompt(tokenizer, PROMPT)
    encoded = encode_answer(tokenizer, PROMPT, prompt_ids, ANSWER)
    assert "<think>" not in tokenizer.decode(encoded.ids[encoded.start :])
    assert kept_answer(tokenizer, encoded.ids, encoded.start, ANSWER)
