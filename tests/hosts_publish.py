"""Makes a product in a run directory for some seconds: python hosts_publish.py RUN SECONDS [wait]

It says `works` with what it has found of an earlier try, and `published` with all that it has made.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.workspace import Product, Workspace

PRODUCT = Product("things/a", "read", {"x": 1})


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    workspace = Workspace(Path(sys.argv[1]))
    workspace.root.mkdir(exist_ok=True)
    host = os.uname().nodename
    try:
        with workspace.publishing(PRODUCT, wait="wait" in sys.argv) as draft:
            if not workspace.is_made(PRODUCT):
                print("works", *sorted(each.name for each in draft.output.iterdir()), flush=True)
                for second in range(int(sys.argv[2])):
                    (draft.output / f"{host}-{second}").write_bytes(bytes(100_000))
                    time.sleep(1)
    except UserError as error:
        print(f"refused: {error}")
        sys.exit(2)
    names = (each.name for each in workspace.folder(PRODUCT).iterdir())
    print("published", *sorted(name for name in names if name != "product.json"))


if __name__ == "__main__":
    main()
