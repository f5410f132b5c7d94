"""Megatron-LM GPT-2 checkpoints → Hugging Face GPT-2 folders: `python -m distill.megatron`.

layout.py    which files a checkpoint consists of
reading.py   one file → its tensors, arguments and version, without running what is in it
merging.py   the tensor-parallel parts of one weight → that weight as transformers has it
shape.py     arguments and tensors → config.json
writing.py   tensors → shards in a new folder
convert.py   all of it
"""

from distill.megatron.convert import convert

__all__ = ["convert"]
