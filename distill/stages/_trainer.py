"""A small subclass of transformers' Trainer: sums in the loss, one division by the global token count.

What it must respect, each a bug that somebody shipped, is listed in the tests beside it: the loss is the same
for any micro-batch split and padding, labels are shifted once (in `_rows.collate`), the head is never called,
its gradient is skipped when it is frozen.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from distill.artifact import write_whole
from distill.errors import StageFailed
from distill.family.head import hidden_states, output_head
from distill.loss._divergence import LossTerms, StudentOutput
from distill.progress import bar
from distill.responses import TeacherTargets
from distill.runtime.bnb import quiet
from distill.stages._batches import BatchPlan
from distill.stages._rows import IGNORED, TokenRow, collate
from distill.training import Training

COMPLETE = "complete"
EAGER_ATTENTION_LENGTH = 512
"""Up to here the scores of all pairs of tokens are small enough to be kept on a CPU."""


@dataclass(frozen=True)
class Trained:
    """What a training left: its loss curve, and from which step it went on (None when it ran in one piece)."""

    curve: list[dict[str, Any]]
    resumed_from_step: int | None


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
    live_teacher: PreTrainedModel | None = None,
    stop_after: int | None = None,
) -> Trained:
    """Trains `model` in place on the planned batches, resuming from the last whole checkpoint in `folder`.

    With `stop_after`, it stops after that step and leaves a checkpoint there, from which a later call goes on.

    Raises:
        StageFailed: the loss became infinite or NaN; the message names the step, the rows and the checkpoint.
    """
    checkpoint = _last_checkpoint(folder)
    bf16 = use_bf16(training)
    if bf16 and not torch.cuda.is_available() and training.max_length <= EAGER_ATTENTION_LENGTH:
        # the fused kernel's backward sets up a oneDNN product per block and head: measured 1.7 times the step's time
        model.set_attn_implementation("eager")
    stored = None if loss.kind == "text" or live_teacher is not None else _stored_targets(rows[0])
    vocab_size = output_head(model).weight_VD.shape[0] if stored else None
    trainer = _DistillTrainer(
        model=model,
        args=_arguments(training, plan.steps, seed, folder),
        train_dataset=_Rows(rows),
        data_collator=partial(collate, pad_id=pad_id, prompt_weight=training.prompt_weight, target_vocab=vocab_size),
        plan=plan,
        distill_loss=loss,
        live_teacher=live_teacher,
        stored=stored,
        bf16=bf16,
    )
    start = _step(checkpoint) if checkpoint else 0
    if stop_after is not None and start >= stop_after:
        return Trained([], start)
    trainer.remove_callback(PrinterCallback)  # the bar and the curve say it
    with _residual_dropout(model, training.dropout), quiet(), bar(label, plan.steps) as advance:
        advance(start)
        trainer.add_callback(_Progress(advance, stop_after))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    curve = [
        {
            "step": entry["step"],
            "tokens": int(plan.tokens_after[int(entry["step"]) - 1]),
            "loss_nats": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "grad_norm": entry["grad_norm"],
        }
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return Trained(curve, start or None)


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


class _DistillTrainer(Trainer):
    # We return the sum over a micro-batch divided by the global token count: nothing else may be divided.
    loss_is_scaled_for_ga = True

    def __init__(
        self, *, plan: BatchPlan, distill_loss, live_teacher, stored: tuple[str, float] | None, bf16: bool, **arguments
    ):
        super().__init__(**arguments)
        self.plan = plan
        self.distill_loss = distill_loss
        # a tuple hides the teacher from everything that walks over submodules: it is never trained, saved or wrapped
        self.live_teacher = (live_teacher,)
        self.stored = stored
        self.autocast_bf16 = bf16

    @property
    def _output_folder(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _get_train_sampler(self, train_dataset=None):
        return _InOrder(self.plan)

    def _get_num_items_in_batch(self, batch_samples, device):
        """Sum of the weights of all counted tokens in the global batch: what the loss is divided by."""
        counted = cast(Tensor, sum((batch["weights"] * (batch["labels"] != IGNORED)).sum() for batch in batch_samples))
        return cast(Tensor, self.accelerator.gather(counted.to(device))).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self.autocast_bf16):
            body = self.accelerator.unwrap_model(model)
            head = output_head(body)
            student = StudentOutput(
                hidden_BTD=hidden_states(body, inputs["input_ids"], inputs["attention_mask"]),
                head_VD=head.weight_VD,
                bias_V=head.bias_V,
                labels_BT=inputs["labels"],
                weights_BT=inputs["weights"],
                scale=head.scale,
                softcap=head.softcap,
            )
            with torch.autocast(inputs["input_ids"].device.type, enabled=False):
                targets = self._targets(inputs)  # in the teacher's own dtype, as stored targets are made
            terms = self.distill_loss(student, targets)
        # the gradients of all processes are averaged, the count is global
        loss = terms.total / num_items_in_batch * self.accelerator.num_processes
        if not torch.isfinite(loss):
            self._stop_not_finite(loss, inputs["rows"])
        return loss

    def _targets(self, inputs) -> TeacherTargets | None:
        (teacher,) = self.live_teacher
        if teacher is not None:
            head = output_head(teacher)
            with torch.no_grad():
                hidden_BTD = hidden_states(teacher, inputs["input_ids"], inputs["attention_mask"])
            return TeacherTargets(
                "live",
                hidden_BTD=hidden_BTD,
                head_VD=head.weight_VD,
                bias_V=head.bias_V,
                scale=head.scale,
                softcap=head.softcap,
            )
        if self.stored is not None:
            return TeacherTargets.of_batch(*self.stored, inputs)
        return None

    def _stop_not_finite(self, loss: Tensor, rows: Tensor) -> None:
        last = _last_checkpoint(self._output_folder)
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
        if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
            last = _last_checkpoint(self._output_folder)
            raise StageFailed(
                f"Weights are no longer finite after step {self.state.global_step} of {self.plan.steps}.\n"
                f"Last good checkpoint: {last or 'none yet'}\n"
                "Lower training.learning_rate; the same command goes on from the checkpoint."
            )
        super()._save_checkpoint(model, trial)
        folder = self._output_folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            write_whole(folder / COMPLETE, "")  # a checkpoint without this file was being written when it was killed


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[TokenRow]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> TokenRow:
        return self.rows[position]


class _InOrder(torch.utils.data.Sampler):
    """The plan's rows in the plan's order: the whole run is one epoch of it."""

    def __init__(self, plan: BatchPlan):
        self.order = plan.batches.reshape(-1).tolist()

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


def _arguments(training: Training, steps: int, seed: int, folder: Path) -> TrainingArguments:
    checkpointing: dict[str, Any] = {"gradient_checkpointing": True} if training.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=training.batch_size // training.gradient_accumulation_steps,
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


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; half-written ones are deleted."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def load_last_checkpoint(model: Any, folder: Path) -> None:
    """Puts the weights of the last whole checkpoint in `folder` into `model`; without one, `model` stays as it is."""
    checkpoint = _last_checkpoint(folder)
    if checkpoint is None:
        return
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
        return
    from safetensors.torch import load_file

    state = {k: v for file in sorted(checkpoint.glob("*.safetensors")) for k, v in load_file(file).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    assert not unexpected and set(missing) <= tied, (missing, unexpected)


class _residual_dropout:
    """Dropout on embeddings and on each block's output projections while the block of code runs.

    Hooks, because the architectures' own options drop attention weights only, and because nothing of it may
    stay in the checkpoint.
    """

    OUTPUTS = ("o_proj", "down_proj", "c_proj", "out_proj", "fc2", "dense_4h_to_h", "dense")

    def __init__(self, model: Any, probability: float):
        self.handles = []
        if probability:
            places = [m for name, m in model.named_modules() if name.rpartition(".")[2] in self.OUTPUTS]
            for module in [*places, model.get_input_embeddings()]:
                self.handles.append(module.register_forward_hook(partial(self._drop, probability)))

    @staticmethod
    def _drop(probability: float, module: nn.Module, inputs, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, probability, module.training)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def write_curve(path: Path, curve: Sequence[dict[str, Any]]) -> None:
    """The loss curve as JSON lines."""
    write_whole(path, "".join(json.dumps(point) + "\n" for point in curve))
