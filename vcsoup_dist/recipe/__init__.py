"""The one typed recipe of a run, a file per section.

Every default of the project is stated here and nowhere else; the text below a key is its
documentation. `recipe.load.load_recipe` reads one from YAML.
"""

from vcsoup_dist.recipe.consistency import Consistency
from vcsoup_dist.recipe.data import Data
from vcsoup_dist.recipe.evaluation import Evaluation
from vcsoup_dist.recipe.launch import Keep, Launch
from vcsoup_dist.recipe.pools import ActorPool, Scoring
from vcsoup_dist.recipe.recipe import MOST_VALUES, Recipe
from vcsoup_dist.recipe.rewards import CallableReward, ClassifierReward, ColumnsReward, Value
from vcsoup_dist.recipe.reweighting import Reweighting
from vcsoup_dist.recipe.section import FIELD, FUNCTION, IN_WORDS, NAME, RUN_NAME, Section
from vcsoup_dist.recipe.soup import Soup
from vcsoup_dist.recipe.training import (
    OF_PAIRS,
    WITHOUT_REFERENCE,
    Attention,
    Objective,
    Sft,
    Training,
)

__all__ = [
    "ActorPool",
    "Attention",
    "CallableReward",
    "ClassifierReward",
    "ColumnsReward",
    "Consistency",
    "Data",
    "Evaluation",
    "FIELD",
    "MOST_VALUES",
    "FUNCTION",
    "IN_WORDS",
    "Keep",
    "Launch",
    "NAME",
    "OF_PAIRS",
    "Objective",
    "RUN_NAME",
    "Recipe",
    "Reweighting",
    "Scoring",
    "Section",
    "Sft",
    "Soup",
    "Training",
    "Value",
    "WITHOUT_REFERENCE",
]
