"""A small Llama, a store of random targets and a few steps of training on it."""

import numpy as np
import torch

from distill._store_writer import StoreWriter
from distill.encoding import template_hash, tokenizer_hash, train_tokenizer
from distill.loss.forward_kl import ForwardKl
from distill.responses import Header, Row, TeacherResponses
from distill.stages._batches import plan_batches
from distill.stages._rows import TokenRow
from distill.stages._trainer import train
from distill.targets.top_k import TopKTargets
from distill.training import Training

K, V = 6, 40
TOKENIZER = train_tokenizer(["a b c"], 300)


def small_llama(seed=0, **more):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=V, max_position_embeddings=64, tie_word_embeddings=True, **shape, **more)
    return LlamaForCausalLM(config).float()


def random_rows(targets_of, *, prompt_targets=True):
    """24 rows of random tokens, and a random teacher's log-probabilities `[T - 1, V]` turned into targets."""
    rng = np.random.default_rng(0)
    rows, dense = [], []
    for number in range(24):
        length, prompt = int(rng.integers(8, 20)), int(rng.integers(2, 6))
        logits = rng.normal(size=(length - 1, V)) * 2
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        ids = rng.integers(0, V, size=length).astype(np.int32)
        first = 0 if prompt_targets else prompt - 1
        targets = targets_of(logprobs[first:], ids[first + 1 :])
        rows.append(Row(number, "text", "teacher", ids, prompt, targets))
        dense.append(logprobs)
    return rows, dense


def stored(folder, rows, kind, kept=0):
    sizes = {"vocab_size": V, "kept": kept, "num_rows": len(rows)}
    spoken = {"tokenizer_hash": tokenizer_hash(TOKENIZER), "template_hash": template_hash(TOKENIZER)}
    header = Header(teacher="t", engine="e", dtype="float32", kind=kind, **sizes, **spoken)
    folder.mkdir(exist_ok=True)
    writer = StoreWriter(folder, header, [range(10), range(10, len(rows))])
    for numbers in writer.missing():
        writer.write([rows[n] for n in numbers])
    writer.finish()
    return TeacherResponses(folder)


def top_k_targets(logprobs, next_tokens):
    top = np.argsort(-logprobs, axis=1)[:, :K]
    kept = np.take_along_axis(logprobs, top, axis=1)
    tail = np.log(1 - np.exp(kept).sum(axis=1))
    nothing = np.zeros(len(top), np.float32)
    return TopKTargets(top.astype(np.int32), kept.astype(np.float32), tail.astype(np.float32), nothing, nothing)


def rows_of(store):
    return [TokenRow(n, *store.lengths(n), store) for n in range(len(store))]


def trained(store, folder, *, model=None, loss=None, steps=4, live=None, **options):
    model = model or small_llama()
    options = {
        "batch_size": 8,
        "learning_rate": 1e-2,
        "bf16": False,
        "prompt_weight": 0.3,
        "logging_steps": 1,
        **options,
    }
    training = Training(**options)
    rows = rows_of(store)
    plan = plan_batches([r.length for r in rows], batch_size=training.batch_size, seed=0, epochs=1, max_steps=steps)
    curve = train(
        model,
        rows,
        loss or ForwardKl(kind="forward_kl", hard_weight=0.2),
        training,
        plan,
        seed=0,
        pad_id=0,
        folder=folder,
        label="test",
        live_teacher=live,
    ).curve
    return model, [point["loss_nats"] for point in curve]
