"""Licences of models that anybody may download, Llama's apart."""

from distill.family._terms import NO_COMMERCE, READ, Terms

_BLOOM = (
    "Make the use restrictions of paragraph 5 and attachment A binding for whoever gets the model.",
    "Give a copy of the licence with the weights, and say that they were changed.",
)
_OPT_NOTICE = "OPT-175B is licensed under the OPT-175B license, Copyright (c) Meta Platforms, Inc. All Rights Reserved."
_GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
_QWEN_NOTICE = (
    "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved."
)
_MISTRAL_NOTICE = "Licensed by Mistral AI under the Mistral AI Research License"
_GEMMA = (
    "Make the use restrictions of section 3.2 binding for whoever gets the model.",
    "Give a copy of the terms with the weights, and say that they were changed.",
    f'Keep a text file "Notice" with the weights that says: {_GEMMA_NOTICE}',
)

MODELS = (
    Terms(
        id="mit",
        title="MIT License",
        url="https://opensource.org/license/mit",
        read=READ,
        outputs="free",
        quote="to deal in the Software without restriction",
        hub="mit",
    ),
    Terms(
        id="mit-modified",
        title="Modified MIT License (GPT-2)",
        url="https://github.com/openai/gpt-2/blob/master/LICENSE",
        read=READ,
        outputs="free",
        quote="We don't claim ownership of the content you create with GPT-2, so it is yours to do with as you please.",
        hub="mit",  # as GPT-2's own cards say
    ),
    Terms(
        id="apache-2.0",
        title="Apache License 2.0",
        url="https://www.apache.org/licenses/LICENSE-2.0",
        read=READ,
        outputs="free",
        clause="2",
        quote=(
            "copyright license to reproduce, prepare Derivative Works of, publicly display, publicly perform, "
            "sublicense, and distribute the Work and such Derivative Works in Source or Object form."
        ),
        hub="apache-2.0",
    ),
    Terms(
        id="opt-175b",
        title="OPT-175B License Agreement",
        url="https://github.com/facebookresearch/metaseq/blob/main/projects/OPT/MODEL_LICENSE.md",
        read=READ,
        copy="It speaks of OPT-175B; the smaller OPT models are published under it too.",
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
            f"Give a copy of the licence with the weights, and this notice: {_OPT_NOTICE}",
        ),
        notice=_OPT_NOTICE,
        hub_name="opt-175b",
    ),
    Terms(
        id="bigscience-bloom-rail-1.0",
        title="BigScience RAIL License v1.0",
        url="https://huggingface.co/spaces/bigscience/license",
        read=READ,
        outputs="passed_on",
        clause="1.5",
        quote=(
            "any other model which is created or initialized by transfer of patterns of the weights, parameters, "
            "activations or output of the Model, to the other model, in order to cause the other model to perform "
            "similarly to the Model, including - but not limited to - distillation methods"
        ),
        conditions=_BLOOM,
        as_base=_BLOOM,
        hub="bigscience-bloom-rail-1.0",
    ),
    Terms(
        id="nvidia-megatron",
        title="NVIDIA's terms for its Megatron-LM checkpoints",
        url="https://ngc.nvidia.com/catalog/models/nvidia:megatron_lm_345m",
        read=READ,
        copy="No text of terms for these weights was found; that of the code does not speak of them.",
        outputs="unknown",
        conditions=("Ask NVIDIA, or whoever trained the checkpoint, before the student is passed on.",),
        as_base=("Ask NVIDIA, or whoever trained the checkpoint, before the weights are passed on.",),
        hub_name="nvidia-megatron",
    ),
    Terms(
        id="gemma",
        title="Gemma Terms of Use (Gemma 1 to 3)",
        url="https://ai.google.dev/gemma/terms",
        read=READ,
        copy="The version of 2024-04-01; of that of 2026-04-01 only the beginning. Gemma 4 is under Apache-2.0.",
        outputs="passed_on",
        clause="1.1.e",
        quote=(
            "any other machine learning model which is created by transfer of patterns of the weights, parameters, "
            "operations, or Output of Gemma, to that model in order to cause that model to perform similarly to Gemma, "
            "including distillation methods"
        ),
        conditions=_GEMMA,
        as_base=_GEMMA,
        notice=_GEMMA_NOTICE,
        hub="gemma",
    ),
    Terms(
        id="qwen",
        title="Qwen License Agreement (2024-09-19; Qwen2.5-72B)",
        url="https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
        read=READ,
        copy="The clause alone, as a discussion of this model quotes it and its makers explain it there.",
        outputs="conditions",
        clause="4.b",
        quote=(
            "If you use the Materials or any outputs or results therefrom to create, train, fine-tune, or improve an "
            'AI model that is distributed or made available, you shall prominently display "Built with Qwen" or '
            '"Improved using Qwen" in the related product documentation.'
        ),
        conditions=('Show "Built with Qwen" or "Improved using Qwen" where the model is described.',),
        as_base=(
            'Show "Built with Qwen" or "Improved using Qwen" where the model is described.',
            'Give a copy of the agreement with the weights, and keep its "Notice" file.',
            "More than 100 million monthly users need a licence of their own.",
        ),
        hub_name="qwen",
    ),
    Terms(
        id="qwen-research",
        title="Qwen Research License Agreement (2024-09-19; Qwen2.5-3B)",
        url="https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
        read=READ,
        outputs="non_commercial",
        clause="2.a",
        quote=(
            "to use, reproduce, distribute, copy, create derivative works of, and make modifications to the Materials "
            "FOR NON-COMMERCIAL PURPOSES ONLY."
        ),
        conditions=(
            "Use it as a teacher for research or evaluation only.",
            'Show "Built with Qwen" or "Improved using Qwen" where the model is described (4.b).',
        ),
        as_base=(
            "Use it for research or evaluation only.",
            'Show "Built with Qwen" or "Improved using Qwen" where the model is described (4.b).',
            f'Give a copy of the agreement with the weights, and keep a text file "Notice" that says: {_QWEN_NOTICE}',
        ),
        notice=_QWEN_NOTICE,
        hub_name="qwen-research",
    ),
    Terms(
        id="mistral-research",
        title="Mistral AI Research License 0.1",
        url="https://mistral.ai/licenses/MRL-0.1.md",
        read=READ,
        outputs="non_commercial",
        clause="3.2",
        quote=(
            "You shall only use the Mistral Models, Derivatives (whether or not created by Mistral AI) and Outputs for "
            "Research Purposes."
        ),
        conditions=(NO_COMMERCE, "A company must not pass it on, not even for free (section 9)."),
        as_base=(
            "Use it for non-commercial research only; a company must not pass it on, not even for free (section 9).",
            f'Give a copy of the licence with the weights, and keep a text file "Notice" that says: {_MISTRAL_NOTICE}',
        ),
        notice=_MISTRAL_NOTICE,
        hub_name="mrl",
    ),
)
