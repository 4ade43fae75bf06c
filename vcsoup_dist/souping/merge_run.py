"""A merge while it runs: its plan, the places of its soups, and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.chunks import Chunk, cut_chunks, deal_shards
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.plan import MergePlan


@dataclass(frozen=True)
class MergeRun:
    """What every step of a merge knows."""

    plan: MergePlan
    out: Path
    """Next to which the soups are written; with one soup, its directory."""
    targets: Mapping[str, Path]
    """Soup -> its finished directory."""
    options: MergeOptions

    @classmethod
    def into(cls, out: Path, plan: MergePlan, options: MergeOptions, *, inside: bool) -> MergeRun:
        """inside: soups are folders in `out`; else the only one is `out` itself."""
        if not inside and len(plan.soups) > 1:
            raise ValueError("several soups cannot all be one directory")
        out = out.resolve()
        if not out.name:
            raise UserError(f"{out}: is the root of the file system; choose another --out")
        targets = {soup: out / soup if inside else out for soup in plan.soups}
        return cls(plan, out, targets, options)

    @property
    def work(self) -> Path:
        """The folder of all that is not finished."""
        return self.out.with_name(self.out.name + ".partial")

    def folder(self, soup: str) -> Path:
        """Where a soup is while it is written."""
        return self.work / "soups" / soup

    def of_soups(self, soups: Sequence[str]) -> MergeRun:
        """The same for some soups only."""
        return replace(self, plan=self.plan.of_soups(soups))

    def own_chunks(self) -> list[Chunk]:
        """The chunks of this rank's share of the files."""
        shards = set(deal_shards(self.plan.shards, self.options.world_size)[self.options.rank])
        return [chunk for chunk in cut_chunks(self.plan.shards) if chunk.shard in shards]

    def require_outside(self, sources: Sequence[Path | None]) -> None:
        """UserError where a soup would replace one of the checkpoints that it is made from."""
        for target in self.targets.values():
            for source in filter(None, sources):
                if target.resolve() in (source.resolve(), *source.resolve().parents):
                    raise UserError(
                        f"{target}: is, or holds, the policy {source}; choose another --out"
                    )
