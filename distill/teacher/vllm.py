"""`teacher=vllm`: vLLM's own server as a child process of the run, for large checkpoints on one or many GPUs."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.checkpoint import checkpoint_folder
from distill.option import STRICT
from distill.teacher._served import Served

HARMLESS = {
    "async-scheduling",
    "block-size",
    "cpu-offload-gb",
    "data-parallel-size",
    "disable-custom-all-reduce",
    "distributed-executor-backend",
    "enable-chunked-prefill",
    "enable-expert-parallel",
    "enable-prefix-caching",
    "enforce-eager",
    "hf-overrides",
    "kv-cache-dtype",
    "language-model-only",
    "load-format",
    "max-num-batched-tokens",
    "max-num-seqs",
    "no-enable-prefix-caching",
    "rope-scaling",
    "seed",
    "swap-space",
}
"""Arguments that neither run code named by a recipe from the internet, nor carry a secret, nor are set by distill."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Vllm(Served):
    """A checkpoint served by vLLM, which is started, waited for, asked and stopped. It needs an environment of its own.

    vLLM itself has not been run by our tests: they start a stand-in that speaks its published schema.
    """

    kind: Literal["vllm"]
    model: Annotated[str, AfterValidator(checkpoint_folder)]
    """A folder or a hub id. Its tokenizer is read here, so the hub's cache should be the one that vLLM reads."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    python: str = "python"
    """The interpreter of the environment that vLLM is installed in."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = 1
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    """Most tokens of prompt and answer together; None: what the checkpoint was trained for."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: str | None = None
    """One of vLLM's methods, such as fp8; None: as the checkpoint says."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each GPU's memory; None: vLLM's own default."""
    extra_arguments: list[str] = field(default_factory=list)
    """Further arguments of `python -m vllm.entrypoints.openai.api_server`, each a word."""
    start_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """How long it may take until it is healthy: large weights load for minutes."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 64
    """Requests in flight at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in self.extra_arguments:
            name = word.partition("=")[0].lstrip("-").replace("_", "-")
            if word.startswith("-") and not word.lstrip("-").isdigit() and name not in HARMLESS:
                raise ValueError(
                    f"extra_arguments: {word.partition('=')[0]} is not among those that a recipe may set: "
                    f"{', '.join(sorted(HARMLESS))}"
                )

    @property
    def tokenizer_from(self) -> tuple[str, str | None]:
        """The checkpoint, and its revision, whose tokenizer gives the token ids of the answers."""
        return (self.tokenizer, self.tokenizer_revision) if self.tokenizer else (self.model, self.revision)

    def _decides_nothing(self) -> tuple[str, ...]:
        # the weights of a folder count, not its place
        model = ("model",) if Path(self.model).is_dir() else ()
        parallel = ("tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization")
        return ("python", "tokenizer", "start_seconds", *parallel, *model)
