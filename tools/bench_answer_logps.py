"""What log-probs of its own answers add to the evaluation of a candidate.

    python tools/bench_answer_logps.py --shape 125M --report answer_logps_bf16

Saves two random Llamas, a candidate and theta_0. Then it does what an evaluation worker does with a
written candidate, piece by piece: load it, answer, compute the log-probs under it, put theta_0 into
its place, compute them again. No reward takes part. Prints JSON, CPU seconds of one thread beside
wall seconds; `--report` writes it into docs/benchmarks too.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from bench_memory import SHAPES, WORDS, make_model
from measuring import git_state, hardware

REPORTS = Path(__file__).parents[1] / "docs" / "benchmarks"
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", default="125M", choices=SHAPES)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-words", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--report", help="name of a file in docs/benchmarks")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-answer-logps-") as root:
        folder = Path(root)
        for name in ("candidate", "theta_0"):
            make_model(folder / name, options.shape)
        found = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": sys.argv,
            "git": git_state(),
            "hardware": hardware(folder),
            **measured(folder, options),
        }
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if options.report:
        (REPORTS / f"{options.report}.json").write_text(text)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every piece, and how many tokens there were."""
    from vcsoup_dist.evaluation.answer_logps import answer_logps
    from vcsoup_dist.evaluation.generate import generate_answers, load_model
    from vcsoup_dist.evaluation.prompts import Prompt
    from vcsoup_dist.forward.template import Encoded
    from vcsoup_dist.recipe import Evaluation
    from vcsoup_dist.souping.virtual import load_soup

    draw = random.Random(0)
    prompts = [
        Prompt(f"{i}", "d", [{"role": "user", "content": " ".join(words)}])
        for i in range(options.prompts)
        for words in [draw.choices(WORDS, k=options.prompt_words)]
    ]
    settings = Evaluation(
        max_new_tokens=options.tokens, max_prompt_tokens=options.prompt_words + 16,
        dtype=options.dtype,
    )  # fmt: skip
    took: dict[str, dict[str, float]] = {}

    def timed(piece: str, work: Callable[[], T]) -> T:
        wall, cpu = time.monotonic(), time.process_time()
        result = work()
        took[piece] = {
            "wall_s": round(time.monotonic() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
        }
        return result

    candidate, theta_0 = (str(folder / name) for name in ("candidate", "theta_0"))
    model, tokenizer = timed("load", lambda: load_model(candidate, None, options.dtype, "cpu"))
    answers = timed("answer", lambda: generate_answers(model, tokenizer, prompts, settings))
    encoded = [Encoded([*each.asked, *each.ids], len(each.asked)) for each in answers]
    timed("log-probs under it", lambda: answer_logps(model, encoded))
    timed("theta_0 into its place", lambda: load_soup(model, [candidate], [0], theta_0))
    timed("log-probs under theta_0", lambda: answer_logps(model, encoded))
    before = took["load"]["cpu_s"] + took["answer"]["cpu_s"]
    total = sum(each["cpu_s"] for each in took.values())
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "prompt_tokens": sum(len(each.asked) for each in answers),
        "answer_tokens": sum(each.tokens for each in answers),
        "pieces": took,
        "added_share_of_cpu_s": round(total / before - 1, 4),
    }


if __name__ == "__main__":
    main()
