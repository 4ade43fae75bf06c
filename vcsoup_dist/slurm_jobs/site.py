"""The site file: what all jobs on one cluster have in common, for every recipe."""

from __future__ import annotations

import os
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Section
from vcsoup_dist.recipe.load import load_section
from vcsoup_dist.recipe.sbatch_options import JobName, SbatchOptions


class Site(Section):
    """`~/.config/vcsoup/site.yaml`, or the file that VCSOUP_SITE names."""

    sbatch: SbatchOptions = {}
    """Options of `sbatch` for every job, by their long names, such as
    `{account: alignment, partition: gpu, constraint: h100}`."""
    stages: dict[JobName, SbatchOptions] = {}
    """More for the job of one stage, such as `merge: {partition: cpu, constraint: false}`."""
    environment: dict[str, str] = {}
    """Variables for every job, such as VCSOUP_SETUP, VCSOUP_CONTAINER (slurm/environment.sh) or
    NCCL_SOCKET_IFNAME. What is exported already goes before them."""


def load_site() -> Site:
    """The site file, or an empty one where there is none; raises UserError for its mistakes."""
    named = os.environ.get("VCSOUP_SITE")
    settings = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(named or f"{settings}/vcsoup/site.yaml").expanduser()
    if named and not path.exists():
        raise UserError(f"VCSOUP_SITE: no such file: {named}")
    return load_section(path, Site, "site file") if path.exists() else Site()
