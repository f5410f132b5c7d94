"""What one device computes is what the other computes: asking, answering and training, by the pipeline's own stages.

A process does all of it on a device (`work.py`); the tests compare. The reference is always the CPU's, and of a
training always another computation than the one that is judged: the same batches in micro-batches of two rows.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distill.responses import TeacherResponses
from tests.gpu import work

pytestmark = pytest.mark.slow
FLOAT32 = 1e-4
"""Relative: sums in another order, over the steps of a training."""
MIB = 1 << 20


def rows_of(done, kind):
    """The targets of each row that were asked for on a device."""
    store = TeacherResponses(Path(done[f"asked {kind}"]["store"]))
    return [store[number] for number in range(len(store))]


def pairs(done, on_cpu, kind):
    for mine, theirs in zip(rows_of(done, kind), rows_of(on_cpu, kind), strict=True):
        assert np.array_equal(mine.input_ids_T, theirs.input_ids_T) and len(mine.targets) == len(theirs.targets) > 0
        yield mine.targets, theirs.targets


def test_it_ran_on_the_device_in_whole_float32(done, device):
    """TF32, torch's default for convolutions alone, would round every product to ten bits."""
    assert (done.results["device"], done.results["tf32"]) == (device, False)


@pytest.mark.parametrize("name", [*work.CURVES, *work.SAME_AS_DENSE])
def test_a_training_has_the_cpus_loss_curve(name, done, device, on_cpu):
    found = done[name]
    same_as = "dense" if name in work.SAME_AS_DENSE else name
    reference = on_cpu[f"{same_as} split"]["curve"]
    assert found["devices"] == [device]
    assert len(reference) == {"dense": work.STEPS, "on_policy": 2}.get(same_as, work.FEW_STEPS)
    assert found["curve"] == pytest.approx(reference, rel=FLOAT32)
    if name != "on_policy":  # of which every step asks other questions
        assert found["curve"][-1] < 0.995 * found["curve"][0]


def test_bfloat16_is_near_float32_and_not_the_same(done, device, on_cpu):
    found, reference = done["bf16"]["curve"], on_cpu["dense split"]["curve"]
    assert done["bf16"]["devices"] == [device]
    assert found == pytest.approx(reference, rel=0.02)
    # the reference's own rounding is a hundred times smaller
    assert max(abs(a / b - 1) for a, b in zip(found, reference, strict=True)) > 5e-6


def test_an_adapter_on_four_bits_trains_as_on_the_cpu(done, device, on_cpu):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    found = done["qlora"]
    assert found["devices"] == [device]
    # the two kernels may round a weight that lies between two of the sixteen levels to either
    assert found["curve"] == pytest.approx(on_cpu["qlora"]["curve"], rel=0.01)
    assert found["curve"][-1] < 0.995 * found["curve"][0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", work.TRITON)
def test_the_triton_kernels_give_the_curve_of_eager(name, on_cuda):
    found = on_cuda[f"{name} triton"]
    assert found["curve"] == pytest.approx(on_cuda[name]["curve"], rel=FLOAT32)
    needed = "triton_dense" if name in {"dense", "live"} else "triton_sparse"
    assert f"distill_kernels.{needed}" in found["triton"]


def test_a_training_that_was_interrupted_ends_where_it_would_have(done):
    """To the last bit, dropout included, with kernels that add up in one order."""
    found = done["twice"]
    assert found["from_step"] == 3
    whole, resumed = (load_file(found[name]) for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() and all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert found["whole"] != found["resumed"]


def test_the_same_training_gives_the_same_weights_again(done):
    """With the kernels that torch chooses by itself."""
    first, second = (load_file(done["twice"][name]) for name in ("first", "second"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_same_tokens_are_kept_with_the_same_log_probabilities(done, on_cpu):
    positions = other = 0
    for both in pairs(done, on_cpu, "top_k"):
        for s in range(len(both[0])):
            a, b = (dict(zip(t.token_ids_SK[s].tolist(), t.logprobs_SK[s].tolist(), strict=True)) for t in both)
            positions, other = positions + 1, other + (a.keys() != b.keys())
            # a code c stands for range * (c / 255)^2: neighbours are apart by range * (2c + 1) / 255^2 at most
            step = (max(b.values()) - min(b.values())) * (2 * 254 + 1) / 255**2
            assert all(abs(a[token] - b[token]) <= 1.01 * step + 1e-3 for token in a.keys() & b.keys())
    # two tokens at the edge of the kept ones may be as likely as float32 can tell
    assert positions > 500 and other <= 0.002 * positions


def test_the_same_seed_draws_the_same_tokens(done, on_cpu):
    positions = other = 0
    for mine, theirs in pairs(done, on_cpu, "sampled"):
        for s in range(len(mine)):
            a, b = (t.part(s, s + 1) for t in (mine, theirs))
            same = np.array_equal(a.token_ids_E, b.token_ids_E) and np.array_equal(a.counts_E, b.counts_E)
            positions, other = positions + 1, other + (not same)
            assert a.counts_E.sum() == b.counts_E.sum() == 50
        np.testing.assert_allclose(mine.entropy_S, theirs.entropy_S, rtol=2e-3, atol=1e-3)
    # a point may fall on the edge between two tokens, where float32's last bit decides
    assert positions > 500 and other <= 0.005 * positions


def test_the_other_targets_are_the_cpus(done, on_cpu):
    for mine, theirs in pairs(done, on_cpu, "dense"):
        likely = theirs.logprobs_SV > -10
        np.testing.assert_allclose(mine.logprobs_SV[likely], theirs.logprobs_SV[likely], rtol=2**-10, atol=1e-4)
    for mine, theirs in pairs(done, on_cpu, "next"):
        np.testing.assert_allclose(mine.logprobs_S, theirs.logprobs_S, rtol=FLOAT32, atol=1e-4)
    for mine, theirs in pairs(done, on_cpu, "frozen_head"):
        np.testing.assert_allclose(mine.vectors_SD, theirs.vectors_SD, rtol=2**-7, atol=1e-4)
        np.testing.assert_allclose(mine.entropy_S, theirs.entropy_S, rtol=FLOAT32, atol=1e-4)


def test_greedy_answers_are_the_cpus(done, device, on_cpu):
    found, reference = done["greedy"], on_cpu["greedy"]
    assert (found["device"], reference["device"]) == (device, "cpu")
    assert found["answers"] == reference["answers"] and all(found["answers"])
    np.testing.assert_allclose(found["logprobs"], reference["logprobs"], rtol=FLOAT32, atol=1e-4)
    assert found["speed"]["decode_tokens_per_second"] > 0


def test_answers_are_those_of_plain_transformers(on_cpu):
    """The reference's own reference: `generate` of transformers, a prompt at a time, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    from distill.encoding import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(work.TEACHER)
    model = AutoModelForCausalLM.from_pretrained(work.TEACHER, dtype=torch.float32)
    for problem, answer in list(zip(work.problems(), on_cpu["greedy"]["answers"], strict=True))[:4]:
        prompt = torch.tensor([encode_prompt(tokenizer, problem.prompt)])
        said = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert [token for token in said if token != tokenizer.eos_token_id] == answer


@pytest.mark.gpu
def test_a_training_takes_gpu_memory_and_gives_it_back(on_cuda):
    found = on_cuda["large"]
    weights = sum(array.size for array in load_file(found["weights"]).values())
    # weights, gradients and Adam's two averages, four bytes each; activations are small beside them
    assert weights > 10e6 and 16 * weights < found["gpu_peak_bytes"] < 16 * weights + 4096 * MIB
    # cuBLAS keeps a workspace
    assert found["allocated"] < 100 * MIB and found["reserved"] < 200 * MIB


def test_peak_memory_of_a_gpu_is_recorded_where_one_was_used(done, device):
    peak = done["dense"]["gpu_peak_bytes"]
    assert peak is None if device == "cpu" else peak > 1e5
