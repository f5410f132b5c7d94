"""What one process, or one of several, trains in these tests: `python training.py FOLDER CASES`.

CASES is a JSON list. Each case names a `folder` below FOLDER, a student, targets, options of Training, and the step at
which all processes are killed or one fails; the weights are read back from the checkpoint that the trainer leaves.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import distributed
from distill.errors import StageFailed
from distill.loss.forward_kl import ForwardKl
from distill.loss.text import Text
from distill.responses import TeacherResponses
from distill.stages import _trainer
from distill.stages._batches import plan_batches
from distill.stages._loading import Source, read_student
from distill.targets.sampled import SampledTargets
from distill.targets.sampling import systematic_draws
from distill.training import Training
from tests.distributed.processes import end_together
from tests.stages.small_training import K, V, random_rows, rows_of, stored, top_k_targets

DRAWS = 4


def sampled_targets(logprobs, _):
    uniform = torch.full((len(logprobs),), 0.4, dtype=torch.float64)
    drawn = systematic_draws(torch.tensor(logprobs).exp(), uniform, DRAWS)
    return SampledTargets.of_draws(drawn.numpy(), -(np.exp(logprobs) * logprobs).sum(axis=1))


def make_stores(folder: Path) -> None:
    """A store of 24 random rows of 8 to 19 tokens with each kind of targets."""
    folder.mkdir(parents=True)
    stored(folder / "top_k", random_rows(top_k_targets)[0], "top_k", K)
    stored(folder / "sampled", random_rows(sampled_targets)[0], "sampled", DRAWS)


def llama(tied: bool, seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=V, max_position_embeddings=64, tie_word_embeddings=tied, **shape)
    return LlamaForCausalLM(config).float()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    nothing = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=2, **nothing)).float()


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    nothing = {"dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # the smallest of the family projects its embeddings
    return OPTForCausalLM(
        OPTConfig(vocab_size=V, max_position_embeddings=64, word_embed_proj_dim=24, **shape, **nothing)
    ).float()


def bloom():
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=2)).float()


def phi():
    """Its head has a bias."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return PhiForCausalLM(PhiConfig(vocab_size=V, max_position_embeddings=64, **shape)).float()


def lora():
    from peft import LoraConfig, get_peft_model

    model = llama(tied=True)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))


def lora_on_head():
    from peft import LoraConfig, get_peft_model

    model = llama(tied=False)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "lm_head"]))


STUDENTS = {
    "tied": lambda: llama(True),
    "untied": lambda: llama(False),
    "gpt2": gpt2,
    "opt": opt,
    "bloom": bloom,
    "phi": phi,
    "lora": lora,
    "lora_on_head": lora_on_head,
}


def source_of(build: Callable[[], Any]) -> Source:
    """A model that is made and not read, as `student=scratch` is."""

    def outline() -> Any:
        with torch.device("meta"):
            return build()

    return Source(lambda device: build(), outline)


def train_case(folder: Path, case: dict) -> None:
    """Trains; the leader leaves `curve.json` (the losses) beside the trainer's folder."""
    world = distributed.world()
    store = TeacherResponses(folder / "stores" / case.get("store", "top_k"))
    options = {"batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 5, "bf16": False, "prompt_weight": 0.3}
    training = Training(**{**options, "logging_steps": 1, **case.get("options", {})})
    rows = rows_of(store)
    seed = world.rank if case.get("plans_alone") else 0
    plan = plan_batches([row.length for row in rows], batch_size=8, seed=seed, epochs=1, max_steps=case["steps"])
    loss = Text(kind="text") if case.get("loss") == "text" else ForwardKl(kind="forward_kl", hard_weight=0.2)
    if kill_at := case.get("kill_at"):
        _at(kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if case.get("fails_in") == world.rank and world.size > 1:
        _at(3, _fail)
    there = folder / case["folder"]
    there.mkdir(exist_ok=True)
    teacher = source_of(lambda: llama(True, seed=5).requires_grad_(False)) if case.get("live") else None
    done = _trainer.train(
        read_student(source_of(STUDENTS[case["student"]]), training.sharding, world),
        rows,
        loss,
        training,
        plan,
        seed=0,
        pad_id=0,
        folder=there / "trainer",
        label="test",
        live_teacher=teacher.read("cpu") if teacher and world.size == 1 else teacher,
        together=world,
    )
    if world.leads:
        (there / "curve.json").write_text(json.dumps([point["loss_nats"] for point in done.curve]))
        (there / "norms.json").write_text(json.dumps([point["grad_norm"] for point in done.curve]))
    world.wait()


def _fail() -> None:
    raise StageFailed("this process alone cannot go on")


def _at(step: int, happens: Callable[[], None]) -> None:
    """Lets it happen in the middle of a step, while the other processes wait for this one's gradients."""
    real = _trainer.DistillTrainer.compute_loss

    def stopped(self, *arguments, **more):
        if self.state.global_step + 1 == step:
            happens()
        return real(self, *arguments, **more)

    _trainer.DistillTrainer.compute_loss = stopped


def cases(world: distributed.World) -> None:
    for each in json.loads(sys.argv[2]):
        train_case(Path(sys.argv[1]), each)


if __name__ == "__main__":
    end_together(cases)
