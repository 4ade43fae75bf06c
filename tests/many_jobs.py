"""Rank for tests: does several jobs one after another, which saves the start of ranks for each."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.rank_logs import report_user_error
from vcsoup_dist.processes import die_with_parent
from vcsoup_dist.training.distributed import barrier, start_distributed
from vcsoup_dist.training.job import Job
from vcsoup_dist.training.rank import run_tasks
from vcsoup_dist.training.stopping import StopRequest

if __name__ == "__main__":
    die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    logging.getLogger("vcsoup").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start_distributed()
    try:
        for file in json.loads(Path(sys.argv[1]).read_text()):
            job = Job.read(Path(file))
            done = run_tasks(job, StopRequest(job.launch.max_minutes))
            assert done == (job.launch.max_minutes is None)
            barrier()
    except UserError as error:
        report_user_error(UserError(f"{file}: {error}"))
        sys.exit(2)
    torch.distributed.destroy_process_group()
