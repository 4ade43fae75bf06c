"""The graph of products that a recipe asks for.

    pairs/<dataset>                      canonical pairs, training and held out
    scores/<dataset>/<value>             one reward of every training pair
    filtered/<method>/<value>            the pairs that a method keeps for a value
    theta_0                              where the recipe has a `warmup`; else its model is theta_0
    reference/<dataset>                  log-probs of every pair under theta_0
    policies/<method>/<value>/seed-<s>
    soups/<method>/seed-<s>/<weights>
    evaluation/base, evaluation/<method>/seed-<s>/<weights>
    report

A dataset is called after the value that brings it. Only what decides a product's content is in its
`made_from`; where it runs, and how often it saves, is not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcsoup_dist import __version__
from vcsoup_dist.checkpoints.folders import describe
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes, Located, locate
from vcsoup_dist.preferences.row_files import ENDINGS, conversion, file_kind
from vcsoup_dist.recipe import (
    WITHOUT_REFERENCE,
    CallableReward,
    ClassifierReward,
    ColumnsReward,
    Recipe,
    Training,
)
from vcsoup_dist.souping.grids import simplex_grid, soup_name
from vcsoup_dist.training.deepspeed_config import fill_deepspeed_config, find_deepspeed_config
from vcsoup_dist.training.sft import warmup_training
from vcsoup_dist.workspace import Product, Workspace

STAGES = ("read", "score", "filter", "warmup", "reference", "train", "merge", "evaluate", "report")

FORMATS = dict.fromkeys(STAGES, 1) | {
    "read": 4,
    "score": 3,
    "filter": 3,
    "reference": 2,
    "train": 3,
    "evaluate": 2,
}
"""Raised when a stage's output changes for the same recipe, so that old products are made anew."""

NOT_CONTENT = {
    *("activation_offload", "attention", "checkpoint_every", "checkpoints_kept", "deepspeed"),
    *("evaluate_every", "nvme_path"),
}
"""Keys of `training` that say where and how a policy is trained, not what it becomes."""

NOT_OF_THE_ROWS = {"path", "revision", "pairs_of", "heldout"}
"""Keys of `data` that say where rows lie; what lies there is among the sources."""

AnyReward = ClassifierReward | CallableReward | ColumnsReward


def make_plan(recipe: Recipe, hashes: Hashes) -> list[Product]:
    """All products of a recipe, each after its inputs.

    Raises UserError where a model or file that the recipe names is not there.
    """
    return _Planner(recipe, hashes).plan()


def to_make(plan: Iterable[Product], workspace: Workspace, recipe: Recipe) -> list[Product]:
    """The products that must be made now, in the plan's order.

    Wanted are the report, the policies, theta_0 and whatever `keep` says; anything else only where
    something that must be made needs it.
    """
    plan = list(plan)
    wanted = {"report", "train", "warmup", "evaluate", "filter", "score", "read"}
    wanted |= {"merge"} if recipe.keep.soups else set()
    wanted |= {"reference"} if recipe.keep.reference else set()
    needed: set[str] = set()
    for product in reversed(plan):
        if (product.stage in wanted or product.name in needed) and not workspace.is_made(product):
            needed.add(product.name)
            needed.update(each.name for each in reads(product, recipe))
    return [each for each in plan if each.name in needed and not workspace.is_made(each)]


def reads(product: Product, recipe: Recipe) -> list[Product]:
    """The products that making this one reads: its inputs, or what stands in for them.

    An evaluation is made from a soup either way; where soups are not kept, it sums the policies
    itself.
    """
    if product.stage != "evaluate" or recipe.keep.soups:
        return list(product.inputs)
    policies = [policy for soup in product.inputs_of("merge") for policy in soup.inputs]
    return [each for each in product.inputs if each.stage != "merge"] + policies


def policy_names(recipe: Recipe) -> list[str]:
    """The policies that a recipe asks for."""
    return [
        policy_name(method, value, seed)
        for method in recipe.methods
        for value in recipe.trained_values()
        for seed in recipe.seeds
    ]


def policy_name(method: str, value: str, seed: int) -> str:
    """The name of a policy as a product."""
    return f"policies/{method}/{value}/seed-{seed}"


@dataclass
class _Planner:
    recipe: Recipe
    hashes: Hashes
    products: list[Product] = field(default_factory=list)

    def plan(self) -> list[Product]:
        recipe = self.recipe
        # What is wrong there should be known before anything is scored.
        fill_deepspeed_config(find_deepspeed_config(recipe), recipe.training, recipe.launch.ranks)
        self.model = self._model(recipe.model, recipe.revision, "model")
        self.rewards = {
            name: self._reward(value.reward, f"values.{name}.reward")
            for name, value in recipe.values.items()
        }
        self.pairs = {
            name: self._read(name)
            for name, value in recipe.values.items()
            if value.data is not None and value.data.path is not None
        }
        self.scores = {
            (dataset, value): self._score(dataset, value)
            for dataset in self.pairs
            for value in recipe.values
        }
        self.theta_0 = self._warmup() if recipe.warmup else None
        self.reference = (
            {dataset: self._reference(dataset) for dataset in self.pairs}
            if recipe.training.objective not in WITHOUT_REFERENCE
            else {}
        )
        self.filtered: dict[tuple[str, str], Product] = {}
        # `random` copies the size of what `vc_soup` keeps, so that comes first.
        for method in sorted(recipe.methods, key=lambda method: method == "random"):
            for value in recipe.trained_values():
                self.filtered[method, value] = self._filter(method, value)
        evaluations = [self._evaluate(None, "evaluation/base")]
        policies = []
        for method in recipe.methods:
            for seed in recipe.seeds:
                own = [self._train(method, value, seed) for value in recipe.trained_values()]
                policies += own
                for weights in self._weights():
                    soup = self._merge(method, seed, weights, own)
                    name = soup.name.replace("soups/", "evaluation/", 1)
                    evaluations.append(self._evaluate(soup, name))
        self._add(
            Product(
                "report",
                "report",
                {
                    "format": FORMATS["report"],
                    "version": __version__,
                    "recipe": recipe.model_dump(
                        mode="json",
                        include={
                            "name": True,
                            "evaluation": {"bootstrap", "confidence", "samples"},
                        },
                    ),
                },
                inputs=(
                    *evaluations,
                    *self.filtered.values(),
                    *self._warmed_up(),
                    *policies,
                    *self.pairs.values(),
                ),
            )
        )
        return sorted(self.products, key=lambda product: STAGES.index(product.stage))

    def _add(self, product: Product) -> Product:
        self.products.append(product)
        return product

    def _read(self, dataset: str) -> Product:
        data = self.recipe.values[dataset].data
        assert data is not None and data.path is not None
        key = f"values.{dataset}.data"
        source = self._data(data.path, data.revision, f"{key}.path")
        if source.revision is None and data.revision is not None:
            raise UserError(f"{key}.revision: {data.path} is a local path, which has none")
        sources = {"data": source}
        split = data.heldout if _is_split(data.heldout, source) else None
        if data.heldout is not None and split is None:
            if self.recipe.local_path(data.heldout) is None:
                raise UserError(f"{key}.heldout: no such file: {data.heldout}")
            sources["heldout"] = self._data(data.heldout, None, f"{key}.heldout")
        made_from = {
            "format": FORMATS["read"],
            "data": data.model_dump(mode="json", exclude=NOT_OF_THE_ROWS),
            "heldout": split,
            "columns": self._columns(),
            "shard_pairs": self.recipe.scoring.shard_pairs,
            "sources": {role: each.identity for role, each in sources.items()},
        }
        return self._add(
            Product(f"pairs/{dataset}", "read", made_from, sources=sources, dataset=dataset)
        )

    def _columns(self) -> list[str]:
        rewards = [value.reward for value in self.recipe.values.values()]
        named = {
            name for each in rewards if isinstance(each, ColumnsReward) for name in each.columns
        }
        return sorted(named)

    def _score(self, dataset: str, value: str) -> Product:
        reward, source = self.rewards[value]
        made_from = {
            "format": FORMATS["score"],
            "reward": reward,
            "tokens_per_batch": self.recipe.scoring.tokens_per_batch,
        }
        return self._add(
            Product(
                f"scores/{dataset}/{value}",
                "score",
                made_from,
                inputs=(self.pairs[dataset],),
                sources={"reward": source} if source else {},
                dataset=dataset,
                value=value,
            )
        )

    def _datasets_of(self, value: str) -> list[str]:
        data = self.recipe.values[value].data
        assert data is not None
        return data.pairs_of or [value]

    def _filter(self, method: str, value: str) -> Product:
        recipe = self.recipe
        datasets = self._datasets_of(value)
        scored = list(self.pairs) if recipe.consistency.scope == "all" else datasets
        inputs = [self.pairs[dataset] for dataset in datasets]
        inputs += [self.scores[dataset, each] for dataset in scored for each in recipe.values]
        if method == "random":
            inputs.append(self.filtered["vc_soup", value])
        policy = recipe.consistency.model_dump(mode="json")
        if method == "rewarded_soup":  # no filter: only the statistics matter
            policy = {key: policy[key] for key in ("normalisation", "scope")}
        if method == "all_positive":
            policy = {key: policy[key] for key in ("normalisation", "scope", "min_norm")}
        made_from = {
            "format": FORMATS["filter"],
            "method": method,
            "consistency": policy,
            "values": list(recipe.values),
            "by_own_reward": datasets != [value],
        }
        name = f"filtered/{method}/{value}"
        return self._add(
            Product(name, "filter", made_from, inputs=tuple(inputs), method=method, value=value)
        )

    def _tokens(self) -> dict[str, Any]:
        training = self.recipe.training
        return training.model_dump(mode="json", include={"max_length", "overlong", "dtype"})

    def _warmup(self) -> Product:
        made_from = {
            "format": FORMATS["warmup"],
            "model": self.model.identity,
            "training": _content(warmup_training(self.recipe)),
            "deepspeed": self.hashes.of_file(find_deepspeed_config(self.recipe)),
            "seed": 0,
        }
        inputs = tuple(self.pairs.values())
        sources = {"model": self.model, "deepspeed": self._deepspeed()}
        return self._add(Product("theta_0", "warmup", made_from, inputs=inputs, sources=sources))

    def _warmed_up(self) -> list[Product]:
        """theta_0 where it is a product."""
        return [self.theta_0] if self.theta_0 else []

    def _base(self) -> dict[str, Located]:
        """theta_0 where it is no product, as a source."""
        return {} if self.theta_0 else {"model": self.model}

    def _base_identity(self) -> Any:
        return None if self.theta_0 else self.model.identity

    def _deepspeed(self) -> Located:
        return Located(str(find_deepspeed_config(self.recipe)), None, None)

    def _reference(self, dataset: str) -> Product:
        made_from = {
            "format": FORMATS["reference"],
            "model": self._base_identity(),
            "tokens": self._tokens(),
        }
        return self._add(
            Product(
                f"reference/{dataset}",
                "reference",
                made_from,
                inputs=(self.pairs[dataset], *self._warmed_up()),
                sources=self._base(),
                dataset=dataset,
            )
        )

    def _train(self, method: str, value: str, seed: int) -> Product:
        recipe = self.recipe
        datasets = self._datasets_of(value)
        made_from = {
            "format": FORMATS["train"],
            "model": self._base_identity(),
            "training": _content(recipe.training),
            "deepspeed": self.hashes.of_file(find_deepspeed_config(recipe)),
            "seed": seed,
        }
        inputs = [self.filtered[method, value], *(self.pairs[each] for each in datasets)]
        inputs += [self.reference[each] for each in datasets if each in self.reference]
        inputs += self._warmed_up()
        return self._add(
            Product(
                policy_name(method, value, seed),
                "train",
                made_from,
                inputs=tuple(inputs),
                sources=self._base() | {"deepspeed": self._deepspeed()},
                method=method,
                value=value,
                seed=seed,
            )
        )

    def _weights(self) -> list[tuple[float, ...]]:
        soup = self.recipe.soup
        if soup.weights is not None:
            return [tuple(row) for row in soup.weights]
        return simplex_grid(len(self.recipe.trained_values()), self.recipe.grid_step())

    def _merge(
        self, method: str, seed: int, weights: tuple[float, ...], policies: list[Product]
    ) -> Product:
        axes = self.recipe.trained_values()
        named = dict(zip(axes, weights, strict=True))
        made_from = {
            "format": FORMATS["merge"],
            "weights": named,
            "shard_size": self.recipe.soup.shard_size,
        }
        return self._add(
            Product(
                f"soups/{method}/seed-{seed}/{soup_name(named)}",
                "merge",
                made_from,
                inputs=tuple(policies),
                method=method,
                seed=seed,
                weights=weights,
            )
        )

    def _evaluate(self, soup: Product | None, name: str) -> Product:
        recipe = self.recipe
        judges: dict[str, Any] = {}
        sources = {} if soup else self._base()
        for value in recipe.values:
            key = "judge" if recipe.values[value].judge else "reward"
            judge, source = self._reward(recipe.judge_of(value), f"values.{value}.{key}")
            judges[value] = judge
            if source:
                sources[f"judge/{value}"] = source
        settings = recipe.evaluation.model_dump(
            mode="json",
            exclude={
                "actors",
                "cpus_per_actor",
                "gpus_per_actor",
                "bootstrap",
                "confidence",
                "samples",
            },
        )
        made_from = {
            "format": FORMATS["evaluate"],
            "evaluation": settings,
            "judges": judges,
            "model": None if soup else self._base_identity(),
        }
        datasets = [self.pairs[each] for each in self.pairs]
        return self._add(
            Product(
                name,
                "evaluate",
                made_from,
                inputs=(*datasets, *([soup] if soup else self._warmed_up())),
                sources=sources,
                method=soup.method if soup else None,
                seed=soup.seed if soup else None,
                weights=soup.weights if soup else None,
            )
        )

    def _model(self, reference: str, revision: str | None, key: str) -> Located:
        local = self.recipe.local_path(reference)
        located = locate(reference, local, revision, "model", key, self.hashes)
        if local is not None and not (local / "config.json").exists():
            found = describe(local)
            if not found.holds:
                raise UserError(f"{key}: {found.line}")
            raise UserError(f"{key}: {reference} is no model directory (it has no config.json)")
        return located

    def _data(self, reference: str, revision: str | None, key: str) -> Located:
        local = self.recipe.local_path(reference)
        known = file_kind(Path(reference))
        if local is None and known:
            raise UserError(f"{key}: no such file: {reference}")
        if local is not None and local.is_file() and not known:
            raise UserError(f"{key}: {reference} is no {', '.join(ENDINGS)}; {conversion(local)}")
        return locate(reference, local, revision, "dataset", key, self.hashes)

    def _reward(self, reward: AnyReward, key: str) -> tuple[dict[str, Any], Located | None]:
        """What decides a reward's numbers, and where its model or code lies."""
        settings = reward.model_dump(mode="json", exclude={"pool", "attention"})
        if isinstance(reward, ClassifierReward):
            located = self._model(reward.classifier, reward.revision, f"{key}.classifier")
            return {**settings, "classifier": located.identity, "revision": None}, located
        if isinstance(reward, CallableReward):
            code = self._code(reward.callable, f"{key}.callable")
            # What it imports from beside it decides its numbers too.
            beside = {each.name: self.hashes.of(each) for each in sorted(code.parent.glob("*.py"))}
            return {**settings, "code": beside}, Located(str(code), None, None)
        return settings, None

    def _code(self, reference: str, key: str) -> Path:
        module, _, _ = reference.partition(":")
        if module.endswith(".py"):
            path = self.recipe.local_path(module)
            if path is None:
                raise UserError(f"{key}: no such file: {module}")
            return path
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise UserError(f"{key}: no module `{module}` can be imported")
        return Path(spec.origin)


def _is_split(heldout: str | None, source: Located) -> bool:
    """Whether held-out pairs are another split of the dataset, and no file of their own.

    A bare name is, even where a folder of that name lies beside the recipe.
    """
    if heldout is None or Path(source.source).is_file():
        return False
    return "/" not in heldout and file_kind(Path(heldout)) is None


def _content(training: Training) -> dict[str, Any]:
    """The settings that decide what a policy becomes."""
    without = set(NOT_CONTENT)
    if training.export == "best":  # one of the checkpoints
        without.remove("checkpoint_every")
    if training.objective != "simpo":
        without.add("simpo_margin")
    if training.objective == "sft":
        without.add("beta")
    return training.model_dump(mode="json", exclude=without)
