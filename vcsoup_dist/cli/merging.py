"""Commands about soups and checkpoints: merge, export, verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vcsoup_dist.cli.options import Memory, Overwrite, RunDir, bytes_of, numbers_of, takes
from vcsoup_dist.cli.plan import make_products, plan_run
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log

OF_RECIPES = {"--run-dir", "--rank", "--world-size", "--finalise"}
"""The options that `vcsoup merge RECIPE` takes."""


@dataclass(frozen=True)
class MergeArguments:
    """The command line of `vcsoup merge`."""

    policies: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="POLICY... | RECIPE",
            help="Model directories or DeepSpeed checkpoints; a recipe; or a mergekit YAML.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(help="The soup's directory; with several soups, the folder of theirs."),
    ] = None
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="W,W,...", help="One weight per policy; again for another soup."),
    ] = None
    grid: Annotated[float | None, typer.Option(help="All weights in steps of this.")] = None
    random: Annotated[
        int | None, typer.Option(help="So many soups, drawn uniformly from all weights.")
    ] = None
    seed: Annotated[int, typer.Option(help="Of --random, and of --sample.")] = 0
    config: Annotated[
        Path | None, typer.Option(help="A mergekit YAML: linear or task_arithmetic.")
    ] = None
    base: Annotated[
        Path | None,
        typer.Option(
            help="theta_0, for theta_0 + sum of w (policy - theta_0); any sum of weights."
        ),
    ] = None
    model: Annotated[
        Path | None,
        typer.Option(help="Whose config and tokenizer soups get; the first policy's by default."),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16, fp16, fp32 or fp64; as the first policy is stored by default."),
    ] = None
    memory: Memory = "1GiB"
    shard_size: Annotated[
        str, typer.Option(help="Of a weights file, or `inputs`: cut as the first policy is.")
    ] = "5GB"
    rank: Annotated[int, typer.Option(help="Which share of the files to write.")] = 0
    world_size: Annotated[int, typer.Option(help="How many processes share the work.")] = 1
    finalise: Annotated[
        bool, typer.Option("--finalise", help="Only publish what all ranks have written.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and measure how long it will take.")
    ] = False
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the soups with their sources afterwards.")
    ] = False
    sample: Annotated[float, typer.Option(help="Share of the weights that is compared.")] = 1.0
    overwrite: Overwrite = False
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow weights outside [0, 1].")
    ] = False
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Sum NaN and infinity as IEEE says.")
    ] = False
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Put sha256 hashes into the manifest too (slow).")
    ] = False
    run_dir: RunDir = None


@takes(MergeArguments)
def merge(context: typer.Context, given: MergeArguments) -> None:
    """Write linear soups of checkpoints of any size in one pass and little memory.

    Example: vcsoup merge helpful harmless --weights 0.3,0.7 --out soup

    Example: vcsoup merge step-1000 base-model --grid 0.25 --dtype bf16 --out soups --verify

    With a recipe: the soups of its grid. Of the options it takes only --run-dir,
    and to share the work --rank and --world-size; then --finalise publishes.

    Example: vcsoup merge recipe.yaml

    Example: vcsoup merge recipe.yaml --rank 3 --world-size 8
    """
    policies, config = given.policies or [], given.config
    named = _named_options(context)
    if len(policies) == 1 and _is_recipe(policies[0]):
        if not _is_mergekit(policies[0]):
            _merge_recipe(policies[0], given, named)
            return
        if config is not None:
            raise UserError(f"{policies[0]}: give one mergekit configuration, not --config too")
        policies, config = [], policies[0]
    if "--run-dir" in named:
        raise UserError("--run-dir is for a recipe; policies are merged to --out")
    if given.out is None:
        raise UserError("a merge of policies needs --out, the directory to write")
    from vcsoup_dist.souping.merge import merge as merge_checkpoints

    as_they_are = {
        name: value
        for name, value in vars(given).items()
        if name not in ("policies", "config", "out", "weights", "memory", "shard_size", "run_dir")
    }
    inputs = given.shard_size == "inputs"
    merge_checkpoints(
        policies,
        out=given.out,
        config=config,
        weights=[numbers_of(row) for row in given.weights] if given.weights else None,
        memory=bytes_of(given.memory, "--memory"),
        shard_size=None if inputs else bytes_of(given.shard_size, "--shard-size"),
        **as_they_are,
    )


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A DeepSpeed checkpoint, one of its tags, or `.bin` weights.")
    ],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    model: Annotated[
        Path | None,
        typer.Option(help="The base model: whose config and tokenizer it gets, and must fit."),
    ] = None,
    frozen_from_model: Annotated[
        bool,
        typer.Option("--frozen-from-model", help="Take tensors that it lacks from --model."),
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16, fp32 or fp64; as stored by default.")
    ] = None,
    memory: Memory = "1GiB",
    shard_size: Annotated[str, typer.Option(help="Of a weights file.")] = "5GB",
    overwrite: Overwrite = False,
) -> None:
    """Write a DeepSpeed checkpoint as a Hugging Face model, without ever holding it.

    Example: vcsoup export checkpoints/step-00001000 --model base-model --dtype bf16 --out policy
    """
    from vcsoup_dist.souping.export import export as export_checkpoint

    export_checkpoint(
        checkpoint,
        out=out,
        model=model,
        frozen_from_model=frozen_from_model,
        dtype=dtype,
        memory=bytes_of(memory, "--memory"),
        shard_size=bytes_of(shard_size, "--shard-size"),
        overwrite=overwrite,
    )


def verify(
    directory: Annotated[Path, typer.Argument(help="What `vcsoup merge` or `export` wrote.")],
) -> None:
    """Check the files of a soup against its manifest.json.

    Example: vcsoup verify soups/soup_0.30_0.70
    """
    from vcsoup_dist.souping.verify import verify_directory

    found = verify_directory(directory)
    print(
        f"{directory}: {found.tensors} tensors, {found.nbytes / 1e9:.3f} GB, as they were written"
    )


def _merge_recipe(recipe_file: Path, given: MergeArguments, named: set[str]) -> None:
    """Write the soups of a recipe's grid: all of them, or one rank's share; or publish the shares.

    named: the options that the command line has.
    """
    if others := named - OF_RECIPES - {"--policies"}:
        names = ", ".join(sorted(others))
        pick = f"; `vcsoup pick {recipe_file} --weights W,W` writes one more" * (
            "--weights" in others
        )
        raise UserError(
            f"{recipe_file}: the recipe itself defines its soups; leave out {names}{pick}"
        )
    shares, rank, world_size = named - {"--policies", "--run-dir"}, given.rank, given.world_size
    if not shares:
        make_products(recipe_file, given.run_dir, "merge")
    elif len(shares) != 2 or "--world-size" not in shares:
        raise UserError("with a recipe give --world-size and either --rank or --finalise")
    elif not 0 <= rank < world_size:
        raise UserError(f"--rank {rank} of --world-size {world_size}: ranks count from 0")
    else:
        _merge_shares(recipe_file, given.run_dir, None if given.finalise else rank, world_size)


def _merge_shares(
    recipe_file: Path, run_dir: Path | None, rank: int | None, world_size: int
) -> None:
    """Write one rank's share of the soups, or with no rank publish what all ranks have written."""
    from vcsoup_dist.pipeline.history import recorded
    from vcsoup_dist.souping.stage import make_share, publish_shares

    recipe, workspace, plan = plan_run(recipe_file, run_dir, make=True)
    missing = [each for each in plan if each.stage == "merge" and not workspace.is_made(each)]
    if not missing:
        log.info("nothing to do: %s is up to date", workspace.root)
        return
    with recorded(workspace.root, "merge", missing, gpus=0):
        if rank is None:
            publish_shares(recipe, workspace, missing, world_size)
        else:
            make_share(recipe, workspace, missing, rank, world_size)


def _named_options(context: typer.Context) -> set[str]:
    """The options that the command was given, such as `--run-dir`."""
    found = set()
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            found.add(f"--{name.replace('_', '-')}")
    return found


def _is_recipe(path: Path) -> bool:
    from vcsoup_dist.recipe.origin import NAME

    return path.is_file() or path.suffix in (".yaml", ".yml") or (path / NAME).is_file()


def _is_mergekit(file: Path) -> bool:
    """Whether a YAML is mergekit's; UserError where it is neither that nor a recipe."""
    from vcsoup_dist.recipe import Recipe
    from vcsoup_dist.souping.mergekit_config import OWN_KEYS, yaml_keys

    keys = yaml_keys(file)
    if keys is not None and keys & OWN_KEYS:
        return True
    if keys is not None and not keys & Recipe.model_fields.keys():
        raise UserError(
            f"{file}: is neither a recipe (`name`, `model`, `values`) nor a mergekit configuration"
            " (`models`, `merge_method`)"
        )
    return False
