"""The YAML at the head of a model card, which the Hugging Face Hub reads."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from vcsoup_dist.pick.base_card import BaseModel
from vcsoup_dist.pick.choose import Choice
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.summary import Cell, Row, Summary


def front_matter(
    recipe: Recipe, choice: Choice, title: str, base: BaseModel, summary: Summary | None
) -> str:
    """With the lines of dashes around it; only what a reader of the hub can look up has an id."""
    kind = recipe.methods[choice.method].kind
    results = _results(recipe, choice.row, summary) if choice.row and summary else None
    data = ModelCardData(
        base_model=base.hub_id,
        datasets=hub_datasets(recipe) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["vc-soup", "merge" if choice.candidate.is_soup else kind],
        model_name=title if results else None,
        eval_results=results,
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def hub_datasets(recipe: Recipe) -> list[str]:
    """Ids of the datasets on the hub whose pairs the policies were trained on."""
    used = {name for value in recipe.trained_values() for name in recipe.datasets_of(value)}
    paths = [data.path for name, data in recipe.datasets().items() if name in used and data.path]
    return list(dict.fromkeys(path for path in paths if recipe.local_path(path) is None))


def _results(recipe: Recipe, row: Row, summary: Summary) -> list[EvalResult]:
    """The mean reward of every value, with its interval and theta_0's mean as arguments."""
    datasets = hub_datasets(recipe)
    start = next((each for each in summary.rows if each.method is None), None)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=datasets[0] if len(datasets) == 1 else "held-out-prompts",
            dataset_name=f"{summary.prompts} held-out prompts",
            metric_type="reward",
            metric_name=f"mean reward of {value}",
            metric_value=round(cell.mean, 6),
            metric_args={
                **_interval(cell, summary.confidence),
                **({"theta_0": round(start.cells[value].mean, 6)} if start else {}),
            },
        )
        for value, cell in row.cells.items()
    ]


def _interval(cell: Cell, confidence: float) -> dict[str, float]:
    """Nothing where one prompt gives none."""
    if cell.low is None or cell.high is None:
        return {}
    return {"confidence": confidence, "low": round(cell.low, 6), "high": round(cell.high, 6)}
