"""VC-Soup (arXiv 2603.18113) as a distributed trainer: score, filter, train, soup, evaluate."""

import os

__version__ = "0.2.0"

if folder := os.environ.get("VCSOUP_IMPORT_LAST"):  # an actor, which has imported nothing else yet
    from vcsoup_dist.import_paths import import_last

    import_last(folder)
