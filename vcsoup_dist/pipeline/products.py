"""The products that a recipe asks of each stage: what each is made from, and its name."""

from __future__ import annotations

from typing import Any

from vcsoup_dist import __version__
from vcsoup_dist.errors import UserError
from vcsoup_dist.methods import methods_of
from vcsoup_dist.methods.method import Policy
from vcsoup_dist.pipeline.base import (
    base_identity,
    base_of,
    content_of,
    deepspeed_of,
    model_of,
)
from vcsoup_dist.pipeline.graph import Graph
from vcsoup_dist.pipeline.heldout_scores import reads_heldout_scores
from vcsoup_dist.pipeline.sources import find_data, find_model, find_reward, is_split
from vcsoup_dist.pipeline.trained_on import datasets_of, logps_read, pairs_read, trained_on
from vcsoup_dist.recipe import WITHOUT_REFERENCE, ColumnsReward, Recipe
from vcsoup_dist.souping.grids import is_between_two, soup_name, weight_of_base
from vcsoup_dist.training.deepspeed_config import fill_deepspeed_config, find_deepspeed_config
from vcsoup_dist.training.sft import sft_training
from vcsoup_dist.workspace import Product

NOT_OF_THE_ROWS = {"path", "revision", "pairs_of", "heldout"}
"""Keys of `data` that say where rows lie; what lies there is among the sources."""

NOT_OF_THE_ANSWERS = {
    *("actors", "cpus_per_actor", "gpus_per_actor", "bootstrap", "confidence", "samples"),
    "heldout_pairs",  # which not every model has
}
"""Keys of `evaluation` that do not decide what a model answers."""


def pairs(graph: Graph) -> None:
    """`pairs/<dataset>` for every value with data of its own."""
    recipe = graph.recipe
    # What is wrong there should be known before anything is scored.
    fill_deepspeed_config(find_deepspeed_config(recipe), recipe.training, recipe.launch.ranks)
    find_model(recipe, graph.hashes, recipe.model, recipe.revision, "model")
    rewards = [value.reward for value in recipe.values.values()]
    columns = {name for each in rewards if isinstance(each, ColumnsReward) for name in each.columns}
    for dataset, data in recipe.datasets().items():
        key, path = f"values.{dataset}.data", data.path or ""
        source = find_data(recipe, graph.hashes, path, data.revision, f"{key}.path")
        if source.revision is None and data.revision is not None:
            raise UserError(f"{key}.revision: {path} is a local path, which has none")
        sources = {"data": source}
        split = data.heldout if is_split(data.heldout, source) else None
        if data.heldout is not None and split is None:
            if recipe.local_path(data.heldout) is None:
                raise UserError(f"{key}.heldout: no such file: {data.heldout}")
            sources["heldout"] = find_data(
                recipe, graph.hashes, data.heldout, None, f"{key}.heldout"
            )
        made_from = {
            "data": data.model_dump(mode="json", exclude=NOT_OF_THE_ROWS),
            "heldout": split,
            "columns": sorted(columns),
            "sources": {role: each.identity for role, each in sources.items()},
        }
        graph.add(f"pairs/{dataset}", "read", made_from, sources=sources, dataset=dataset)


def scores(graph: Graph) -> None:
    """`scores/<dataset>/<value>`: every reward of every dataset's training pairs.

    Of held-out pairs only where something reads them.
    """
    recipe = graph.recipe
    # What is scored together decides the last bits of a reward.
    together = recipe.scoring.model_dump(include={"shard_pairs", "tokens_per_batch"})
    rewards = {
        name: find_reward(recipe, graph.hashes, value.reward, f"values.{name}.reward")
        for name, value in recipe.values.items()
    }
    for dataset in graph.of("read"):
        for value, (reward, source) in rewards.items():
            made_from = {"reward": reward, **together}
            heldout = reads_heldout_scores(recipe, str(dataset.dataset), value)
            graph.add(
                f"scores/{dataset.dataset}/{value}",
                "score",
                made_from,
                inputs=(dataset,),
                covers={"held-out pairs": dataset} if heldout else {},
                sources={"reward": source} if source else {},
                dataset=dataset.dataset,
                value=value,
            )


def filtered_sets(graph: Graph) -> None:
    """`filtered/<method>/<name>`: the pair sets of every method."""
    recipe = graph.recipe
    settings = recipe.consistency.model_dump(mode="json", include={"normalisation", "scope"})
    every_dataset = [str(each.dataset) for each in graph.of("read")]
    sets = [
        (name, each) for name, method in methods_of(recipe).items() for each in method.pairs(recipe)
    ]
    # A set that copies the size of another comes after it.
    for method, each in sorted(sets, key=lambda one: one[1].size_of is not None):
        datasets = recipe.datasets_of(each.value)
        scored = every_dataset if recipe.consistency.scope == "all" else datasets
        inputs = [graph[f"pairs/{dataset}"] for dataset in datasets]
        inputs += [
            graph[f"scores/{dataset}/{value}"] for dataset in scored for value in recipe.values
        ]
        if each.size_of is not None:
            inputs.append(graph[f"filtered/{each.size_of}/{each.name}"])
        made_from = {
            "rule": each.rule.as_json(),
            "consistency": settings,
            "values": list(recipe.values),
            "by_own_reward": datasets != [each.value],
        }
        graph.add(
            f"filtered/{method}/{each.name}",
            "filter",
            made_from,
            inputs=tuple(inputs),
            method=method,
            value=each.value,
        )


def union(graph: Graph) -> None:
    """`union`, where a method trains on the pairs of all values."""
    recipe = graph.recipe
    policies = (each for one in methods_of(recipe).values() for each in one.policies(recipe))
    if not any(policy.reads_union for policy in policies):
        return
    made_from = {
        "values": list(recipe.values),
        "datasets": {value: recipe.datasets_of(value) for value in recipe.trained_values()},
    }
    graph.add("union", "union", made_from, inputs=(*graph.of("read"), *graph.of("score")))


def tokens(graph: Graph) -> None:
    """`tokens/<dataset>`: every dataset's pairs under the model's chat template."""
    model = model_of(graph)
    lengths = graph.recipe.training.model_dump(mode="json", include={"max_length", "overlong"})
    for each in graph.of("read"):
        graph.add(
            f"tokens/{each.dataset}",
            "tokens",
            {"model": model.identity, **lengths},
            inputs=(each,),
            sources={"model": model},
            dataset=each.dataset,
        )


def in_context(graph: Graph) -> None:
    """`in_context/<method>/<dataset>`: tokens of prompts that say the scores of the answers."""
    recipe = graph.recipe
    model = model_of(graph)
    lengths = recipe.training.model_dump(mode="json", include={"max_length", "overlong"})
    for name, method in methods_of(recipe).items():
        for policy in method.policies(recipe):
            if policy.scores is None:
                continue
            made_from = {"model": model.identity, "scores": policy.scores.as_json(), **lengths}
            for each in graph.of("read"):
                graph.add(
                    f"in_context/{name}/{each.dataset}",
                    "in_context",
                    made_from,
                    inputs=(each, graph["union"]),
                    sources={"model": model},
                    dataset=each.dataset,
                    method=name,
                )


def theta_0(graph: Graph) -> None:
    """`theta_0`, where the recipe makes it by SFT."""
    recipe = graph.recipe
    if recipe.sft is None:
        return
    model = model_of(graph)
    made_from = {
        "model": model.identity,
        "training": content_of(sft_training(recipe)),
        "deepspeed": graph.hashes.of_file(find_deepspeed_config(recipe)),
        "seed": 0,
    }
    sources = {"model": model, "deepspeed": deepspeed_of(recipe)}
    inputs = (*graph.of("read"), *graph.of("tokens"))
    graph.add("theta_0", "sft", made_from, inputs=inputs, sources=sources)


def references(graph: Graph) -> None:
    """`reference/<dataset>`: pairs that policies read, where the objective has a reference."""
    training = graph.recipe.training
    if training.objective in WITHOUT_REFERENCE:
        return
    covers: dict[str, dict[str, Product]] = {}
    for name, method in methods_of(graph.recipe).items():
        for policy in method.policies(graph.recipe):
            read = pairs_read(graph, name, policy)
            for dataset in datasets_of(read.values()):
                covers.setdefault(dataset, {}).update(read)
    for each in graph.of("read"):
        if each.dataset not in covers:
            continue
        graph.add(
            f"reference/{each.dataset}",
            "reference",
            {"model": base_identity(graph), "dtype": training.dtype},
            inputs=(each, graph[f"tokens/{each.dataset}"], *graph.of("sft")),
            covers=covers[each.dataset],
            sources=base_of(graph),
            dataset=each.dataset,
        )


def policies(graph: Graph) -> None:
    """`policies/<method>/<name>/seed-<s>`: the policies of every method, with every seed.

    Those whose margins are log-probs under others come after these, and after `logps/`.
    """
    asked = [
        (name, policy, seed)
        for name, method in methods_of(graph.recipe).items()
        for seed in graph.recipe.seeds
        for policy in method.policies(graph.recipe)
    ]
    first = [each for each in asked if not logps_read(*each[1:])]
    second = [each for each in asked if logps_read(*each[1:])]
    for each in first:
        _policy(graph, *each)
    for each in second:
        _logps(graph, *each)
    for each in second:
        _policy(graph, *each)


def _policy(graph: Graph, method: str, policy: Policy, seed: int) -> None:
    recipe = graph.recipe
    made_from = {
        "model": base_identity(graph),
        "deepspeed": graph.hashes.of_file(find_deepspeed_config(recipe)),
        "training": content_of(methods_of(recipe)[method].training(recipe)),
        "seed": seed,
    }
    if policy.reweighting is not None:
        made_from["reweighting"] = policy.reweighting.as_json()
    graph.add(
        f"policies/{method}/{policy.name}/seed-{seed}",
        "train",
        made_from,
        inputs=(*trained_on(graph, method, policy, seed), *graph.of("sft")),
        sources=base_of(graph) | {"deepspeed": deepspeed_of(recipe)},
        method=method,
        value=policy.value,
        seed=seed,
    )


def _logps(graph: Graph, method: str, policy: Policy, seed: int) -> None:
    """`logps/<method>/<value>/seed-<s>/<dataset>`, as `reference/<dataset>` of another model."""
    for name, under, dataset in logps_read(policy, seed):
        known = graph.products.get(name)
        covers = dict(known.covers) if known else {}
        graph.add(
            name,
            "reference",
            {"dtype": graph.recipe.training.dtype},
            inputs=(graph[f"tokens/{dataset}"], graph[under]),
            covers=covers | pairs_read(graph, method, policy),
            dataset=dataset,
            seed=seed,
        )


def policy_names(recipe: Recipe) -> list[str]:
    """The policies that a recipe asks for."""
    return [
        f"policies/{name}/{policy.name}/seed-{seed}"
        for name, method in methods_of(recipe).items()
        for policy in method.policies(recipe)
        for seed in recipe.seeds
    ]


def soups(graph: Graph) -> None:
    """`soups/<method>/seed-<s>/<weights>`: the candidates that are sums of policies."""
    recipe = graph.recipe
    for name, method in methods_of(recipe).items():
        for seed in recipe.seeds:
            for candidate in method.candidates(recipe):
                if not candidate.is_soup:
                    continue
                named = dict(zip(recipe.trained_values(), candidate.weights, strict=True))
                own = [graph[f"policies/{name}/{each}/seed-{seed}"] for each in candidate.policies]
                made_from = {"weights": named, "shard_size": recipe.soup.shard_size}
                base = {"model": base_identity(graph)} if weight_of_base(candidate.weights) else {}
                graph.add(
                    f"soups/{name}/seed-{seed}/{soup_name(named)}",
                    "merge",
                    made_from | base,
                    inputs=(*own, *(graph.of("sft") if base else ())),
                    sources=base_of(graph) if base else {},
                    method=name,
                    seed=seed,
                    weights=candidate.weights,
                )


def evaluations(graph: Graph) -> None:
    """`evaluation/base` for theta_0, and one for every candidate model."""
    recipe = graph.recipe
    judges: dict[str, Any] = {}
    judged_by = {}
    for value, settings in recipe.values.items():
        key = "judge" if settings.judge else "reward"
        judge, source = find_reward(
            recipe, graph.hashes, recipe.judge_of(value), f"values.{value}.{key}"
        )
        judges[value] = judge
        if source:
            judged_by[f"judge/{value}"] = source
    made_from = {
        "evaluation": recipe.evaluation.model_dump(mode="json", exclude=NOT_OF_THE_ANSWERS),
        "judges": judges,
    }
    pairs = graph.of("read")
    heldout = {"heldout_pairs": recipe.evaluation.heldout_pairs}
    tokens = graph.of("tokens") if recipe.evaluation.heldout_pairs else []
    graph.add(
        "evaluation/base",
        "evaluate",
        made_from | {"model": base_identity(graph)} | (heldout if tokens else {}),
        inputs=(*pairs, *tokens, *graph.of("sft")),
        sources=base_of(graph) | judged_by,
    )
    for name, method in methods_of(recipe).items():
        for seed in recipe.seeds:
            for candidate in method.candidates(recipe):
                named = dict(zip(recipe.trained_values(), candidate.weights, strict=True))
                place = f"{name}/seed-{seed}/{soup_name(named)}"
                policy = f"policies/{name}/{candidate.policies[0]}/seed-{seed}"
                made: dict[str, Any] = made_from | {"model": None}
                inputs = [*pairs]
                if tokens and candidate.is_soup and is_between_two(candidate.weights):
                    made, inputs = made | heldout, [*inputs, *tokens]
                if candidate.asked is not None:
                    asked = {"asked": candidate.asked.as_json()}
                    made, inputs = made | asked, [*inputs, *graph.of("union")]
                graph.add(
                    f"evaluation/{place}",
                    "evaluate",
                    made,
                    inputs=(
                        *(*inputs, *graph.of("sft")),
                        graph[f"soups/{place}" if candidate.is_soup else policy],
                    ),
                    sources=base_of(graph) | judged_by,
                    method=name,
                    seed=seed,
                    weights=candidate.weights,
                )


def reports(graph: Graph) -> None:
    """`report`."""
    recipe = graph.recipe.model_dump(
        mode="json", include={"name": True, "evaluation": {"bootstrap", "confidence", "samples"}}
    )
    stages = ("evaluate", "filter", "union", "sft", "train", "read")
    graph.add(
        "report",
        "report",
        {"version": __version__, "recipe": recipe},
        inputs=tuple(each for stage in stages for each in graph.of(stage)),
    )
