"""GGUF with 8-bit blocks (Q8_0): the student for llama.cpp, Ollama and LM Studio, on CPUs and small devices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.family.known import family_of
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
        from distill.compression._gguf import ARCHITECTURES, BLOCK, layout_of

        model_type = config.get("model_type")
        if model_type in ("opt", "gpt_neo"):
            return (
                f"llama.cpp has no architecture for {model_type}; choose a student of the Llama shape, "
                f"or compress with bf16 or a bnb option instead."
            )
        if model_type not in ARCHITECTURES:
            return f"GGUF export knows the model types {', '.join(ARCHITECTURES)}, and not {model_type}{_way(config)}."
        if config.get("quantization_config"):
            return "config.json has a quantization_config; needed: a student with plain weights."
        layout = layout_of(model_type)
        for key in layout.NEEDED:
            if not config.get(key):
                return f"config.json has no {key}."
        width = "n_embd" if "n_embd" in layout.NEEDED else "hidden_size"
        if config[width] % BLOCK:
            return f"{width} {config[width]} is not a multiple of {BLOCK}, the block of Q8_0."
        return layout.refuse(config)

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """One sentence why llama.cpp would split text differently from the tokenizer in `folder`, or None.

        Where the folder has a config.json too, the vocabulary must fit into its embeddings.
        """
        import json

        from distill.compression._gguf_tokenizer import NotExpressible, gguf_tokenizer

        file = folder / "config.json"
        config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        try:
            gguf_tokenizer(folder, config.get("vocab_size"))
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


def _way(config: Mapping[str, Any]) -> str:
    """What to do for a model that llama.cpp runs, and that we do not export."""
    family = family_of(config)
    if family is None or family.gguf is None:
        return ""
    return f"; llama.cpp runs it as {family.gguf}: make packages/bf16, then use llama.cpp's own convert_hf_to_gguf.py"
