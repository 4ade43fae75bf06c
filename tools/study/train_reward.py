#!/usr/bin/env python
"""Train one reward of the study on one fold, with TRL's RewardTrainer.

    python tools/study/train_reward.py --pairs study/folds/helpful_0.jsonl --model tiny-chat \\
        --seed 0 --out study/rewards/helpful_0

A sequence classifier with one output over the chat template, which `reward: {classifier: ...}` of a
recipe reads. The same bytes each time on the same versions and one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

MAX_LENGTH = 768  # tokens; longer pairs are left out
PAIRS_PER_STEP = 16
PAIRS_AT_ONCE = 4
PAIRS_SORTED = 128

Row = dict[str, list[dict[str, str]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=Path, required=True, help="JSON Lines of TRL's conversations"
    )
    parser.add_argument("--model", required=True, help="the chat model that the reward starts from")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    options = parser.parse_args()
    if (options.out / "config.json").exists():
        return
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)  # of the new head
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as aside:
        trainer = RewardTrainer(
            model=model,
            args=_config(options, aside),
            train_dataset=Dataset.from_list(_passes(options, tokenizer)),
            processing_class=tokenizer,
        )
        trainer.train()
        whole = Path(aside) / "whole"
        trainer.save_model(str(whole))
        tokenizer.save_pretrained(whole)
        (whole / "training_args.bin").unlink(missing_ok=True)
        shutil.move(whole, options.out)


def _rows(path: Path) -> list[Row]:
    """Whole conversations: TRL takes what chosen and rejected share as the prompt."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in rows]


def _passes(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The pairs of all passes in the order of training: those at once are of nearly one length, so
    that little is padding, and in random order otherwise."""
    draw = random.Random(options.seed)
    rows = []
    for row in _rows(options.pairs):
        tokens = [len(tokenizer.apply_chat_template(each)["input_ids"]) for each in row.values()]
        if max(tokens) <= MAX_LENGTH:
            rows.append((max(tokens), row))
    ordered: list[Row] = []
    for _ in range(options.passes):
        draw.shuffle(rows)
        alike = []
        for first in range(0, len(rows), PAIRS_SORTED):
            near = sorted(rows[first : first + PAIRS_SORTED], key=lambda each: each[0])
            some = [row for _, row in near]
            alike += [some[i : i + PAIRS_AT_ONCE] for i in range(0, len(some), PAIRS_AT_ONCE)]
        draw.shuffle(alike)
        ordered += [row for group in alike for row in group]
    return ordered


def _config(options: argparse.Namespace, folder: str) -> RewardConfig:
    return RewardConfig(
        output_dir=folder,
        seed=options.seed,
        num_train_epochs=1,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        per_device_train_batch_size=PAIRS_AT_ONCE,
        gradient_accumulation_steps=PAIRS_PER_STEP // PAIRS_AT_ONCE,
        max_length=MAX_LENGTH,
        train_sampling_strategy="sequential",
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        logging_steps=20,
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
