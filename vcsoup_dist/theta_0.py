"""theta_0, the weights that all policies start from: the recipe's model, or a product of `sft`."""

from __future__ import annotations

from pathlib import Path

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.identity import Located
from vcsoup_dist.workspace import Product, Workspace


def find_theta_0(product: Product, workspace: Workspace) -> Located:
    """The weights that a product is made from; raises UserError where they are not made yet."""
    made = product.inputs_of("sft")
    if made:
        return Located(str(workspace.need(made[0]).resolve()), None, None)
    return product.sources["model"]


def local_folder(model: Located) -> Path:
    """The folder of a model; one of the hub is downloaded where the cache does not have it.

    Of its weights the safetensors, or where it has none the `.bin` files. Raises UserError where
    neither hub nor cache gives it.
    """
    if model.revision is None:
        return Path(model.source)
    from huggingface_hub import constants, snapshot_download

    try:
        for weights in ("*.safetensors", "*.bin"):
            folder = Path(
                snapshot_download(
                    model.source,
                    revision=model.revision,
                    allow_patterns=["*.json", weights],
                    ignore_patterns=["*/*", "consolidated*"],  # copies in other formats
                    local_files_only=constants.HF_HUB_OFFLINE,  # 1.33 asks for a list of files
                )
            )
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the hub raises its own, httpx's and requests' errors
        raise UserError(
            f"model: the hub does not give the weights of `{model.source}` ({reason_of(error)})"
        ) from error
    return folder
