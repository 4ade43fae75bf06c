"""Measure the memory that training ranks take, against what `vcsoup check` estimates.

    python tools/bench_memory.py --json docs/benchmarks/training_memory/cpu.json

trains a random Llama of 125 million parameters on two CPU ranks, once by every configuration and
dtype, and by zero3 with and without gradient checkpointing on larger packs. On a CPU, "GPU memory"
and host memory are one: a process grows by its part of both estimates. What a
rank takes besides (Python, libraries, gloo) is measured by the same run with a model of next to
nothing, and subtracted. A Markdown summary goes to the standard output.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from job_files import select, write_pairs, write_token_file
from measuring import git_state, hardware

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.recipe import Launch, Training
from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config
from vcsoup_dist.training.job import Job, PolicyTask
from vcsoup_dist.training.memory import can_use_nvme, estimate_memory, model_size

GIB = 2**30
RANK = "vcsoup_dist.training.rank"
WORDS = [f"w{i}" for i in range(500)]
PAIRS_PER_RANK = 8
SHAPES = {
    "125M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32_000},
    "30M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
    | {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 8_000},
    "3M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1_000},
    "nothing": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 1_000},
}


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    config: str
    dtype: str
    tokens: int
    """Of a micro-batch."""
    checkpointing: bool


@dataclass(frozen=True)
class Measured:
    """One setting; GiB of rank 0."""

    setting: Setting
    peak_gib: float
    """The process's at the most, up to the last step."""
    bare_gib: float
    """With a model of next to nothing, by zero3 in the same dtype."""
    gpu_gib: float
    """Estimated for a rank's GPU."""
    host_gib: float
    """Estimated for the host, a rank's share."""
    activations_gib: float
    """What of `gpu_gib` is activations."""
    step_seconds: float
    """Median of all steps but the first."""
    cpu_seconds: float
    """Of all ranks together, start-up and saving included; other work hardly changes it."""

    @property
    def grown_gib(self) -> float:
        return self.peak_gib - self.bare_gib


def settings(args: argparse.Namespace) -> list[Setting]:
    """Every configuration and dtype on small packs; checkpointing on and off on large ones."""
    if args.configs:
        names = args.configs
    else:
        names = [file.stem for file in sorted(FOLDERS[0].glob("*.json"))]
        if not can_use_nvme():
            print("zero3_nvme: left out, async_io cannot be built here", file=sys.stderr)
            names.remove("zero3_nvme")
    small = [Setting(name, dtype, args.tokens, True) for dtype in args.dtypes for name in names]
    large = [Setting("zero3", "fp32", args.large_tokens, on) for on in (True, False)]
    # Large ones first, so that nothing is left out that only they show.
    return (large if args.large_tokens else []) + small


def make_model(folder: Path, shape: str) -> None:
    """A random Llama with a tokenizer of words and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<user>", "<bot>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<pad>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('<user> ' if m['role'] == 'user' else '<bot> ') }}"
        "{{ m['content'] + ' <end> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)


def draw_pairs(count: int, tokens: int) -> list[dict[str, Any]]:
    """Pairs of which each lays down `tokens` tokens in a pack, half of them the prompt."""
    draw = random.Random(0)
    words = tokens - 8  # the template's tokens: two of the prompt's, three of each answer
    prompt, answer = words // 2, words // 4

    def text(length: int) -> str:
        return " ".join(draw.choices(WORDS, k=length))

    return [
        {
            "id": f"{i:04d}",
            "prompt": [{"role": "user", "content": text(prompt)}],
            "chosen": text(answer),
            "rejected": text(answer),
        }
        for i in range(count)
    ]


def train(
    work: Path, model: Path, setting: Setting, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Of a real job: peak GiB of rank 0, seconds per step, CPU seconds of all ranks."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        root = Path(name)
        count = args.steps * PAIRS_PER_RANK * args.ranks
        write_pairs(root / "pairs", draw_pairs(count, setting.tokens // PAIRS_PER_RANK))
        training = training_of(setting, root, args)
        tokens = write_token_file(root / "pairs", root / "tokens", model, training)
        train, heldout = select(root, tokens)
        folders = {key: root / key for key in ("output", "scratch", "logs")}
        for folder in folders.values():
            folder.mkdir()
        (root / "lock").touch()
        task = PolicyTask(
            name="policy",
            tokens=[str(tokens.folder)],
            references=[],
            train=train,
            heldout=heldout,
            seed=0,
            unfiltered_pairs=count,
            workers_lock=str(root / "lock"),
            **{key: str(folder) for key, folder in folders.items()},
        )
        file = FOLDERS[0] / f"{setting.config}.json"
        launch = Launch(ranks=args.ranks, threads=args.threads)
        job = root / "job.json"
        Job(str(model), None, str(file), training, launch, [], task).write(job)
        metrics = root / "logs" / "metrics.jsonl"
        before = _cpu_seconds()
        try:
            run_ranks(RANK, job, args.ranks, args.threads, root / "ranks")
        except UserError as error:
            # What comes after the last step is not measured here.
            if not metrics.exists() or len(metrics.read_text().splitlines()) < args.steps:
                raise
            print(f"{setting}: after training: {error}", file=sys.stderr)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = statistics.median(line["step_seconds"] for line in lines[1:])
    return float(lines[-1]["peak_memory_gib"]), seconds, _cpu_seconds() - before


def _cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def training_of(setting: Setting, root: Path, args: argparse.Namespace) -> Training:
    """Without a reference, so that nothing but training has to run."""
    return Training(
        objective="simpo",
        dtype=setting.dtype,
        deepspeed=setting.config,
        nvme_path=str(root / "nvme"),
        gradient_checkpointing=setting.checkpointing,
        tokens_per_batch=setting.tokens,
        max_length=setting.tokens,
        pairs_per_step=PAIRS_PER_RANK * args.ranks,
        steps=args.steps,
        evaluate_every=args.steps,
        checkpoint_every=args.steps,
    )


def measure(
    work: Path, models: dict[str, Path], setting: Setting, bare: float, args: argparse.Namespace
) -> Measured:
    """One setting; bare: what a rank takes with a model of next to nothing."""
    peak, seconds, cpu = train(work, models["125M"], setting, args)
    training = training_of(setting, work, args)
    config = fill_deepspeed_config(FOLDERS[0] / f"{setting.config}.json", training, args.ranks)
    memory = estimate_memory(model_size(models["125M"]), config, training, args.ranks, 1)
    return Measured(
        setting,
        peak,
        bare,
        memory.gpu / GIB,
        memory.host / args.ranks / GIB,
        (memory.activations or 0) / GIB,
        seconds,
        cpu,
    )


def markdown(taken: Sequence[Measured]) -> str:
    """One row per setting."""
    lines = [
        "| configuration | dtype | tokens | checkpointing | peak GiB | bare | grown |"
        " estimated: GPU | activations in it | host | s/step | CPU s |",
        "| --- | --- | ---: | --- |" + " ---: |" * 8,
    ]
    for each in taken:
        s = each.setting
        lines.append(
            f"| {s.config} | {s.dtype} | {s.tokens} | {'on' if s.checkpointing else 'off'} "
            f"| {each.peak_gib:.2f} | {each.bare_gib:.2f} | {each.grown_gib:.2f} "
            f"| {each.gpu_gib:.2f} | {each.activations_gib:.2f} | {each.host_gib:.2f} "
            f"| {each.step_seconds:.1f} | {each.cpu_seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", help="of ds_configs/; all by default")
    parser.add_argument("--dtypes", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--tokens", type=int, default=256, help="of a micro-batch")
    parser.add_argument(
        "--large-tokens", type=int, default=2048, help="for checkpointing on and off; 0: neither"
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder for scratch files")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-memory-", dir=args.work) as name:
        work = Path(name)
        models = {shape: work / shape for shape in ("125M", "3M", "nothing")}
        for shape, folder in models.items():
            make_model(folder, shape)
        facts = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv),
            "git": git_state(),
            "hardware": hardware(work),
            "versions": {each: version(each) for each in ("torch", "deepspeed", "transformers")},
            "model": SHAPES["125M"] | {"parameters": model_size(models["125M"]).parameters},
            "ranks": args.ranks,
            "threads": args.threads,
            "steps": args.steps,
        }
        taken, bare = [], {}
        for setting in settings(args):
            if setting.dtype not in bare:
                smallest = Setting("zero3", setting.dtype, args.tokens, True)
                bare[setting.dtype], *_ = train(work, models["nothing"], smallest, args)
            taken.append(measure(work, models, setting, bare[setting.dtype], args))
            print(markdown(taken[-1:]).splitlines()[-1], file=sys.stderr)
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                report = facts | {"measured": [asdict(each) for each in taken]}
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(taken))


if __name__ == "__main__":
    main()
