"""The one typed recipe of a run.

Every default of the project is stated here and nowhere else; the text below a key is its
documentation. `recipe_file.load_recipe` reads one from YAML.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from vcsoup_dist.sbatch_options import JobStage, SbatchOptions

NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
FIELD = r"^[A-Za-z_]\w*$"
FUNCTION = r"^[\w./-]+:[A-Za-z_]\w*$"
IN_WORDS = {
    NAME: "a value's name has letters, digits and _ only, and does not begin with _",
    RUN_NAME: "a name has letters, digits, `.`, `_`, `-` only, and begins with a letter or digit",
    FIELD: "a field's name has letters, digits and _ only, and does not begin with a digit",
    FUNCTION: "give `package.module:function`, or `file.py:function`",
}
"""What the patterns say, for messages."""
MOST_VALUES = 20
"""The most whose signs in base 3 fit in 32 bits, as the filter keeps them."""

Method = Literal["vc_soup", "rewarded_soup", "all_positive", "random"]
"""What a comparison may list: the method itself; no filter at all (Rewarded Soups with DPO); pairs
whose gaps are all positive (Reward Consistency); a random subset of `vc_soup`'s size."""


Objective = Literal["dpo", "ipo", "hinge", "robust", "simpo", "sft"]
Attention = Literal["auto", "flash_attn", "torch_varlen", "segments"]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
WITHOUT_REFERENCE: tuple[Objective, ...] = ("simpo", "sft")


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Data(Section):
    """The preference pairs of one value: a file, a hub dataset, or other values' pairs."""

    path: str | None = None
    """A `.jsonl` (JSON Lines), `.json` (these, or one array) or `.parquet` file, the first two also
    as `.gz` or `.zst`, or a folder that `datasets` can load (relative to the recipe), or a Hugging
    Face dataset id."""
    format: Literal["auto", "trl", "hh", "pku", "helpsteer", "ultrafeedback"] = "auto"
    """`trl`: prompt/chosen/rejected as strings or message lists; `hh`: whole dialogues; `pku`:
    PKU-SafeRLHF's two responses; `helpsteer` and `ultrafeedback`: rated responses, of which each
    prompt's best and worst make a pair. `auto` tells them apart by their columns."""
    preferred_by: str | None = None
    """What decides which response is chosen. `pku`: `better` or `safer`, so that one file serves
    two values; `helpsteer`, `ultrafeedback`: the name of a rating, such as `helpfulness`. What is
    rated is there for a reward from columns too, as `chosen_<name>` and `rejected_<name>`."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    subset: str | None = None
    """Configuration name (or `data_dir`) of a hub dataset."""
    split: str = "train"
    """Split of a hub dataset."""
    heldout: str | None = None
    """Held-out pairs: a file, or another split of the hub dataset or folder, which a bare name
    without a file's ending is. Absent: `heldout_share`."""
    heldout_share: float = Field(0.05, gt=0, lt=1)
    """Share of the prompts (chosen by their hash) that is held out when `heldout` is absent."""
    limit: int | None = Field(None, ge=1)
    """Use the first so many training pairs only."""
    pairs_of: list[str] | None = Field(None, min_length=1)
    """Instead of `path`: the pairs of these values, each pair turned round where this value's own
    reward prefers the rejected answer (ties are dropped)."""

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if (self.path is None) == (self.pairs_of is None):
            raise ValueError("give either `path` or `pairs_of`")
        return self

    @model_validator(mode="after")
    def _pairs_as_they_are(self) -> Data:
        for key in ("preferred_by", "revision"):
            if self.path is None and getattr(self, key) is not None:
                raise ValueError(f"{key}: `pairs_of` takes other values' pairs as they are")
        return self

    @model_validator(mode="after")
    def _preferred_by_of_the_format(self) -> Data:
        if self.preferred_by is None:
            return self
        if self.format in ("trl", "hh"):
            raise ValueError(
                f"preferred_by: format `{self.format}` says itself what is chosen; remove the key"
            )
        if self.format == "pku" and self.preferred_by not in ("better", "safer"):
            raise ValueError(
                f"preferred_by: format `pku` offers better, safer; not `{self.preferred_by}`"
            )
        return self


def _countable(amount: float) -> float:
    if 0 < amount < SMALLEST_AMOUNT:
        raise ValueError(f"Ray counts in steps of {SMALLEST_AMOUNT:g}; give 0 or at least that")
    return amount


SMALLEST_AMOUNT = 0.0001
RESERVED_RESOURCES = {
    "CPU": "give `cpus_per_actor`",
    "GPU": "give `gpus_per_actor`",
    "memory": "actors are placed by CPUs, GPUs and resources of your own alone",
    "object_store_memory": "actors put nothing into the object store",
    "bundle": "Ray keeps that name for itself",
}
"""Names that Ray refuses as those of custom resources, and what to do instead."""

Amount = Annotated[float, Field(ge=0), AfterValidator(_countable)]
"""Of something that Ray sets aside for an actor."""


class ActorPool(Section):
    """Ray actors that hold one reward, and what Ray sets aside for each of them."""

    actors: int = Field(1, ge=1)
    """Ray actors per reward model."""
    cpus_per_actor: Amount = 1
    """CPUs for each actor."""
    gpus_per_actor: Annotated[Amount, Field(le=1)] = 0
    """A GPU, or a share of one, for each actor; 0 scores on the CPU."""
    resources_per_actor: dict[str, Annotated[Amount, Field(gt=0)]] = {}
    """Custom resources of the cluster's nodes for each actor, by name."""
    placement: Literal["pack", "spread"] = "pack"
    """Ray's preference: few nodes, or many."""

    @field_validator("resources_per_actor")
    @classmethod
    def _custom_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        for name in resources:
            if name in RESERVED_RESOURCES:
                raise ValueError(f"`{name}` is no custom resource; {RESERVED_RESOURCES[name]}")
        return resources


class _AnyReward(Section):
    sign: Literal[1, -1] = 1
    """-1 for a cost model, where lower is better."""


class ClassifierReward(_AnyReward):
    """A Hugging Face sequence classifier with one or many outputs."""

    classifier: str
    """Model directory (relative to the recipe) or hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    output: int | str = 0
    """Which output is the reward: its index, or its label in the model's `id2label`. Values whose
    rewards differ in `output`, `softmax`, `head` and `sign` alone share one model, run once."""
    softmax: bool = False
    """Take the output's probability among all outputs, for classifiers of several classes."""
    head: str = Field("logits", pattern=FIELD)
    """Field of what the model returns that holds its outputs [texts, outputs]; custom code may have
    others, such as ArmoRM's `rewards`."""
    text: str = "chat_template"
    """`chat_template`; `pair` (prompt and response as two segments); `response` alone; or a
    template string with `{prompt}` and `{response}`."""
    template: str | None = None
    """Name of the chat template, where the tokenizer has several; absent: its `default` one."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What the reward model computes in."""
    attention: Attention = "auto"
    """How attention runs over packed texts; `auto` takes the fastest that is installed."""
    max_length: int | None = Field(None, ge=8)
    """Tokens; what is longer loses tokens of the prompt, and of the response only where that alone
    is too long. Absent: the model's own limit."""
    truncate: Literal["start", "end"] = "start"
    """Which end of the prompt is cut."""
    trust_remote_code: bool = False
    """Consent to run the Python code that comes with the model."""
    pool: ActorPool | None = None
    """Actors of this reward model; absent: as `scoring` says."""

    @field_validator("output", mode="before")
    @classmethod
    def _index_or_name(cls, output: Any) -> Any:
        index = isinstance(output, int) and not isinstance(output, bool) and output >= 0
        if not index and not isinstance(output, str):
            raise ValueError(f"must be an index, 0 or more, or a name, not {output!r}")
        return output

    @field_validator("text")
    @classmethod
    def _known_text(cls, text: str) -> str:
        if text not in ("chat_template", "pair", "response") and not (
            "{prompt}" in text and "{response}" in text
        ):
            raise ValueError(
                "must be chat_template, pair, response, or a template with {prompt} and {response}"
            )
        return text

    @model_validator(mode="after")
    def _template_of_a_chat(self) -> ClassifierReward:
        if self.template is not None and self.text != "chat_template":
            raise ValueError("template: names a chat template, which this `text` does not use")
        return self


class CallableReward(_AnyReward):
    """A Python function (prompt messages, response text) -> float."""

    callable: str = Field(pattern=FUNCTION)
    """`package.module:function`, or `file.py:function` relative to the recipe. A change of that
    file or of a Python file beside it makes the scores anew; what lies elsewhere is not watched."""
    pool: ActorPool | None = None
    """Actors of this function; absent: as `scoring` says."""


class ColumnsReward(_AnyReward):
    """Scores that the data already carries; needs no model, and cannot judge new answers."""

    columns: tuple[str, str]
    """Names of the columns with the chosen and the rejected answer's score."""


def _reward_kind(reward: Any) -> str | None:
    keys = reward if isinstance(reward, dict) else getattr(reward, "model_fields_set", ())
    return next((kind for kind in ("classifier", "callable", "columns") if kind in keys), None)


Reward = Annotated[
    Annotated[ClassifierReward, Tag("classifier")]
    | Annotated[CallableReward, Tag("callable")]
    | Annotated[ColumnsReward, Tag("columns")],
    Discriminator(
        _reward_kind,
        custom_error_type="reward_kind",
        custom_error_message="needs one of the keys `classifier`, `callable` or `columns`",
    ),
]


class Value(Section):
    """One human value: how it is rewarded, and the preference pairs that teach it."""

    reward: Reward
    """A classifier, a callable or columns."""
    data: Data | None = None
    """Absent: the value takes part in the consistency and the evaluation, but trains no policy."""
    judge: Reward | None = None
    """Reward that evaluates the soups on this value in place of `reward`, which a filter may
    have overfitted."""


class Scoring(ActorPool):
    """Stage 1, and the actors of every reward that has no `pool` of its own."""

    shard_pairs: int = Field(512, ge=1)
    """Pairs per shard: the unit of work and of recovery."""
    tokens_per_batch: int | None = Field(None, ge=1)
    """Token budget of one forward of a reward model. Absent: 1,024 on a CPU, 16,384 on a GPU."""
    max_bad_rows: float = Field(0.05, ge=0, le=1)
    """Share of rows that cannot be used above which a dataset is refused, and share of pairs
    without a reward above which a reward is."""


class Consistency(Section):
    """Stage 2. c = cos(g, 1), with the gaps g_j = (r_j(chosen) - r_j(rejected)) / s_j."""

    normalisation: Literal["zscore", "gap_std", "robust", "none"] = "zscore"
    """s_j: standard deviation of the rewards (chosen and rejected pooled), of the gaps, the median
    absolute deviation of the rewards (scaled to a normal's std), or 1."""
    scope: Literal["dataset", "all"] = "dataset"
    """Over what s_j is taken: each dataset by itself, or all datasets together."""
    policy: Literal["threshold", "ratio", "all_positive", "random"] = "threshold"
    """What `vc_soup` keeps: c >= threshold; the best share by c; all gaps > 0; a random share."""
    threshold: float = Field(0.0, ge=-1, le=1)
    """The same threshold means different things for different numbers of values: docs/method.md."""
    ratio: float | None = Field(None, gt=0, le=1)
    """Share kept by the policies `ratio` and `random`."""
    min_norm: float = Field(0.0, ge=0)
    """Pairs with a shorter gap vector are dropped: the cosine does not see magnitude."""

    @model_validator(mode="after")
    def _ratio_given(self) -> Consistency:
        if self.policy in ("ratio", "random") and self.ratio is None:
            raise ValueError(f"policy `{self.policy}` needs the key `ratio`")
        return self


class Training(Section):
    """Stage 3: one full-parameter policy per value, all from the same initial weights."""

    objective: Objective = "dpo"
    """The loss of a pair: docs/training.md has the formulas."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference; for `simpo` the scale of the log-prob per token,
    where 2 to 10 are usual."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels that `dpo` and `robust` take to be wrong."""
    simpo_margin: float = Field(0.5, ge=0)
    """SimPO's target margin gamma."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of an added negative log-likelihood per token of the chosen answers."""
    pair_weights: Literal["equal", "consistency"] = "equal"
    """`consistency` multiplies a pair's loss by (1 + c) / 2, scaled to a mean of 1 over the value's
    pairs, where c is the cosine that the filter judged it by."""
    learning_rate: float = Field(5e-7, gt=0)
    """Its peak."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; to 0, or not at all."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, on all parameters."""
    adam_betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates of its two moments."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    pairs_per_step: int = Field(64, ge=1)
    """Pairs of one optimizer step over all ranks. Each step has so many: the last one goes on into
    the next pass, and of fewer pairs each is taken several times, which the log then says."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the value's pairs. With `equal_steps` the pairs *before* filtering are counted,
    so that every method takes the same number of steps."""
    equal_steps: bool = True
    """`epochs` counts pairs before filtering (all methods alike), or after it (each its own)."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrules `epochs`."""
    max_length: int = Field(2048, ge=8)
    """Tokens of prompt and answer together."""
    overlong: Literal["truncate_prompt", "drop"] = "truncate_prompt"
    """A pair beyond `max_length`: cut its prompt's start, or drop it. Answers are never cut; a pair
    whose answer alone is too long is dropped and counted."""
    tokens_per_batch: int = Field(8192, ge=1)
    """Token budget of one micro-batch on one rank."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What weights and activations are computed in; the policies are written in it too."""
    deepspeed: str = "zero3"
    """Name of a file in `ds_configs/`, or the path of your own (relative to the recipe)."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass instead of keeping them."""
    activation_offload: bool = False
    """Keep what the backward pass needs in host memory. With `gradient_checkpointing` that is one
    hidden state per layer and token."""
    nvme_path: str | None = None
    """Folder on a local disk, for DeepSpeed configurations that swap to one: `zero3_nvme`."""
    attention: Attention = "auto"
    """How attention runs over packed sequences; `auto` takes the fastest that is installed."""
    evaluate_every: int = Field(50, ge=1)
    """Steps between two evaluations on the held-out pairs."""
    heldout_pairs: int = Field(256, ge=1)
    """At most so many held-out pairs are evaluated."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between two DeepSpeed checkpoints to resume from."""
    checkpoints_kept: int = Field(1, ge=1)
    """The newest so many stay while a policy is trained."""
    export: Literal["last", "best"] = "last"
    """Which checkpoint becomes the policy: the last, or that of the lowest held-out loss, which is
    then kept too. Checkpoints are evaluated when they are written."""

    @model_validator(mode="after")
    def _settings_of_the_objective(self) -> Training:
        if self.label_smoothing and self.objective not in ("dpo", "robust"):
            raise ValueError(f"label_smoothing: `{self.objective}` has none; `dpo` and `robust` do")
        if self.sft_weight and self.objective == "sft":
            raise ValueError("sft_weight: `sft` has nothing to add it to")
        return self


class Warmup(Section):
    """A supervised stage that makes theta_0 from `model`: SFT on the chosen answers of all
    datasets, before any filter. What is not here is as in `training`."""

    learning_rate: float = Field(5e-6, gt=0)
    """Its peak."""
    pairs_per_step: int = Field(64, ge=1)
    """Chosen answers of one optimizer step over all ranks."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the chosen answers."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrules `epochs`."""


class Soup(Section):
    """Stage 4. theta(lambda) = sum of lambda_i theta_i over the trained policies."""

    grid: float | None = Field(None, ge=1e-6, le=1)
    """Step of the simplex grid; 0.1 where neither `grid` nor `weights` is given."""
    weights: list[list[float]] | None = Field(None, min_length=1)
    """Weight vectors of your own, in the order of the values that have data."""
    max_soups: int = Field(100, ge=1)
    """A grid with more points is refused."""
    shard_size: int = Field(5_000_000_000, ge=1024)
    """Bytes per safetensors file."""
    memory: int = Field(1 << 30, ge=1 << 20)
    """Bytes that the merger may hold."""

    @model_validator(mode="after")
    def _one_source(self) -> Soup:
        if self.grid is not None and self.weights is not None:
            raise ValueError("give `grid` or `weights`, not both")
        for i, row in enumerate(self.weights or []):
            if abs(math.fsum(row) - 1) > 1e-6 or any(w < 0 or w > 1 for w in row):
                raise ValueError(f"weights[{i}] must lie in [0, 1] and sum to 1, got {row}")
        return self


class Evaluation(Section):
    """Stage 5."""

    prompts: int = Field(64, ge=2)
    """Held-out prompts per dataset (the first by content hash)."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    max_prompt_tokens: int = Field(1024, ge=8)
    """Longer prompts are left out, and counted."""
    temperature: float = Field(1.0, ge=0)
    """0 decodes greedily."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Sample from the likeliest tokens that hold this probability together."""
    seed: int = 0
    """Of the sampling; the same for every soup."""
    batch: int = Field(64, ge=1)
    """Prompts generated together."""
    actors: int = Field(1, ge=1)
    """Ray actors; each holds one soup and all rewards."""
    cpus_per_actor: Amount = 1
    """CPUs that Ray sets aside for each actor."""
    gpus_per_actor: Amount = 0
    """GPUs for each actor; several hold a large soup together, 0 runs on the CPU."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What the soups compute in."""
    bootstrap: int = Field(1000, ge=100)
    """Resamples over prompts for the intervals."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals."""
    samples: int = Field(3, ge=0)
    """Prompts whose answers the report shows side by side."""


class Launch(Section):
    """Where ranks and actors run."""

    launcher: Literal["local", "srun"] = "local"
    """Where training ranks run: on this machine, or with `srun` one for each task of the Slurm job
    in which the command runs. `--launcher` on the command line goes before it."""
    ranks: int = Field(1, ge=1)
    """Training processes on this machine, one per GPU where there are GPUs. A Slurm job has its
    own number of tasks."""
    threads: int = Field(1, ge=1)
    """OMP_NUM_THREADS of every rank and actor; on a CPU it decides the last bits of a result."""
    max_minutes: float | None = Field(None, gt=0, le=1e6)
    """Training saves and stops so long after the command's start, but not before a step is done;
    the same command goes on."""
    hang_minutes: float = Field(30, gt=0, le=1e6)
    """A micro-batch that takes longer ends the run, with every rank's stack in its logs."""
    peak_tflops: float | None = Field(None, gt=0)
    """Dense peak of one device for `training.dtype`, by which MFU is reckoned. Absent: known from
    the name of usual GPUs."""
    wandb: str | None = None
    """Weights & Biases project that also gets the metrics; needs the package `wandb`."""
    ray_address: str | None = None
    """Address of a running Ray cluster. Absent: RAY_ADDRESS, else a cluster of this machine.
    `--address` on the command line goes before it."""
    slurm: dict[JobStage, SbatchOptions] = {}
    """Options of `sbatch` for the job of each stage, by their long names, such as
    `train: {nodes: 2, ntasks-per-node: 8, gpus-per-node: 8, time: "24:00:00"}`. They go before the
    site file's (docs/slurm.md), and those before what follows from the recipe: room for its ranks
    and actors on one node."""
    policies_at_once: int | None = Field(None, ge=1)
    """At most so many policies are trained at a time by `vcsoup submit`, each with checkpoints on
    the disk. Absent: as Slurm has room."""
    merge_ranks: int = Field(1, ge=1)
    """Jobs of one array that share the merging, in `vcsoup submit`."""

    _ray_address_from: str = PrivateAttr(default="launch.ray_address")

    @property
    def ray_address_from(self) -> str:
        """Where `ray_address` was given, for messages."""
        return self._ray_address_from


class Keep(Section):
    """What stays on disk."""

    checkpoints: bool = False
    """DeepSpeed checkpoints of finished policies; otherwise they go as soon as one is finished."""
    reference: bool = True
    """Reference log-probs, once all policies are trained."""
    soups: bool = True
    """Soups as model directories. `false`: evaluation sums the policies in memory, with the same
    result bit for bit, and a soup is written only by `vcsoup merge`, until `vcsoup clean`."""


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field(pattern=RUN_NAME)
    """The run directory is `runs/<name>` beside the recipe unless the command line says
    otherwise."""
    model: str
    """theta_0, from which every policy starts, or with `warmup` what theta_0 is made from: model
    directory (relative to the recipe) or hub id. theta_0 is also the reference."""
    revision: str | None = None
    """Branch, tag or commit of `model` on the hub."""
    values: dict[Annotated[str, Field(pattern=NAME)], Value] = Field(min_length=1)
    """The values by name; their order is the order of gaps and weights everywhere."""
    policies: list[str] | None = None
    """Values to train a policy for; absent: every value that has data."""
    methods: list[Method] = Field(["vc_soup"], min_length=1)
    """Which pairs the policies are trained on; several are compared in one report."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """One policy per method, value and seed."""
    scoring: Scoring = Scoring()
    """Stage 1."""
    consistency: Consistency = Consistency()
    """Stage 2."""
    warmup: Warmup | None = None
    """Absent: `model` is theta_0 as it is."""
    training: Training = Training()
    """Stage 3."""
    soup: Soup = Soup()
    """Stage 4."""
    evaluation: Evaluation = Evaluation()
    """Stage 5."""
    launch: Launch = Launch()
    """Where it runs."""
    keep: Keep = Keep()
    """What stays on disk."""

    _folder: Path = PrivateAttr(default=Path())
    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The file that it was read from; of the copy in a run directory, the original."""
        return self._file

    def trained_values(self) -> list[str]:
        """Values that get a policy, in the recipe's order: the axes of a soup's weights."""
        wanted = self.policies or [name for name, value in self.values.items() if value.data]
        return [name for name in self.values if name in wanted]

    def launched_by(self, launcher: Literal["local", "srun"]) -> Recipe:
        """The same recipe with another `launch.launcher`."""
        return self.model_copy(
            update={"launch": self.launch.model_copy(update={"launcher": launcher})}
        )

    def on_ray_at(self, address: str) -> Recipe:
        """The same recipe with the `launch.ray_address` of the command line."""
        launch = self.launch.model_copy(update={"ray_address": address})
        launch._ray_address_from = "--address"
        return self.model_copy(update={"launch": launch})

    def read_from(self, file: Path) -> None:
        """Take relative paths from the folder of `file`, the recipe's own."""
        self._file = file.resolve()
        self._folder = self._file.parent

    def local_path(self, reference: str) -> Path | None:
        """The local file or folder that `reference` means, or None where it is a hub id."""
        path = self.path_of(reference)
        return path if path.exists() else None

    def path_of(self, reference: str) -> Path:
        """The path that `reference` means, relative to the recipe; it need not be there."""
        path = Path(os.path.expanduser(reference))
        return path if path.is_absolute() else self._folder / path

    def judge_of(self, value: str) -> ClassifierReward | CallableReward | ColumnsReward:
        """The reward that evaluates `value`."""
        return self.values[value].judge or self.values[value].reward

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for key in ("methods", "seeds", "policies"):
            listed = getattr(self, key) or []
            if len(set(listed)) != len(listed):
                raise ValueError(f"{key}: {listed} lists something twice")
        for name in self.policies or []:
            if name not in self.values:
                raise ValueError(f"policies: no value is called `{name}`")
            if self.values[name].data is None:
                raise ValueError(
                    f"policies: `{name}` has no data to train on; give values.{name}.data"
                )
        if len(self.values) > MOST_VALUES:
            raise ValueError(
                f"values: {len(self.values)} are more than the {MOST_VALUES} whose signs the "
                "filter tells apart; take some out"
            )
        if not self.trained_values():
            raise ValueError("values: at least one value needs `data` to train a policy on")
        for name, value in self.values.items():
            for other in (value.data and value.data.pairs_of) or []:
                data = self.values[other].data if other in self.values else None
                if data is None or data.path is None:
                    raise ValueError(
                        f"values.{name}.data.pairs_of: `{other}` is not a value with a data path"
                    )
            if isinstance(self.judge_of(name), ColumnsReward):
                raise ValueError(
                    f"values.{name}: a reward from columns cannot judge new answers; "
                    f"give values.{name}.judge"
                )
        self._check_soup()
        if "random" in self.methods and "vc_soup" not in self.methods:
            raise ValueError("methods: `random` copies the size of `vc_soup`; list that too")
        return self

    def _check_soup(self) -> None:
        axes = len(self.trained_values())
        rounded = [tuple(round(w, 6) for w in row) for row in self.soup.weights or []]
        if len(set(rounded)) != len(rounded):
            raise ValueError("soup.weights lists the same weights twice")
        for i, row in enumerate(self.soup.weights or []):
            if len(row) != axes:
                raise ValueError(f"soup.weights[{i}] has {len(row)} numbers for {axes} policies")
        if self.soup.weights is None:
            steps = round(1 / self.grid_step())
            if abs(steps * self.grid_step() - 1) > 1e-9:
                raise ValueError(f"soup.grid: {self.grid_step()} does not divide 1")
            count = math.comb(steps + axes - 1, axes - 1)
            if count > self.soup.max_soups:
                raise ValueError(
                    f"soup.grid: {count} soups of {axes} policies are more than "
                    f"soup.max_soups = {self.soup.max_soups}; take a larger step or raise it"
                )

    def grid_step(self) -> float:
        """Step of the simplex grid, where no weights are listed."""
        return self.soup.grid if self.soup.grid is not None else 0.1
