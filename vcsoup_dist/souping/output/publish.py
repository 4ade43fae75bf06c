"""The last step of a merge: all that makes the weights model directories, and their new place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vcsoup_dist import __version__
from vcsoup_dist.checkpoints.auxiliary_files import CONFIG_NAME, copy_auxiliary_files
from vcsoup_dist.checkpoints.digests import weights_digest
from vcsoup_dist.checkpoints.json_file import read_json
from vcsoup_dist.checkpoints.writer import ShardFile, write_index
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import sync_tree
from vcsoup_dist.souping.output.journal import Digests
from vcsoup_dist.souping.output.manifest import (
    MANIFEST_NAME,
    is_made,
    soup_manifest,
    tensor_digests,
)
from vcsoup_dist.souping.output.model_card import CARD_NAME, card_text
from vcsoup_dist.souping.output.targets import put_in_place, require_free
from vcsoup_dist.souping.output.weights_files import require_whole
from vcsoup_dist.souping.plan import MergePlan

_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def publish(
    plan: MergePlan,
    done: Mapping[int, Digests],
    folders: Mapping[str, Path],
    targets: Mapping[str, Path],
    *,
    overwrite: bool,
    card: bool,
    sha256: bool,
) -> None:
    """Complete every soup in its folder, then rename it to its target.

    done: the digests of all chunks; folders, targets: by soup; overwrite: replace model
    directories at the targets. Can be killed at any instant and run again. UserError, before the
    first soup is published, where a target is taken.
    """
    missing = [soup for soup in plan.soups if not is_made(plan, soup, targets[soup])]
    try:
        for soup in missing:  # the others a run that was killed here has published
            require_free(targets[soup], overwrite)
    except UserError as error:
        raise UserError(
            f"{error}; all weights are written, run the same command again to publish them"
        ) from None
    of_sources, of_soups = tensor_digests(plan, done)
    identities = {
        name: "xxh3:" + weights_digest(list(source.layout.values()), tensors).hex()
        for name, source, tensors in zip(plan.names, plan.sources, of_sources, strict=True)
    }
    for (soup, row), of_soup in zip(plan.soups.items(), of_soups, strict=True):
        if soup not in missing:
            continue
        folder = folders[soup]
        folder.mkdir(parents=True, exist_ok=True)  # of a soup without any number
        for shard in plan.shards:
            if shard.nbytes:
                require_whole(folder, shard)
            else:  # of no chunk, so of no rank
                ShardFile.create(folder, shard, written=0).close()
        write_index(folder, plan.shards)
        if plan.companions is not None:
            copy_auxiliary_files(plan.companions, folder)
            _state_dtype(plan, folder / CONFIG_NAME)
        if card:
            text = card_text(
                soup,
                weights=dict(zip(plan.names, row, strict=False)),  # the base has none
                sources=identities,
                base=plan.base,
                version=__version__,
            )
            (folder / CARD_NAME).write_text(text, encoding="utf-8", errors="replace")
        manifest = soup_manifest(
            plan, soup, folder, of_sources, of_soup, version=__version__, sha256=sha256
        )
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n")
        sync_tree(folder)
        put_in_place(folder, targets[soup], overwrite)


def _state_dtype(plan: MergePlan, config: Path) -> None:
    """Let config.json say the dtype of the weights, where that is another than the donor's."""
    sizes: dict[str, int] = {}
    for shard in plan.shards:
        for name, dtype, _ in shard.tensors:
            sizes[dtype] = sizes.get(dtype, 0) + plan.sources[0].layout[name].nbytes
    written = _TORCH_NAMES.get(max(sizes, key=lambda dtype: sizes[dtype]))
    as_stored = all(
        plan.sources[0].layout[name].dtype == dtype
        for shard in plan.shards
        for name, dtype, _ in shard.tensors
    )
    if written is None or (as_stored and plan.companions == plan.sources[0].path):
        return
    content = read_json(config)
    for key in ("dtype", "torch_dtype"):
        if key in content:
            content[key] = written
    config.write_text(json.dumps(content, indent=2) + "\n")
