"""One vector per sequence of a pack."""

from __future__ import annotations

import torch

from vcsoup_dist.forward.packing import Pack


def last_tokens(hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
    """The last token's hidden state [S, H] of each sequence, whatever its id."""
    return hidden[pack.cu_seqlens[1:].long() - 1]
