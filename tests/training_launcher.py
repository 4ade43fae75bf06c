"""The launcher of two training ranks as a command: `python -m training_launcher JOB LOGS`."""

from __future__ import annotations

import sys
from pathlib import Path

from vcsoup_dist.errors import EXIT_PREEMPTED, Preempted, UserError
from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    try:
        run_ranks("vcsoup_dist.training.rank", Path(sys.argv[1]), 2, 1, Path(sys.argv[2]))
    except Preempted:
        sys.exit(EXIT_PREEMPTED)
    except UserError as error:
        sys.exit(str(error))
