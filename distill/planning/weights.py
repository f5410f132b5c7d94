"""Bytes of a model's weights as it is loaded to be asked."""

from distill.planning.memory import NF4
from distill.planning.model import BYTES, Model
from distill.teacher.hf import SMALL_BYTES, Hf

INT8 = 1.0


def dtype_of(teacher: Hf, model: Model) -> str:
    """As `distill.stages._local_teacher.how_to_load` decides."""
    if teacher.dtype != "auto":
        return teacher.dtype
    return "float32" if model.stored_bytes < SMALL_BYTES else model.stored


def weight_bytes(model: Model, dtype: str, quantization: str = "none") -> float:
    """Bytes of the weights in memory."""
    rest = BYTES[dtype] * (model.parameters - model.linear)
    if quantization == "none":
        return float(BYTES[dtype] * model.parameters)
    return rest + model.linear * (NF4 if quantization == "nf4" else INT8)


def local_bytes(teacher: Hf, model: Model) -> float:
    """Of the weights of teacher=hf, on all its devices together."""
    return weight_bytes(model, dtype_of(teacher, model), teacher.quantization)
