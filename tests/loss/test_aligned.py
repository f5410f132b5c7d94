"""The aligned loss against its definition, written span by span in float64 from full logits."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from distill.loss._divergence import StudentOutput
from distill.loss.aligned import SURE_NATS, Aligned, binarised_kl
from distill.responses import TeacherTargets

B, T, D, V = 3, 11, 8, 37
SETTINGS = [(1.0, 0.0), (1.0, 0.5), (100.0, 0.3), (0.5, 0.0), (3.0, 1.0)]


def case(seed=0, dtype=torch.float64):
    """Prompts of one, three and two tokens; rows of 10, 8 and 6 tokens; a row's last token in no span."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    head = torch.randn(V, D, generator=generator, dtype=torch.float64) * 0.7
    labels = torch.randint(0, V, (B, T), generator=generator)
    weights = torch.rand(B, T, generator=generator, dtype=torch.float64) + 0.2
    span = torch.tensor(
        [
            [0, 0, 1, 2, 2, 2, 3, 4, 5, -1, -1],
            [-1, -1, 0, 1, 1, 2, 3, -1, -1, -1, -1],
            [-1, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1],
        ]
    )
    for row, (first, end) in enumerate([(0, 9), (1, 7), (1, 5)]):
        labels[row, :first], labels[row, end:] = -100, -100
    logprob = -torch.rand(B, 6, generator=generator, dtype=torch.float64) * 4
    logprob[1, 4:], logprob[2, 2:] = 0, 0
    student = StudentOutput(
        hidden_BTD=hidden.to(dtype).requires_grad_(),
        head_VD=head.to(dtype).requires_grad_(),
        labels_BT=labels,
        weights_BT=weights.to(dtype),
    )
    return student, TeacherTargets("spans", span_BT=span, span_logprob_BC=logprob.float())


def loss_of(temperature, hard_weight):
    return Aligned(kind="aligned", temperature=temperature, hard_weight=hard_weight)


def definition(student, targets, temperature, hard_weight):
    """One row and one span after another, probabilities instead of logarithms, in float64."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0.0
    logits = student.hidden_BTD.double() @ student.head_VD.double().T
    if student.bias_V is not None:
        logits = logits + student.bias_V.double()
    logq = torch.log_softmax(logits, dim=-1)
    shift = math.exp(-SURE_NATS)
    for b in range(len(logits)):
        spans = {}
        for t in range(logits.shape[1]):
            label = int(student.labels_BT[b, t])
            if label == -100:
                continue
            tokens += float(student.weights_BT[b, t])
            spans.setdefault(int(targets.span_BT[b, t]), []).append(
                (float(student.weights_BT[b, t]), logq[b, t, label])
            )
        for span, parts in spans.items():
            text = sum(weight * -value for weight, value in parts)
            if span == -1:
                total = total + text
                continue
            q = torch.stack([value for _, value in parts]).exp().prod()
            p = targets.span_logprob_BC[b, span].double().exp()
            a, b_ = (p * shift) ** (1 / temperature), (q * shift) ** (1 / temperature)
            kl = a * (a / b_).log() + (1 - a) * ((1 - a) / (1 - b_)).log()
            weight = sum(weight for weight, _ in parts)
            total = total + (1 - hard_weight) * temperature * weight * kl + hard_weight * text
    return total, tokens


@pytest.mark.parametrize(("temperature", "hard_weight"), SETTINGS)
def test_the_definition_and_its_gradient(temperature, hard_weight):
    student, targets = case()
    terms = loss_of(temperature, hard_weight)(student, targets)
    expected, tokens = definition(student, targets, temperature, hard_weight)
    torch.testing.assert_close(terms.total, expected, rtol=1e-9, atol=1e-9)
    assert terms.tokens.item() == pytest.approx(tokens, rel=1e-12)

    inputs = (student.hidden_BTD, student.head_VD)
    ours = torch.autograd.grad(3 * terms.total, inputs)
    theirs = torch.autograd.grad(3 * expected, inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("temperature", "hard_weight"), SETTINGS)
def test_the_gradient_by_finite_differences(temperature, hard_weight):
    student, targets = case(seed=1)

    def total(hidden, head):
        # the loss's own value: a slope that is given in closed form could otherwise be anything
        return loss_of(temperature, hard_weight)(replace(student, hidden_BTD=hidden, head_VD=head), targets).total

    assert torch.autograd.gradcheck(total, (student.hidden_BTD, student.head_VD), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("temperature", "hard_weight"), SETTINGS)
def test_float32_is_as_good_as_float32_can_be(temperature, hard_weight):
    student, targets = case(dtype=torch.float32)
    terms = loss_of(temperature, hard_weight)(student, targets)
    assert terms.total.dtype == torch.float32
    expected, _ = definition(student, targets, temperature, hard_weight)
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_bias_scale_and_cap_reach_the_head():
    student, targets = case()
    bias = torch.linspace(-1, 1, V, dtype=torch.float64)
    loss = loss_of(1.0, 0.2)
    expected, _ = definition(replace(student, bias_V=bias), targets, 1.0, 0.2)
    torch.testing.assert_close(loss(replace(student, bias_V=bias), targets).total, expected)
    scaled = replace(student, hidden_BTD=student.hidden_BTD * 0.5)
    expected, _ = definition(scaled, targets, 1.0, 0.2)
    torch.testing.assert_close(loss(replace(student, scale=0.5), targets).total, expected)
    assert loss(replace(student, softcap=2.0), targets).total != loss(student, targets).total


def test_padding_changes_nothing():
    student, targets = case()
    loss = loss_of(2.0, 0.4)
    whole = loss(student, targets).total
    padded = StudentOutput(
        hidden_BTD=torch.cat([student.hidden_BTD, torch.full((B, 5, D), 7.0, dtype=torch.float64)], dim=1),
        head_VD=student.head_VD,
        labels_BT=torch.nn.functional.pad(student.labels_BT, (0, 5), value=-100),
        weights_BT=torch.nn.functional.pad(student.weights_BT, (0, 5)),
    )
    wider = replace(
        targets,
        span_BT=torch.nn.functional.pad(targets.span_BT, (0, 5), value=-1),
        span_logprob_BC=torch.nn.functional.pad(targets.span_logprob_BC, (0, 3)),
    )
    torch.testing.assert_close(loss(padded, wider).total, whole)


def test_micro_batches_add_up():
    student, targets = case()
    loss = loss_of(2.0, 0.4)
    whole = loss(student, targets)
    (gradient,) = torch.autograd.grad(whole.total, student.head_VD)
    parts = []
    for b in range(B):
        part = replace(
            student,
            hidden_BTD=student.hidden_BTD[b : b + 1],
            labels_BT=student.labels_BT[b : b + 1],
            weights_BT=student.weights_BT[b : b + 1],
        )
        count = int(targets.span_BT[b].max()) + 1
        said = replace(
            targets, span_BT=targets.span_BT[b : b + 1], span_logprob_BC=targets.span_logprob_BC[b : b + 1, :count]
        )
        parts.append(loss(part, said))
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    torch.testing.assert_close(sum(part.tokens for part in parts), whole.tokens)
    (added,) = torch.autograd.grad(sum(part.total for part in parts), student.head_VD)
    torch.testing.assert_close(added, gradient)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 100.0])
def test_nothing_to_learn_from_oneself(temperature):
    """The same model behind the same tokenizer: one span a token, loss and gradient zero to the last bit."""
    student, targets = case(dtype=torch.float32)
    logits = (student.hidden_BTD @ student.head_VD.T).detach()
    span = torch.where(student.labels_BT != -100, torch.arange(T).expand(B, T), -1)
    own = -torch.nn.functional.cross_entropy(logits.flatten(0, 1), student.labels_BT.flatten(), reduction="none")
    targets = TeacherTargets("spans", span_BT=span, span_logprob_BC=own.view(B, T))
    total = loss_of(temperature, 0.0)(student, targets).total
    gradients = torch.autograd.grad(total, (student.hidden_BTD, student.head_VD))
    assert abs(total.item()) < 1e-9
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)

    value, slope = binarised_kl(own, own.clone(), temperature)
    assert (value == 0).all() and (slope == 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0, 100.0])
def test_zero_only_where_the_likelihoods_agree(temperature):
    teacher = torch.tensor([-0.01, -0.5, -2.0, -8.0, -12.0], dtype=torch.float64)
    for step in (-1e-3, 1e-3, -0.5):
        value, slope = binarised_kl(teacher, (teacher + step).clamp(max=-1e-9), temperature)
        assert (value > 0).all()
        assert (slope.sign() == math.copysign(1, step)).all()


def test_a_likelihood_that_rounding_lifts_above_one_counts_as_one():
    above, one = torch.tensor([3e-5]), torch.tensor([0.0])
    for teacher, student in ((above, one), (one, above), (above, above)):
        assert [float(part) for part in binarised_kl(teacher, student, 1.0)] == [0.0, 0.0]


def test_a_high_temperature_compares_surprisals():
    """The limit is u ln(u / v) - u + v for u = -ln p and v = -ln q, nats of the two sides."""
    u, v = torch.tensor([0.2, 1.0, 5.0, 3.0]).double(), torch.tensor([0.4, 0.3, 5.5, 3.0]).double()
    value, slope = binarised_kl(-u, -v, 1e5)
    torch.testing.assert_close(value, u * (u / v).log() - u + v, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(slope, u / v - 1, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 10.0, 1000.0])
def test_the_gradient_by_the_logits_is_bounded(temperature):
    """float32, sure and unsure on both sides: never beyond max(1, t), never beyond 1 for the less sure student."""
    logits = torch.linspace(-60, 60, 241)
    hidden = torch.stack([logits, torch.zeros_like(logits)], dim=-1).view(1, -1, 2).requires_grad_()
    student = StudentOutput(
        hidden_BTD=hidden,
        head_VD=torch.eye(2),
        labels_BT=torch.zeros(1, 241, dtype=torch.int64),
        weights_BT=torch.ones(1, 241),
    )
    for teacher in (-math.inf, -50.0, -3.0, -0.3, -1e-3, -1e-8, 0.0):
        targets = TeacherTargets(
            "spans", span_BT=torch.arange(241).view(1, -1), span_logprob_BC=torch.full((1, 241), teacher)
        )
        total = loss_of(temperature, 0.0)(student, targets).total
        (gradient,) = torch.autograd.grad(total, hidden)
        assert torch.isfinite(total) and torch.isfinite(gradient).all()
        assert gradient.abs().max() <= max(1.0, temperature) * 1.05
        unsure = torch.nn.functional.logsigmoid(logits) < teacher
        assert unsure.sum() == 0 or gradient[0, unsure].abs().max() <= 1.0001


def test_no_counted_token_gives_zero_that_can_be_differentiated():
    student, targets = case()
    nothing = replace(student, labels_BT=torch.full((B, T), -100))
    terms = loss_of(1.0, 0.5)(nothing, targets)
    assert terms.total.item() == 0 and terms.tokens.item() == 0
    (gradient,) = torch.autograd.grad(terms.total, student.hidden_BTD)
    assert (gradient == 0).all()


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": 2000.0}, {"hard_weight": 1.1}, {"alpha": 1.0}])
def test_ranges(wrong):
    with pytest.raises(ValidationError):
        Aligned(kind="aligned", **wrong)


def test_a_model_has_nothing_to_learn_from_its_own_store():
    """From rows of a store to the loss, prompts of different lengths: any shift by one position would show."""
    import numpy as np

    from distill.encoding import encode_prompt, encode_response, train_tokenizer
    from distill.family.head import hidden_states, output_head
    from distill.responses import Row
    from distill.stages._aligned_rows import Aligner, batch_spans
    from distill.student.scratch import Scratch
    from distill.targets.next_token import NextTokenTargets

    answers = ["the cat sat 🤗", " on the mat\n", "世界"]
    tokenizer = train_tokenizer(answers, 320)
    model = Scratch(kind="scratch", hidden_size=32, num_hidden_layers=1, num_attention_heads=2).build(tokenizer, 0)
    aligner, rows = Aligner(tokenizer, tokenizer), []
    for number, answer in enumerate(answers):
        prompt = encode_prompt(tokenizer, "?" * (number + 1))
        ids = [*prompt, *encode_response(tokenizer, answer)]
        logits = model(torch.tensor([ids])).logits[0, :-1]
        said = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]].detach().numpy()
        stored = Row(
            number,
            answer,
            "data",
            np.array(ids, dtype=np.int32),
            len(prompt),
            NextTokenTargets(said[len(prompt) - 1 :]),
        )
        rows.append(aligner.align(stored, prompt))

    longest = max(len(row.input_ids_T) for row in rows) + 3
    input_ids, labels = torch.zeros(3, longest, dtype=torch.int64), torch.full((3, longest), -100)
    for b, row in enumerate(rows):
        length = len(row.input_ids_T)
        input_ids[b, :length] = torch.from_numpy(row.input_ids_T)
        labels[b, row.prompt_length - 1 : length - 1] = input_ids[b, row.prompt_length : length]
    spans = {name: torch.from_numpy(array) for name, array in batch_spans(rows, longest).items()}
    student = StudentOutput(
        hidden_BTD=hidden_states(model, input_ids, (torch.arange(longest) < longest).expand(3, -1).long()),
        head_VD=output_head(model).weight_VD,
        labels_BT=labels,
        weights_BT=torch.ones(3, longest),
    )
    targets = TeacherTargets("spans", span_BT=spans["span"], span_logprob_BC=spans["span_logprob"])
    terms = loss_of(1.0, 0.0)(student, targets)
    assert terms.tokens.item() == sum(len(row.span_logprob_C) for row in rows)  # one span a token
    assert abs(terms.total.item()) < 1e-6
    terms.total.backward()
    assert max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None) < 1e-5
    shifted = replace(targets, span_BT=targets.span_BT.roll(1, dims=1))
    assert loss_of(1.0, 0.0)(student, shifted).total.item() > 1e-6
