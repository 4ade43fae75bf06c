"""Which files go along with the weights, what Python callers may give, and mergekit's YAML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import vcsoup
from merging import files_of, write_policy

from vcsoup_dist.checkpoints.auxiliary_files import find_auxiliary_files
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.export import export
from vcsoup_dist.souping.grids import distinct_random_weights, random_weights, weights_name
from vcsoup_dist.souping.merge import merge
from vcsoup_dist.souping.verify import verify_directory

GO = {
    "video_preprocessor_config.json", "tekken.json", "LICENSE", "audio_tokenizer_config.json",
    "spm.model", "sentencepiece.model", "normalizer.json", "bpe.codes", "source.spm", "target.spm",
    "qwen.tiktoken", "modeling_own.py", "NOTICE.txt", "1_Pooling/config.json", "modules.json",
    "additional_chat_templates/tools.jinja", "generation_config.json", "vocab.bpe",
}  # fmt: skip
SAID = {
    "trainer_state.json", "training_args.json", "all_results.json", "zero_to_fp32.py", "latest",
    "trainer_log.jsonl", "2_Dense/", "checkpoint-500/", "runs/",
}  # fmt: skip
STAY = {
    "optimizer.pt", "rng_state_0.pth", "training_args.bin", "README.md", "old.gguf",
    "2_Dense/config.json", "2_Dense/model.safetensors", "checkpoint-500/config.json",
    "runs/events.out.tfevents.1", ".gitattributes", ".cache/x.json",
}  # fmt: skip


@pytest.fixture
def pair(tmp_path) -> Path:
    """p and q, and in p files of all kinds."""
    for seed, name in enumerate(("p", "q")):
        write_policy(tmp_path / name, {"w": ("F32", np.arange(4, dtype="<f4") + seed)})
    for name in {each for each in GO | SAID | STAY if not each.endswith("/")}:
        (tmp_path / "p" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_text("{}")
    return tmp_path


@pytest.mark.processes
def test_every_small_file_of_no_other_kind_goes_along_and_the_rest_is_said(pair):
    command = ["merge", "p", "q", "--weights", "0.5,0.5", "--out", "out"]
    said = vcsoup(*command, folder=pair)
    ours = {"config.json", "tokenizer.json", "model.safetensors", "README.md", "manifest.json"}
    assert set(files_of(pair / "out")) == GO | ours
    assert set(find_auxiliary_files(pair / "p").left) == SAID
    assert "left      of its files: " in said and "checkpoint-500/" in said
    verify_directory(pair / "out")
    vcsoup("export", "q", "--model", "p", "--out", "exported", folder=pair)
    assert set(files_of(pair / "exported")) == GO | ours - {"README.md"}


def test_large_files_of_no_known_name_stay_and_are_said(pair):
    with open(pair / "p" / "corpus.txt", "wb") as file:
        file.truncate(1 << 27)
    found = find_auxiliary_files(pair / "p")
    assert "corpus.txt (large)" in found.left and "corpus.txt" not in found.files


def test_python_takes_strings_and_one_row_of_weights(pair):
    p, q = str(pair / "p"), str(pair / "q")
    merge([p, q], weights=[0.25, 0.75], out=str(pair / "a"))
    merge((p, q), weights=np.array([[0.25, 0.75]]), out=pair / "b")
    export(q, out=str(pair / "e"))
    for name in ("a", "b", "e"):
        verify_directory(str(pair / name))
    assert files_of(pair / "a")["model.safetensors"] == files_of(pair / "b")["model.safetensors"]


@pytest.mark.parametrize(
    ("policies", "options", "message"),
    [
        ("p", {}, "policies must be a list"), ([1, 2], {}, r"policies\[0\] must be a path"),
        (None, {}, "policies must be a list"), (["p", "q"], {"out": 3}, "out must be a path"),
        (["p", "q"], {"weights": {"p": 1}}, "weights must be rows of numbers"),
        (["p", "q"], {"weights": ["0.5", "0.5"]}, r"weights\[0\] must be a number"),
        (["p", "q"], {"memory": "1GiB"}, "memory must be a whole number"),
        (["p", "q"], {"base": 1}, "base must be a path"),
    ],
)  # fmt: skip
def test_python_arguments_of_another_type_are_named(policies, options, message):
    with pytest.raises(TypeError, match=message):
        merge(policies, **({"weights": [0.5, 0.5], "out": "x"} | options))


@pytest.mark.processes
def test_the_yaml_of_mergekit_may_be_the_argument(pair):
    (pair / "mk.yaml").write_text(
        "{models: [{model: p, parameters: {weight: 1}}, {model: q, parameters: {weight: 3}}],"
        " merge_method: linear}"
    )
    vcsoup("merge", "mk.yaml", "--out", "a", folder=pair)
    vcsoup("merge", "--config", "mk.yaml", "--out", "b", folder=pair)
    assert files_of(pair / "a")["model.safetensors"] == files_of(pair / "b")["model.safetensors"]
    assert "no others" in vcsoup(
        "merge", "mk.yaml", "--weights", "1", "--out", "c", folder=pair, code=2
    )
    for text in ("{a: 1}", "[1]", "word"):
        (pair / "other.yaml").write_text(text)
        said = vcsoup("merge", "other.yaml", "--out", "c", folder=pair, code=2)
        assert "neither a recipe" in said and "nor a mergekit" in said and said.count("\n") == 1


def test_many_random_soups_of_two_policies_have_names_of_their_own():
    rows = distinct_random_weights(2, 3000, 0)
    assert len({weights_name(row) for row in rows}) == 3000
    assert rows[:50] == random_weights(2, 50, 0)
    with pytest.raises(UserError, match="one policy has one soup"):
        distinct_random_weights(1, 2, 0)
    with pytest.raises(UserError, match="from 1 to 10,000"):
        distinct_random_weights(2, 10_001, 0)
