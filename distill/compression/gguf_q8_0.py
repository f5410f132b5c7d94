"""GGUF with 8-bit blocks (Q8_0): the student for llama.cpp, Ollama and LM Studio, on CPUs and small devices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT

FILE_NAME = "model-q8_0.gguf"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GgufQ8_0:
    """One file for llama.cpp: 8.5 bits per weight, embeddings included, next to no loss."""

    kind: Literal["gguf_q8_0"]
    max_kl_nats: Annotated[float, Field(gt=0)] = 1e-3
    """The package counts as verified when its mean KL from the student stays below this, in nats per token."""

    runtime: ClassVar[str] = "llama.cpp"
    heals: ClassVar[bool] = False

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """One sentence why a student of this config.json cannot become a GGUF, or None; asked before training."""
        from distill.compression._gguf import ARCHITECTURES, BLOCK, head_size, rope_parameters

        model_type = config.get("model_type")
        if model_type in ("opt", "gpt_neo"):
            return (
                f"llama.cpp has no architecture for {model_type}; choose a student of the Llama shape, "
                f"or compress with bf16 or a bnb option instead."
            )
        if model_type in ("gpt2", "bloom"):
            return f"the GGUF export of {model_type} is not written yet; choose a Llama-shaped student or a bnb option."
        if model_type not in ARCHITECTURES:
            return f"GGUF export knows the model types {', '.join(ARCHITECTURES)}, and not {model_type}."
        if config.get("quantization_config"):
            return "config.json has a quantization_config; needed: a student with plain weights."
        needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        for key in (*needed, "max_position_embeddings", "rms_norm_eps"):
            if not config.get(key):
                return f"config.json has no {key}."
        if config["hidden_size"] % BLOCK:
            return f"hidden_size {config['hidden_size']} is not a multiple of {BLOCK}, the block of Q8_0."
        if head_size(config) % 2:
            return f"head_dim {head_size(config)} is odd, and rotary positions need pairs."
        if config.get("hidden_act", "silu") != "silu":
            return f"llama.cpp computes silu for {model_type}, and not hidden_act={config['hidden_act']}."
        return _refuse_positions(config, rope_parameters(config))

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """One sentence why llama.cpp would split text differently from the tokenizer in `folder`, or None."""
        from distill.compression._gguf_tokenizer import NotExpressible, gguf_tokenizer

        try:
            gguf_tokenizer(folder)
        except NotExpressible as reason:
            return str(reason)
        return None

    def make(self, student: Path, package: Path) -> None:
        """Write model-q8_0.gguf and a Modelfile for Ollama into `package` from the checkpoint folder `student`.

        Raises:
            StageFailed: the checkpoint or its tokenizer cannot be expressed; the message says which part.
        """
        import json

        from distill.compression._gguf import write_q8_0
        from distill.compression._gguf_tokenizer import NotExpressible
        from distill.compression._modelfile import modelfile
        from distill.errors import StageFailed

        reason = self.refuse(json.loads((student / "config.json").read_text("utf-8")))
        if reason is not None:
            raise StageFailed(f"{student} cannot become a GGUF: {reason}")
        package.mkdir(parents=True, exist_ok=True)
        try:
            tokenizer = write_q8_0(student, package / FILE_NAME)
        except NotExpressible as problem:
            raise StageFailed(f"{student} cannot become a GGUF: {problem}") from problem
        (package / "Modelfile").write_text(modelfile(FILE_NAME, tokenizer), "utf-8")


def _refuse_positions(config: Mapping[str, Any], rope: Mapping[str, Any]) -> str | None:
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        return f"the GGUF export of rope_type={rope['rope_type']} is not written yet; default, linear and llama3 are."
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor={rope['partial_rotary_factor']} is not written yet; needed: 1."
    window = config.get("sliding_window")
    if config["model_type"] != "mistral" and not config.get("use_sliding_window"):
        window = None
    if window and window < config["max_position_embeddings"]:
        return (
            f"llama.cpp has no sliding window here: sliding_window={window} is below "
            f"max_position_embeddings={config['max_position_embeddings']}; lower the latter to {window}."
        )
    return None
