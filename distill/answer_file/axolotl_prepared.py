"""What Axolotl writes once it has tokenised such a data set: `last_run_prepared`, or a `…-prepared` set on the hub.

`input_ids`, `labels` (-100 where nothing is learnt), `target_token_ids`, `target_logprobs` and `target_mask`, a row of
each for every token. Row j is of token j + 1, and was of token j up to Axolotl 0.18.0. Entries with mask 0 pad. The
log-probabilities were taken to `kd_temperature` and renormalised over the k: how much the others had is lost.

Source: axolotl-ai-cloud/axolotl, src/axolotl/integrations/kd/README.md ("Target alignment",
`kd_prepared_targets_alignment`) and chat_template.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distill.answer_file.given import GivenAnswer, field_of, list_of, padded, token_ids
from distill.errors import DataError
from distill.teacher.file import File

PADDED = -1e3
"""Below it a value is padding: -inf in old sets, a large negative number in newer ones."""


def reader(teacher: File) -> Callable[[Mapping[str, Any], str], GivenAnswer]:
    """Turns a row of this layout into an answer."""
    first = 1 if teacher.layout == "axolotl_prepared_legacy" else 0

    def read(row: Mapping[str, Any], where: str) -> GivenAnswer:
        input_ids = token_ids(field_of(row, "input_ids", where), "input_ids", where)
        ids, logprobs = list_of(row, "target_token_ids", where), list_of(row, "target_logprobs", where)
        if not len(ids) == len(logprobs) == len(input_ids):
            raise DataError(
                f"{where}: {len(input_ids)} tokens, but {len(ids)} rows of target_token_ids and {len(logprobs)} of "
                "target_logprobs; there must be one of each for each token."
            )
        last = first + len(input_ids) - 1
        ids_SK, logprobs_SK = padded(ids[first:last], logprobs[first:last], where)
        # not by the mask, which also hides the prompt's positions, whose targets are as good as the others
        missing_SK = logprobs_SK < PADDED
        return GivenAnswer(
            where,
            token_ids_T=input_ids,
            whole=True,
            top_ids_SK=np.where(missing_SK, -1, ids_SK),
            top_logprobs_SK=np.where(missing_SK, -np.inf, logprobs_SK).astype(np.float32),
            values="renormalised",
        )

    return read
