"""The fused teacher–student divergence: how far a student's next-token distribution is from its teacher's.

divergence                 both logits are there already
linear_divergence          hidden states and heads; the logits exist one chunk of rows at a time
linear_sparse_divergence   the teacher is K token ids per row: top-k with a tail, or weighted samples
LowRankHead                a head with a LoRA update, where a student's head is expected

ops.py            the public functions
calls.py          from their arguments to a call that can be evaluated; refuses bad input before any work
arguments.py      what is refused, and with which words
library.py        the same functions as operators of torch.library, for torch.compile
settings.py       the options of one call
autograd.py       gradients: taken in forward for a sum, in backward for a loss per row
kept.py           a call's tensors in autograd's hands until backward
student.py        the tensors that may want a gradient; a head with a low-rank update
parallel.py       DTensors: heads that are gathered, and vocabularies that stay cut
eager.py          the loop over chunks of rows
projection.py     logits, and the gradients of what made them
products.py       the matrix products of both, by the library that is fastest at them
columns.py        a row's sums, where its vocabulary lies over several processes
dense.py          loss and gradient of rows of logits against a teacher's logits
sparse.py         the same against K token ids per row
softened.py       softmax of scaled, soft-capped, tempered logits, accurate to the last float32 digits
closed_forms.py   the six divergences and their derivatives

implementation.py eager or Triton
triton_dense.py, triton_sparse.py                  launch the kernels that stand in for dense.py and sparse.py
triton_dense_kernel.py, triton_sparse_kernel.py    one row each, which streams past
triton_resident.py, triton_resident_kernel.py      rows that a cluster of processors holds
triton_resident_table.py                           which rows one can hold
triton_launch.py                                   tiles, numbers and addresses of all launches
triton_dense_row.py                                what both ways of a dense row have in common
triton_forms.py, triton_softmax.py                 closed_forms.py and softened.py inside a kernel
"""

from distill_kernels.ops import divergence, linear_divergence, linear_sparse_divergence
from distill_kernels.student import LowRankHead

__all__ = ["LowRankHead", "divergence", "linear_divergence", "linear_sparse_divergence"]
