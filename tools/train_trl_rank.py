"""One rank of TRL's DPOTrainer: `python -m train_trl_rank JOB`, started by vcsoup_dist's launcher.

The job is JSON, a `TrlJob`; the rank writes what it measured to `<output>/rank-<r>.json`. Nothing
of TRL is changed but what the comparison needs: the rows come in the order they are given, the
learning rates are the job's, and times and losses are noted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class TrlJob:
    """One run of DPOTrainer; paths are absolute."""

    model: str
    rows: str
    """JSON Lines of `prompt`, `chosen` and `rejected` as message lists, in order of training; with
    `chat_template_kwargs`."""
    output: str
    """Folder for results, caches and whatever the Trainer writes."""
    deepspeed: dict[str, Any]
    """The configuration of our own engine, filled in."""
    learning_rates: list[float]
    """One per optimizer step."""
    pairs_per_device: int
    reference_pairs: int
    """Pairs at a time on a device where the reference is computed beforehand."""
    accumulation: int
    max_length: int
    dtype: str
    device: str
    attention: str
    beta: float
    max_grad_norm: float
    gradient_checkpointing: bool
    precompute: bool
    hub_kernels: bool

    @staticmethod
    def read(path: Path) -> TrlJob:
        """Read a job as `dataclasses.asdict` and `json` wrote it."""
        return TrlJob(**json.loads(path.read_text()))


def main() -> None:
    """Train, and write what was measured."""
    from vcsoup_dist.processes import die_with_parent

    die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
    job = TrlJob.read(Path(sys.argv[1]))
    # All ranks share one cache of tokens and reference log-probs, and no run finds another's.
    os.environ["HF_DATASETS_CACHE"] = str(Path(job.output) / "datasets")
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["DEEPSPEED_LOG_LEVEL"] = "error"
    # `deepspeed=` alone is not seen by accelerate where there is no GPU.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if job.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    train(job)


def train(job: TrlJob) -> None:
    """One run of DPOTrainer on this rank."""
    import datasets
    import deepspeed
    import torch
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as in our own engine
    reference_seconds = 0.0
    steps: list[dict[str, float]] = []

    class Noted(DPOTrainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            peak = max(job.learning_rates)
            rates = [*job.learning_rates, job.learning_rates[-1]]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: rates[step] / peak
            )
            return self.lr_scheduler

        def _precompute_ref_logps(self, *args: Any) -> Any:
            nonlocal reference_seconds
            began = time.time()
            result = super()._precompute_ref_logps(*args)
            reference_seconds += time.time() - began
            return result

    class Note(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                taken = {key: float(logs[key]) for key in ("loss", "grad_norm", "learning_rate")}
                steps.append({"ended": time.time(), **taken})

    dtype = "bfloat16" if job.dtype == "bf16" else "float32"
    arguments = DPOConfig(
        output_dir=str(Path(job.output) / "trainer"),
        model_init_kwargs={
            "dtype": dtype,
            "attn_implementation": job.attention,
            **({"use_kernels": True} if job.hub_kernels else {}),
        },
        use_cpu=job.device == "cpu",
        deepspeed=job.deepspeed,
        bf16=job.dtype == "bf16",
        per_device_train_batch_size=job.pairs_per_device,
        gradient_accumulation_steps=job.accumulation,
        max_steps=len(job.learning_rates),
        learning_rate=max(job.learning_rates),
        max_grad_norm=job.max_grad_norm,
        weight_decay=job.deepspeed["optimizer"]["params"]["weight_decay"],
        adam_beta1=job.deepspeed["optimizer"]["params"]["betas"][0],
        adam_beta2=job.deepspeed["optimizer"]["params"]["betas"][1],
        adam_epsilon=job.deepspeed["optimizer"]["params"]["eps"],
        train_sampling_strategy="sequential",
        beta=job.beta,
        max_length=job.max_length,
        precompute_ref_log_probs=job.precompute,
        precompute_ref_batch_size=job.reference_pairs,
        gradient_checkpointing=job.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = datasets.load_dataset("json", data_files=job.rows, split="train")
    trainer = Noted(
        model=job.model,
        args=arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job.model),
        callbacks=[Note()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()

    from vcsoup_dist.training.metrics import peak_memory_gib

    result = {
        "reference_seconds": reference_seconds,
        "steps": steps,
        "peak_memory_gib": peak_memory_gib(),
        "distributed": str(trainer.accelerator.distributed_type),
        "zero_stage": trainer.accelerator.state.deepspeed_plugin.zero_stage,
        "attention": trainer.model.config._attn_implementation,
        "tokens": [
            [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
            for row in trainer.train_dataset
        ],
    }
    rank = int(os.environ["RANK"])
    (Path(job.output) / f"rank-{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
