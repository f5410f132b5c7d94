"""The plan's peak memory beside that of real runs on this machine's CPU. Prints the table of docs/scale.md.

    python benchmarks/plan_memory.py [NAME ...]

Every case is `python -m distill` in a fresh process, with random weights of real shapes; measured is the peak of
its resident memory, as record.jsonl has it. All predictions are made before anything is measured. Takes 3 GB of disk,
5 GB of memory, and about ten minutes on two quiet cores.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from distill import _hydra
from distill.checkpoint import BUNDLED
from distill.planning import plan
from distill.recipe import parse

TOKENIZER = BUNDLED / "quickstart_teacher"
LLAMA = {"max_position_embeddings": 1024, "tie_word_embeddings": True}
WIDE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
SHAPES = {
    "llama29m": (
        "llama",
        {**LLAMA, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
        | {"vocab_size": 8192},
    ),
    "llama100m": ("llama", {**LLAMA, **WIDE, "num_key_value_heads": 4, "vocab_size": 32_000}),
    "llama4m": (
        "llama",
        {**LLAMA, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"vocab_size": 32_000},
    ),
    "gpt2": ("gpt2", {}),
}
TEXT = "teacher=none loss=text training.bf16=false until=train"
CASES = {
    "llama 29M, float32, 32 x 160": f"student.model=llama29m {TEXT} training.batch_size=32",
    "the same with gradient checkpointing": (
        f"student.model=llama29m {TEXT} training.batch_size=32 training.gradient_checkpointing=true"
    ),
    "the same in 4 micro-batches": (
        f"student.model=llama29m {TEXT} training.batch_size=32 training.gradient_accumulation_steps=4"
    ),
    "GPT-2 124M, float32, 8 x 160": f"student.model=gpt2 {TEXT} training.batch_size=8",
    "llama 100M, bfloat16, 16 x 160, sampled store of 32,000": (
        "student.model=llama100m teacher.model=llama4m teacher.responses=data training.bf16=true "
        "training.batch_size=16 until=train"
    ),
    "llama 100M, QLoRA on nf4, bfloat16, 16 x 160": (
        "student.model=llama100m teacher=none loss=text training.bf16=true adapter=qlora training.batch_size=16 "
        "until=train"
    ),
    "GPT-2 124M writes 64 answers at once": (
        "student.model=llama29m teacher.model=gpt2 teacher.keep_answers=false teacher.max_new_tokens=64 loss=text "
        "teacher.batch_size=64 until=teach"
    ),
    "llama 100M is read for sampled targets": (
        "student.model=llama4m teacher.model=llama100m teacher.responses=data teacher.targets=sampled "
        "teacher.batch_size=32 until=teach"
    ),
}
COMMON = (
    "recipe=quickstart data=local data.rows=128 student=pretrained compression=[] baselines=[] training.max_length=160 "
    "training.max_steps=2 training.warmup_steps=1"
)


def main(names: list[str]) -> None:
    """Predicts, then measures; the table's last column is predicted over measured."""
    chosen = {name: words for name, words in CASES.items() if not names or any(n in name for n in names)}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_data(folder / "data.jsonl")
        shapes = {shape for shape in SHAPES for words in chosen.values() if f"model={shape}" in words.replace(" ", " ")}
        for shape in shapes:
            write_checkpoint(folder / shape, *SHAPES[shape])
        predicted = {name: predict(folder, arguments(folder, words)) for name, words in chosen.items()}
        for name, size in predicted.items():
            print(f"predicted: {name}: {size / 1e9:.2f} GB", file=sys.stderr)
        print("| run in a fresh process | predicted | measured | ratio |\n|---|---|---|---|", flush=True)
        for name, words in chosen.items():
            size = measure(folder / "run", arguments(folder, words))
            of = predicted[name]
            print(f"| {name} | {of / 1e9:.2f} GB | {size / 1e9:.2f} GB | {of / size:.3f} |", flush=True)


def arguments(folder: Path, words: str) -> list[str]:
    """Overrides with the checkpoints' folders in the place of their names."""
    typed = [*COMMON.split(), f"data.path={folder / 'data.jsonl'}", *words.split()]
    named = {
        f"{who}.model={shape}": f"{who}.model={folder / shape}" for who in ("student", "teacher") for shape in SHAPES
    }
    return [named.get(word, word) for word in typed]


def predict(folder: Path, typed: list[str]) -> float:
    """Peak bytes of the run's fullest stage."""
    made = plan(parse(_hydra.compose(typed).config), "cpu")
    return max(stage.memory.total for stage in made.stages)


def measure(folder: Path, typed: list[str]) -> int:
    """Peak bytes of a run's process. The allocator gives large blocks back to the system, see docs/scale.md."""
    environment = {
        **os.environ,
        "DISTILL_STORE": str(folder / "store"),
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "distill", *typed, f"hydra.run.dir={folder / 'out'}"]
    # through a shell that forks once more: Linux counts the memory of whoever starts a program into its peak
    command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{' '.join(typed)}\n{ran.stderr[-2000:]}")
    events = [json.loads(line) for line in (folder / "out" / "record.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    return max(event["peak_bytes"] for event in events if event["event"] == "stage")


def write_checkpoint(folder: Path, model_type: str, shape: dict) -> None:
    """Random float32 weights and a small tokenizer, whose ids are the first ones of the vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, eos_token_id=0, **shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / file, folder / file)


def write_data(file: Path, rows: int = 200) -> None:
    """Prompts and answers of 60 words, 66 to 102 tokens each."""
    rng = random.Random(0)
    words = ["Ada", "has", "boxes", "with", "pens", "in", "each", "and", "loose", "How", "many", "is", "that", "all"]
    lines = (
        json.dumps({name: " ".join(rng.choice(words) for _ in range(60)) for name in ("prompt", "response")})
        for _ in range(rows)
    )
    file.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
