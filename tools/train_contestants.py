"""Who is measured by bench_train.py: what each is given, how it is run, what it says of itself.

Ours is run as its users run it: a job for `vcsoup_dist.training.rank`, first the reference stage,
then the policy, each one launch of ranks. TRL's is one launch of `train_trl_rank`, by the same
launcher, with the same environment, DeepSpeed configuration and learning rates.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from job_files import select, write_pairs, write_token_file
from measuring import Usage, measure
from train_trl_rank import TrlJob

from vcsoup_dist.forward.answers import pair_tokens
from vcsoup_dist.forward.template import DATE, RefusedByTemplate, Unusable, encode_pair
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.preferences.rows import read_pairs
from vcsoup_dist.recipe import Launch, Training
from vcsoup_dist.records.pairs import pair_row
from vcsoup_dist.records.reference import LOGPS, begin_part, part_name
from vcsoup_dist.training.batches import step_pairs
from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config
from vcsoup_dist.training.job import Job, PolicyTask, ReferenceTask, Selection
from vcsoup_dist.training.schedule import learning_rate

OURS_RANK = "vcsoup_dist.training.rank"
TRL_RANK = "train_trl_rank"
LAUNCH = (
    "import sys; from pathlib import Path; from vcsoup_dist.launch.ranks import run_ranks; "
    "module, job, ranks, threads, logs = sys.argv[1:]; "
    "run_ranks(module, Path(job), int(ranks), int(threads), Path(logs))"
)
WARM = 2  # first steps that are not timed

# Shapes of Llama 3.2; 0.1B is small enough for a CPU.
LLAMAS = {
    "0.1B": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "num_key_value_heads": 4},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "num_key_value_heads": 8},
}


class Failed(Exception):
    """A run that did not end well."""

    def __init__(self, log: str, reason: str) -> None:
        super().__init__(f"{log}\n{reason}")
        self.reason = reason
        """One line."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who trains, and how."""

    name: str
    ours: bool
    precompute: bool = True
    """Reference log-probs before training, and no reference model while training."""
    sorted_steps: bool = False
    """The pairs of a step in order of their length, so that a micro-batch pads little."""
    hub_kernels: bool = False
    reweighted: bool = False
    """Each pair with a label, a margin and a weight of its own, as a method per trade-off has."""


CONTESTANTS = (
    Contestant("ours", ours=True),
    Contestant("ours-reweighted", ours=True, reweighted=True),
    Contestant("trl", ours=False, precompute=False),
    Contestant("trl-precomputed", ours=False),
    Contestant("trl-sorted", ours=False, sorted_steps=True),
    Contestant("trl-kernels", ours=False, hub_kernels=True),
)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Tokens at a time on a rank for ours, pairs for TRL."""

    training: int
    reference: int
    """Where the reference is computed beforehand."""


@dataclasses.dataclass
class Measurement:
    """What one run of a contestant took and computed; times in seconds, memory in GiB."""

    step_seconds: list[float]
    """From the end of one step to the end of the next, for all steps after the first."""
    losses: list[float]
    learning_rates: list[float]
    grad_norms: list[float]
    peak_memory_gib: float
    """The highest of the ranks that report it, up to the last step."""
    reference_seconds: float
    """What computing reference log-probs took before training, without start-up."""
    reference_pairs: int
    """Of how many pairs."""
    launches_seconds: float
    """All launches with start-up, loading and saving; ours with encoding the pairs."""
    others_cpu_s: float
    """CPU time that the rest of the machine used meanwhile."""
    cpu_s: float
    tokens_differ: int = 0
    """Pairs whose token ids are not ours."""
    starts_differ: int = 0
    """Pairs with our token ids whose answers begin elsewhere."""
    mfu: float | None = None

    @property
    def seconds_per_step(self) -> float:
        """Mean over the timed steps."""
        timed = self.step_seconds[WARM - 1 :]
        return sum(timed) / len(timed)

    @property
    def reference_seconds_per_pair(self) -> float:
        """Mean."""
        return self.reference_seconds / self.reference_pairs


class World:
    """The files all contestants train from, below one folder."""

    def __init__(
        self,
        root: Path,
        model: Path,
        data: Sequence[Path],
        training: Training,
        launch: Launch,
        device: str,
    ) -> None:
        from transformers import AutoTokenizer

        self.root, self.model, self.training, self.launch = root, model, training, launch
        self.device = device
        self.steps = training.steps or 0
        self.seed = 0
        self.lock = root / "lock"
        self.lock.touch()
        tokenizer = AutoTokenizer.from_pretrained(model)
        needed = self.steps * training.pairs_per_step
        self.pairs, self.encoded, self.passed_over = fitting_pairs(
            data, tokenizer, training.max_length, needed
        )
        self.order = [
            i
            for step in range(self.steps)
            for i in step_pairs(needed, training.pairs_per_step, self.seed, step)
        ]
        self._write_ours()
        # Ranks find `train_trl_rank` there.
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)

    def lengths(self) -> list[int]:
        """Tokens of each pair, prompts counted with both answers."""
        return [len(chosen.ids) + len(rejected.ids) for chosen, rejected in self.encoded]

    def tokens_per_timed_step(self) -> float:
        """Mean tokens of a timed step; the same for everyone."""
        lengths, first = self.lengths(), WARM * self.training.pairs_per_step
        return sum(lengths[i] for i in self.order[first:]) / (self.steps - WARM)

    def computed_tokens(self, contestant: Contestant, batch: Batch) -> float:
        """Tokens, padding included, that the policy's forward gets, per token of `lengths`."""
        pairs = [self.encoded[i] for i in self._order_for(contestant, self.order)]
        whole = sum(len(side.ids) for pair in pairs for side in pair)
        if contestant.ours:
            return sum(pair_tokens(*pair) for pair in pairs) / whole
        padded = 0
        for first in range(0, len(pairs), batch.training):
            part = pairs[first : first + batch.training]
            padded += 2 * len(part) * max(len(side.ids) for pair in part for side in pair)
        return padded / whole

    # Ours.

    def _write_ours(self) -> None:
        """The files that the stages before training leave."""
        write_pairs(self.root / "pairs", [pair_row(pair) for pair in self.pairs])
        began = time.monotonic()
        self.tokens = write_token_file(
            self.root / "pairs", self.root / "tokens", self.model, self.training
        )
        self.encoding_seconds = time.monotonic() - began
        self.train, self.heldout = select(self.root, self.tokens)

    def ours(
        self, out: Path, contestant: Contestant, batch: Batch, steps: int | None = None
    ) -> Measurement:
        """The reference stage, then the policy."""
        folders = {name: out / name for name in ("reference", "output", "scratch", "logs")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        part = folders["reference"] / part_name(0)
        begin_part(part, self.tokens, np.flatnonzero(self.tokens.usable()))
        reference = ReferenceTask(str(self.tokens.folder), str(part), str(self.lock))
        policy = PolicyTask(
            name="policy",
            tokens=[str(self.tokens.folder)],
            references=[str(folders["reference"])],
            train=reweighted(self.train) if contestant.reweighted else self.train,
            heldout=self.heldout,
            seed=self.seed,
            unfiltered_pairs=len(self.pairs),
            output=str(folders["output"]),
            scratch=str(folders["scratch"]),
            logs=str(folders["logs"]),
            workers_lock=str(self.lock),
        )
        config = str(deepspeed_file())
        usage = Usage()

        def stage(
            name: str, tokens: int, references: list[ReferenceTask], task: PolicyTask | None
        ) -> float:
            job = out / f"{name}.json"
            changes = {"tokens_per_batch": tokens, "steps": steps or self.steps}
            training = self.training.model_copy(update=changes)
            Job(str(self.model), None, config, training, self.launch, references, task).write(job)
            with EngineReady(out / "launch.log") as line:
                self._launch(OURS_RANK, job, out, usage)
            if math.isnan(line.appeared):
                raise Failed("", f"the rank's log has no line with {EngineReady.LINE!r}")
            return line.appeared

        ready = stage("reference", batch.reference, [reference], None)
        written = (part / LOGPS).stat().st_mtime
        stage("policy", batch.training, [], policy)
        lines = [
            json.loads(line)
            for line in (folders["logs"] / "metrics.jsonl").read_text().splitlines()
        ]
        ended = _event_times(folders["logs"])
        return Measurement(
            step_seconds=_differences(ended),
            losses=[line["loss"] for line in lines],
            learning_rates=[line["learning_rate"] for line in lines],
            grad_norms=[line["grad_norm"] for line in lines],
            peak_memory_gib=lines[-1]["peak_memory_gib"],
            reference_seconds=written - ready,
            reference_pairs=len(self.pairs),
            launches_seconds=usage.wall_s + self.encoding_seconds,
            others_cpu_s=usage.others_cpu_s,
            cpu_s=usage.cpu_s,
            mfu=_mean([line["mfu"] for line in lines[WARM:] if line.get("mfu") is not None]),
        )

    # TRL.

    def trl(
        self, out: Path, contestant: Contestant, batch: Batch, steps: int | None = None
    ) -> Measurement:
        """One run of DPOTrainer."""
        steps = steps or self.steps
        training = self.training
        order = self._order_for(contestant, self.order[: steps * training.pairs_per_step])
        out.mkdir(parents=True)
        rows = out / "rows.jsonl"
        with rows.open("w") as lines:
            for i in order:
                row = pair_row(self.pairs[i])
                content = {"prompt": row["prompt"], **_sides(row)}
                # Ours tells every chat template the same day.
                content["chat_template_kwargs"] = {"date_string": DATE}
                lines.write(json.dumps(content, ensure_ascii=False) + "\n")
        per_pass = self.launch.ranks * batch.training
        accumulation = training.pairs_per_step // per_pass
        config = fill_deepspeed_config(deepspeed_file(), training) | {
            "train_micro_batch_size_per_gpu": batch.training,
            "gradient_accumulation_steps": accumulation,
        }
        job = TrlJob(
            model=str(self.model),
            rows=str(rows),
            output=str(out),
            deepspeed=config,
            # The schedule of the whole run, also where only its first steps are taken.
            learning_rates=[learning_rate(step, self.steps, training) for step in range(steps)],
            pairs_per_device=batch.training,
            reference_pairs=batch.reference,
            accumulation=accumulation,
            max_length=training.max_length,
            dtype=training.dtype,
            device=self.device,
            attention=trl_attention(self.device, training.dtype),
            beta=training.beta,
            max_grad_norm=training.max_grad_norm,
            gradient_checkpointing=training.gradient_checkpointing,
            precompute=contestant.precompute,
            hub_kernels=contestant.hub_kernels,
        )
        file = out / "job.json"
        file.write_text(json.dumps(dataclasses.asdict(job)))
        usage = Usage()
        self._launch(TRL_RANK, file, out, usage)
        results = [
            json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(self.launch.ranks)
        ]
        taken = results[0]["steps"]
        differing, shifted = self._compare_tokens(order, results[0]["tokens"])
        return Measurement(
            step_seconds=_differences([step["ended"] for step in taken]),
            losses=[step["loss"] for step in taken],
            learning_rates=[step["learning_rate"] for step in taken],
            grad_norms=[step["grad_norm"] for step in taken],
            peak_memory_gib=max(result["peak_memory_gib"] for result in results),
            reference_seconds=results[0]["reference_seconds"],
            reference_pairs=len(order),
            launches_seconds=usage.wall_s,
            others_cpu_s=usage.others_cpu_s,
            cpu_s=usage.cpu_s,
            tokens_differ=differing,
            starts_differ=shifted,
        )

    def _order_for(self, contestant: Contestant, order: Sequence[int]) -> list[int]:
        """The order of steps as a contestant is given it."""
        if not contestant.sorted_steps:
            return list(order)
        size, lengths = self.training.pairs_per_step, self.lengths()
        return [
            i
            for first in range(0, len(order), size)
            for i in sorted(order[first : first + size], key=lambda i: -lengths[i])
        ]

    def _compare_tokens(
        self, order: Sequence[int], theirs: Sequence[Sequence[list[int]]]
    ) -> tuple[int, int]:
        """How many pairs have other token ids than ours, or answers that begin elsewhere."""
        differing = shifted = abs(len(order) - len(theirs))
        shifted = 0
        for i, (prompt, chosen, rejected) in zip(order, theirs, strict=False):
            pair = self.encoded[i]
            if [list(each.ids) for each in pair] != [prompt + chosen, prompt + rejected]:
                differing += 1
            elif any(each.start != len(prompt) for each in pair):
                shifted += 1
        return differing, shifted

    def _launch(self, module: str, job: Path, out: Path, usage: Usage) -> None:
        log = out / "launch.log"
        arguments = [module, str(job), str(self.launch.ranks), str(self.launch.threads)]
        command = [sys.executable, "-c", LAUNCH, *arguments, str(out / "ranks")]
        if status := measure(command, log, None, usage):
            said = log.read_text(errors="replace")
            raise Failed(said[-4000:], f"{module} ended with status {status}: {_cause(said)[:200]}")


class EngineReady(threading.Thread):
    """When a log gets the line that ours says as soon as its engine stands."""

    LINE = b"attention: "

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.log = log
        self.appeared = math.nan
        self.stopped = threading.Event()

    def run(self) -> None:
        """Look until it is there."""
        while not self.stopped.wait(0.005):
            if self.log.exists() and self.LINE in self.log.read_bytes():
                self.appeared = time.time()
                return

    def __enter__(self) -> EngineReady:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()


def _cause(said: str) -> str:
    """The last line of a log that names an exception of a rank."""
    lines = [line.removeprefix("[rank0]: ") for line in said.splitlines()]
    named = [
        line
        for line in lines
        if re.match(r"[\w.]*(Error|Exception)\b.*: ", line) and "errors.UserError" not in line
    ]
    return named[-1] if named else "no exception in its log"


def fitting_pairs(
    files: Sequence[Path], tokenizer: Any, max_length: int, needed: int
) -> tuple[list[Pair], list[tuple[Any, Any]], int]:
    """The first `needed` pairs that nobody would cut or drop, in tokens too, and how many others.

    Pairs beyond `max_length` are passed over because TRL cuts answers where we cut prompts. Files
    take turns.
    """
    pairs: list[Pair] = []
    encoded, seen, passed_over = [], set(), 0
    readers = [read_pairs(Located(str(file), None, None)) for file in files]
    while readers and len(pairs) < needed:
        for reader in list(readers):
            _, pair = next(reader, (0, None))
            if pair is None:
                readers.remove(reader)
            elif isinstance(pair, Pair) and pair.id not in seen:
                seen.add(pair.id)
                try:
                    tokens = encode_pair(
                        tokenizer, pair.prompt, pair.chosen, pair.rejected, max_length, False
                    )
                except RefusedByTemplate:
                    tokens = Unusable.REFUSED
                if not isinstance(tokens, tuple):
                    passed_over += 1
                elif len(pairs) < needed:
                    pairs.append(pair)
                    encoded.append(tokens)
    if len(pairs) < needed:
        raise SystemExit(
            f"{len(pairs)} pairs are at most {max_length} tokens long, {needed} are needed for "
            "--steps times --pairs-per-step"
        )
    return pairs, encoded, passed_over


def reweighted(selection: Selection) -> Selection:
    """The same pairs in the same order, with random labels, margins and weights."""
    draw = np.random.default_rng(0)
    rows = np.load(selection.file)
    rows["label"] = draw.uniform(0.5, 1, len(rows))
    rows["margin"] = draw.normal(size=len(rows))
    rows["weight"] = draw.uniform(0.5, 1.5, len(rows))
    file = Path(selection.file).with_name("reweighted.npy")
    np.save(file, rows)
    return dataclasses.replace(selection, file=str(file), divisor=0.5)


def make_llama(size: str, tokenizer_of: Path, folder: Path, vocabulary: int, dtype: str) -> Path:
    """A Llama with random weights, and the tokenizer of another model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)),
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16" if dtype == "bf16" else "float32",
        **LLAMAS[size],
    )
    torch.manual_seed(0)
    torch.set_default_dtype(config.dtype)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(folder)
    return folder


def trl_attention(device: str, dtype: str) -> str:
    """The fastest attention that TRL can use here."""
    import importlib.util

    if device == "cuda" and dtype == "bf16" and importlib.util.find_spec("flash_attn"):
        return "flash_attention_2"
    return "sdpa"


def deepspeed_file() -> Path:
    """The configuration of everyone's engine."""
    return next(path for folder in FOLDERS if (path := folder / "zero3.json").exists())


def remove(folder: Path) -> None:
    """Remove a run's files, which hold checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _sides(row: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    return {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}


def _event_times(folder: Path) -> list[float]:
    """When each step's metrics were written, by TensorBoard's own clock."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [event.wall_time for event in events.Scalars("loss")]


def _differences(ended: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(ended, ended[1:], strict=False)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
