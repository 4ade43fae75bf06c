"""The `vcsoup` command, one file per group of commands."""
