"""python -m distill.chat: talk in the terminal to what a run made, as its users will run it."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill._command import Parser, run_and_exit, visible_lines
from distill.errors import DataError, RecipeError
from distill.progress import console
from distill.runtime.speaking import NUM_SEEDS

if TYPE_CHECKING:
    from distill._chat_dialogue import Dialogue, Lines, Said
    from distill._chat_models import Found, Model

MAX_NEW_TOKENS = 256
"""Of an answer, where no recipe says how long they are."""
MIN_TEMPERATURE = 0.001
"""Above 0: logits divided by much less overflow."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 a model does not run, 2 a wrong argument or question, 130 interrupted."""
    run_and_exit(lambda: _run(_arguments(arguments)))


def _run(args: argparse.Namespace) -> int:
    from rich.markup import escape

    from distill._chat_dialogue import Lines
    from distill._chat_models import found_in

    found = found_in(args.folder)
    models, lines = found.chosen(args.package), Lines(found.recipe)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not args.json
    with contextlib.ExitStack() as opened:
        dialogues = []
        for model in models:
            if model.warning:
                _say(model.warning, style="red")
            with console().status(escape(visible_lines(f"loads {model.name}"))):
                dialogues.append(_dialogue(model, args, found, lines, interactive=interactive))
            opened.callback(dialogues[-1].speaker.close)
            _warn(dialogues[-1])
        _introduce(found, dialogues, typed=args.folder, interactive=interactive)
        return _talk(dialogues, lines) if interactive else _answer_all(dialogues, lines, as_json=args.json)


def _dialogue(model: "Model", args: argparse.Namespace, found: "Found", lines: "Lines", *, interactive: bool):
    from distill._chat_dialogue import Dialogue, keeps_dialogue
    from distill.runtime.speaking import Sampling

    recipe = found.recipe
    length = args.max_new_tokens or (recipe.evaluation.max_new_tokens if recipe else MAX_NEW_TOKENS)
    speaker = model.open(recipe)
    # lines of a file have nothing to do with each other, unless somebody says so
    keeps = interactive and keeps_dialogue(recipe, lines, speaker) if args.dialogue is None else args.dialogue
    return Dialogue(model.name, speaker, Sampling(length, args.temperature, args.seed), lines, args.system, keeps)


def _warn(dialogue: "Dialogue") -> None:
    theirs = None if dialogue.lines.is_text else dialogue.speaker.written_otherwise()
    if theirs is not None:
        _say(
            f"{dialogue.name} is asked as it was evaluated; llama.cpp's own chat endpoint would write {theirs!r}.",
            style="yellow",
        )


def _introduce(found: "Found", dialogues: Sequence["Dialogue"], *, typed: Path | None, interactive: bool) -> None:
    from distill.stages._rehearsed import BANNER

    if interactive or typed is None or typed.resolve() != found.folder.resolve():
        _say(f"{', '.join(d.name for d in dialogues)} of {found.folder}", style="bold")
    if found.recipe is not None and found.recipe.rehearse:
        _say(BANNER)
    if not interactive:
        return
    if dialogues[0].lines.is_text:
        asks = "What you type is continued."
    elif any(d.keeps for d in dialogues):
        asks = "Each answer follows from all that was said; /reset begins anew."
    else:
        asks = "Each question is asked by itself, as in training." if found.recipe else "Each question stands alone."
    others = [name for name in found.models if name not in {d.name for d in dialogues}]
    _say(f"{asks} /quit or Ctrl-D ends, Ctrl-C stops an answer.", style="dim")
    if others:
        _say(f"Others here, for --package: {', '.join(others)}", style="dim")


def _talk(dialogues: Sequence["Dialogue"], lines: "Lines") -> int:
    """In a terminal, until /quit or Ctrl-D; returns the exit code."""
    with contextlib.suppress(ImportError):  # not everywhere; input() then has no history
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            raise
        except UnicodeDecodeError:
            _say("That was no UTF-8.", style="red")
            continue
        if line == "/quit":
            return 0
        if line == "/reset":
            for dialogue in dialogues:
                dialogue.exchanges.clear()
            _say("What was said is forgotten.", style="dim")
        elif line.startswith("/") and line[1:].isalpha():
            _say(f"{line}: there are /reset and /quit.", style="red")
        elif line:
            for dialogue in dialogues:
                try:
                    _speak(dialogue, lines, line, heading=len(dialogues) > 1)
                except RecipeError as error:
                    _say(str(error), style="red")


def _speak(dialogue: "Dialogue", lines: "Lines", line: str, *, heading: bool) -> None:
    """One model's answer in the terminal, as it comes, and a line about it."""
    if heading:
        _say(dialogue.name, style="bold")
    said = dialogue.ask(lines.prompt(line, "Your question"), _show)
    print(flush=True)
    for note in said.notes:
        _say(f"  {note}", style="yellow")
    _say(f"  {dialogue.name}: {_about(said)}", style="dim")


def _about(said: "Said") -> str:
    parts = [f"{said.num_tokens} token{'s' * (said.num_tokens != 1)}"]
    if said.tokens_per_second is not None:
        parts.append(f"{said.tokens_per_second:,.0f} tokens/s")
    if said.cut:
        parts.append(f"cut: {said.cut}")
    if said.interrupted:
        parts.append("stopped")
    return ", ".join(parts)


def _answer_all(dialogues: Sequence["Dialogue"], lines: "Lines", *, as_json: bool) -> int:
    """Standard input, a question a line; answers alone on standard output, a blank line between questions."""
    for block, (number, line) in enumerate(_questions()):
        where = f"standard input, line {number}"
        prompt, answers = lines.prompt(line, where), {}
        for dialogue in dialogues:
            try:
                said = dialogue.ask(prompt, lambda text: None)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            if said.interrupted:
                raise KeyboardInterrupt
            notes = [*said.notes, *([f"{dialogue.name}: {_about(said)}"] if said.cut else [])]
            for note in notes:
                _say(f"{where}: {note}")
            answers[dialogue.name] = said.text
        if as_json:
            # in ASCII: nothing that could steer a terminal, and the very answer comes back out of it
            print(json.dumps({"question": line, "answers": answers}), flush=True)
            continue
        named = [f"{name}:\n{text}" if len(answers) > 1 else text for name, text in answers.items()]
        print(("\n" if block else "") + "\n".join(visible_lines(text) for text in named), flush=True)
    return 0


def _questions() -> Iterator[tuple[int, str]]:
    """(line number, question) of every line with one."""
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"standard input, line {number} is not UTF-8 ({error.reason}).") from None
        if line:
            yield number, line


def _show(text: str) -> None:
    sys.stdout.write(visible_lines(text))
    sys.stdout.flush()


def _say(text: str, style: str = "") -> None:
    console().print(visible_lines(text), style=style, markup=False, emoji=False)


def _arguments(typed: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "distill.chat",
        description="Talks to what a run made, in the runtime and with the template that its users have.",
        epilog="In a pipe each line is one question, by itself, and only answers are printed. A line that is a JSON "
        "object with the fields of the recipe's rows is such a row.",
    )
    parser.add_argument(
        "folder",
        metavar="RUN_FOLDER",
        nargs="?",
        type=Path,
        help="a run's folder, one of its packages, a copy of one, any transformers checkpoint, a .gguf "
        "(default: the run below outputs/ that was evaluated last)",
    )
    parser.add_argument(
        "--package",
        metavar="NAME",
        action="append",
        default=[],
        help="which of the run's models: a package, student, teacher; may be given again: they answer in turn "
        "(default: the package that the report recommends)",
    )
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help=f"most tokens of an answer (default: as evaluated, else {MAX_NEW_TOKENS})",
    )
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 is the likeliest token, as evaluated (default)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="with a temperature (default: 0)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before everything else")
    parser.add_argument(
        "--dialogue",
        action=argparse.BooleanOptionalAction,
        help="ask with all that was said before (default: where the model has learnt dialogues)",
    )
    parser.add_argument("--json", action="store_true", help="in a pipe: one JSON object for each question")
    args = parser.parse_args(typed)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {args.max_new_tokens}: it must be 1 or more")
    if not (args.temperature == 0 or MIN_TEMPERATURE <= args.temperature <= 10):
        parser.error(f"--temperature {args.temperature:g}: it must be 0, or lie between {MIN_TEMPERATURE:g} and 10")
    if not 0 <= args.seed < NUM_SEEDS:
        parser.error(f"--seed {args.seed}: it must lie between 0 and {NUM_SEEDS - 1}")
    return args


if __name__ == "__main__":
    main()
