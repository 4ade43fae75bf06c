"""Print the table of ds_configs/README.md: GiB per GPU and per host for every configuration.

python tools/memory_table.py
"""

from __future__ import annotations

from vcsoup_dist.recipe import Training
from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config
from vcsoup_dist.training.memory import Decoder, ModelSize, TrainingMemory, estimate_memory

GIB = 2**30
TABLE_SIZES = {
    # As Qwen2.5-1.5B, Llama-3.1-8B and Llama-3.1-70B.
    "1.5B": ModelSize(1_543_714_304, 233_373_696, Decoder(28, 1536, 8960, 256, 151_936)),
    "8B": ModelSize(8_030_261_248, 525_336_576, Decoder(32, 4096, 14_336, 1024, 128_256)),
    "70B": ModelSize(70_553_706_496, 1_050_673_152, Decoder(80, 8192, 28_672, 1024, 128_256)),
}
TABLE_RANKS = (1, 8, 16, 64)
TABLE_RANKS_PER_NODE = 8


def table() -> str:
    """The table in Markdown."""
    training = Training(nvme_path="/nvme")
    lines = [
        "| model | configuration | "
        + " | ".join(f"{n} GPU" if n == 1 else f"{n} GPUs" for n in TABLE_RANKS)
        + " |",
        "| --- | --- |" + " ---: |" * len(TABLE_RANKS),
    ]
    for name, size in TABLE_SIZES.items():
        for file in sorted(FOLDERS[0].glob("*.json")):
            cells = []
            for ranks in TABLE_RANKS:
                per_node = min(ranks, TABLE_RANKS_PER_NODE)
                config = fill_deepspeed_config(file, training, per_node)
                memory = estimate_memory(size, config, training, per_node, ranks // per_node)
                cells.append(" / ".join(f"{each / GIB:.0f}" for each in _cell(memory)))
            lines.append(f"| {name} | `{file.stem}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(memory: TrainingMemory) -> tuple[int, ...]:
    always = (memory.states, memory.gpu, memory.host)
    return (*always, memory.nvme) if memory.nvme else always


if __name__ == "__main__":
    print(table())
