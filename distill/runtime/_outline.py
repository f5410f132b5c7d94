"""outline_of(): the causal language model of a checkpoint without storage, for processes that hold parts of it only."""

from pathlib import Path
from typing import Any

from distill.runtime._causal_lm import language_config


def outline_of(folder: Path, **arguments: Any) -> Any:
    """What `read_causal_lm` gives, with every tensor on torch's meta device, in eval mode; config.json alone is read.

    Args:
        arguments: of `from_config`. Without a dtype it is what config.json names, which the weights need not have.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config, _ = language_config(folder)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **arguments).eval()
