"""Answers that already exist, read from the layouts in which people publish them.

read_answers     a file's rows as answers (`given.py`), whichever layout they are in (`reading.py`)
    ours              {"prompt" or "messages", "response", and perhaps "tokens" and "logprobs"}
    axolotl           chat messages and "token_id:N" log-probabilities
    axolotl_prepared  token ids with target_token_ids and target_logprobs
    distillkit        token ids with compressed log-probabilities (`distillkit_codec.py`)
match            which answer is to which prompt
targets_layout   what of the log-probabilities can be kept, the same for all rows
to_row           an answer as a row of the store, token ids and targets aligned (`row.py`, `top_k.py`)
open_file        all of this as a teacher that can be asked (`engine.py`)
content_hash     what the files hold, as a fingerprint
"""

from distill.answer_file.content import content_hash
from distill.answer_file.engine import FileTeacher, open_file
from distill.answer_file.given import GivenAnswer
from distill.answer_file.layout import targets_layout, vocab_size_of
from distill.answer_file.matching import Matched, match
from distill.answer_file.reading import read_answers
from distill.answer_file.row import to_row

__all__ = [
    "FileTeacher",
    "GivenAnswer",
    "Matched",
    "content_hash",
    "match",
    "open_file",
    "read_answers",
    "targets_layout",
    "to_row",
    "vocab_size_of",
]
