"""`values`: how each value is rewarded and judged, and the pairs that teach it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from vcsoup_dist.recipe.data import Data
from vcsoup_dist.recipe.pools import ActorPool
from vcsoup_dist.recipe.section import FIELD, FUNCTION, Section
from vcsoup_dist.recipe.training import Attention


class _AnyReward(Section):
    sign: Literal[1, -1] = 1
    """-1 for a cost model, where lower is better."""


class ClassifierReward(_AnyReward):
    """A Hugging Face sequence classifier with one or many outputs."""

    classifier: str
    """Model directory (relative to the recipe) or hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    output: int | str = 0
    """Which output is the reward: its index, or its label in the model's `id2label`. Values whose
    rewards differ in `output`, `softmax`, `head` and `sign` alone share one model, run once."""
    softmax: bool = False
    """Take the output's probability among all outputs, for classifiers of several classes."""
    head: str = Field("logits", pattern=FIELD)
    """Field of what the model returns that holds its outputs [texts, outputs]; custom code may have
    others, such as ArmoRM's `rewards`."""
    text: str = "chat_template"
    """`chat_template`; `pair` (prompt and response as two segments); `response` alone; or a
    template string with `{prompt}` and `{response}`."""
    template: str | None = None
    """Name of the chat template, where the tokenizer has several; absent: its `default` one."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What the reward model computes in."""
    attention: Attention = "auto"
    """How attention runs over packed texts; `auto` takes the fastest that is installed."""
    max_length: int | None = Field(None, ge=8)
    """Tokens; what is longer loses tokens of the prompt, and of the response only where that alone
    is too long. Absent: the model's own limit."""
    truncate: Literal["start", "end"] = "start"
    """Which end of the prompt is cut."""
    trust_remote_code: bool = False
    """Consent to run the Python code that comes with the model."""
    pool: ActorPool | None = None
    """Actors of this reward model; absent: as `scoring` says."""

    @field_validator("output", mode="before")
    @classmethod
    def _index_or_name(cls, output: Any) -> Any:
        index = isinstance(output, int) and not isinstance(output, bool) and output >= 0
        if not index and not isinstance(output, str):
            raise ValueError(f"must be an index, 0 or more, or a name, not {output!r}")
        return output

    @field_validator("text")
    @classmethod
    def _known_text(cls, text: str) -> str:
        if text not in ("chat_template", "pair", "response") and not (
            "{prompt}" in text and "{response}" in text
        ):
            raise ValueError(
                "must be chat_template, pair, response, or a template with {prompt} and {response}"
            )
        return text

    @model_validator(mode="after")
    def _template_of_a_chat(self) -> ClassifierReward:
        if self.template is not None and self.text != "chat_template":
            raise ValueError("template: names a chat template, which this `text` does not use")
        return self


class CallableReward(_AnyReward):
    """A Python function (prompt messages, response text) -> float."""

    callable: str = Field(pattern=FUNCTION)
    """`package.module:function`, or `file.py:function` relative to the recipe. A change of that
    file or of a Python file beside it makes the scores anew; what lies elsewhere is not watched."""
    pool: ActorPool | None = None
    """Actors of this function; absent: as `scoring` says."""


class ColumnsReward(_AnyReward):
    """Scores that the data already carries; needs no model, and cannot judge new answers."""

    columns: tuple[str, str]
    """Names of the columns with the chosen and the rejected answer's score."""


def _reward_kind(reward: Any) -> str | None:
    keys = reward if isinstance(reward, dict) else getattr(reward, "model_fields_set", ())
    return next((kind for kind in ("classifier", "callable", "columns") if kind in keys), None)


Reward = Annotated[
    Annotated[ClassifierReward, Tag("classifier")]
    | Annotated[CallableReward, Tag("callable")]
    | Annotated[ColumnsReward, Tag("columns")],
    Discriminator(
        _reward_kind,
        custom_error_type="reward_kind",
        custom_error_message="needs one of the keys `classifier`, `callable` or `columns`",
    ),
]


class Value(Section):
    """One human value: how it is rewarded, and the preference pairs that teach it."""

    reward: Reward
    """A classifier, a callable or columns."""
    data: Data | None = None
    """Absent: the value takes part in the consistency and the evaluation, but trains no policy."""
    judge: Reward | None = None
    """Reward that evaluates the soups on this value in place of `reward`, which a filter may
    have overfitted."""
