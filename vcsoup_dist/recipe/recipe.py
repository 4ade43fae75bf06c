"""The one typed recipe of a run: its sections together, and what must agree between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from vcsoup_dist.recipe.consistency import Consistency
from vcsoup_dist.recipe.data import Data
from vcsoup_dist.recipe.evaluation import Evaluation
from vcsoup_dist.recipe.launch import Keep, Launch
from vcsoup_dist.recipe.methods import Methods
from vcsoup_dist.recipe.pools import Scoring
from vcsoup_dist.recipe.rewards import CallableReward, ClassifierReward, ColumnsReward, Value
from vcsoup_dist.recipe.reweighting import Reweighting
from vcsoup_dist.recipe.section import NAME, RUN_NAME, Section
from vcsoup_dist.recipe.soup import Soup
from vcsoup_dist.recipe.training import Sft, Training

MOST_VALUES = 20
"""The most whose signs in base 3 fit in 32 bits, as the filter keeps them."""


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field(pattern=RUN_NAME)
    """The run directory is `runs/<name>` beside the recipe unless the command line says
    otherwise."""
    model: str
    """theta_0, from which every policy starts, or with `sft` what theta_0 is made from: model
    directory (relative to the recipe) or hub id. theta_0 is also the reference."""
    revision: str | None = None
    """Branch, tag or commit of `model` on the hub."""
    values: dict[Annotated[str, Field(pattern=NAME)], Value] = Field(min_length=1)
    """The values by name; their order is the order of gaps and weights everywhere."""
    policies: list[str] | None = None
    """Values to train a policy for; absent: every value that has data."""
    methods: Methods = Field(["vc_soup"], validate_default=True)
    """What is compared in one report: a list of kinds (docs/method.md), or instances by names of
    your own with options, so that one kind can stand twice, such as
    `{vc_soup: {}, strict: {kind: vc_soup, threshold: 0.707}}`."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """One policy per method, value and seed."""
    scoring: Scoring = Scoring()
    """Stage 1."""
    consistency: Consistency = Consistency()
    """Stage 2."""
    sft: Sft | None = None
    """Absent: `model` is theta_0 as it is."""
    training: Training = Training()
    """Stage 3."""
    reweighting: Reweighting = Reweighting()
    """Trade-offs of the methods that train a policy for each."""
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

    def datasets(self) -> dict[str, Data]:
        """What the values bring that have pairs of their own, by the value's name."""
        found = {name: value.data for name, value in self.values.items() if value.data is not None}
        return {name: data for name, data in found.items() if data.path is not None}

    def datasets_of(self, value: str) -> list[str]:
        """The datasets whose pairs teach a value: its own, or other values'."""
        data = self.values[value].data
        return (data.pairs_of if data else None) or [value]

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
        for key in ("seeds", "policies"):
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
        self._check_reweighting()
        for name, method in self.methods.items():
            try:
                method.check(self)
            except ValueError as error:
                raise ValueError(f"methods.{name}: {error}") from None
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
            count = self.soup.grid_size(axes)
            if count > self.soup.max_soups:
                raise ValueError(
                    f"soup.grid: {count} soups of {axes} policies are more than "
                    f"soup.max_soups = {self.soup.max_soups}; take a larger step or raise it"
                )

    def _check_reweighting(self) -> None:
        axes = len(self.trained_values())
        rounded = [tuple(round(w, 6) for w in row) for row in self.reweighting.weights or []]
        if len(set(rounded)) != len(rounded):
            raise ValueError("reweighting.weights lists the same weights twice")
        for i, row in enumerate(rounded):
            if len(row) != axes:
                raise ValueError(
                    f"reweighting.weights[{i}] has {len(row)} numbers for {axes} policies"
                )
        value = self.reweighting.modpo_value
        if value is not None and value not in self.trained_values():
            raise ValueError(f"reweighting.modpo_value: `{value}` is no value with a policy")
