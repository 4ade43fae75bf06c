"""One training rank: `python -P -m vcsoup_dist.training.rank JOB`, started by the launcher."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vcsoup_dist.errors import EXIT_PREEMPTED, UserError
from vcsoup_dist.files import write_error
from vcsoup_dist.launch.rank_logs import report_traceback, report_user_error
from vcsoup_dist.processes import die_with_parent
from vcsoup_dist.progress import log_to_terminal

if TYPE_CHECKING:
    from vcsoup_dist.training.job import Job
    from vcsoup_dist.training.stopping import StopRequest


def main() -> None:
    """Run the job's references, or its policy; exits with `EXIT_PREEMPTED` when asked to stop."""
    die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
    # DeepSpeed uses a renamed function of PyTorch, which warns on every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    level = logging.INFO if os.environ["RANK"] == "0" else logging.WARNING
    log_to_terminal(level)
    # DeepSpeed logs at INFO what the project logs in one line.
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        done = run(Path(sys.argv[1]))
    except (Exception, SystemExit) as error:  # libraries exit, too
        line = error if isinstance(error, UserError) else write_error(error)
        if line is None:
            report_traceback()
            sys.exit(1)
        report_user_error(line)
        sys.exit(2)
    sys.exit(0 if done else EXIT_PREEMPTED)


def run(job_file: Path) -> bool:
    """Join the other ranks and run the job's tasks; False where stopped on request first."""
    import torch

    from vcsoup_dist.locks import share_until_exit
    from vcsoup_dist.training.distributed import barrier, start_distributed
    from vcsoup_dist.training.job import Job
    from vcsoup_dist.training.stopping import StopRequest

    job = Job.read(job_file)
    stop = StopRequest(job.launch.max_minutes)
    locks = [task.workers_lock for task in job.references]
    locks += [job.policy.workers_lock] if job.policy else []
    for lock in locks:
        share_until_exit(Path(lock))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # The gradient of a pair that is learnt may be subnormal, on which a CPU is many times as slow.
    torch.set_flush_denormal(True)
    # The same bits every time; on a GPU attention's backward pass has no such kernel.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    start_distributed()
    done = run_tasks(job, stop)
    barrier()
    torch.distributed.destroy_process_group()
    return done


def run_tasks(job: Job, stop: StopRequest) -> bool:
    """Run the job's tasks, once the ranks have joined; False where stopped on request first."""
    from vcsoup_dist.forward.tokenizer import open_tokenizer
    from vcsoup_dist.training.checkpoint import find_checkpoint
    from vcsoup_dist.training.distributed import control_group
    from vcsoup_dist.training.engine import start_engine
    from vcsoup_dist.training.loop import train_policy
    from vcsoup_dist.training.reference import compute_reference
    from vcsoup_dist.training.runtime import Runtime
    from vcsoup_dist.training.start_checks import check_forward
    from vcsoup_dist.training.watchdog import Watchdog

    watchdog = Watchdog(job.launch.hang_minutes)
    empty_swap_folder(job)  # DeepSpeed would read a killed run's files
    task = job.policy
    checkpoint = find_checkpoint(Path(task.scratch), control_group()) if task else None
    universal = checkpoint is not None and checkpoint.universal is not None
    engine = start_engine(job, train=task is not None, universal=universal)
    runtime = Runtime(job, engine, open_tokenizer(job.model, job.revision), stop, watchdog)
    if task:
        done = train_policy(runtime, task, checkpoint)
    else:
        check_forward(runtime)
        done = all(compute_reference(runtime, each) for each in job.references)
    empty_swap_folder(job)
    return done


def empty_swap_folder(job: Job) -> None:
    """Remove DeepSpeed's swap files from this node. Called by all ranks together."""
    from vcsoup_dist.training.distributed import barrier

    if job.swap_folder is None:
        return
    barrier()
    if os.environ["LOCAL_RANK"] == "0":
        shutil.rmtree(job.swap_folder, ignore_errors=True)
    barrier()


if __name__ == "__main__":
    main()
