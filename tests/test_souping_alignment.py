"""Policies that hold the same under other names: a right soup, or one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merging import read_all, write_policy

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.merge import merge

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = {"hidden_size": 4, "tie_word_embeddings": True}


def tensors(seed: float) -> dict:
    return {
        EMBED: ("F32", np.arange(12, dtype="<f4").reshape(3, 4) + seed),
        "model.layers.0.mlp.weight": ("F32", np.full((4, 4), seed, "<f4")),
    }


def write(path: Path, found: dict, config=TIED) -> Path:
    return write_policy(path, found, config=config)


def write_bin(path: Path, found: dict) -> Path:
    """`.bin`, in which the head comes first and shares its memory with the embedding."""
    torch = pytest.importorskip("torch")
    path.mkdir()
    state = {name: torch.from_numpy(array) for name, (_, array) in found.items()}
    torch.save({HEAD: state[EMBED]} | state, path / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_text(json.dumps(TIED if name == "config.json" else {"model": {"a": 0}}))
    return path


def soup(tmp_path: Path, *policies: Path, **options) -> dict[str, np.ndarray]:
    merge(policies, out=tmp_path / "out", weights=[(0.25, 0.75)], verify=True, **options)
    return {name: np.frombuffer(raw, "<f4") for name, raw in read_all(tmp_path / "out").items()}


def expected(name: str) -> np.ndarray:
    one, two = tensors(1)[name][1], tensors(2)[name][1]
    return (0.25 * one.astype("f8") + 0.75 * two).astype("f4").ravel()


FORMS = {
    "tied": lambda path, found: write(path, found),
    "copy": lambda path, found: write(path, found | {HEAD: found[EMBED]}),
    "head first in a bin": write_bin,
    "head alone": lambda path, found: write(
        path, {HEAD if name == EMBED else name: each for name, each in found.items()}
    ),
}


@pytest.mark.parametrize("one", FORMS)
@pytest.mark.parametrize("two", FORMS)
def test_tied_heads_are_the_same_in_all_their_forms(tmp_path, one, two):
    policies = [FORMS[one](tmp_path / "p", tensors(1)), FORMS[two](tmp_path / "q", tensors(2))]
    found = soup(tmp_path, *policies)
    assert found.keys() & {EMBED, HEAD}
    for name, values in found.items():
        assert np.array_equal(values, expected(EMBED if name == HEAD else name)), name


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("config", [TIED, {"tie_word_embeddings": False}])
def test_a_head_of_its_own_is_none_that_is_tied(tmp_path, swapped, config):
    own = tensors(1) | {HEAD: ("F32", np.ones((3, 4), "<f4"))}
    p, q = write(tmp_path / "p", own, config), write(tmp_path / "q", tensors(2), config)
    with pytest.raises(UserError, match=r"has its own lm_head.weight"):
        soup(tmp_path, *((q, p) if swapped else (p, q)))
    if config["tie_word_embeddings"] is False:
        copy = write(tmp_path / "r", tensors(1) | {HEAD: tensors(1)[EMBED]}, config)
        with pytest.raises(UserError, match=r"has its own lm_head.weight"):
            soup(tmp_path, copy, q)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("swapped", [False, True])
def test_buffers_that_models_compute_may_be_in_one_alone(tmp_path, swapped, caplog):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    p = write(tmp_path / "p", tensors(1) | {name: ("F32", np.ones(2, "<f4"))})
    q = write(tmp_path / "q", tensors(2))
    with caplog.at_level("INFO", logger="vcsoup"):
        merge((q, p) if swapped else (p, q), out=tmp_path / "out", weights=[(0.5, 0.5)])
    assert f"{name!r} is left out" in caplog.text
    assert read_all(tmp_path / "out").keys() == tensors(1).keys()


def test_a_mask_that_is_the_same_in_all_is_copied_and_a_weight_is_not(tmp_path):
    mask = np.where(np.tri(3), 0, -np.inf).astype("<f4")
    policies = [
        write(tmp_path / f"p{i}", tensors(i) | {"model.causal_mask": ("F32", mask)}) for i in (1, 2)
    ]
    merge(policies, out=tmp_path / "out", weights=[(1, 0)], verify=True)
    assert read_all(tmp_path / "out")["model.causal_mask"] == mask.tobytes()
    for name, other in (("x.weight", mask), ("model.causal_mask", -mask)):
        pair = [
            write(tmp_path / f"{name}{i}", tensors(i) | {name: ("F32", each)})
            for i, each in enumerate((mask, other))
        ]
        with pytest.raises(UserError, match="holds NaN or infinity"):
            soup(tmp_path / name, *pair)


WRAPPERS = ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "pretrained_model."]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("prefix", [*WRAPPERS, "_fsdp_wrapped_module."])
def test_names_of_wrappers_are_left_out_with_a_word(tmp_path, prefix, both, caplog):
    def wrapped(seed: float) -> dict:
        return {prefix + name: each for name, each in tensors(seed).items()}

    p = write(tmp_path / "p", wrapped(1))
    q = write(tmp_path / "q", wrapped(2) if both else tensors(2))
    with caplog.at_level("INFO", logger="vcsoup"):
        found = soup(tmp_path, p, q)
    assert f"{prefix!r} of a wrapper, which is left out" in caplog.text
    assert found.keys() == tensors(1).keys()
    assert all(np.array_equal(values, expected(name)) for name, values in found.items())


def test_wrappers_within_names_are_left_out(tmp_path):
    names = {name: name.replace("0.mlp", "0._checkpoint_wrapped_module.mlp") for name in tensors(1)}
    p = write(tmp_path / "p", {names[name]: each for name, each in tensors(1).items()})
    assert soup(tmp_path, p, write(tmp_path / "q", tensors(2))).keys() == tensors(1).keys()


@pytest.mark.parametrize("swapped", [False, True])
def test_a_prefix_of_the_class_in_one_alone_is_named(tmp_path, swapped):
    bare = {name.removeprefix("model."): each for name, each in tensors(1).items()}
    p, q = write(tmp_path / "p", bare), write(tmp_path / "q", tensors(2))
    with pytest.raises(UserError, match=r"names agree but for 'model\.'"):
        soup(tmp_path, *((q, p) if swapped else (p, q)))


def test_placeholders_of_zero3_and_unmerged_adapters_are_refused(tmp_path):
    empty = tensors(1) | {EMBED: ("F32", np.ones(0, "<f4"))}
    p = write(tmp_path / "p", empty)
    with pytest.raises(UserError, match=r"placeholders of a ZeRO-3 model.*gather it"):
        soup(tmp_path, p, write(tmp_path / "q", empty))
    lora = tensors(1) | {"model.q_proj.lora_A.default.weight": ("F32", np.ones((2, 2), "<f4"))}
    p, q = write(tmp_path / "r", lora), write(tmp_path / "s", lora)
    with pytest.raises(UserError, match=r"merge_and_unload\(\)"):
        soup(tmp_path, p, q)


def test_experts_apart_and_fused_are_said(tmp_path):
    def experts(names: list[str]) -> dict:
        return tensors(1) | {name: ("F32", np.ones((2, 2), "<f4")) for name in names}

    p = write(
        tmp_path / "p", experts([f"model.layers.0.mlp.experts.{i}.up.weight" for i in (0, 1)])
    )
    q = write(tmp_path / "q", experts(["model.layers.0.mlp.experts.gate_up_proj"]))
    with pytest.raises(UserError, match="a tensor for each expert and the other all experts"):
        soup(tmp_path, p, q)
