"""One training rank: `python -m vcsoup_dist.training.rank JOB`, started by the launcher."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.death import die_with_parent
from vcsoup_dist.launch.ranks import report_user_error


def main() -> None:
    """Run the job's references, or its policy."""
    die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
    # A rename in PyTorch that DeepSpeed has not followed yet, once per call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    level = logging.INFO if os.environ["RANK"] == "0" else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("vcsoup").setLevel(level)
    # DeepSpeed says at INFO what the project says in one line.
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        run(Path(sys.argv[1]))
    except UserError as error:
        report_user_error(error)
        sys.exit(2)


def run(job_file: Path) -> None:
    """Join the other ranks and do the job's tasks."""
    import torch

    from vcsoup_dist.training.engine import start_distributed, start_engine
    from vcsoup_dist.training.jobs import Job
    from vcsoup_dist.training.loop import train_policy
    from vcsoup_dist.training.reference import compute_reference
    from vcsoup_dist.workspace import hold_while_working

    job = Job.read(job_file)
    locks = [task.workers_lock for task in job.references]
    locks += [job.policy.workers_lock] if job.policy else []
    for lock in locks:
        hold_while_working(Path(lock))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Bits must not depend on which kernel was picked by timing.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    start_distributed()
    engine, tokenizer = start_engine(job, train=job.policy is not None)
    for reference in job.references:
        compute_reference(engine, tokenizer, job.training, reference)
    if job.policy:
        train_policy(engine, tokenizer, job.training, job.policy)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
