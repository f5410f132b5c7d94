"""Meta's licences of Llama: each generation has one of its own, and they say different things about outputs."""

from distill.family._terms import NO_COMMERCE, READ, Terms

_NAME = 'The name under which the model is passed on must begin with "{}".'
_BUILT = 'Show "Built with {}" where the model is described.'
_RIGHTS = "Meta Platforms, Inc. All Rights Reserved."
_LLAMA_1 = f"LLaMA is licensed under the LLaMA License, Copyright (c) {_RIGHTS}"
_LLAMA_2 = f"Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) {_RIGHTS}"
_LLAMA_3 = f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © {_RIGHTS}"


def _base(notice: str, *more: str) -> tuple[str, ...]:
    """What all community licences ask of whoever passes on weights that were Llama's."""
    return (
        *more,
        "Give a copy of the agreement with the weights.",
        f'Keep a text file "Notice" with the weights that says: {notice}',
        "Keep to the acceptable use policy that the agreement names.",
        "More than 700 million monthly users on the day of its release need a licence of their own.",
    )


def _naming(version: str) -> Terms:
    """Llama 3.1 and later, which no longer forbid that outputs improve another model."""
    says = (_NAME.format("Llama"), _BUILT.format("Llama"))
    notice = f"Llama {version} is licensed under the Llama {version} Community License, Copyright © {_RIGHTS}"
    return Terms(
        id=f"llama{version}",
        title=f"Llama {version} Community License",
        url=f"https://github.com/meta-llama/llama-models/blob/main/models/llama{version.replace('.', '_')}/LICENSE",
        read=READ,
        outputs="conditions",
        clause="1.b.i",
        quote=(
            "If you use the Llama Materials or any outputs or results of the Llama Materials to create, train, fine "
            "tune, or otherwise improve an AI model, which is distributed or made available, you shall also include "
            '"Llama" at the beginning of any such AI model name.'
        ),
        conditions=says,
        as_base=_base(notice, *says),
        notice=notice,
        name_begins="Llama",
        hub=f"llama{version}",
    )


LLAMA = (
    Terms(
        id="llama-1",
        title="LLaMA License Agreement (2023, research)",
        url="https://huggingface.co/huggyllama/llama-7b/blob/main/LICENSE",
        read=READ,
        outputs="non_commercial",
        clause="2.a",
        quote=(
            "You will not, and will not permit, assist or cause any third party to: a. use, modify, copy, reproduce, "
            "create derivative works of, or distribute the Software Products (or any derivative works thereof, works "
            "incorporating the Software Products, or any data produced by the Software), in whole or in part, for (i) "
            "any commercial or production purposes"
        ),
        conditions=(NO_COMMERCE,),
        as_base=(
            "Use it for non-commercial research only.",
            f"Give a copy of the licence with the weights, and this notice: {_LLAMA_1}",
        ),
        notice=_LLAMA_1,
        hub_name="llama-license",
    ),
    Terms(
        id="llama2",
        title="Llama 2 Community License",
        url="https://github.com/meta-llama/llama/blob/main/LICENSE",
        read=READ,
        copy="Code Llama is under it too: its LICENSE refers to Llama 2's.",
        outputs="own_derivatives_only",
        clause="1.b.v",
        quote=(
            "You will not use the Llama Materials or any output or results of the Llama Materials to improve any other "
            "large language model (excluding Llama 2 or derivative works thereof)."
        ),
        conditions=("Train only models that start from Llama 2 or Code Llama weights.",),
        as_base=_base(_LLAMA_2),
        notice=_LLAMA_2,
        hub="llama2",
    ),
    Terms(
        id="llama3",
        title="Meta Llama 3 Community License",
        url="https://github.com/meta-llama/llama3/blob/main/LICENSE",
        read=READ,
        copy="Of Llama 3.0 alone.",
        outputs="own_derivatives_only",
        clause="1.b.v",
        quote=(
            "You will not use the Llama Materials or any output or results of the Llama Materials to improve any other "
            "large language model (excluding Meta Llama 3 or derivative works thereof)."
        ),
        conditions=("Train only models that start from Meta Llama 3 weights.",),
        as_base=_base(_LLAMA_3, _NAME.format("Llama 3"), _BUILT.format("Meta Llama 3")),
        notice=_LLAMA_3,
        name_begins="Llama 3",
        hub="llama3",
    ),
    _naming("3.1"),
    _naming("3.2"),
    _naming("3.3"),
)
