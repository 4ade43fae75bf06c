"""Read and sum as `vcsoup merge` does, and write nothing: for shapes larger than the disk.

python tools/merge_discard.py P0 P1 P2 --weights 0.2,0.3,0.5
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from vcsoup_dist.souping.chunks import cut_chunks
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.plan import plan_merge
from vcsoup_dist.souping.stream import Sink, stream


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", type=Path, nargs="+")
    parser.add_argument("--weights", action="append", required=True)
    args = parser.parse_args()
    rows = {f"soup{i}": list(map(float, row.split(","))) for i, row in enumerate(args.weights)}
    plan = plan_merge(args.policies, rows, [path.name for path in args.policies], MergeOptions())
    began = time.monotonic()
    chunks = 0
    for _ in stream(plan.sums(), cut_chunks(plan.shards), Sink(), memory=1 << 30):
        chunks += 1
    seconds = time.monotonic() - began
    print(f"{chunks} chunks, {plan.bytes_read / 1e9:.1f} GB read in {seconds:.1f} s")


if __name__ == "__main__":
    main()
