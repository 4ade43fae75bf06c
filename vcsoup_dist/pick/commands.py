"""What to type to use a model: chat with it, serve it, upload it."""

from __future__ import annotations

import shlex
from pathlib import Path


def use_lines(folder: Path, name: str) -> list[str]:
    """The commands of transformers, vLLM and the hub, each with what it is for; name: a new
    repository's."""
    path = shlex.quote(str(folder))
    return [
        f"chat:   transformers serve {path}",
        f"        transformers chat {path}",
        "        (in a second terminal; pip install 'transformers[serving]')",
        f"serve:  vllm serve {path}",
        f"upload: hf upload {shlex.quote(name)} {path}",
        "        (after `hf auth login`; makes a public repository unless --private is given)",
    ]
