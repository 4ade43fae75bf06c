"""`python -m vcsoup_dist.cli`: the `vcsoup` command of this interpreter."""

from vcsoup_dist.cli.main import main

main()
