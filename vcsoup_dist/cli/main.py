"""The `vcsoup` command. A stage is imported only when it is asked for."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vcsoup_dist import __version__
from vcsoup_dist.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted, UserError
from vcsoup_dist.launch.import_paths import import_last
from vcsoup_dist.launch.stop_signals import STOP_SIGNALS, detach_lost_terminal, not_ignored
from vcsoup_dist.progress import log_to_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from vcsoup_dist.recipe import Recipe
    from vcsoup_dist.workspace import Product, Workspace

app = typer.Typer(
    help="Value-consistent soups of language models: score, filter, train, soup, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

MENDABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENXIO,
    errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE, errno.EISDIR,
    errno.ENOTDIR,
)  # fmt: skip
"""Errors of the machine and its files, of which the name of the file says enough."""


class Launcher(StrEnum):
    """The recipe's `launch.launcher`."""

    local = "local"
    srun = "srun"


RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file; or a run directory.")
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        "-d",
        help="Run directory; by default runs/NAME beside the recipe, with the recipe's name.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of the recipe, such as training.steps=20, as if it stood there; repeatable.",
    ),
]

LauncherOption = Annotated[
    Launcher | None,
    typer.Option(
        help="Where training ranks run: `srun` starts one for each task of this Slurm job. "
        "`launch.launcher` by default."
    ),
]

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="A running Ray cluster, such as HOST:6379 or `auto`; `local` starts one here. "
        "`launch.ray_address` by default, else RAY_ADDRESS, else `local`.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vcsoup_dist {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def check(recipe: RecipeFile, run_dir: RunDir = None, settings: Settings = None) -> None:
    """Check a recipe and say what will run and what it will cost; changes nothing.

    Example: vcsoup check examples/hh_llama3_8b.yaml
    """
    import gc

    gc.disable()  # a fifth of the time of this short command, whose work is imports
    from vcsoup_dist.check.show import show_check

    loaded, workspace, plan = _plan(recipe, run_dir, make=False, settings=settings)
    show_check(loaded, workspace, plan)


@app.command()
def status(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    products: Annotated[
        bool, typer.Option("--products", "-p", help="List every product with its mark instead.")
    ] = False,
) -> None:
    """Say stage by stage what is done, runs, waits or failed, and how long it took.

    Example: vcsoup status recipe.yaml
    """
    from vcsoup_dist.status.status import show_products, show_status

    loaded, workspace, plan = _plan_or_recorded(recipe, run_dir, settings)
    if products:
        show_products(loaded, workspace, plan)
    else:
        show_status(loaded, workspace, plan)


@app.command("reward-check")
def reward_check(recipe: RecipeFile, run_dir: RunDir = None, settings: Settings = None) -> None:
    """Load every reward, say what was understood of it, and score the first sixty pairs.

    Finds fresh heads, doubled start tokens, templates that lose text, rewards that
    do not see the prompt, contradict the labels or follow length; changes nothing.

    Exit codes: 0 all is well; 2 a reward would give wrong scores, or none.

    Example: vcsoup reward-check recipe.yaml
    """
    from vcsoup_dist.check.rewards import check_rewards

    loaded, _, plan = _plan(recipe, run_dir, make=False, settings=settings)
    check_rewards(loaded, plan)


@app.command()
def score(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    address: AddressOption = None,
) -> None:
    """Read the preference pairs and score them with every reward, on Ray actors.

    Example: vcsoup score recipe.yaml
    """
    _make(recipe, run_dir, ["read", "score"], address=address, settings=settings)


@app.command("filter")
def filter_pairs(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    address: AddressOption = None,
) -> None:
    """Keep the consistent pairs of every value.

    Example: vcsoup filter recipe.yaml
    """
    _make(recipe, run_dir, ["filter"], address=address, settings=settings)


@app.command()
def values(recipe: RecipeFile) -> None:
    """Print the values that get a policy, one a line: what VALUE of `vcsoup train` may be.

    Example: vcsoup values recipe.yaml
    """
    from vcsoup_dist.pipeline.find_run import find_recipe

    for name in find_recipe(recipe).trained_values():
        print(name)


@app.command()
def warmup(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
) -> None:
    """Make theta_0 by supervised fine-tuning on all chosen answers, where the recipe says so.

    `vcsoup reference` and `vcsoup train` do it by themselves.

    Exit codes: as for `vcsoup train`.

    Example: vcsoup warmup recipe.yaml
    """
    _make(recipe, run_dir, ["warmup"], launcher=launcher, settings=settings)


@app.command()
def reference(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
) -> None:
    """Compute the log-probs of all pairs under theta_0, once for all policies.

    theta_0 is made first where the recipe has a `warmup`.
    `vcsoup train` does both by itself. What a stopped command finished is kept.

    Exit codes: as for `vcsoup train`.

    Example: vcsoup reference recipe.yaml
    """
    _make(recipe, run_dir, ["warmup", "reference"], launcher=launcher, settings=settings)


@app.command()
def train(
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE",
            help="A value of the recipe, or one policy: policies/METHOD/VALUE/seed-SEED.",
        ),
    ],
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
) -> None:
    """Train one value's policies (every method and seed), or one of them, with DeepSpeed.

    theta_0 and the reference log-probs they need are made first, once for all.

    Exit codes: 0 done; 2 a mistake to mend; 75 stopped on request, by a signal
    or `launch.max_minutes`, and 130 by Ctrl-C: the same command goes on. A second
    Ctrl-C ends it at once, and loses the steps since the last checkpoint.

    Example: vcsoup train helpful recipe.yaml
    """
    from vcsoup_dist.pipeline.find_run import find_run
    from vcsoup_dist.pipeline.products import policy_names

    loaded = find_run(recipe, run_dir, settings or ()).recipe
    known = loaded.trained_values()
    if value not in known and value not in (policies := policy_names(loaded)):
        known = policies if "/" in value else known
        raise UserError(f"`{value}` is no value with a policy; the recipe has {', '.join(known)}")
    stages = ["warmup", "reference", "train"]
    _make(
        recipe,
        run_dir,
        stages,
        lambda each: each.stage != "train" or value in (each.value, each.name),
        launcher,
        settings=settings,
    )


@app.command()
def merge(
    context: typer.Context,
    policies: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="POLICY... | RECIPE",
            help="Model directories or DeepSpeed checkpoints; a recipe; or a mergekit YAML.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The soup's directory; with several soups, the folder of theirs."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="W,W,...", help="One weight per policy; again for another soup."),
    ] = None,
    grid: Annotated[float | None, typer.Option(help="All weights in steps of this.")] = None,
    random: Annotated[
        int | None, typer.Option(help="So many soups, drawn uniformly from all weights.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --random, and of --sample.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="A mergekit YAML: linear or task_arithmetic.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="theta_0, for theta_0 + sum of w (policy - theta_0); any sum of weights."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Whose config and tokenizer soups get; the first policy's by default."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16, fp16, fp32 or fp64; as the first policy is stored by default."),
    ] = None,
    memory: Annotated[str, typer.Option(help="The most to hold, such as 512MiB.")] = "1GiB",
    shard_size: Annotated[
        str, typer.Option(help="Of a weights file, or `inputs`: cut as the first policy is.")
    ] = "5GB",
    rank: Annotated[int, typer.Option(help="Which share of the files to write.")] = 0,
    world_size: Annotated[int, typer.Option(help="How many processes share the work.")] = 1,
    finalise: Annotated[
        bool, typer.Option("--finalise", help="Only publish what all ranks have written.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and measure how long it will take.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the soups with their sources afterwards.")
    ] = False,
    sample: Annotated[float, typer.Option(help="Share of the weights that is compared.")] = 1.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at --out.")
    ] = False,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow weights outside [0, 1].")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Sum NaN and infinity as IEEE says.")
    ] = False,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Put sha256 hashes into the manifest too (slow).")
    ] = False,
    run_dir: RunDir = None,
) -> None:
    """Write linear soups of checkpoints of any size in one pass and little memory.

    Example: vcsoup merge helpful harmless --weights 0.3,0.7 --out soup

    Example: vcsoup merge step-1000 base-model --grid 0.25 --dtype bf16 --out soups --verify

    With a recipe: the soups of its grid. Of the options it takes only --run-dir,
    and to share the work --rank and --world-size; then --finalise publishes.

    Example: vcsoup merge recipe.yaml

    Example: vcsoup merge recipe.yaml --rank 3 --world-size 8
    """
    policies = policies or []
    given = _given(context)
    if len(policies) == 1 and _is_recipe(policies[0]) and _is_mergekit(policies[0]):
        if config is not None:
            raise UserError(f"{policies[0]}: give one mergekit configuration, not --config too")
        policies, config = [], policies[0]
    if len(policies) == 1 and _is_recipe(policies[0]):
        shares = given & {"--rank", "--world-size", "--finalise"}
        if others := given - shares - {"--policies", "--run-dir"}:
            say = ", ".join(sorted(others))
            raise UserError(
                f"{policies[0]}: a recipe says itself what its soups are; leave out {say}"
            )
        if not shares:
            _make(policies[0], run_dir, ["merge"])
        elif len(shares) != 2 or "--world-size" not in shares:
            raise UserError("with a recipe give --world-size and either --rank or --finalise")
        else:
            _merge_shares(policies[0], run_dir, None if finalise else rank, world_size)
        return
    if "--run-dir" in given:
        raise UserError("--run-dir is of a recipe; policies are merged to --out")
    from vcsoup_dist.souping.merge import merge as merge_checkpoints

    if out is None:
        raise UserError("a merge of policies needs --out, the directory to write")
    merge_checkpoints(
        policies,
        out=out,
        weights=[_numbers(row) for row in weights] if weights else None,
        grid=grid,
        random=random,
        seed=seed,
        config=config,
        base=base,
        model=model,
        dtype=dtype,
        memory=_size(memory, "--memory"),
        shard_size=None if shard_size == "inputs" else _size(shard_size, "--shard-size"),
        rank=rank,
        world_size=world_size,
        finalise=finalise,
        dry_run=dry_run,
        verify=verify,
        sample=sample,
        overwrite=overwrite,
        extrapolate=extrapolate,
        allow_nonfinite=allow_nonfinite,
        sha256=sha256,
    )


@app.command()
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
    memory: Annotated[str, typer.Option(help="The most to hold, such as 512MiB.")] = "1GiB",
    shard_size: Annotated[str, typer.Option(help="Of a weights file.")] = "5GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at --out.")
    ] = False,
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
        memory=_size(memory, "--memory"),
        shard_size=_size(shard_size, "--shard-size"),
        overwrite=overwrite,
    )


@app.command()
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


@app.command()
def evaluate(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    address: AddressOption = None,
) -> None:
    """Generate held-out answers with every soup and score them, on Ray actors.

    Example: vcsoup evaluate recipe.yaml
    """
    _make(recipe, run_dir, ["evaluate"], address=address, settings=settings)


@app.command()
def report(recipe: RecipeFile, run_dir: RunDir = None, settings: Settings = None) -> None:
    """Find the Pareto fronts and write the report: HTML, PNG, CSV and JSON.

    Example: vcsoup report recipe.yaml
    """
    from vcsoup_dist.pipeline.result import show_result

    _make(recipe, run_dir, ["report"], settings=settings)
    show_result(_plan(recipe, run_dir, make=False, settings=settings)[1])


@app.command()
def run(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
    address: AddressOption = None,
) -> None:
    """Make all that is missing, from the pairs to the report; run again, it goes on.

    Exit codes: 0 done; 2 a mistake to mend; 75 training stopped on request, by
    a signal or `launch.max_minutes`, and 130 by Ctrl-C: the same command goes on.
    A second Ctrl-C ends training at once, and loses the steps since its checkpoint.

    Example: vcsoup run recipe.yaml --run-dir /scratch/me/run1
    """
    from vcsoup_dist.pipeline.products import STAGES
    from vcsoup_dist.pipeline.result import show_result

    workspace = _make(
        recipe, run_dir, STAGES, launcher=launcher, address=address, settings=settings
    )
    show_result(workspace)


@app.command()
def submit(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the commands of sbatch, as a script.")
    ] = False,
) -> None:
    """Make all that is missing by a chain of Slurm jobs; submitted again, it goes on.

    What `launch.slurm` and the site file say each job asks for: docs/slurm.md.

    Example: vcsoup submit recipe.yaml --run-dir /scratch/me/run1
    """
    from vcsoup_dist.slurm_jobs.submissions import was_submitted
    from vcsoup_dist.slurm_jobs.submit import as_script, settled_jobs, try_jobs
    from vcsoup_dist.slurm_jobs.submit import submit as submit_jobs

    loaded, workspace, plan = _plan(recipe, run_dir, make=False)
    file = recipe.resolve()
    if not dry_run:
        if not workspace.root.exists():  # what Slurm refuses leaves no folder
            try_jobs(file, loaded, workspace, plan)
        loaded, workspace, plan = _plan(recipe, run_dir, make=True)
    if dry_run:  # also where there is no Slurm
        live = settled_jobs(workspace.root) if was_submitted(workspace.root) else []
        lines = as_script(file, loaded, workspace, plan, live)
    else:
        lines = submit_jobs(file, loaded, workspace, plan)
    for line in lines:
        print(line)
    if not lines:
        logging.getLogger("vcsoup").info("nothing to do: %s is up to date", workspace.root)


@app.command()
def cancel(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Take the jobs of a run out of Slurm's queue; what they finished stays.

    Example: vcsoup cancel recipe.yaml
    """
    from vcsoup_dist.slurm_jobs.submit import cancel_all

    _, workspace, _ = _plan(recipe, run_dir, make=False)
    ids = cancel_all(workspace)
    print(f"cancelled {', '.join(ids)}" if ids else f"no jobs of {workspace.root} in the queue")


@app.command()
def clean(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove checkpoints of finished policies, stale products, and what `keep` gives up.

    Example: vcsoup clean recipe.yaml --dry-run
    """
    from vcsoup_dist.pipeline.clean import removable, remove, size_of

    loaded, workspace, plan = _plan(recipe, run_dir, make=False, settings=settings)
    found = list(removable(loaded, workspace, plan))
    for folder, reason in found:
        print(f"{size_of(folder) / 1e9:9.3f} GB  {folder}  ({reason})")
        if not dry_run:
            remove(folder)
    if not found:
        print("nothing to remove")


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where the demo's world and run directory go.")
    ] = Path("runs/demo"),
) -> None:
    """Run the whole method on a small generated world: ten minutes on two cores, no downloads.

    Example: vcsoup demo --dir /tmp/demo
    """
    from vcsoup_dist.demo.run import run_demo

    run_demo(folder)


def _plan(
    recipe_file: Path, run_dir: Path | None, make: bool, settings: Sequence[str] | None = None
) -> tuple[Recipe, Workspace, list[Product]]:
    """Recipe, workspace and plan; the run directory is touched only where something is made."""
    from vcsoup_dist.identity import Hashes
    from vcsoup_dist.pipeline.find_run import find_run
    from vcsoup_dist.pipeline.plan_file import write_plan
    from vcsoup_dist.pipeline.products import make_plan
    from vcsoup_dist.workspace import Workspace

    run = find_run(recipe_file, run_dir, settings or ())
    recipe, root = run.recipe, run.root
    workspace = Workspace.open(root, recipe) if make else Workspace.look(root, recipe)
    hashes = Hashes(root / "hashes.json")
    plan = make_plan(recipe, hashes)
    if make:
        hashes.save()
        write_plan(root, plan)
    return recipe, workspace, plan


def _plan_or_recorded(
    recipe_file: Path, run_dir: Path | None, settings: Sequence[str] | None
) -> tuple[Recipe, Workspace, list[Product]]:
    """The plan of a recipe as it is now; of a run directory, or where models and files that it
    names are gone, that of its last command."""
    from vcsoup_dist.pipeline.find_run import find_run
    from vcsoup_dist.pipeline.plan_file import read_plan
    from vcsoup_dist.workspace import Workspace

    run = find_run(recipe_file, run_dir, settings or ())
    recorded = read_plan(run.root)
    if not run.from_copy or recorded is None:
        try:
            return _plan(recipe_file, run_dir, make=False, settings=settings)
        except UserError as error:
            if recorded is None:
                raise
            log = logging.getLogger("vcsoup")
            log.warning("%s: told as of the last command, since now %s", run.root, error)
            run = find_run(run.root)
    return run.recipe, Workspace.look(run.root, run.recipe), recorded


def _make(
    recipe_file: Path,
    run_dir: Path | None,
    stages: Sequence[str],
    only: Callable[[Product], bool] = lambda product: True,
    launcher: Launcher | None = None,
    address: str | None = None,
    settings: Sequence[str] | None = None,
) -> Workspace:
    from vcsoup_dist.pipeline.run import make_missing

    recipe, workspace, plan = _plan(recipe_file, run_dir, make=True, settings=settings)
    if launcher:
        recipe = recipe.launched_by(launcher.value)
    if address:
        recipe = recipe.on_ray_at(address)
    if not make_missing(recipe, workspace, plan, stages, only):
        asked = any(product.stage in stages for product in plan)
        reason = f"{workspace.root} is up to date" if asked else f"no {stages[-1]} in this recipe"
        logging.getLogger("vcsoup").info("nothing to do: %s", reason)
    return workspace


def _is_recipe(path: Path) -> bool:
    from vcsoup_dist.recipe.origin import NAME

    return path.is_file() or path.suffix in (".yaml", ".yml") or (path / NAME).is_file()


def _given(context: typer.Context) -> set[str]:
    """The options that the command was given, such as `--run-dir`."""
    found = set()
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            found.add(f"--{name.replace('_', '-')}")
    return found


def _merge_shares(recipe_file: Path, run_dir: Path | None, rank: int | None, size: int) -> None:
    """Write one rank's share of the soups, or publish what all ranks have written."""
    from vcsoup_dist.pipeline.history import recorded
    from vcsoup_dist.souping.stage import make_share, publish_shares

    if not 0 <= (rank or 0) < size:
        raise UserError(f"--rank {rank or 0} of --world-size {size}: ranks count from 0")
    recipe, workspace, plan = _plan(recipe_file, run_dir, make=True)
    missing = [each for each in plan if each.stage == "merge" and not workspace.is_made(each)]
    if not missing:
        logging.getLogger("vcsoup").info("nothing to do: %s is up to date", workspace.root)
        return
    with recorded(workspace.root, "merge", missing):
        if rank is None:
            publish_shares(recipe, workspace, missing, size)
        else:
            make_share(recipe, workspace, missing, rank, size)


def _is_mergekit(file: Path) -> bool:
    """Whether a YAML is mergekit's; UserError where it is that of a recipe neither."""
    from vcsoup_dist.recipe import Recipe
    from vcsoup_dist.souping.mergekit_config import MARKS, yaml_keys

    keys = yaml_keys(file)
    if keys is not None and keys & MARKS:
        return True
    if keys is not None and not keys & Recipe.model_fields.keys():
        raise UserError(
            f"{file}: is neither a recipe (`name`, `model`, `values`) nor a mergekit configuration"
            " (`models`, `merge_method`)"
        )
    return False


def _numbers(row: str) -> list[float]:
    try:
        return [float(part) for part in row.split(",")]
    except ValueError:
        raise UserError(f"--weights {row}: give numbers with commas between them") from None


def _size(text: str, option: str) -> int:
    """Bytes in `1GiB`, `500MB` or `4096`."""
    units = {"": 1, "B": 1}
    for power, letter in enumerate("KMGT", start=1):
        units |= {f"{letter}B": 1000**power, f"{letter}IB": 1024**power, letter: 1024**power}
    number = text.rstrip("BKMGTIbkmgti ")
    unit = text[len(number) :].strip().upper()
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        raise UserError(f"{option} {text}: give a size such as 1GiB or 500MB") from None


def _stop(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        detach_lost_terminal()
    raise Preempted(number)


def _leave(code: int) -> NoReturn:
    """Exit with this code, also where a further request to stop comes while Ray shuts down."""
    for each in {signal.SIGINT, *not_ignored(STOP_SIGNALS)}:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(code)


def main() -> None:
    """Entry point: mistakes a person can mend are plain lines and exit code 2, a stop is 75."""
    log_to_terminal(logging.INFO)
    import_last(os.getcwd())  # recipes may name callables of modules there
    os.environ["VCSOUP_BEGAN"] = str(time.time())  # for launch.max_minutes
    for each in not_ignored(STOP_SIGNALS):
        signal.signal(each, _stop)
    try:
        app()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"vcsoup: {line}", file=sys.stderr)
        sys.exit(2)
    except Preempted as stopped:
        print(f"vcsoup: {stopped}", file=sys.stderr)
        _leave(EXIT_INTERRUPTED if stopped.by == signal.SIGINT else EXIT_PREEMPTED)
    except OSError as error:
        if error.errno not in MENDABLE or not error.filename:
            raise
        print(f"vcsoup: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stopped:
        # typer makes an exit with code 130 of an interrupt.
        if isinstance(stopped, SystemExit) and stopped.code != EXIT_INTERRUPTED:
            raise
        print("vcsoup: interrupted; the same command goes on from here", file=sys.stderr)
        _leave(EXIT_INTERRUPTED)
