"""TRAINED and NEW: the stories of word problems, each with its numbers, its worked steps and its wordings.

A template is data. `numbers` are drawn (low, high, both included), `derived` are computed from them before the story
is told (so that a division comes out exact), `steps` are the solution, one operation with two operands each; the last
one is the answer. Whoever writes a problem draws again until every number lies between 1 and LARGEST_NUMBER.

Words in braces that are no number are drawn from the lists below: {name} and {other} are different people, {thing}
and {things} one object in singular and plural, {extra} another object in plural, {box} and {boxes} what holds objects.

Changing anything here changes the problems, and with them the bundled teacher and every figure in the README.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _plurals(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((word, word + "s") for word in text.split())


LARGEST_NUMBER = 60
"""Small on purpose: a model of a few million parameters can learn all of it."""

NAMES = _words(
    "Ada Ali Amy Ana Ben Bob Cal Dan Eli Emma Eva Finn Gus Hana Hugo Ida "
    "Ivan Jack Jane Kim Leo Lily Lucy Max Mia Nina Noah Omar Paul Rosa Sam Tom"
)
THINGS = _plurals(
    "apple badge ball bead book brick button candle card carrot cookie cup egg flower key lemon "
    "marble muffin nail nut onion pear pen pencil plum seed shell spoon stamp sticker stone toy"
)
BOXES = (*_plurals("bag basket bucket crate drawer jar sack tin"), ("box", "boxes"))

DISTRACTORS = (
    "{name} lives at number {distractor}.",
    "It is {distractor} degrees outside.",
    "{name} is in room {distractor}.",
    "The radio plays song number {distractor}.",
    "{name} wears a shirt with the number {distractor}.",
)
"""Sentences with a number that no solution needs; any story can hold one."""


@dataclass(frozen=True)
class Template:
    """One kind of story. `steps` and `derived` read "result = left operator right", operator one of + - * /."""

    name: str
    numbers: Mapping[str, tuple[int, int]]
    steps: tuple[str, ...]
    phrasings: tuple[str, ...]
    derived: tuple[str, ...] = field(default=())


TRAINED = (
    Template(
        "gets_more",
        {"has": (5, 70), "more": (3, 50)},
        ("now = has + more",),
        (
            "{name} has {has} {things}. {other} gives {name} {more} more. How many {things} does {name} have now?",
            "{name} had {has} {things} and then found {more} more. How many {things} does {name} have in all?",
            "There are {has} {things} on the table. {name} adds {more} {things}. How many {things} are there now?",
        ),
    ),
    Template(
        "gives_away",
        {"has": (8, 90), "gone": (3, 60)},
        ("left = has - gone",),
        (
            "{name} has {has} {things}. {name} gives {gone} of them to {other}. How many {things} are left?",
            "{name} had {has} {things} but lost {gone}. How many {things} does {name} still have?",
            "A shop has {has} {things} and sells {gone} of them. How many {things} remain in the shop?",
        ),
    ),
    Template(
        "together",
        {"first": (4, 60), "second": (4, 60)},
        ("both = first + second",),
        (
            "{name} has {first} {things} and {other} has {second} {things}. How many {things} do they have together?",
            "{name} picks {first} {things}. {other} picks {second}. How many {things} did they pick in total?",
            "If {name} brings {first} {things} and {other} brings {second}, how many {things} are there altogether?",
        ),
    ),
    Template(
        "how_many_more",
        {"larger": (10, 90), "smaller": (4, 70)},
        ("difference = larger - smaller",),
        (
            "{name} has {larger} {things} and {other} has {smaller}. How many more {things} does {name} have?",
            "{other} has {smaller} {things}. {name} has {larger}. "
            "How many fewer {things} does {other} have than {name}?",
            "{name} found {larger} {things}, {other} found {smaller}. By how many {things} did {name} find more?",
        ),
    ),
    Template(
        "three_heaps",
        {"first": (3, 40), "second": (3, 40), "third": (3, 40)},
        ("two = first + second", "all = two + third"),
        (
            "{name} has {first} red, {second} blue and {third} green {things}. How many {things} is that in all?",
            "{name} sold {first} {things} on Monday, {second} on Tuesday and {third} on Friday. "
            "How many {things} were sold?",
            "Three heaps hold {first}, {second} and {third} {things}. How many {things} are there together?",
        ),
    ),
    Template(
        "in_and_out",
        {"start": (10, 70), "out": (3, 40), "into": (3, 40)},
        ("rest = start - out", "now = rest + into"),
        (
            "A bus has {start} people in it. {out} get off and {into} get on. How many people are in the bus now?",
            "{name} has {start} coins, spends {out} and then earns {into}. How many coins does {name} have now?",
            "{name} had {start} {things}, gave {out} away and later bought {into}. How many {things} are there now?",
        ),
    ),
    Template(
        "more_than_together",
        {"has": (4, 45), "more": (3, 30)},
        ("second = has + more", "both = has + second"),
        (
            "{name} has {has} {things}. {other} has {more} more than {name}. How many {things} do they have together?",
            "{other} found {more} more {things} than {name}, who found {has}. "
            "How many {things} did both find in total?",
            "One heap has {has} {things}, the next has {more} more. How many {things} are in both heaps?",
        ),
    ),
    Template(
        "fewer_than_together",
        {"has": (10, 60), "fewer": (3, 40)},
        ("second = has - fewer", "both = has + second"),
        (
            "{name} has {has} {things}. {other} has {fewer} fewer than {name}. "
            "How many {things} do they have together?",
            "{other} sold {fewer} fewer {things} than {name}, who sold {has}. "
            "How many {things} did both sell in total?",
            "One heap has {has} {things}, the next has {fewer} fewer. How many {things} are in both heaps?",
        ),
    ),
    Template(
        "age_later",
        {"age": (4, 40), "older": (2, 30), "years": (2, 20)},
        ("now = age + older", "later = now + years"),
        (
            "{name} is {age} years old. {other} is {older} years older. How old will {other} be in {years} years?",
            "{other} is {older} years older than {name}, who is {age}. "
            "What will be the age of {other} in {years} years?",
        ),
    ),
    Template(
        "only_one_kind",
        {"has": (10, 80), "gone": (3, 50), "unused": (3, 40)},
        ("left = has - gone",),
        (
            "{name} has {has} {things} and {unused} {extra}. {name} gives away {gone} {things}. "
            "How many {things} are left?",
            "A shop has {unused} {extra} and {has} {things}. It sells {gone} {things}. How many {things} remain?",
            "{name} carries {has} {things}, {other} carries {unused} {extra}. {name} drops {gone} {things}. "
            "How many {things} does {name} still carry?",
        ),
    ),
    Template(
        "full_boxes",
        {"count": (2, 12), "each": (2, 12)},
        ("total = count * each",),
        (
            "{name} has {count} {boxes} with {each} {things} in each {box}. How many {things} does {name} have?",
            "There are {each} {things} in every {box}. How many {things} are in {count} {boxes}?",
            "{name} fills {count} {boxes}. Each {box} holds {each} {things}. How many {things} is that?",
        ),
    ),
    Template(
        "boxes_and_loose",
        {"count": (2, 12), "each": (2, 10), "loose": (2, 30)},
        ("packed = count * each", "total = packed + loose"),
        (
            "{name} has {count} {boxes} with {each} {things} in each and {loose} loose {things}. "
            "How many {things} is that in all?",
            "Each {box} holds {each} {things}. {name} has {count} full {boxes} and {loose} more {things}. "
            "How many {things} are there?",
            "{name} puts {each} {things} into each of {count} {boxes}, and {loose} do not fit. "
            "How many {things} were there?",
        ),
    ),
    Template(
        "boxes_and_used",
        {"count": (3, 12), "each": (3, 12), "used": (2, 60)},
        ("packed = count * each", "left = packed - used"),
        (
            "{name} has {count} {boxes} with {each} {things} in each. {name} uses {used} {things}. "
            "How many {things} are left?",
            "{name} buys {count} {boxes} of {each} {things} and gives {used} {things} to {other}. "
            "How many {things} does {name} keep?",
            "There are {count} {boxes} with {each} {things} each. {used} of the {things} are broken. "
            "How many {things} are good?",
        ),
    ),
    Template(
        "one_colour_of_boxes",
        {"count": (2, 12), "each": (2, 12), "unused": (2, 12)},
        ("total = count * each",),
        (
            "{name} has {count} red {boxes} and {unused} blue {boxes}. Every {box} holds {each} {things}. "
            "How many {things} are in the red {boxes}?",
            "There are {unused} old and {count} new {boxes} with {each} {things} in each. "
            "How many {things} are in the new {boxes}?",
        ),
    ),
    Template(
        "price",
        {"count": (2, 12), "price": (2, 12)},
        ("cost = count * price",),
        (
            "Each {thing} costs {price} coins. {name} buys {count} {things}. How many coins does {name} pay?",
            "{name} buys {count} {things} for {price} coins each. How many coins does that cost?",
            "How many coins do {count} {things} cost if one {thing} costs {price} coins?",
        ),
    ),
    Template(
        "change",
        {"paid": (20, 100), "count": (2, 10), "price": (2, 10)},
        ("cost = count * price", "change = paid - cost"),
        (
            "{name} buys {count} {things} for {price} coins each and pays with {paid} coins. "
            "How many coins does {name} get back?",
            "{name} has {paid} coins. Each {thing} costs {price} coins. How many coins are left after buying {count}?",
            "One {thing} costs {price} coins. {name} takes {count} {things} and gives {paid} coins. "
            "How many coins is the change?",
        ),
    ),
    Template(
        "two_prices",
        {"count": (2, 9), "price": (2, 9), "other_count": (2, 9), "other_price": (2, 9)},
        ("cost = count * price", "other_cost = other_count * other_price", "total = cost + other_cost"),
        (
            "{name} buys {count} {things} for {price} coins each and {other_count} {extra} "
            "for {other_price} coins each. "
            "How many coins is that in total?",
            "Each of the {things} costs {price} coins, each of the {extra} {other_price}. "
            "How many coins do {count} {things} and {other_count} {extra} cost?",
        ),
    ),
    Template(
        "share",
        {"people": (2, 12), "part": (2, 12)},
        ("share = total / people",),
        (
            "{name} shares {total} {things} equally among {people} friends. How many {things} does each friend get?",
            "{people} children divide {total} {things} equally. How many {things} are there for each child?",
            "{total} {things} are put into {people} {boxes}, the same number in each. "
            "How many {things} are in one {box}?",
        ),
        derived=("total = people * part",),
    ),
    Template(
        "boxes_to_fill",
        {"each": (2, 12), "part": (2, 12)},
        ("boxes_filled = total / each",),
        (
            "{name} has {total} {things} and puts {each} into each {box}. How many {boxes} does {name} fill?",
            "Each {box} holds {each} {things}. How many {boxes} are needed for {total} {things}?",
        ),
        derived=("total = each * part",),
    ),
    Template(
        "share_after_loss",
        {"lost": (2, 30), "people": (2, 10), "part": (2, 12)},
        ("left = has - lost", "share = left / people"),
        (
            "{name} has {has} {things}, but {lost} are broken. {name} shares the rest equally among {people} friends. "
            "How many {things} does each get?",
            "From {has} {things} {name} takes {lost} away. "
            "The others go into {people} {boxes}, the same number in each. "
            "How many {things} are in one {box}?",
        ),
        derived=("kept = people * part", "has = kept + lost"),
    ),
    Template(
        "rate",
        {"each": (3, 12), "days": (2, 12)},
        ("total = each * days",),
        (
            "{name} reads {each} pages a day. How many pages does {name} read in {days} days?",
            "{name} makes {each} {things} in one hour. How many {things} does {name} make in {days} hours?",
            "A train goes {each} miles in an hour. How many miles does it go in {days} hours?",
        ),
    ),
    Template(
        "time_needed",
        {"each": (3, 12), "part": (2, 12)},
        ("days = total / each",),
        (
            "A book has {total} pages. {name} reads {each} pages a day. How many days does {name} need for the book?",
            "{name} makes {each} {things} in one hour. How many hours does {name} need for {total} {things}?",
        ),
        derived=("total = each * part",),
    ),
    Template(
        "rate_and_rest",
        {"total": (30, 130), "each": (3, 12), "days": (2, 10)},
        ("done = each * days", "left = total - done"),
        (
            "A book has {total} pages. {name} reads {each} pages a day for {days} days. "
            "How many pages are left to read?",
            "{name} wants to make {total} {things} and makes {each} an hour. How many are missing after {days} hours?",
        ),
    ),
    Template(
        "saving",
        {"has": (3, 50), "each": (2, 10), "weeks": (2, 10)},
        ("saved = each * weeks", "total = has + saved"),
        (
            "{name} has {has} coins and saves {each} coins a week. "
            "How many coins does {name} have after {weeks} weeks?",
            "{name} saves {each} coins every week for {weeks} weeks and had {has} before. How many coins is that now?",
        ),
    ),
    Template(
        "half",
        {"part": (2, 60)},
        ("left = has / 2",),
        (
            "{name} has {has} {things} and gives half of them to {other}. How many {things} does {other} get?",
            "{other} has {has} {things}. {name} has half as many. How many {things} does {name} have?",
            "There are {has} {things} in a {box}. Half of them are red. How many {things} are red?",
        ),
        derived=("has = part * 2",),
    ),
    Template(
        "twice",
        {"has": (3, 60)},
        ("second = has * 2",),
        (
            "{name} has {has} {things}. {other} has twice as many. How many {things} does {other} have?",
            "{other} finds twice as many {things} as {name}, who finds {has}. How many {things} does {other} find?",
        ),
    ),
    Template(
        "twice_together",
        {"has": (3, 45)},
        ("second = has * 2", "both = has + second"),
        (
            "{name} has {has} {things}. {other} has twice as many. How many {things} do they have together?",
            "{other} sells twice as many {things} as {name}, who sells {has}. How many {things} do both sell in total?",
        ),
    ),
)

NEW = (
    Template(
        "garden_rows_lost",
        {"rows": (5, 16), "lost": (2, 10), "each": (2, 10)},
        ("good = rows - lost", "plants = good * each"),
        (
            "A garden has {rows} rows of {each} plants. Rabbits eat {lost} whole rows. How many plants are left?",
            "{name} plants {rows} rows with {each} plants in each row, but {lost} rows die. How many plants live?",
        ),
    ),
    Template(
        "half_as_many_together",
        {"part": (3, 45)},
        ("second = has / 2", "both = has + second"),
        (
            "{name} has {has} {things}. {other} has half as many. How many {things} do they have together?",
            "{other} finds half as many {things} as {name}, who finds {has}. How many {things} did both find in total?",
        ),
        derived=("has = part * 2",),
    ),
    Template(
        "delivery",
        {"count": (2, 10), "each": (2, 10), "has": (3, 40), "gone": (2, 40)},
        ("packed = count * each", "now = has + packed", "left = now - gone"),
        (
            "A shop has {has} {things}. A truck brings {count} {boxes} with {each} {things} in each. "
            "The shop sells {gone} {things}. How many {things} remain?",
            "{name} owns {has} {things}, buys {count} {boxes} of {each} and gives {gone} to {other}. "
            "How many {things} does {name} have then?",
        ),
    ),
    Template(
        "change_from_two_prices",
        {"price": (3, 40), "other_price": (3, 40), "paid": (30, 100)},
        ("cost = price + other_price", "change = paid - cost"),
        (
            "{name} buys a lamp for {price} coins and a chair for {other_price} coins and pays with {paid} coins. "
            "How many coins does {name} get back?",
            "A lamp costs {price} coins, a chair {other_price}. {name} has {paid} coins and buys both. "
            "How many coins does {name} keep?",
        ),
    ),
)
