"""Rewards that the data already carries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import ColumnsReward
from vcsoup_dist.records.scores import ScoreShard


def column_scores(pairs: Sequence[Pair], reward: ColumnsReward) -> ScoreShard:
    """Scores of pairs from two of their columns, the sign applied."""
    chosen_name, rejected_name = reward.columns
    chosen = np.array([pair.columns[chosen_name] for pair in pairs], dtype=np.float64)
    rejected = np.array([pair.columns[rejected_name] for pair in pairs], dtype=np.float64)
    return ScoreShard([pair.id for pair in pairs], reward.sign * chosen, reward.sign * rejected)
