"""A tiny random checkpoint in a folder, as transformers saves one, with its tokenizer beside it."""

import hashlib
from pathlib import Path
from typing import Any, cast

from distill.compression._companions import copy_companions
from distill.errors import RecipeError
from distill.family.tiny import NUM_LAYERS, tiny_config
from distill.rehearsal._sources import Source
from distill.rehearsal._tokenizers import Tokenized


def make_checkpoint(source: Source, tokenized: Tokenized, folder: Path, num_layers: int = NUM_LAYERS) -> dict[str, Any]:
    """Fills `folder`: the source's architecture at a width of 64, float32 weights drawn from its name.

    Returns its config.json.

    Raises:
        RecipeError: transformers has no such architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from distill.runtime.bnb import quiet

    config = tiny_config(source.config, tokenized.vocab_size, num_layers, source.key)
    tokenizer = cast(Any, tokenized.tokenizer)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    values = {name: value for name, value in config.items() if name != "model_type"}
    # by name: teacher and student of one architecture are two models
    torch.manual_seed(int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:4], "big"))
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **{**values, **special}))
    except KeyError as error:  # a value that names a function of transformers, and none has this name
        raise RecipeError(
            f"{source.key}={source.model}: transformers builds no {config['model_type']} from its config.json: it "
            f"knows no {error.args[0]!r}. Mend the key that says so."
        ) from None
    model = model.to(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if source.is_folder:
        # as they are: what transformers writes after a load may tokenise differently
        copy_companions(Path(source.model), folder)
    return config
