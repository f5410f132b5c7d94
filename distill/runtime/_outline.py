"""outline_of(): the causal language model of a checkpoint without storage, for processes that hold parts of it only."""

from pathlib import Path
from typing import Any

from distill.family.text_part import reads_more_than_text, text_part


def outline_of(folder: Path, **arguments: Any) -> Any:
    """What `read_causal_lm` gives, with every tensor on torch's meta device, in eval mode; config.json alone is read.

    Args:
        arguments: of `from_config`. Without a dtype it is what config.json names, which the weights need not have.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    whole = config.to_dict()
    if reads_more_than_text(whole):
        values = text_part(whole)
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **arguments).eval()
