"""Where the numbers of a live transformers model are: on devices, offloaded, tied, fused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vcsoup_dist.errors import UserError


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by all of their names, where their numbers really are."""
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            continue
        if hasattr(tensor, "ds_id"):
            raise UserError(
                f"{name} is sharded by DeepSpeed ZeRO-3; load the soup into a model before"
                " DeepSpeed takes it"
            )
        if hasattr(tensor, "device_mesh"):
            raise UserError(
                f"{name} is distributed over processes; load the soup into a model of one process"
            )
        found[name] = (_offloaded(model, name) if tensor.is_meta else tensor).detach()
    return found


def _offloaded(model: nn.Module, name: str) -> Tensor:
    """The numbers of a meta tensor, which an accelerate hook keeps in host memory."""
    parts = name.split(".")
    on_disk = False
    for depth in range(len(parts) - 1, -1, -1):  # a hook may serve all modules below its own
        hook = getattr(model.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            weights: Any = getattr(each, "weights_map", None)
            key = ".".join(parts[depth:])
            while hasattr(weights, "dataset"):  # accelerate's PrefixedDataset
                key = weights.prefix + key
                weights = weights.dataset
            on_disk = on_disk or key in getattr(weights, "index", ())
            weights = getattr(weights, "state_dict", weights)  # of an OffloadedWeightsLoader
            if weights is not None and key in weights and not weights[key].is_meta:
                tensor: Tensor = weights[key]
                return tensor
    if on_disk:
        raise UserError(
            f"{name} is offloaded to disk by accelerate, where it cannot be filled; give the model"
            " more memory, or load a written soup"
        )
    raise UserError(f"{name} has no memory (it is on the meta device); load the model first")


class _View(Tensor):
    """A tensor that is not copied to be contiguous: what is split from it stays its memory."""

    def contiguous(self, *args: Any, **kwargs: Any) -> Tensor:
        return self


def checkpoint_views(model: nn.Module, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's memory under the names and in the shapes of its checkpoints.

    transformers keeps some weights in other forms than checkpoints do, such as all experts of a
    layer in one tensor; what it would save are parts of these.
    """
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    if not isinstance(model, PreTrainedModel):
        return {}
    saved = revert_weight_conversion(
        model, {name: tensor.as_subclass(_View) for name, tensor in live.items()}
    )
    return {name: tensor.as_subclass(Tensor) for name, tensor in saved.items()}


def memory_of(tensor: Tensor) -> object:
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def tied_copies(
    model: nn.Module, live: Mapping[str, Tensor], owners: dict[object, str]
) -> Iterator[tuple[str, Tensor]]:
    """Tied weights that have memory of their own, as on several devices: (who fills it, it)."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    # Sources first: the checkpoint may hold the target alone.
    pairs = [(source, target) for target, source in tied.items()]
    for name, other in pairs + list(tied.items()):
        if name in live and other in live and memory_of(live[name]) not in owners:
            owner = owners.get(memory_of(live[other]))
            if owner is not None:
                owners[memory_of(live[name])] = owner
                yield owner, live[name]
