"""VC-Soup (arXiv 2603.18113) as a distributed trainer: score, filter, train, soup, evaluate."""

__version__ = "0.1.0"
