"""The divergences of `loss=` against their definitions, written with probabilities in float64."""

import math

import pytest
import torch
from pydantic import ValidationError

from distill.loss._divergence import StudentOutput
from distill.recipe import options_of
from distill.responses import TeacherTargets

B, T, V, D = 2, 6, 29, 7
MIXED = {"jsd": {"beta": 0.3}, "skew_forward_kl": {"alpha": 0.2}, "skew_reverse_kl": {"alpha": 0.2}}
KINDS = sorted(set(options_of("loss")) - {"aligned", "text"})


def kl(a, b):
    return (a * (a / b).log()).sum(-1)


DEFINITIONS = {
    "forward_kl": lambda p, q: kl(p, q),
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    "skew_forward_kl": lambda p, q: kl(p, 0.2 * p + 0.8 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.8 * p + 0.2 * q),
    "tvd": lambda p, q: (p - q).abs().sum(-1) / 2,
}


def loss_of(kind, **options):
    return options_of("loss")[kind](kind=kind, **MIXED.get(kind, {}), **options)


@pytest.fixture
def student():
    generator = torch.Generator().manual_seed(0)
    labels_BT = torch.randint(0, V, (B, T), generator=generator)
    labels_BT[0, :2], labels_BT[1, 4:] = -100, -100
    return StudentOutput(
        hidden_BTD=torch.randn(B, T, D, generator=generator, dtype=torch.float64).requires_grad_(),
        head_VD=torch.randn(V, D, generator=generator, dtype=torch.float64),
        labels_BT=labels_BT,
        weights_BT=torch.rand(B, T, generator=generator, dtype=torch.float64),
    )


def test_every_divergence_has_its_definition_here():
    assert sorted(DEFINITIONS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "hard_weight"), [(1.0, 0.0), (2.5, 0.25)])
def test_the_loss_and_its_gradient_are_those_of_the_definition(kind, temperature, hard_weight, student):
    teacher_BTV = torch.randn(B, T, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    targets = TeacherTargets("dense", logprobs_BTV=teacher_BTV.log_softmax(-1))
    terms = loss_of(kind, temperature=temperature, hard_weight=hard_weight)(student, targets)
    (found,) = torch.autograd.grad(terms.total, student.hidden_BTD)

    logits_BTV = student.hidden_BTD @ student.head_VD.T
    p, q = ((z / temperature).exp() / (z / temperature).exp().sum(-1, keepdim=True) for z in (teacher_BTV, logits_BTV))
    counted_BT = student.labels_BT >= 0
    text_BT = -logits_BTV.log_softmax(-1).gather(-1, student.labels_BT.clamp(min=0)[..., None])[..., 0]
    each_BT = (1 - hard_weight) * temperature**2 * DEFINITIONS[kind](p, q) + hard_weight * text_BT
    expected = (each_BT * student.weights_BT)[counted_BT].sum()
    (right,) = torch.autograd.grad(expected, student.hidden_BTD)
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-6)  # totals and weights are float32
    torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
    assert float(terms.tokens) == pytest.approx(float(student.weights_BT[counted_BT].sum()))


@pytest.mark.parametrize(
    ("kind", "bound"), [("skew_forward_kl", -math.log(0.2)), ("skew_reverse_kl", -math.log(0.2)), ("tvd", 1.0)]
)
def test_a_student_that_is_wrong_costs_what_the_options_say_at_most(kind, bound, student):
    """Two certain models that disagree: forward and reverse KL would be hundreds of nats."""
    row = torch.zeros(B, T, V, dtype=torch.float64)
    teacher_BTV, logits_BTV = row.clone(), row.clone()
    teacher_BTV[..., 3], logits_BTV[..., 5] = 800.0, 800.0
    certain = StudentOutput(
        hidden_BTD=logits_BTV,
        head_VD=torch.eye(V, dtype=torch.float64),
        labels_BT=student.labels_BT.clamp(min=0),
        weights_BT=torch.ones(B, T, dtype=torch.float64),
    )
    terms = loss_of(kind)(certain, TeacherTargets("dense", logprobs_BTV=teacher_BTV.log_softmax(-1)))
    assert float(terms.total) / (B * T) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("kind", ["skew_forward_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_a_mixture_of_one_side_alone_is_refused(kind, alpha):
    with pytest.raises(ValidationError):
        options_of("loss")[kind](kind=kind, alpha=alpha)
