"""The divergences inside a kernel, element by element.

The two KLs take log-ratios, which are unbounded. The others compare with a mixture m, so their log-ratios are bounded
and are taken from probabilities alone: what underflowed to 0 has lost nothing. m is written as one distribution plus a
part of the difference, so that equal distributions have a ratio of 1 whatever the weight.

`weight` is beta for jsd and alpha for the skewed divergences.
"""

import triton
import triton.language as tl

from distill_kernels.triton_softmax import LN2, log2, reciprocal

# Far below what a float32 loss can show, and above 2**-126: less than that is 0 to `reciprocal` and to `log2`, and a
# float64 to Triton, which then hands `log2` its lower half.
_SMALLEST = tl.constexpr(1e-37)


@triton.jit
def bits_to_mixture(part, inverse):
    """log2(part / m); finite where part is 0, for it is multiplied by part."""
    return log2(tl.maximum(part * inverse, _SMALLEST))


@triton.jit
def inverse_mixture(q, p, weight, KIND: tl.constexpr):
    """1 / m."""
    mixture = p + weight * (q - p) if KIND == "skew_reverse_kl" else q + weight * (p - q)
    return reciprocal(tl.maximum(mixture, _SMALLEST))


@triton.jit
def mixture_terms(q, p, weight, KIND: tl.constexpr):
    """Terms of the two sums over the vocabulary that loss and gradient are made of; logarithms in bits."""
    if KIND == "tvd":
        difference = q - p
        signed = tl.where(difference > 0, q, tl.where(difference < 0, -q, 0.0))
        return tl.abs(difference), signed
    else:
        inverse = inverse_mixture(q, p, weight, KIND)
        if KIND == "jsd":  # KL(p || m) and KL(q || m)
            return p * bits_to_mixture(p, inverse), q * bits_to_mixture(q, inverse)
        elif KIND == "skew_forward_kl":  # KL(p || m) and sum p w
            return p * bits_to_mixture(p, inverse), p * ((1.0 - weight) * q * inverse)
        else:  # KL(q || m) and sum q w
            return q * bits_to_mixture(q, inverse), q * (weight * q * inverse)


@triton.jit
def mixture_sums(first, second, KIND: tl.constexpr):
    """The sums of `mixture_terms` in nats."""
    if KIND == "jsd":
        return first * LN2, second * LN2
    elif KIND == "tvd":
        return first, second
    else:
        return first * LN2, second


@triton.jit
def mixture_loss(first, second, weight, KIND: tl.constexpr):
    """The divergence in nats from `mixture_sums`."""
    if KIND == "tvd":
        return 0.5 * first
    elif KIND == "jsd":
        return weight * first + (1.0 - weight) * second
    else:
        return first


@triton.jit
def mixture_gradient(q, p, first, second, weight, KIND: tl.constexpr):
    """The derivative by the input of the student's softmax."""
    if KIND == "tvd":
        difference = q - p
        sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        return 0.5 * q * (sign - second)
    else:
        inverse = inverse_mixture(q, p, weight, KIND)
        if KIND == "jsd":
            return (1.0 - weight) * q * (bits_to_mixture(q, inverse) * LN2 - second)
        elif KIND == "skew_forward_kl":
            return q * second - p * ((1.0 - weight) * q * inverse)
        else:
            return q * (bits_to_mixture(q, inverse) * LN2 - weight * q * inverse + (second - first))


@triton.jit
def kl_terms(student_log, student_exp, teacher_log, teacher_exp, KIND: tl.constexpr):
    """Terms of a KL's cross sum in bits, from logits that are shifted, in bits, and their exponentials."""
    if KIND == "forward_kl":
        return tl.where(teacher_exp > 0, teacher_exp * (teacher_log - student_log), 0.0)
    else:
        return tl.where(student_exp > 0, student_exp * (student_log - teacher_log), 0.0)


@triton.jit
def kl_gradient(q, p, log_q_over_p, loss, KIND: tl.constexpr):
    """The derivative of forward or reverse KL by the input of the student's softmax."""
    if KIND == "forward_kl":
        return q - p
    else:
        return tl.where(q == 0.0, 0.0, q * (log_q_over_p - loss))
