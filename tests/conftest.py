"""Small real models and data that several test files use."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from slurm_world import Jobs
    from tokenizers import Tokenizer

# Tests run two ranks, also where there is one GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Threads of several tiny models at a time only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Else every rank and every command compiles the package's source anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A process that starts a Ray would be in another mode from then on, and what it starts with it.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# A shell without job control starts what runs in the background with SIGINT ignored, and children
# inherit that. Tests of Ctrl-C need it as a terminal's foreground has it.
signal.signal(signal.SIGINT, signal.default_int_handler)


SLOWEST_FIRST = ("slurm", "ray", "ranks", "kills", "processes", "models")
"""The markers, in the order in which the files that have them run."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the fixture `slurm` needs Slurm; files that take longest come first."""
    markers: dict[Path, set[str]] = {}
    for item in items:
        for fixture, marker in (("slurm", "slurm"), ("ray_address", "ray")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        markers.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(
        key=lambda item: next(
            (i for i, each in enumerate(SLOWEST_FIRST) if each in markers[item.path]),
            len(SLOWEST_FIRST),
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one worker, since they share fixtures; so do those that mostly wait for
    Slurm, so that another worker computes meanwhile."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "slurm" if "test_slurm_" in file else file

    return Files(config, log)


STARTS_PROCESSES = {"processes", "ranks", "ray", "slurm", "kills", "hosts"}
_may_start_processes = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test without a mark of those, which `make test-fast` runs, starts no Python."""
    global _may_start_processes
    _may_start_processes = not STARTS_PROCESSES.isdisjoint(m.name for m in item.iter_markers())
    try:
        return (yield)
    finally:
        _may_start_processes = True


def _refuse_processes(event: str, arguments: tuple[object, ...]) -> None:
    starts = event == "subprocess.Popen" and "python" in os.path.basename(str(arguments[0]))
    if not _may_start_processes and (starts or event == "os.fork"):
        raise AssertionError("a test that starts a process is marked so: see pyproject.toml")


sys.addaudithook(_refuse_processes)


def pytest_runtest_setup() -> None:
    """Ctrl-C as ever: a command that was stopped in an earlier test ignores it while it ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says more of the machine's other work than of the code.
hypothesis.settings.register_profile("vcsoup", deadline=None)
hypothesis.settings.load_profile("vcsoup")

WORDS = [
    *("the", "a", "cat", "dog", "house", "tree", "river", "runs", "sees", "likes"),
    *("small", "big", "red", "blue", "old", "new", "and", "or", "yes", "no"),
]


SPECIALS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<unk>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


def word_tokenizer(more_words: Sequence[str] = ()) -> Tokenizer:
    """Of the words, without a template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *WORDS, *more_words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def save_tiny_tokenizer(folder: Path, more_words: Sequence[str] = ()) -> None:
    """A word-level tokenizer with a chat template; pad differs from eos, no BOS."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(more_words),
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<unk>",
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def write_model_files(folder: Path) -> None:
    """The files of a model that is planned with and never loaded: a tiny Llama of zeros.

    Without the seconds in which torch and transformers would be imported to save a real one.
    """
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    width, inner, heads, groups, layers = 32, 64, 4, 2, 2
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(SPECIALS) + len(WORDS),
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = {"embed_tokens": (config["vocab_size"], width), "norm": (width,)}
    for layer in range(layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            names[f"layers.{layer}.{name}"] = (width,)
        for name, shape in {
            "mlp.down_proj": (width, inner),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (width * groups // heads, width),
            "self_attn.v_proj": (width * groups // heads, width),
            "self_attn.o_proj": (width, width),
        }.items():
            names[f"layers.{layer}.{name}"] = shape
    tensors = {f"model.{name}.weight": np.zeros(shape, "<f4") for name, shape in names.items()}
    tensors["lm_head.weight"] = np.zeros((config["vocab_size"], width), "<f4")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    word_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    specials = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | specials))


def save_tiny_model(
    folder: Path,
    seed: int = 0,
    tied: bool = False,
    hidden_size: int = 32,
    more_words: Sequence[str] = (),
) -> None:
    """A random Llama, by default of about 20,000 parameters, with the tiny tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIALS) + len(WORDS) + len(more_words),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tiny_tokenizer(folder, more_words)


def sentence(draw: random.Random, longest: int = 12) -> str:
    """Some words of the tiny vocabulary."""
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def write_pairs(path: Path, count: int, seed: int = 0) -> None:
    """Preference pairs as prompt, chosen and rejected strings."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        chosen, rejected = sentence(draw), sentence(draw)
        rows.append(
            {
                "prompt": f"{sentence(draw)} {' '.join(random.Random(i).choices(WORDS, k=4))}",
                "chosen": chosen,
                "rejected": rejected if rejected != chosen else rejected + " no",
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that is not loaded."""
    folder = tmp_path_factory.mktemp("model-files")
    write_model_files(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Address of a Ray that tests share. They may kill its actors, and nothing else of it."""
    from ray_world import running_ray

    with running_ray() as address:
        yield address


@pytest.fixture
def on_shared_ray(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is run or started in this test uses the shared Ray, and starts none."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)


ROOT = Path(__file__).parents[1]
SLURM = ROOT / "tools" / "slurm_cluster.sh"


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[None]:
    """A Slurm of two nodes, started here unless it runs already."""
    needed = ("slurmctld", "slurmd", "munged", "sbatch")
    if not all(shutil.which(each, path=f"{os.environ['PATH']}:/usr/sbin") for each in needed):
        hint = f"no Slurm here; as root on Debian or Ubuntu `{SLURM} up` installs and starts it"
        if os.environ.get("CI"):
            pytest.fail(hint)
        pytest.skip(hint)
    was_up = subprocess.run([SLURM, "status"], capture_output=True).returncode == 0
    subprocess.run([SLURM, "up"], check=True)
    yield
    if not was_up:
        subprocess.run([SLURM, "down"], check=True)


@pytest.fixture(scope="module")
def slurm(slurm_cluster: None) -> Iterator[None]:
    """sbatch and srun reach a Slurm of two nodes."""
    export = subprocess.run([SLURM, "env"], check=True, capture_output=True, text=True).stdout
    with pytest.MonkeyPatch.context() as patch:
        for assignment in shlex.split(export)[1:]:
            patch.setenv(*assignment.split("=", 1))
        patch.setenv("VCSOUP_SETUP", f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def slurm_jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """A recipe whose scripts run as jobs, and what they make without Slurm."""
    from slurm_world import Jobs

    return Jobs(tmp_path_factory.mktemp("jobs"))
