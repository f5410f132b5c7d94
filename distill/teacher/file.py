"""`teacher=file`: answers that already exist, with their log-probabilities where the file has them."""

from dataclasses import asdict, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.checkpoint import checkpoint_folder
from distill.option import STRICT, FileOrHubId
from distill.teacher._asking import Filter


@dataclass(frozen=True, kw_only=True, config=STRICT)
class File:
    """Answers that somebody has collected; nobody is asked. Each is joined to its prompt in `data` by the text."""

    kind: Literal["file"]
    path: FileOrHubId
    """A .jsonl, .csv or .parquet file, a folder of .parquet files or of `save_to_disk`, or a data set on the hub."""
    revision: str | None = None
    """Branch, tag or commit of `path` on the hub."""
    split: str = "train"
    """Split of a hub data set."""
    layout: Literal[
        "auto", "distill", "axolotl", "axolotl_prepared", "axolotl_prepared_legacy", "distillkit", "openai_batch"
    ] = "auto"
    """What the rows look like; auto: by the fields of the first one.

    distill: ours, {"prompt" or "messages", "response", and perhaps "tokens" and "logprobs"}; plain text is this one.
    axolotl: chat messages with a list of top log-probabilities for each token.
    axolotl_prepared: token ids with target_token_ids and target_logprobs, row j for token j + 1; the log-probabilities
    were renormalised over the k kept, so the tail is lost and the targets are biased: for forward_kl alone.
    axolotl_prepared_legacy: the same as Axolotl 0.18.0 and older wrote it, row j for token j.
    distillkit: token ids with compressed log-probabilities; `packed_indices` of its old captures are renormalised too.
    openai_batch: what a batch of requests was answered, for loss=text; the prompts are in `requests`.
    """
    requests: FileOrHubId | None = None
    """layout=openai_batch: the .jsonl file that was sent; its answers are found by their custom_id."""
    compression: FileOrHubId | None = None
    """layout=distillkit: the YAML file that says how it was packed. None: compression_config.yaml beside the data."""
    tokenizer: Annotated[str, AfterValidator(checkpoint_folder)] | None = None
    """The teacher's: a folder, a hub id or `bundled:NAME`. Needed for token ids and targets, not for text."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of `tokenizer` on the hub."""
    name: str | None = None
    """Who answered, for the store's header and the report. None: the name of the file."""
    prompt_field: str = "prompt"
    response_field: str = "response"
    messages_field: str = "messages"
    """Chat `messages`, in the place of a prompt; without a response field, the last turn is the response."""
    logprobs_field: str = "logprobs"
    targets: Literal["auto", "top_k", "next"] = "auto"
    """What is kept: the likeliest tokens of each position, or the log-probability of each token of the text alone.

    auto: top_k where the file has more than one for each token.
    """
    top_k: Annotated[int, Field(ge=1, le=4096)] = 64
    """Targets kept for each token, no more than the file has; the rest of the distribution is one tail bucket."""
    logprob_temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """What the teacher's logits were divided by for these log-probabilities. The loss must use the same."""

    filters: list[Filter] = field(default_factory=list)
    """Answers that are left out: `cut`, without a `final_answer` (####), with another one than the data's
    (`known_answer`), `duplicate` of another answer to the same prompt."""

    # what the options that ask somebody let one choose
    responses: ClassVar[str] = "generate"
    keep_answers: ClassVar[bool] = False
    samples: ClassVar[int] = 1
    temperature: ClassVar[float] = 0.0
    batch_size: ClassVar[int] = 1024

    def __post_init__(self) -> None:
        if self.targets == "next" and self.logprob_temperature != 1.0:
            raise ValueError(
                "targets=next is the probability of the text itself, at temperature 1; found "
                f"logprob_temperature={self.logprob_temperature}"
            )

    @property
    def tokenizer_from(self) -> tuple[str, str | None] | None:
        """The checkpoint, and its revision, whose tokenizer gives the token ids of the answers."""
        return (self.tokenizer, self.tokenizer_revision) if self.tokenizer else None

    def decides(self, kind: str | None) -> dict[str, Any]:
        """The part of these settings that decides what is stored with targets of this kind, files aside."""
        left_out = {"path", "requests", "compression", "tokenizer"}
        if kind is None:
            left_out |= {"targets", "top_k", "logprob_temperature"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}
