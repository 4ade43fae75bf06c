"""What a policy trains on, among the products of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vcsoup_dist.methods.method import Policy
from vcsoup_dist.pipeline.graph import Graph
from vcsoup_dist.records.pairs_read import PairsRead
from vcsoup_dist.workspace import Product


def trained_on(graph: Graph, method: str, policy: Policy, seed: int) -> list[Product]:
    """What holds the pairs of a policy, then these, their tokens and log-probs."""
    if policy.scores is not None:
        tokens = [each for each in graph.of("in_context") if each.method == method]
        return [*graph.of("union"), *graph.of("read"), *tokens]
    read = pairs_read(graph, method, policy)
    datasets = datasets_of(read.values())
    inputs = [*read.values(), *(graph[f"pairs/{each}"] for each in datasets)]
    inputs += [graph[f"tokens/{each}"] for each in datasets]
    reference = [f"reference/{each}" for each in datasets]
    names = [name for name in reference if name in graph.products]
    names += [name for name, _, _ in logps_read(policy, seed)]
    # Of log-probs what this policy reads: it waits for no other's pairs.
    return inputs + [replace(graph[name], covers=read) for name in names]


def logps_read(policy: Policy, seed: int) -> list[tuple[str, str, str]]:
    """Log-probs under other policies that one reads: their name, that policy's, and the dataset.

    None but where its margins are implicit rewards.
    """
    how = policy.reweighting
    if how is None or how.value is None:
        return []
    policies = [f"{policy.rewards_of}/{value}/seed-{seed}" for value in how.rewarded_by]
    return [
        (f"logps/{each}/{dataset}", f"policies/{each}", dataset)
        for each in policies
        for dataset in how.datasets[how.value]
    ]


def pairs_read(graph: Graph, method: str, policy: Policy) -> dict[str, Product]:
    """What a policy takes its pairs in `tokens/` from, by what it reads of it."""
    if policy.scores is not None:  # it has tokens of its own
        return {}
    sets = [graph[f"filtered/{method}/{each}"] for each in policy.pairs]
    parts = len(sets)
    if policy.reweighting is not None:
        sets = graph.of("union")
        parts = len(datasets_of(sets))
    share = -(-graph.recipe.training.heldout_pairs // parts)
    return {PairsRead(each.name, share, policy.reweighting).as_text(): each for each in sets}


def datasets_of(sets: Iterable[Product]) -> list[str]:
    """Those that filtered sets, or the union, are of."""
    read = (str(each.dataset) for one in sets for each in one.inputs_of("read"))
    return list(dict.fromkeys(read))
