"""Read and sum as `vcsoup merge` does, and write nothing: for shapes larger than the disk.

python tools/merge_discard.py P0 P1 P2 --weights 0.2,0.3,0.5
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.souping.chunks import Chunk, cut_chunks
from vcsoup_dist.souping.plan import plan_merge
from vcsoup_dist.souping.stream import stream


class Discard:
    """A sink that keeps nothing."""

    def prepare(self, chunk: Chunk) -> None:
        pass

    def place(self, chunk: Chunk, offset: int) -> int:
        return offset

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", type=Path, nargs="+")
    parser.add_argument("--weights", action="append", required=True)
    args = parser.parse_args()
    rows = {f"soup{i}": list(map(float, row.split(","))) for i, row in enumerate(args.weights)}
    plan = plan_merge(args.policies, rows, names=[path.name for path in args.policies])
    began = time.monotonic()
    chunks = 0
    for _ in stream(plan.recipients(), cut_chunks(plan.shards), Discard(), memory=1 << 30):
        chunks += 1
    seconds = time.monotonic() - began
    print(f"{chunks} chunks, {plan.bytes_read / 1e9:.1f} GB read in {seconds:.1f} s")


if __name__ == "__main__":
    main()
