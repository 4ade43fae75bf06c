"""Entry of stage `tokens`: makes `tokens/<dataset>`, which reference and training read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.tokenizer import open_tokenizer
from vcsoup_dist.launch.task_map import Run, runner
from vcsoup_dist.progress import log, progress
from vcsoup_dist.recipe import Recipe, Training
from vcsoup_dist.records.pairs import HELD_OUT, PairSlice, PairsManifest, cut_rows, read_slice
from vcsoup_dist.records.tokens import PairTokens, TokensManifest, join_parts, write_part
from vcsoup_dist.tokens.pair_tokens import pair_in_tokens
from vcsoup_dist.workspace import Product, Workspace

ON_CLUSTER = 1 << 26
"""From this many bytes of text, Ray tasks gain more than the start of Ray takes."""
PART = 2048
"""Most pairs of a part: what a killed run does again, a few seconds of work."""


@dataclass(frozen=True)
class Part:
    """Consecutive pairs of a dataset, and the file that takes their tokens."""

    pairs: PairSlice
    output: Path


Encode = Callable[[Iterable[Part]], Iterator[str | None]]
"""Writes the tokens of parts, here or on other processes: of each, why the chat template refuses
all of its pairs, or None."""


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `tokens`: a dataset's pairs under the model's chat template.

    UserError where the template takes none of the first pairs.
    """

    def encoder(product: Product, pairs: Path, run: Run, workers_lock: Path) -> Encode:
        model = product.sources["model"]
        encode = functools.partial(encode_part, model.source, model.revision, recipe.training)
        return functools.partial(run, encode, workers_lock=workers_lock)

    make_token_files(recipe, workspace, products, encoder)


def make_token_files(
    recipe: Recipe,
    workspace: Workspace,
    products: Sequence[Product],
    encoder: Callable[[Product, Path, Run, Path], Encode],
) -> None:
    """Make products that are token files of `pairs/<dataset>`, each with the Encode of its own.

    encoder: of a product, its folder of canonical pairs, a map and the lock that the map's
    processes hold.
    """
    folders = [workspace.need(pairs) for each in products for pairs in each.inputs_of("read")]
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("*.parquet"))
    with runner(recipe.launch, workspace.root, size >= ON_CLUSTER) as run:
        for product, folder in zip(products, folders, strict=True):
            # Another value's training may be making the same: wait for it and share it.
            with workspace.publishing(product, wait=True, keep_scratch=False) as draft:
                if workspace.is_made(product):
                    continue
                encode = encoder(product, folder, run, draft.workers_lock)
                manifest = write_tokens(folder, draft.scratch, draft.output, encode)
                log.info(
                    "%s: %d pairs to train on, %d held out, %d tokens of answers",
                    product.name, manifest.train, manifest.heldout, manifest.answer_tokens,
                )  # fmt: skip


def write_tokens(pairs: Path, scratch: Path, output: Path, encode: Encode) -> TokensManifest:
    """Write the token file of a folder of canonical pairs.

    scratch: where parts lie until they are joined; those that a killed run left are kept.
    """
    manifest = PairsManifest.read(pairs)
    slices = [
        each for file in manifest.files for each in cut_rows(pairs / file.file, file.rows, PART)
    ]
    train, heldout = (
        [Part(each, scratch / f"{name}-{i:06d}.arrow") for i, each in enumerate(part)]
        for name, part in (
            ("train", slices),
            ("heldout", cut_rows(pairs / HELD_OUT, manifest.heldout, PART)),
        )
    )
    due = [part for part in (*train, *heldout) if not part.output.exists()]
    total = sum(part.pairs.rows for part in (*train, *heldout))
    left = sum(part.pairs.rows for part in due)
    with progress(f"tokens {pairs.name}", total, "pairs", total - left) as advance:
        for part, refusal in zip(due, encode(due), strict=True):
            if refusal is not None:
                raise UserError(
                    f"{pairs.name}: the chat template takes none of {part.pairs.rows} pairs; "
                    f"{refusal}"
                )
            advance(part.pairs.rows)
    return join_parts(output, *([part.output for part in each] for each in (train, heldout)))


def encode_part(source: str, revision: str | None, training: Training, part: Part) -> str | None:
    """Write a part's tokens; where the chat template refuses every pair, only say why."""
    tokenizer = cached_tokenizer(source, revision)
    pairs = read_slice(part.pairs)
    tokens = [
        pair_in_tokens(tokenizer, each.prompt, each.chosen, each.rejected, training)
        for each in pairs
    ]
    return write_encoded(part.output, [each.id for each in pairs], tokens)


def write_encoded(output: Path, ids: Sequence[str], tokens: Sequence[PairTokens]) -> str | None:
    """Write a part, unless the chat template refuses all of its pairs: then return why."""
    if ids and all(each.reason is not None for each in tokens):
        return f"pair {ids[0]}: {tokens[0].reason}"
    write_part(output, ids, tokens)
    return None


@functools.lru_cache(maxsize=1)
def cached_tokenizer(source: str, revision: str | None) -> Any:
    """The tokenizer of a model, of which a process opens the last one once."""
    return open_tokenizer(source, revision)
