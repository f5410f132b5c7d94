"""A small subclass of transformers' Trainer: sums in the loss, one division by the global token count.

What it must respect, each a bug that somebody shipped, is listed in the tests beside it: the loss is the same
for any micro-batch split and padding, labels are shifted once (in `_rows.collate`), the head is never called,
its gradient is skipped when it is frozen.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from distill.artifact import write_whole
from distill.distributed import ALONE, World
from distill.errors import StageFailed
from distill.family.head import output_head
from distill.loss._divergence import IGNORED, LossTerms
from distill.progress import bar
from distill.runtime.bnb import quiet
from distill.stages._batches import BatchPlan
from distill.stages._checkpoints import COMPLETE, last_checkpoint, same_checkpoint, step_of
from distill.stages._dropout import residual_dropout, without_own_dropout
from distill.stages._loading import Source
from distill.stages._proofs import prove
from distill.stages._rows import TokenRow, collate
from distill.stages._step import Step
from distill.training import Training

EAGER_ATTENTION_LENGTH = 512
"""Up to here the scores of all pairs of tokens are small enough to be kept on a CPU."""


@dataclass(frozen=True)
class Trained:
    """What a training left: its loss curve, and from which step it went on (None when it ran in one piece).

    `whole`: the trained model is in this process; else its weights are in the last checkpoint only.
    """

    curve: list[dict[str, Any]]
    resumed_from_step: int | None
    whole: bool = True


def train(
    model: Any,
    rows: Sequence[TokenRow],
    loss: Callable[..., LossTerms],
    training: Training,
    plan: BatchPlan,
    *,
    seed: int,
    pad_id: int,
    folder: Path,
    label: str,
    live_teacher: PreTrainedModel | Source | None = None,
    stop_after: int | None = None,
    together: World = ALONE,
) -> Trained:
    """Trains `model` in place on the planned batches, resuming from the last whole checkpoint in `folder`.

    With `stop_after`, it stops after that step and leaves a checkpoint there, from which a later call goes on.
    With `together`, all its processes call this, and each learns from its share of every batch; the checkpoints are
    those of one process, so that any number of them goes on from any other's. `model` and `live_teacher` may come then
    as `distill.stages._loading` reads them: whole in the leader, without weights or not read yet in the others.

    Raises:
        StageFailed: the loss became infinite or NaN; the message names the step, the rows and the checkpoint. Or the
            processes plan different batches.
    """
    _same_plan(plan, together)
    checkpoint = same_checkpoint(folder, together)
    bf16 = use_bf16(training)
    if bf16 and not torch.cuda.is_available() and training.max_length <= EAGER_ATTENTION_LENGTH:
        # the fused kernel's backward sets up a oneDNN product per block and head: measured 1.7 times the step's time
        model.set_attn_implementation("eager")
    stored = None if loss.kind == "text" or live_teacher is not None else _stored_targets(rows[0])
    vocab_size = output_head(model).weight_VD.shape[0] if stored else None
    start = step_of(checkpoint) if checkpoint else 0
    if stop_after is not None and start >= stop_after:
        return Trained([], start)
    if together.leads:  # the others may have no weights yet
        prove(model, packing=training.packing)
    make, arguments, states, cut = DistillTrainer, TrainingArguments, None, False
    if together.size > 1:
        from distill.stages._together import Arguments, TogetherTrainer, cut_models

        cut, live_teacher, states = cut_models(model, live_teacher, training.layout, together, checkpoint, bf16=bf16)
        make, arguments = partial(TogetherTrainer, together=together, cut=cut), Arguments
    trainer = make(
        model=model,
        args=_arguments(arguments, training, plan.steps, seed, folder, together.size),
        train_dataset=_Rows(rows),
        data_collator=partial(
            collate,
            pad_id=pad_id,
            prompt_weight=training.prompt_weight,
            target_vocab=vocab_size,
            most=training.max_length,
            pack_to=training.max_length if training.packing else None,
        ),
        plan=plan,
        step=Step(model, loss, teacher=live_teacher, teacher_states=states, stored=stored, bf16=bf16),
    )
    trainer.remove_callback(PrinterCallback)  # the bar and the curve say it
    _run(trainer, training.dropout, label, checkpoint, stop_after)
    return Trained(_curve(trainer.state.log_history, plan), start or None, whole=not cut)


def _run(
    trainer: "DistillTrainer", dropout: float, label: str, checkpoint: Path | None, stop_after: int | None
) -> None:
    """Takes the steps that are left, under a bar, with the recipe's dropout and none of the model's own."""
    student, steps = trainer.step.student, trainer.plan.steps
    own, ours = without_own_dropout(student), residual_dropout(student, dropout)
    with own, ours, quiet(), bar(label, steps) as advance:
        advance(step_of(checkpoint) if checkpoint else 0)
        trainer.add_callback(_Progress(advance, stop_after))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _curve(log_history: Sequence[Mapping[str, Any]], plan: BatchPlan) -> list[dict[str, Any]]:
    """The steps that were logged, those before an interruption too: mean loss since the last one, nats per token."""
    return [
        {
            "step": entry["step"],
            "tokens": int(plan.tokens_after[int(entry["step"]) - 1]),
            "loss_nats": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "grad_norm": entry["grad_norm"],
        }
        for entry in log_history
        if "loss" in entry
    ]


def _same_plan(plan: BatchPlan, together: World) -> None:
    """Raises StageFailed where processes would train on different batches; nothing later would notice."""
    plans = together.gather(plan.digest)
    others = [rank for rank, digest in enumerate(plans) if digest != plans[0]]
    if others:
        raise StageFailed(
            f"Processes {', '.join(map(str, others))} plan other batches than process 0 from the same responses.\n"
            "All have to see the same files (DISTILL_STORE and the data on a disk that all nodes share) with the "
            "same versions of distill, numpy and tokenizers."
        )


def _stored_targets(row: TokenRow) -> tuple[str, float] | None:
    """Kind and temperature of the targets that a training's rows bring along."""
    if row.spans is not None:
        return "spans", 1.0
    if row.store is None or row.store.layout is None:
        return None
    return row.store.layout.kind, row.store.header.target_temperature


def use_bf16(training: Training) -> bool:
    """Whether to autocast to bfloat16: as the recipe says, else where the device multiplies it in hardware."""
    if training.bf16 is not None:
        return training.bf16
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_multiplies_bf16()


def cpu_multiplies_bf16() -> bool:
    """AVX512-BF16 or AMX; measured 3 to 10 times as fast as float32 there, and slower than it elsewhere."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    if "AVX512" not in capabilities:
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


class DistillTrainer(Trainer):
    """One process's trainer; `step` computes the loss of a micro-batch, and holds the model that is trained."""

    # We return the sum over a micro-batch divided by the global token count: nothing else may be divided.
    loss_is_scaled_for_ga = True

    def __init__(self, *, plan: BatchPlan, step: Step, **arguments):
        super().__init__(**arguments)
        self.plan, self.step = plan, step

    @property
    def _output_folder(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _get_train_sampler(self, train_dataset=None):
        return InOrder(self.plan.batches)

    def _get_num_items_in_batch(self, batch_samples, device):
        """Sum of the weights of all counted tokens in the global batch: what the loss is divided by."""
        counted = cast(Tensor, sum((batch["weights"] * (batch["labels"] != IGNORED)).sum() for batch in batch_samples))
        return counted.to(device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self._total(model, inputs) / cast(Tensor, num_items_in_batch)
        if not torch.isfinite(loss):
            self._stop_not_finite(loss, inputs["rows"])
        return loss

    def _total(self, model: nn.Module, inputs) -> Tensor:
        """The loss of a micro-batch in nats, summed over its tokens."""
        return self.step(inputs)

    def _stop_not_finite(self, loss: Tensor, rows: Tensor) -> None:
        last = last_checkpoint(self._output_folder)
        numbers = sorted(set(rows.tolist()))
        shown = ", ".join(map(str, numbers[:16])) + (", …" if len(numbers) > 16 else "")
        raise StageFailed(
            f"The loss is {loss.item()} at step {self.state.global_step + 1} of {self.plan.steps}.\n"
            f"Rows of this batch, as numbered in their store: {shown}\n"
            f"Last good checkpoint: {last or 'none yet'}\n"
            "Lower training.learning_rate, or look at these rows; the same command goes on from the checkpoint."
        )

    def _save_checkpoint(self, model, trial):
        # a finite loss can have a gradient that is not: its weights must never be what a run goes on from
        if not self._weights_are_finite():
            last = last_checkpoint(self._output_folder)
            raise StageFailed(
                f"Weights are no longer finite after step {self.state.global_step} of {self.plan.steps}.\n"
                f"Last good checkpoint: {last or 'none yet'}\n"
                "Lower training.learning_rate; the same command goes on from the checkpoint."
            )
        super()._save_checkpoint(model, trial)
        folder = self._output_folder / f"checkpoint-{self.state.global_step}"
        self._finish_checkpoint(folder)

    def _weights_are_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self._student.parameters() if p.requires_grad)

    @property
    def _student(self) -> nn.Module:
        return cast(nn.Module, self.model)

    def _finish_checkpoint(self, folder: Path) -> None:
        if folder.exists():
            write_whole(folder / COMPLETE, "")  # a checkpoint without this file was being written when it was killed

    def _load_rng_state(self, checkpoint) -> None:
        # it is not there where several processes wrote the checkpoint, each its own
        if checkpoint is not None and not (Path(checkpoint) / "rng_state.pth").exists():
            torch.manual_seed(self.args.seed + self.state.global_step)
        super()._load_rng_state(checkpoint)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[TokenRow]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> TokenRow:
        return self.rows[position]


class InOrder(torch.utils.data.Sampler):
    """The positions of planned rows in the plan's order: the whole run is one epoch of it."""

    def __init__(self, positions: np.ndarray):
        self.order = positions.reshape(-1).tolist()

    def __iter__(self):
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class _Progress(TrainerCallback):
    def __init__(self, advance: Callable[[int], None], stop_after: int | None):
        self.advance, self.stop_after = advance, stop_after

    def on_step_end(self, args, state, control, **_):
        self.advance(1)
        if state.global_step == self.stop_after:
            control.should_save = control.should_training_stop = True
        # what was summed since the last point of the curve is in no checkpoint
        control.should_log |= control.should_save


def _arguments(
    kind: type[TrainingArguments], training: Training, steps: int, seed: int, folder: Path, processes: int
) -> TrainingArguments:
    # transformers has a new name for it, and warns of the old one
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(kind, name))
    checkpointing: dict[str, Any] = {name: True} if training.gradient_checkpointing else {}
    arguments = kind(
        output_dir=str(folder),
        per_device_train_batch_size=training.batch_size // training.gradient_accumulation_steps // processes,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_steps=steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=min(training.warmup_steps, steps // 2),
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        save_strategy="steps",
        save_steps=_every(training.save_steps, steps),
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=_every(training.logging_steps, steps),
        logging_first_step=True,
        # a NaN must reach the curve and the check above, not be replaced by the last average
        logging_nan_inf_filter=False,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        log_level="error",
        **checkpointing,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else Trainer wraps the model in DataParallel and multiplies the batch
    return arguments


def _every(steps_or_share: float, steps: int) -> int:
    return max(1, round(steps_or_share * steps if steps_or_share < 1 else steps_or_share))


def write_curve(path: Path, curve: Sequence[dict[str, Any]]) -> None:
    """The loss curve as JSON lines."""
    write_whole(path, "".join(json.dumps(point) + "\n" for point in curve))
