"""`compression=lora`: the adapter that was trained, alone; a few MiB beside a base that users have already."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraAdapter:
    """The adapter of a student that was trained with `adapter=lora`, for PEFT on the base named in its config."""

    kind: Literal["lora"]
    max_kl_nats: Annotated[float, Field(gt=0)] = 5e-3
    """The package fails verification when its mean divergence from the student is larger: as for bf16, which most bases
    are stored in and therefore compute in."""

    runtime: ClassVar[str] = "transformers"
    heals: ClassVar[bool] = False

    def refuse(self, config: Mapping[str, Any]) -> str | None:
        """None: whether there is an adapter is not in the student's config; the recipe checks that."""
        return None

    def refuse_tokenizer(self, folder: Path) -> str | None:
        """None: the tokenizer is copied."""
        return None

    def make(self, student: Path, package: Path) -> None:
        """Copies `student/adapter` and the student's tokenizer into `package`.

        Raises:
            StageFailed: the student has no adapter, or one that is not safetensors.
        """
        import shutil

        from distill.compression._companions import copy_companions
        from distill.errors import StageFailed

        adapter = student / "adapter"
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (adapter / name).is_file():
                raise StageFailed(
                    f"compression=lora keeps the adapter alone, but {adapter / name} does not exist. "
                    f"Train the student with adapter=lora, or leave lora out of compression."
                )
        package.mkdir(parents=True, exist_ok=True)
        copy_companions(student, package)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / name, package / name)
