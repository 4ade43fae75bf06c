"""The last step of a merge: all that makes the weights model directories, and their final place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vcsoup_dist import __version__
from vcsoup_dist.checkpoints.auxiliary_files import CONFIG_NAME, copy_auxiliary_files
from vcsoup_dist.checkpoints.digests import weights_digest
from vcsoup_dist.checkpoints.writer import ShardFile, write_index
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import sync_tree
from vcsoup_dist.json_file import read_json
from vcsoup_dist.records.soup_manifest import write_manifest
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.output.journal import Digests
from vcsoup_dist.souping.output.manifest import is_made, soup_manifest, tensor_digests
from vcsoup_dist.souping.output.model_card import CARD_NAME, card_text
from vcsoup_dist.souping.output.targets import put_in_place, require_free
from vcsoup_dist.souping.output.weights_files import require_whole
from vcsoup_dist.souping.plan import MergePlan

_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def publish(run: MergeRun, done: Mapping[int, Digests]) -> None:
    """Complete every soup in its folder, then rename it to its target.

    done: the digests of all chunks. Can be killed at any instant and run again. UserError, before
    the first soup is published, where a target is taken.
    """
    plan, options = run.plan, run.options
    missing = [soup for soup in plan.soups if not is_made(plan, soup, run.targets[soup])]
    try:
        for soup in missing:  # the others a run that was killed here has published
            require_free(run.targets[soup], options.overwrite)
    except UserError as error:
        raise UserError(
            f"{error}; all weights are written, run the same command again to publish them"
        ) from None
    of_sources, of_soups = tensor_digests(plan, done)
    identities = {
        name: "xxh3:" + weights_digest(list(source.layout.values()), tensors).hex()
        for name, source, tensors in zip(plan.names, plan.sources, of_sources, strict=True)
    }
    for soup, of_soup in zip(plan.soups, of_soups, strict=True):
        if soup not in missing:
            continue
        folder = run.folder(soup)
        _complete(plan, folder)
        if options.card:
            text = card_text(
                soup,
                weights=dict(zip(plan.names, plan.soups[soup], strict=False)),  # the base has none
                sources=identities,
                base=plan.base,
                version=__version__,
            )
            (folder / CARD_NAME).write_text(text, encoding="utf-8", errors="replace")
        manifest = soup_manifest(plan, soup, folder, of_sources, of_soup, sha256=options.sha256)
        write_manifest(folder, manifest)
        sync_tree(folder)
        put_in_place(folder, run.targets[soup], options.overwrite)


def _complete(plan: MergePlan, folder: Path) -> None:
    """Add the index, empty weights files, config and tokenizer to the weights of a soup."""
    folder.mkdir(parents=True, exist_ok=True)  # of a soup without any number
    for shard in plan.shards:
        if shard.nbytes:
            require_whole(folder, shard)
        else:  # of no chunk, so of no rank
            ShardFile.create(folder, shard, written=0).close()
    write_index(folder, plan.shards)
    if plan.model is not None:
        copy_auxiliary_files(plan.model, folder)
        _state_dtype(plan, folder / CONFIG_NAME)


def _state_dtype(plan: MergePlan, config: Path) -> None:
    """Let config.json name the dtype of the weights, where that is another than its model's."""
    first = plan.sources[0]
    sizes: dict[str, int] = {}
    as_stored = True
    for shard in plan.shards:
        for name, dtype, _ in shard.tensors:
            sizes[dtype] = sizes.get(dtype, 0) + first.layout[name].nbytes
            as_stored = as_stored and first.layout[name].dtype == dtype
    written = _TORCH_NAMES.get(max(sizes, key=lambda dtype: sizes[dtype]))
    if written is None or (as_stored and plan.model == first.path):
        return
    content = read_json(config)
    for key in ("dtype", "torch_dtype"):
        if key in content:
            content[key] = written
    config.write_text(json.dumps(content, indent=2) + "\n")
