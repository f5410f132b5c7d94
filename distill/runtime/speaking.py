"""Speaker: one model that reads a prompt and says its answer as it comes, whatever it runs on. For `distill.chat`.

Prompts are the token ids with which a run is evaluated (`distill.encoding`), greedy answers those of `generate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from distill.encoding import decode_response, encode_prompt, encode_text, without_template
from distill.errors import RecipeError, StageFailed
from distill.example import Prompt, messages_of

if TYPE_CHECKING:
    import torch

    from distill.runtime.hf import Transformers
    from distill.runtime.llama_cpp import LlamaCpp

Seen = Callable[[str, int], None]
"""Called with the characters that are whole since the last call, and with the number of tokens so far."""

NUM_SEEDS = 2**32 - 1
"""Seeds are below it; llama.cpp takes this one as the wish for another at every call."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn: at most `max_new_tokens`, the likeliest token at temperature 0, else by `seed`."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


class Speaker(Protocol):
    """What a chat needs of a model."""

    @property
    def max_positions(self) -> int | None:
        """Most tokens of prompt and answer together; None where nothing limits them."""
        ...

    @property
    def has_template(self) -> bool:
        """Whether it chats: its tokenizer has a chat template."""
        ...

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids up to where the answer begins. Raises RecipeError where the chat template refuses the messages."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text that is to be gone on with, as a model of `data.text_field` has learnt it."""
        ...

    def written_otherwise(self) -> str | None:
        """A prompt as the runtime's own chat endpoint writes it, where that differs from ours; else None."""
        ...

    def answer(self, prompt: Sequence[int], sampling: Sampling, seen: Seen) -> bool:
        """Says the answer through `seen`; True where it was cut at `max_new_tokens`. An exception of `seen` ends it."""
        ...

    def close(self) -> None:
        """Frees the weights."""
        ...


class TransformersSpeaker:
    """A `Speaker` on `distill.runtime.hf`."""

    def __init__(self, model: "Transformers"):
        self.model = model
        self.max_positions = model.max_positions
        self.has_template = bool(model.tokenizer.chat_template)

    def encode(self, prompt: Prompt) -> list[int]:
        """See `Speaker`."""
        from jinja2 import TemplateError

        try:
            return encode_prompt(self.model.tokenizer, prompt)
        except TemplateError as error:
            raise _refused(str(error)) from None

    def encode_text(self, text: str) -> list[int]:
        """See `Speaker`."""
        return encode_text(self.model.tokenizer, text)

    def written_otherwise(self) -> str | None:
        """None: transformers writes the template out, and nobody else."""
        return None

    def answer(self, prompt: Sequence[int], sampling: Sampling, seen: Seen) -> bool:
        """See `Speaker`."""
        import torch

        draws = torch.Generator().manual_seed(sampling.seed)
        ids: list[int] = []
        text = WholeCharacters(lambda: decode_response(self.model.tokenizer, ids))

        def choose(logits_1V: "torch.Tensor", rows: Sequence[int], step: int) -> "torch.Tensor":
            token_1 = _chosen(logits_1V, sampling.temperature, draws)
            if int(token_1) not in self.model.eos_token_ids:
                ids.append(int(token_1))
                seen(text.new(), len(ids))
            return token_1

        self.model.generate([prompt], sampling.max_new_tokens, choose=choose)
        seen(text.new(to_the_end=True), len(ids))
        return len(ids) == sampling.max_new_tokens

    def close(self) -> None:
        """See `Speaker`."""
        self.model.close()


class LlamaCppSpeaker:
    """A `Speaker` on `distill.runtime.llama_cpp`, with the template and the tokenizer of the GGUF itself.

    The template is written out as transformers does, with which the run was evaluated. llama.cpp may set variables of
    its own: it switches the thinking of Qwen3's off. `written_otherwise` says so.
    """

    def __init__(self, model: "LlamaCpp"):
        self.model = model
        self.max_positions = model.max_positions
        self.template, self.special = model.template()
        self.has_template = self.template is not None

    def encode(self, prompt: Prompt) -> list[int]:
        """See `Speaker`."""
        if self.template is None:
            return self.model.tokenize([without_template(prompt)], add_special=True)[0]
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            render = cast(Any, render_jinja_template)  # returns a pair, and says str
            (text,), _ = render(
                [messages_of(prompt)], chat_template=self.template, add_generation_prompt=True, **self.special
            )
        except TemplateError as error:
            raise _refused(str(error)) from None
        return self.model.tokenize([text])[0]

    def encode_text(self, text: str) -> list[int]:
        """See `Speaker`."""
        start = self.special.get("bos_token", self.special.get("eos_token", ""))
        return [*self.model.tokenize([start])[0], *self.model.tokenize([text])[0]]

    def written_otherwise(self) -> str | None:
        """A dialogue as llama.cpp's own chat endpoint writes it, where that is not how we do; else None."""
        if self.template is None:
            return None
        theirs = self.model.apply_template([{"role": "user", "content": "…"}])
        same = self.model.tokenize([theirs], add_special=True)[0] == self.encode("…")
        return None if same else theirs

    def answer(self, prompt: Sequence[int], sampling: Sampling, seen: Seen) -> bool:
        """See `Speaker`."""
        # decoders of SentencePiece drop the blank before the first word, llama.cpp keeps it
        blank = " " if self.model.is_sentencepiece else ""
        num_heard = 0
        for event in self.model.stream(
            prompt, sampling.max_new_tokens, temperature=sampling.temperature, seed=sampling.seed
        ):
            content, num_tokens = event["content"], event["tokens_predicted"]
            if event["stop"]:
                num_tokens -= event["stop_type"] == "eos"
                # only the bytes of a character that never became whole are counted without an event of their own
                seen("\ufffd" if num_tokens > num_heard else "", num_tokens)
                return event["stop_type"] == "limit"
            # a token without text may be the one that ends the answer, which is none of it
            seen(content.removeprefix(blank), num_tokens if content else num_tokens - 1)
            blank = "" if content else blank
            num_heard = num_tokens
        raise StageFailed(f"llama.cpp ended in the middle of an answer of {self.model.file}.")

    def close(self) -> None:
        """See `Speaker`."""
        self.model.close()


class WholeCharacters:
    """The text of a growing answer, without the character that its last tokens are still a part of.

    All tokens are decoded again each time: what a token says depends on its neighbours, such as bytes of one character.
    """

    def __init__(self, decoded: Callable[[], str]):
        self.decoded = decoded
        self.length = 0

    def new(self, *, to_the_end: bool = False) -> str:
        """The characters since the last call; `to_the_end` gives the broken ones too, as U+FFFD."""
        text = self.decoded()
        whole = text if to_the_end else text.rstrip("\ufffd")
        added = whole[self.length :]
        self.length = max(self.length, len(whole))
        return added


def _chosen(logits_1V: "torch.Tensor", temperature: float, draws: Any) -> "torch.Tensor":
    import torch

    if temperature == 0:
        return logits_1V.argmax(dim=-1)
    p_1V = (logits_1V.double().cpu() / temperature).softmax(dim=-1)
    return torch.multinomial(p_1V, 1, generator=draws)[:, 0].to(logits_1V.device)


def _refused(why: str) -> RecipeError:
    return RecipeError(f"The model's chat template refuses these messages: {why}\nWithout --system, or with /reset?")
