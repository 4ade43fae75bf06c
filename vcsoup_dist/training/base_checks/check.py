"""The checks of a base that `vcsoup check`, `reference` and `train` run before ranks start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vcsoup_dist.checkpoints.auxiliary_files import auxiliary_files
from vcsoup_dist.checkpoints.folders import require_model
from vcsoup_dist.forward.tokenizer import open_tokenizer
from vcsoup_dist.recipe import Evaluation, Training
from vcsoup_dist.training.base_checks.architecture import (
    check_architecture,
    has_own_code,
    open_config,
)
from vcsoup_dist.training.base_checks.first_pairs import Texts, check_template
from vcsoup_dist.training.base_checks.generation_config import end_warnings, open_generation_config
from vcsoup_dist.training.base_checks.lengths import check_lengths
from vcsoup_dist.training.base_checks.tensors import check_tensors
from vcsoup_dist.training.base_checks.tokenizer import (
    check_vocabulary,
    require_template,
)


def check_base(
    source: str,
    revision: str | None,
    training: Training,
    evaluation: Evaluation | None,
    datasets: Mapping[str, Iterable[Texts]] | None = None,
) -> list[str]:
    """Warnings; UserError where a base cannot be trained as the recipe says.

    source: a folder or hub id; evaluation: absent where this model answers no prompts; datasets:
    the pairs of each, of which the first are tried. Reads config, tokenizer and the headers of
    local weights. Imports transformers.
    """
    folder = Path(source) if Path(source).exists() else None
    if folder:
        require_model(folder)
        auxiliary_files(folder)  # refuses a link out of the folder now, not after training
    config = open_config(source, revision)
    model = check_architecture(config, training.max_length)
    warnings = []
    if has_own_code(config):
        warnings.append(
            f"{source}: the Python code that comes with it is not run; it is trained as "
            f"transformers' own {type(model).__name__}"
        )
    if folder:
        warnings += check_tensors(model, folder)
    tokenizer = open_tokenizer(source, revision)
    check_vocabulary(config, tokenizer)
    check_lengths(config, training, evaluation)
    generation_config, sampling_warnings = open_generation_config(source, revision, config)
    warnings += sampling_warnings
    require_template(source, tokenizer)
    for name, pairs in (datasets or {}).items():
        warnings += check_template(tokenizer, name, pairs, training)
    return warnings + end_warnings(source, tokenizer, generation_config)
