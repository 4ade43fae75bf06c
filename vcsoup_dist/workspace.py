"""The run directory: products, their fingerprints, locks and atomic publishing.

    recipe.yaml                     the frozen recipe, and in run.json where it came from
    <product name>/                 a finished product, with its product.json
    work/<product name>/output/     the product while it is being made
    work/<product name>/scratch/    what is needed to resume after a kill (checkpoints)
    locks/                          one writer per product, or several that share it

A product is published by one rename, so a reader sees all of it or nothing. One that `covers` more
than before is extended: new files come into its folder, each by one rename, and product.json last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vcsoup_dist.errors import UserError
from vcsoup_dist.file_systems import look_afresh, may_be_shared
from vcsoup_dist.files import remove_leftovers, sync, sync_tree, write_atomically, write_error
from vcsoup_dist.identity import Located
from vcsoup_dist.locks import EXCLUSIVE, SHARED, Lock, exclusive, is_locked
from vcsoup_dist.processes import pids_with_open
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.origin import note_origin
from vcsoup_dist.recipe.yaml_file import read_yaml

log = logging.getLogger("vcsoup")

WORKERS_TIMEOUT = 60.0  # seconds; ranks and actors of a killed run die well within this

RECORD = "product.json"
LATE = 5.0  # seconds; a network file system may show a rename late

GLANCE = 0.5  # seconds; `is_being_made` holds a lock for less


@dataclass(frozen=True, eq=False)
class Product:
    """Something a run makes: its name is its folder, its fingerprint what it is made from.

    `dataset`, `method`, `value`, `seed` and `weights` say which one of its stage's products it is,
    where the stage has several.
    """

    name: str
    stage: str
    made_from: Mapping[str, Any]
    """Recipe part and identities of files, JSON-able: all that decides the content but `inputs`."""
    inputs: tuple[Product, ...] = ()
    covers: Mapping[str, Product] = field(default_factory=dict)
    """What it must have something of: what of it -> the product. They decide how much is made, not
    what is made, and are not in the fingerprint: where one is added, the product is extended."""
    sources: Mapping[str, Located] = field(default_factory=dict)
    """Models and files it reads, by role; their identities are in `made_from`."""
    dataset: str | None = None
    method: str | None = None
    value: str | None = None
    seed: int | None = None
    weights: tuple[float, ...] | None = None
    command: str = "run"
    """The `vcsoup` command that makes it, such as `train helpful`."""
    recorded_fingerprint: str | None = None
    """Of a product of a recorded plan, which knows no `made_from`."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the stage, of `made_from` and of the inputs' fingerprints."""
        if self.recorded_fingerprint is not None:
            return self.recorded_fingerprint
        content = {
            "stage": self.stage,
            "made_from": self.made_from,
            "inputs": {product.name: product.fingerprint for product in self.inputs},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def inputs_of(self, stage: str) -> list[Product]:
        """The inputs that a stage makes, in the plan's order."""
        return [product for product in self.inputs if product.stage == stage]


@dataclass(frozen=True)
class Draft:
    """A product that is being made; the folders survive a kill and are found again."""

    product: Product
    output: Path
    """What is published in the end."""
    scratch: Path
    """What is thrown away by `vcsoup clean`."""
    workers_lock: Path
    """Every rank and actor that writes to `output` holds this: see `shared_by_process`."""


class Workspace:
    """A run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # actors of a running cluster have another working directory

    @classmethod
    def open(cls, root: Path, recipe: Recipe) -> Workspace:
        """Make or enter the run directory of `recipe`; refuses that of a recipe of another name."""
        workspace = cls.look(root, recipe)
        frozen = root / "recipe.yaml"
        if recipe.file == frozen.resolve():
            raise UserError(
                f"{root}: the recipe itself lies there, where its copy would be written; choose "
                "another folder with --run-dir"
            )
        text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not frozen.exists() or frozen.read_text() != text:
                write_atomically(frozen, text)
            if recipe.file is not None:
                note_origin(root, recipe.file, text)
        except OSError as error:
            raise UserError(
                f"{root}: cannot write the run directory: {error.strerror}; choose another with "
                "--run-dir"
            ) from error
        return workspace

    @classmethod
    def look(cls, root: Path, recipe: Recipe) -> Workspace:
        """The run directory of `recipe` without touching it; it need not be there."""
        frozen = root / "recipe.yaml"
        try:
            if frozen.exists():
                name = read_yaml(frozen, "recipe").content.get("name")
                if name != recipe.name:
                    raise UserError(
                        f"{root}: this run directory belongs to the recipe `{name}`, not to "
                        f"`{recipe.name}`; choose another with --run-dir"
                    )
            elif root.exists() and any(
                not each.name.startswith(".recipe.yaml") for each in root.iterdir()
            ):
                raise UserError(
                    f"{root}: not empty and not a run directory; choose another with --run-dir"
                )
        except OSError as error:
            raise UserError(f"{root}: cannot read the run directory: {error.strerror}") from error
        return cls(root)

    def folder(self, product: Product) -> Path:
        """Where a finished product lies."""
        return self.root / product.name

    def is_made(self, product: Product) -> bool:
        """Whether the product is there, made from just what the recipe says now, with all of it."""
        return self.is_begun(product) and not self.uncovered(product)

    def is_begun(self, product: Product) -> bool:
        """As `is_made`, but that something of what it covers may be missing."""
        return self.fingerprint_on_disk(product.name) == product.fingerprint

    def uncovered(self, product: Product) -> list[str]:
        """What of `covers` the product on disk lacks."""
        covered = self._record(product.name).covered if product.covers else {}
        return [
            what for what, each in product.covers.items() if covered.get(what) != each.fingerprint
        ]

    def fingerprint_on_disk(self, name: str) -> str | None:
        """Fingerprint of the finished product of that name, or None."""
        return self._record(name).fingerprint

    def _record(self, name: str) -> _Record:
        file = self.root / name / RECORD
        try:
            content = json.loads(file.read_text())
            return _Record(str(content["fingerprint"]), dict(content.get("covers", {})))
        except FileNotFoundError:
            return _Record(None, {})
        except OSError as error:  # nothing is known of what is there
            reason = UserError(f"{file}: cannot be read: {error.strerror}")
            raise write_error(error, file) or reason from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: unreadable ({error}); remove that folder") from error

    def need(self, product: Product) -> Path:
        """Folder of a finished input; raises UserError where it is not there.

        One that another host has published a moment ago is waited for.
        """
        if not self.is_made(product) and not self._appears(product):
            raise UserError(
                f"{product.name} is not made yet, or not by this recipe: "
                f"run `vcsoup {product.command}` first, or `vcsoup run` for all"
            )
        return self.folder(product)

    def look_afresh(self, products: Iterable[Product]) -> None:
        """See what other hosts have published of the products, where this one may remember less."""
        if may_be_shared(self.root):
            look_afresh(self.root, [each.name for each in products if not self.is_made(each)])

    def _appears(self, product: Product) -> bool:
        deadline = time.monotonic() + LATE
        while may_be_shared(self.root) and time.monotonic() < deadline:
            self.look_afresh([product])
            if self.is_made(product):
                return True
            time.sleep(0.2)
        return False

    def draft(self, product: Product) -> Draft:
        """Where the product is made, or would be."""
        work = self.root / "work" / product.name
        return Draft(
            product, work / "output", work / "scratch", self._lock(product.name, "workers")
        )

    @contextmanager
    def publishing(
        self, product: Product, wait: bool = False, keep_scratch: bool = True
    ) -> Iterator[Draft]:
        """Hold the product's lock, give its draft, and publish it when the block ends well.

        What a killed run left in the draft is kept where its fingerprint is the same, and removed
        where it is not; once the product is published, only with `keep_scratch`. Another writer is
        waited for, or refused with a UserError; whoever waits looks again whether the product is
        made.
        """
        try:
            with self._alone(product, wait) as writer:
                draft = self._prepare(product)
                yield draft
                self._publish(draft, writer)
                if not keep_scratch:
                    # While nobody else can be in it.
                    shutil.rmtree(draft.scratch.parent, ignore_errors=True)
        except OSError as error:
            raise write_error(error, product.name) or error from error

    @contextmanager
    def sharing(self, products: Sequence[Product]) -> Iterator[list[Draft]]:
        """Hold a share of the products' locks, and give the drafts of those that are not made.

        For processes that write into the same drafts and agree among themselves on who writes what.
        None publishes: `publishing` does, once none works any more. UserError where another process
        makes a product, or where others share it that make it from something else.
        """
        locks = self.root / "locks"
        try:
            with ExitStack() as stack:
                locks.mkdir(exist_ok=True)
                with exclusive(locks / "sharing"):  # one enters at a time
                    drafts = [stack.enter_context(self._share(product)) for product in products]
                yield [draft for draft in drafts if draft is not None]
        except OSError as error:
            raise write_error(error, ", ".join(each.name for each in products)) or error from error

    def is_being_made(self, name: str) -> bool:
        """Whether a writer, or a worker of one, holds the product of that name."""
        return any(is_locked(self._lock(name, kind)) for kind in ("writer", "workers"))

    @contextmanager
    def unused(self, name: str) -> Iterator[bool]:
        """Keep writers and workers away from a product; False where there are some."""
        (self.root / "locks").mkdir(exist_ok=True)
        with (
            Lock(self._lock(name, "writer")) as writer,
            Lock(self._lock(name, "workers")) as workers,
        ):
            yield writer.take(EXCLUSIVE, GLANCE) and workers.take(EXCLUSIVE, GLANCE)

    def _publish(self, draft: Draft, writer: Lock) -> None:
        product = draft.product
        _refuse_if_lost(product, writer)  # the draft may be another's by now
        if self.is_made(product):  # by another process, before this one got the lock
            shutil.rmtree(draft.output)
            return
        remove_leftovers(draft.output)  # of ranks and actors that died on the way
        extends = self.is_begun(product)
        covered = self._record(product.name).covered if extends else {}
        record = {
            "name": product.name,
            "stage": product.stage,
            "fingerprint": product.fingerprint,
            "made_from": product.made_from,
            "inputs": {each.name: each.fingerprint for each in product.inputs},
            "covers": {
                **covered,
                **{what: each.fingerprint for what, each in product.covers.items()},
            },
        }
        write_atomically(draft.output / RECORD, json.dumps(record, indent=1) + "\n")
        sync_tree(draft.output)
        _refuse_if_lost(product, writer)
        (_extend if extends else _replace)(self.folder(product), draft.output)
        if not any(draft.scratch.iterdir()):  # nothing for `keep` to decide on
            shutil.rmtree(draft.scratch.parent)

    def _is_drafted(self, product: Product) -> bool:
        """Whether its draft is of what the recipe says now."""
        marker = self.root / "work" / product.name / "fingerprint"
        return marker.exists() and marker.read_text() == product.fingerprint

    def _prepare(self, product: Product) -> Draft:
        """The draft, without what is not of this product."""
        draft = self.draft(product)
        if not self._is_drafted(product):
            work = draft.scratch.parent
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_atomically(work / "fingerprint", product.fingerprint)
        draft.output.mkdir(exist_ok=True)
        draft.scratch.mkdir(exist_ok=True)
        return draft

    def _lock(self, name: str, kind: str) -> Path:
        return self.root / "locks" / f"{name.replace('/', '.')}.{kind}"

    @contextmanager
    def _alone(self, product: Product, wait: bool) -> Iterator[Lock]:
        """One writer: an exclusive lock, after the workers of a killed writer are gone."""
        (self.root / "locks").mkdir(exist_ok=True)
        with Lock(self._lock(product.name, "writer")) as writer:
            if not writer.take(EXCLUSIVE, GLANCE):
                busy = _busy(product, writer)
                if not wait:
                    raise UserError(busy)
                log.info("waiting: %s", busy)
                writer.take(EXCLUSIVE, timeout=None)
            writer.sign()
            _wait_for_workers(self._lock(product.name, "workers"), product)
            self.look_afresh([product])
            yield writer

    @contextmanager
    def _share(self, product: Product) -> Iterator[Draft | None]:
        """A share of the writer's lock, and the draft unless the product is made."""
        with Lock(self._lock(product.name, "writer")) as writer:
            if not writer.take(SHARED, GLANCE):
                raise UserError(_busy(product, writer))
            draft = None
            if not self.is_made(product):
                if not self._is_drafted(product):
                    if not writer.take(EXCLUSIVE, GLANCE):
                        raise UserError(
                            f"{_busy(product, writer)}, from something else than the recipe says"
                            " now; wait for it, or end it"
                        )
                    _wait_for_workers(self._lock(product.name, "workers"), product)
                draft = self._prepare(product)
            writer.sign()
            if not writer.take(SHARED):  # somebody came between the two locks
                raise UserError(_busy(product, writer))
            yield draft


@dataclass(frozen=True)
class _Record:
    """What a product.json says."""

    fingerprint: str | None
    """None where there is no product."""
    covered: Mapping[str, str]
    """Of `Product.covers`, the fingerprints."""


def _replace(final: Path, output: Path) -> None:
    stale = output.with_name("stale")
    shutil.rmtree(stale, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        final.rename(stale)
    output.rename(final)
    sync(final.parent)
    shutil.rmtree(stale, ignore_errors=True)


def _extend(final: Path, output: Path) -> None:
    """Add what is in `output`. A kill on the way leaves whole files, which nothing asks for yet."""
    for new in sorted(output.iterdir()):
        if new.name != RECORD:
            new.rename(final / new.name)
    sync(final)
    (output / RECORD).rename(final / RECORD)
    sync(final)
    output.rmdir()


def _refuse_if_lost(product: Product, writer: Lock) -> None:
    if not writer.is_kept():
        raise UserError(f"{product.name}: another host has taken it over; run this again")


def _busy(product: Product, lock: Lock) -> str:
    return f"{product.name} is being made by another process ({lock.signature()})"


def _wait_for_workers(path: Path, product: Product) -> None:
    deadline = time.monotonic() + WORKERS_TIMEOUT
    with Lock(path) as lock:
        while not lock.take(EXCLUSIVE):
            if time.monotonic() > deadline:
                pids = ", ".join(str(pid) for pid in pids_with_open(path))
                who = lock.holder or (f"pid {pids}" if pids else "none to be seen on this machine")
                raise UserError(
                    f"{product.name}: ranks or actors of a former run still write to it after "
                    f"{WORKERS_TIMEOUT:.0f} s ({who}); end them first"
                )
            time.sleep(0.1)
