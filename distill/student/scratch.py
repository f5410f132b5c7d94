"""`student=scratch`: a Llama of a given size with random weights."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Scratch:
    """A new Llama. It takes the teacher's tokenizer; without a teacher, one is trained on the data."""

    kind: Literal["scratch"]
    hidden_size: Annotated[int, Field(ge=16, multiple_of=16)] = 128
    """Multiples of 64 can be made nf4 on a CPU, multiples of 32 GGUF."""
    num_hidden_layers: Annotated[int, Field(ge=1)] = 3
    num_attention_heads: Annotated[int, Field(ge=1)] = 2
    num_key_value_heads: Annotated[int, Field(ge=1)] | None = None
    """None: as many as attention heads."""
    intermediate_size: Annotated[int, Field(ge=16)] | None = None
    """None: twice the hidden size."""
    max_position_embeddings: Annotated[int, Field(ge=16)] = 512
    """The longest sequence, in tokens."""
    tie_word_embeddings: bool = True
    vocab_size: Annotated[int, Field(ge=300)] = 1024
    """Size of the tokenizer that is trained when there is no teacher to share one."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not divisible by {self.num_attention_heads} heads")
        if self.hidden_size // self.num_attention_heads % 2:
            raise ValueError("hidden_size / num_attention_heads must be even for rotary positions")
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide {self.num_attention_heads} heads"
            )

    def config(self, vocab_size: int) -> dict[str, Any]:
        """The student's config.json as far as its shape goes, known before anything is trained."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size or 2 * self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rms_norm_eps": 1e-6,
        }

    def build(self, tokenizer: "PreTrainedTokenizerBase", seed: int) -> "PreTrainedModel":
        """The model with float32 weights drawn from `seed`, on the CPU."""
        import torch

        torch.manual_seed(seed)
        return self._llama(tokenizer)

    def outline(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
        """What `build` gives, with every tensor on torch's meta device."""
        import torch

        with torch.device("meta"):
            return self._llama(tokenizer)

    def _llama(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = self.config(len(tokenizer))
        del shape["model_type"], shape["architectures"]
        special = cast(Any, tokenizer)  # its class allows lists and strings for every special id
        config = LlamaConfig(
            **shape,
            bos_token_id=special.bos_token_id,
            eos_token_id=special.eos_token_id,
            pad_token_id=special.pad_token_id,
        )
        return LlamaForCausalLM(config).float()
