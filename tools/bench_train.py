"""Measure our trainer against TRL's DPOTrainer, in turn, on the same pairs.

    python tools/bench_train.py --model MODEL --data pairs.jsonl --json train.json

trains MODEL on two CPU ranks under ZeRO-3; on one GPU, a random Llama with MODEL's tokenizer:

    python tools/bench_train.py --device cuda --model MODEL --llama 1B --data pairs.jsonl \\
        --pairs-per-step 64 --max-length 2048 --learning-rate 5e-7 --json train-1b.json

Everyone gets the same weights, token ids, pairs in every step, learning rates, dtype, ranks,
DeepSpeed configuration and attention as fast as it has; dropout is off and nothing but losses is
logged. First every contestant's batch size is tried for a few steps, and the fastest kept. Needs
TRL beside the project:

    pip install trl==1.16.0

A Markdown summary goes to the standard output, every round and every step to the JSON file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import git_state, hardware
from train_contestants import (
    CONTESTANTS,
    LLAMAS,
    WARM,
    Batch,
    Contestant,
    Failed,
    Measurement,
    World,
    make_llama,
    remove,
    trl_attention,
)

from vcsoup_dist.recipe import Launch, Training

COLUMNS = """\
contestants:
  ours             reference log-probs by the reference stage, then training
  ours-reweighted  the same pairs, each with a label, a margin and a weight of its own; its losses
                   are others
  trl              DPOTrainer as it is: the reference model runs in every step
  trl-precomputed  DPOTrainer with precompute_ref_log_probs
  trl-sorted       the same, fed with each step's pairs in order of length, so that it pads least;
                   TRL itself has no such option that keeps a step's pairs
  trl-kernels      trl-precomputed with use_kernels, the successor of use_liger_kernel; needs the
                   package kernels, and downloads them from the hub

columns:
  s/step            between the ends of two steps on rank 0; mean over all steps but the first two,
                    median over rounds
  pairs/s           pairs per step / that
  tokens/s          tokens of prompt and answer, both sides, without padding: the same count for
                    everyone, whatever is really computed
  reference s       to compute the reference log-probs of all pairs beforehand, without start-up;
                    ours with tokenising, TRL's without
  s/step with it    s/step + reference s for the pairs of a step: one pass over the data
  / ours            how many times as long as ours
  computed          tokens that the policy's forward gets, padding included, per token counted in
                    tokens/s; a reference model in every step computes them once more
  peak GiB          of a rank up to its last step: the process (CPU), or allocated on its GPU
  MFU               ours as it reports it; the others' by the same count of operations
  loss differs by   largest difference to our loss in any step; with TRL's precomputed reference in
                    bf16 it is large from the first step on, since transformers' Trainer under
                    DeepSpeed rounds whatever floats a batch has to bf16, these log-probs too
  others' CPU       cores that the rest of the machine kept busy meanwhile
"""


Swept = dict[str, dict[int, tuple[float, float] | str]]
"""By contestant and batch size: s/step and reference s/step, or why it failed."""


def bench(args: argparse.Namespace) -> None:
    """Sweep, rounds, report."""
    training = Training(
        dtype=args.dtype,
        learning_rate=args.learning_rate,
        beta=args.beta,
        pairs_per_step=args.pairs_per_step,
        steps=args.steps,
        max_length=args.max_length,
        overlong="drop",
        gradient_checkpointing=args.gradient_checkpointing,
        # Neither happens before the last step has been timed.
        checkpoint_every=args.steps,
        evaluate_every=args.steps,
    )
    launch = Launch(ranks=args.ranks, threads=args.threads)
    running = [each for each in CONTESTANTS if each.name in args.contestants]
    with tempfile.TemporaryDirectory(prefix="bench-train-", dir=args.work) as scratch:
        root = Path(scratch)
        model = args.model.resolve()
        if args.llama:
            model = make_llama(args.llama, model, root / "model", args.vocabulary, args.dtype)
        world = World(root, model, args.data, training, launch, args.device)
        facts = _facts(args, world)
        print(facts["what"], file=sys.stderr)
        settings, swept = sweep(world, running, args)
        rounds: dict[str, list[Measurement]] = {each.name: [] for each in running}
        failures: dict[str, str] = {}
        for number in range(args.rounds):
            first = number % len(running)
            for each in (*running[first:], *running[:first]):
                if each.name in failures:
                    continue
                try:
                    measured = _run(world, each, settings[each.name], root / "run")
                except Failed as failure:
                    print(f"{each.name}: {failure}", file=sys.stderr)
                    failures[each.name] = failure.reason
                    del rounds[each.name]
                    continue
                rounds[each.name].append(measured)
                _say(f"round {number + 1}", each, settings[each.name], measured)
    report = facts | {
        "settings": {name: asdict(batch) for name, batch in settings.items()},
        "sweep": swept,
        "rounds": {
            name: [asdict(each) | {"seconds_per_step": each.seconds_per_step} for each in taken]
            for name, taken in rounds.items()
        },
        "failures": failures,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(world, facts, settings, swept, rounds), end="")
    for name, reason in failures.items():
        print(f"- {name} failed: {reason}")


def sweep(
    world: World, running: Sequence[Contestant], args: argparse.Namespace
) -> tuple[dict[str, Batch], Swept]:
    """Each contestant's fastest batch sizes, and what was tried."""
    fastest = {name: Batch(size, size) for name, size in args.settings.items()}
    swept: Swept = {}
    per_rank = args.pairs_per_step // args.ranks
    for each in running:
        if each.name in fastest:
            continue
        tried: dict[int, Measurement] = {}
        swept[each.name] = {}
        for size in args.token_budgets if each.ours else args.micro_batches:
            if not each.ours and per_rank % size:
                continue
            batch = Batch(size, size)
            try:
                measured = _run(world, each, batch, world.root / "sweep", args.sweep_steps)
            except Failed as failure:
                print(f"sweep {each.name} {size}: {failure}", file=sys.stderr)
                swept[each.name][size] = failure.reason
                continue
            tried[size] = measured
            swept[each.name][size] = (
                measured.seconds_per_step,
                measured.reference_seconds_per_pair * args.pairs_per_step,
            )
            _say("sweep", each, batch, measured)
        if not tried:
            raise SystemExit(f"{each.name}: no batch size works: {swept[each.name]}")
        fastest[each.name] = Batch(
            min(tried, key=lambda size: tried[size].seconds_per_step),
            min(tried, key=lambda size: tried[size].reference_seconds_per_pair),
        )
    return fastest, swept


def _run(
    world: World, contestant: Contestant, batch: Batch, out: Path, steps: int | None = None
) -> Measurement:
    try:
        if contestant.ours:
            return world.ours(out, contestant, batch, steps)
        return world.trl(out, contestant, batch, steps)
    finally:
        remove(out)


def _say(when: str, contestant: Contestant, batch: Batch, measured: Measurement) -> None:
    print(
        f"{when} {contestant.name} {batch.training}: {measured.seconds_per_step:.3f} s/step, "
        f"reference {measured.reference_seconds:.1f} s, {measured.peak_memory_gib:.2f} GiB, others "
        f"used {measured.others_cpu_s / measured.launches_seconds:.1f} cores",
        file=sys.stderr,
        flush=True,
    )


# The report.


def markdown(
    world: World,
    facts: dict[str, Any],
    settings: dict[str, Batch],
    swept: Swept,
    rounds: dict[str, list[Measurement]],
) -> str:
    """Tables of medians, of the sweep and of the losses, and what was checked."""
    ours = rounds.get("ours")
    mfu = _middle(ours, "mfu") if ours and ours[0].mfu is not None else None
    names = ["contestant", "batch", "s/step", "pairs/s", "tokens/s", "/ ours", "reference s"]
    names += ["s/step with it", "/ ours", "computed", "peak GiB", *(["MFU"] if mfu else [])]
    names += ["loss differs by", "others' CPU"]
    lines = [
        f"{facts['what']}; median of {facts['rounds']} rounds; {facts['date']}; {facts['machine']}",
        "",
        _row(names),
        "| --- | ---: |" + " ---: |" * (len(names) - 2),
    ]
    seconds = {name: _middle(taken, "seconds_per_step") for name, taken in rounds.items()}
    both = {
        name: seconds[name]
        + _middle(taken, "reference_seconds_per_pair") * world.training.pairs_per_step
        for name, taken in rounds.items()
    }
    by_name = {each.name: each for each in CONTESTANTS}
    for name, taken in rounds.items():
        others = sum(each.others_cpu_s for each in taken)
        share = others / sum(each.launches_seconds for each in taken)
        cells = [
            name,
            f"{settings[name].training} {'tokens' if by_name[name].ours else 'pairs'}",
            f"{seconds[name]:.3f}",
            f"{world.training.pairs_per_step / seconds[name]:.2f}",
            f"{world.tokens_per_timed_step() / seconds[name]:,.0f}",
            f"{seconds[name] / seconds['ours']:.2f}" if ours else "",
            f"{_middle(taken, 'reference_seconds'):.1f}",
            f"{both[name]:.3f}",
            f"{both[name] / both['ours']:.2f}" if ours else "",
            f"{world.computed_tokens(by_name[name], settings[name]):.2f}",
            f"{_middle(taken, 'peak_memory_gib'):.2f}",
            *([f"{mfu * seconds['ours'] / seconds[name]:.3f}"] if mfu else []),
            f"{_apart(taken, ours):.1e}" if ours and not by_name[name].ours else "",
            f"{share:.1f}",
        ]
        lines.append(_row(cells))
    lines += ["", *_sweep_table(swept), *_loss_table(rounds), *_checks(world, rounds)]
    return "\n".join(lines) + "\n"


def _sweep_table(swept: Swept) -> list[str]:
    if not swept:
        return []
    lines = ["Batch sizes tried (a rank's tokens for ours, its pairs for TRL), s/step", ""]
    lines[0] += " (and for the reference of a step's pairs, where it is computed beforehand):"
    for name, tried in swept.items():
        said = [
            f"{size}: {found}"
            if isinstance(found, str)
            else f"{size}: {found[0]:.3f}" + (f" ({found[1]:.1f})" if found[1] else "")
            for size, found in tried.items()
        ]
        lines.append(f"- {name}: " + ", ".join(said))
    return [*lines, ""]


def _loss_table(rounds: dict[str, list[Measurement]]) -> list[str]:
    lines = [_row(["step", *rounds]), "| ---: |" + " ---: |" * len(rounds)]
    curves = [taken[0].losses for taken in rounds.values()]
    for step, losses in enumerate(zip(*curves, strict=True)):
        lines.append(_row([str(step), *(f"{loss:.6f}" for loss in losses)]))
    return [*lines, ""]


def _checks(world: World, rounds: dict[str, list[Measurement]]) -> list[str]:
    """What must be the same for everyone, and whether it was."""
    lines = [
        f"- {len(world.pairs)} pairs; {world.passed_over} passed over: longer than max_length, or "
        "empty or the same on both sides.",
    ]
    expected = None
    for name, taken in rounds.items():
        rates = taken[0].learning_rates
        expected = expected or rates
        worst = max(abs(a - b) for a, b in zip(expected, rates, strict=True)) / max(expected)
        lines.append(
            f"- {name}: learning rates differ from the first contestant's by at most {worst:.0e}, "
            f"norms of the gradient in the first step {taken[0].grad_norms[0]:.6g}"
            + (
                ""
                if name.startswith("ours")
                else f"; token ids differ from ours in {taken[0].tokens_differ} pairs, an answer's "
                f"start in {taken[0].starts_differ}"
            )
            + "."
        )
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _middle(taken: Sequence[Measurement], quantity: str) -> float:
    return float(statistics.median(getattr(each, quantity) for each in taken))


def _apart(some: Sequence[Measurement], others: Sequence[Measurement]) -> float:
    return max(
        abs(a - b)
        for one, other in zip(some, others, strict=True)
        for a, b in zip(one.losses, other.losses, strict=True)
    )


def _facts(args: argparse.Namespace, world: World) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(world.model)
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    machine = hardware(args.work or Path(tempfile.gettempdir()))
    where = f"{machine['cpu']}, {machine['cores']} cores"
    if args.device == "cuda":
        where = f"{args.ranks} x {torch.cuda.get_device_name()}"
    lengths = world.lengths()
    names = ["torch", "transformers", "trl", "deepspeed", "accelerate", "flash_attn"]
    return {
        "what": f"DPO of {args.llama and f'Llama {args.llama} (random)' or args.model.name} "
        f"({parameters / 1e6:.1f} M parameters), {args.dtype}, ZeRO-3 on {args.ranks} ranks, "
        f"{args.pairs_per_step} pairs per step of {statistics.mean(lengths):.0f} tokens each on "
        f"average (both sides; longest {max(lengths)}), {args.steps} steps"
        + (", gradient checkpointing" if args.gradient_checkpointing else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": where,
        "rounds": args.rounds,
        "trl_attention": trl_attention(args.device, args.dtype),
        "tokens_per_pair": lengths,
        # Without the folders of this machine.
        "command": ["python", *(Path(w).name if "/" in w else w for w in sys.argv)],
        "hardware": machine,
        "versions": {
            "python": sys.version.split()[0],
            **{n: importlib.metadata.version(n) for n in names if importlib.util.find_spec(n)},
        },
        "git": git_state(),
    }


# The command line.


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _settings(text: str) -> dict[str, int]:
    return {name: int(size) for name, size in (part.split("=") for part in text.split(","))}


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=COLUMNS, formatter_class=as_written
    )
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--llama", choices=LLAMAS, help="random weights of this size instead")
    parser.add_argument(
        "--vocabulary", type=int, default=128256, help="of --llama, at least (default 128256)"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help=".jsonl or .parquet")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="default: bf16 on a GPU")
    parser.add_argument("--ranks", type=int, help="default: 2 on a CPU, 1 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of a rank (default 1)")
    parser.add_argument("--pairs-per-step", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="its peak")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--contestants",
        type=lambda names: names.split(","),
        default=["ours", "trl", "trl-precomputed", "trl-sorted"],
        help="default ours,trl,trl-precomputed,trl-sorted",
    )
    parser.add_argument("--token-budgets", type=_numbers, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--micro-batches", type=_numbers, default=[1, 2, 4, 8])
    parser.add_argument("--sweep-steps", type=int, default=5)
    parser.add_argument(
        "--settings", type=_settings, default={}, help="instead of a sweep, such as ours=4096,trl=2"
    )
    parser.add_argument("--work", type=Path, help="for files (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="every round")
    return parser


def main() -> None:
    """Read the command line and run."""
    parser = _parser()
    args = parser.parse_args()
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "fp32")
    args.ranks = args.ranks or (1 if args.device == "cuda" else 2)
    if unknown := {*args.contestants, *args.settings} - {each.name for each in CONTESTANTS}:
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    if args.pairs_per_step % args.ranks:
        parser.error("--pairs-per-step must be a multiple of --ranks, as TRL needs it")
    if min(args.steps, args.sweep_steps) <= WARM or args.sweep_steps > args.steps:
        parser.error(f"--steps and --sweep-steps must be more than {WARM}, the steps not timed")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    bench(args)


if __name__ == "__main__":
    main()
