"""Write train.jsonl and valid.jsonl of the orders example: `python examples/orders/make.py [FOLDER]`.

A template of one intent is filled, sentences that change at most `urgent` go around it, and some rows are flattened to
the lower case of a text message. The answer is recorded while the slots are filled, so it is right by construction.
In a template `[x]` is kept in half the rows, `(x/y)` is x or y, and these slots record:
    {some}   three oak desks | a wool rug | mugs       product, and quantity unless there is no number
    {mine}   my two oak desks | the wool rug           product, and quantity unless there is no number
    {kind}   oak desks                                 product
    {count}  three | 12                                quantity
    {day}    Friday | tomorrow | next Monday | 12 May  day
    {on}     on Friday | tomorrow | next Monday        day, in a phrase about the future
    {was}    on Friday | yesterday | last Monday       day, in a phrase about the past
    {fast}   " right away" if the row is urgent        nothing: `urgent` is set before
"""

import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

INSTRUCTION = "Turn this message into JSON.\n\n"
INTENTS = ("order", "cancel", "complaint", "question", "delivery")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
BIG_NUMBERS = (11, 12, 12, 14, 15, 16, 18, 20, 24, 25, 30, 36, 40, 50, 60, 80, 100)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MAX_SHARED = 0.8
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the rows of one split are made of: templates by intent, products in the singular, and the words around."""

    templates: dict[str, Sequence[str]]
    products: Sequence[str]
    haste: Sequence[str]
    fast: Sequence[str]
    calm: Sequence[str]
    asides: Sequence[str]
    openings: Sequence[str]
    closings: Sequence[str]


@dataclass
class Answer:
    """The JSON of one row; the order of the fields is the order of the keys."""

    intent: str
    product: str | None = None
    quantity: int | None = None
    day: str | None = None
    urgent: bool = False


def _split(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split("|"))


MONTHS = _split("January|February|March|April|May|June|July|August|September|October|November|December")

TRAIN = Words(
    templates={
        "order": _split("""I'd (like/love) to (order/buy/get) {some}[ for {day}]. |
            (Please/Could you/Kindly) (send/post/ship) me {some}{fast}[, to arrive {on}]. |
            We (need/require) {some}{fast}[, delivered by {day}]. | Put (me/us) down for {some}[, for {day}]. |
            I (want/have decided) to buy {some}{fast}. |
            Can you (send/bring) {some} to my (home/work) address[ by {day}]? |
            (We'll/I'll) take {some}[, to be collected {on}]. | New order: {some}[, wanted by {day}]. |
            I am (after/keen on) {some}[ and would come to the shop {on}]. |
            My (client/boss/aunt) wants {some}{fast}, so go ahead and bill me[; shipping {on} is fine]. |
            (Could/May) I purchase {some} from you[ before {day}]? |
            Add {some} to my basket and charge my (card/account){fast}. |
            Your {kind} look (great/lovely), (send/pack) {count} for me{fast}. |
            I saw {kind} (in your window/on your site) and want {count}[, to be here {on}]."""),
        "cancel": _split("""(Please/I must/We have to) cancel {mine}{fast}. |
            I (no longer want/no longer need/can't afford) {mine}[ that I ordered {was}]. |
            (Take/Strike/Drop) {mine} from my order{fast}. |
            We (changed our minds/had second thoughts) about {mine}, so keep everything[ {on}]. |
            I (need/want) to cancel the order I placed {was}{fast}. |
            (Stop/Halt/Undo) the order for {mine}{fast}[; it was placed {was}]. |
            (Kindly withdraw/Tear up/Annul) my whole order before {day}. |
            I (bought/booked) {some} by (mistake/accident)[ {was}], (undo/reverse) that{fast}. |
            I found {some} (cheaper elsewhere/in another shop), so (drop/end) my order[ before {day}]. |
            Is it too late to (cancel/stop) {mine}[ before the van leaves {on}]? |
            (Forget about/Never mind) {mine}, my plans have changed[ for {day}]. |
            Someone gave me {some} (as a gift/for free), so (refund/stop) what I ordered[ {was}]. |
            The (party/trip/concert) is off, so (don't send/keep) {mine}[, due {on}]."""),
        "complaint": _split("""{mine} (arrived/came) (broken/cracked/damaged/torn)[ {was}]. |
            I (received/got) {mine}[ {was}] and the (colour/size/model) is completely wrong. |
            {mine} (stopped working/won't switch on/went dead)[ {was}], and I want a refund{fast}. |
            There's (a crack in/a hole in/a stain on/rust on) {mine}[, handed over {was}]. |
            I paid for {some} but got (something else/an empty box)[ {was}]. |
            (Very disappointed/Not acceptable): {mine} (fell apart/snapped/leaked)[ {was}]. |
            The (parcel/box) that came {was} was (soaked through/crushed/half empty). |
            (Parts/Screws/Pieces) were missing from {mine}[ when I looked {was}]. |
            You sent (me/us) {some} in the wrong (size/shade), take this back{fast}. |
            I'm (not happy/unhappy/fed up) with {mine}, scratched on arrival[ {was}]. |
            What I (unpacked/got/opened) {was} is not what I paid for. |
            {mine} turned up (dented and dirty/ripped/bent)[ {was}]. |
            The (finish/handle/paint) on {mine} (wore/came) off[ {was}], what poor quality."""),
        "question": _split("""Do you (have/keep) {kind} in stock[ {on}]? |
            How much do {kind} cost (with tax/in euros/these days)? | (Are you/Is the shop) open {on}? |
            What is the best way to (clean/store/repair) {kind}? | Is there a discount on {some}[ until {day}]? |
            What would {some} (cost me/come to)[ if I came by {on}]? | (Which sizes/What colours) do {kind} come in? |
            Can I (look at/try out) {kind} in your shop[ {on}]? | Would {some} fit (into a small car/in a cupboard)? |
            (I'm wondering/Please explain) (what {kind} are made of/how heavy {kind} are). |
            Do {kind} come with (instructions/a warranty)? | Are {kind} (safe for children/easy to use/made locally)? |
            Can {mine} be used (outdoors/in the rain/every day)? |
            (Do you take/Can I pay by) (cash/credit card)[ {on}]?"""),
        "delivery": _split("""(Any news on/What happened to) {mine}[, promised for {day}]? |
            When will {mine} (get here/arrive/be delivered)? |
            (Deliver/Bring) {mine}{fast} to the (back door/side gate/garage)[ {on}]. |
            (Can/Could) you (move/change) my delivery to {day}? |
            I won't be (home/in) {on}; leave {mine} (with the neighbour/in the shed). |
            Could {mine} (come/arrive) {on} instead? |
            Has the (driver/van) left with {mine} yet[, as agreed for {day}]? |
            I moved house, so (bring/redirect) {mine} to 8 Mill Lane[ {on}]. |
            The (courier/driver/postman) missed me {was}; (try/come) again{fast}. |
            (We are/I am) still waiting for {mine}[, which should have come {was}]. |
            Will {mine} be (at my door/here/with me) by {day}? |
            Change the address for {mine}{fast}[; the old flat is empty from {day}]. |
            (Hold/Keep) {mine} at the depot until {day}. |
            I waited in all day {was} and {mine} never (came/showed up)."""),
    },
    products=_split("""wool blanket | desk lamp | oak desk | garden chair | coffee mug | copper kettle | bath towel |
        leather wallet | mountain bike | phone charger | winter coat | glass vase | bread bin | picture frame |
        cotton sheet | yoga mat | red umbrella | pine table | hair dryer | silver ring | tennis racket | paper lantern |
        steel bucket | plant pot | wall clock | sleeping bag | chess set | water bottle | baking tray | floor cushion |
        bar stool | linen apron | Bluetooth speaker | toy train | soup bowl | fountain pen | rubber boot | garden hose |
        black backpack | door mat | bag of potting soil | box of candles | pack of batteries | jar of honey |
        crate of apples | roll of tape | shower curtain | rose bush | USB cable | office chair | curtain rod |
        paint brush | camping stove | blue scarf | straw hat | ceramic tile | electric drill | bicycle pump |
        cheese board | wine glass | pocket mirror | spice rack | green sofa | laptop stand | wooden spoon | hand mixer |
        tea strainer | ironing board | bird feeder | velvet curtain | fire blanket | step ladder | notebook | toaster |
        hammock | suitcase | doorbell | headlamp | whiteboard | teapot | puzzle | radio | saddle | mattress"""),
    haste=_split("""This is (urgent/very urgent/an emergency). | Please (hurry/be quick/don't wait). |
        I can't wait any longer. | I need (this sorted/an answer) (as soon as possible/right now/quickly). |
        ASAP please. | Top priority for us. | Time is very short. | Please (answer/act) (straight away/at once/fast). |
        Every minute counts. | It really cannot wait. | I'm in a great (hurry/rush). | URGENT!"""),
    fast=_split("right away | as soon as possible | urgently | asap | immediately | as fast as you can | at once"),
    calm=_split("""No (rush/hurry/stress). | Take your time. | It isn't urgent. | Whenever (suits you/you have time). |
        No need to (hurry/rush). | We can wait. | This is not an emergency. | Don't worry if it takes a while."""),
    asides=_split("""I'm redoing the whole house. | My sister told me about your shop. |
        I've been a customer for years. | It is a present for my father. | My customer number is 48213. |
        I tried to phone but nobody picked up. | We run a little guest house. | I hope you are well."""),
    openings=("Hi! ", "Hello. ", "Good morning. ", "Dear team,\n", "Hey, quick one. ", "To whom it may concern:\n"),
    closings=(" Thanks, Maria", "\nRegards, Tom Becker", " Cheers", " Thank you!", "\nBest, Aisha", " Paul, thanks"),
)

VALID = Words(
    templates={
        "order": _split("""Would you set up an order of {some} for our school[ by {day}]? |
            Looking to get {some}[, ideally {on}]. | I'll have {some}{fast}, same card as before. |
            Book {some} in my name[; I can be there {on}]."""),
        "cancel": _split("""Please do not ship {mine}[ {on}], I am pulling out. |
            Cancellation request: {mine}[, bought {was}]. | I have to back out of what I signed {was}{fast}. |
            Can you void my purchase of {some}{fast}?"""),
        "complaint": _split("""One corner of {mine} was smashed[ when we looked {was}]. |
            I expected better: {mine} came stained. | {mine} gave up[ {was}], which is unacceptable. |
            The wrong goods reached us {was}, sort it out{fast}."""),
        "question": _split("""May I ask whether {kind} are waterproof? | What's the price for {some}[ if paid {on}]? |
            Is anyone at the counter {on}? | Do you know when {kind} will be available again?"""),
        "delivery": _split("""Please drop {mine} at reception[ {on}]. |
            My package hasn't shown up, it was meant to be here {was}. | Where did {mine} end up[ {was}]? |
            Push the delivery of {mine} back to {day}."""),
    },
    products=_split("""canvas tote | brass hook | rain jacket | pillow case | fish tank | drum kit | violin case |
        snow shovel | bottle of olive oil | tin of paint | grey carpet | rocking horse | kitchen scale | mosquito net |
        stapler | trampoline | microscope | salad spinner | tripod | space heater | bamboo blind | skateboard"""),
    haste=("I need this fast.", "Please treat it as urgent.", "We're running out of time.", "Hurry up please."),
    fast=("without delay", "asap", "immediately"),
    calm=("It can wait.", "No pressure at all.", "Not urgent."),
    asides=("Our old ones wore out.", "I saw your advert.", "Ticket 5526.", "My neighbour shops with you."),
    openings=("Hiya. ", "Good evening. ", "Dear sir or madam,\n"),
    closings=(" Ta, Noor", "\nKind regards, Felix", " Much appreciated"),
)


def plural(name: str) -> str:
    """The plural of a product name: "box of candles" -> "boxes of candles"."""
    head, of, rest = name.partition(" of ")
    return head + ("es" if head.endswith(("s", "x", "ch", "sh")) else "s") + of + rest


@dataclass
class Maker:
    """Draws the rows of one split."""

    words: Words
    rng: random.Random

    def pick(self, options: Sequence[T]) -> T:
        # random() is the one method whose sequence Python promises to keep for a seed; choice() may change.
        return options[int(self.rng.random() * len(options))]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def count(self, answer: Answer) -> str:
        answer.quantity = number = self.pick(BIG_NUMBERS if self.chance(0.3) else range(2, 11))
        return NUMBERS[number] if number < len(NUMBERS) and self.chance(0.5) else str(number)

    def goods(self, slot: str, answer: Answer) -> str:
        product = self.pick(self.words.products)
        answer.product = plural(product)
        if slot == "kind":
            return answer.product
        owner = self.pick(("my ", "the ")) if slot == "mine" else ""
        if self.chance(0.6):
            return f"{owner}{self.count(answer)} {answer.product}"
        if self.chance(0.6):
            answer.product = product
            if slot == "some":
                answer.quantity = 1
                owner = "an " if product[0] in "aeio" else "a "
        return owner + answer.product

    def day(self, slot: str, answer: Answer) -> str:
        weekday, month, number = self.pick(WEEKDAYS), self.pick(MONTHS), self.pick(range(1, 29))
        if self.chance(0.25):
            relative = (f"last {weekday}", "yesterday") if slot == "was" else (f"next {weekday}", "tomorrow")
            answer.day = self.pick(relative)
            return answer.day
        answer.day = self.pick((weekday, weekday, f"{number} {month}", f"{month} {number}"))
        return answer.day if slot == "day" else f"on {answer.day}"

    def fill(self, template: str, answer: Answer) -> str:
        def value(match: re.Match[str]) -> str:
            slot = match[1]
            if slot == "fast":
                return " " + self.pick(self.words.fast) if answer.urgent else ""
            if slot == "count":
                return self.count(answer)
            return self.day(slot, answer) if slot in ("day", "on", "was") else self.goods(slot, answer)

        text = re.sub(r"\[(.*?)\]", lambda match: match[1] if self.chance(0.5) else "", template)
        text = re.sub(r"\((.*?)\)", lambda match: self.pick(match[1].split("/")), text)
        text = re.sub(r"\{(\w+)\}", value, text)
        return text[0].upper() + text[1:]

    def row(self, intent: str, template: str, urgent: bool) -> tuple[str, Answer]:
        words, answer = self.words, Answer(intent, urgent=urgent)
        sentences = [self.fill(template, answer)]
        if self.chance(0.25):
            sentences.insert(0, self.pick(words.asides))
        if answer.urgent and not ("{fast}" in template and self.chance(0.7)):
            sentences.insert(self.pick((0, len(sentences))), self.fill(self.pick(words.haste), answer))
        elif not answer.urgent and self.chance(0.4):
            sentences.append(self.fill(self.pick(words.calm), answer))
        opening = self.pick(words.openings) if self.chance(0.4) else ""
        closing = self.pick(words.closings) if self.chance(0.4) else ""
        message = opening + " ".join(sentences) + closing
        if self.chance(0.2):
            # As typed on a phone: a copied span must keep the case it has in the message.
            message = message.lower().replace("'", "").removesuffix(".")
            answer.product, answer.day = answer.product and answer.product.lower(), answer.day and answer.day.lower()
        return message, answer

    def rows(self, count: int, used: list[set[str]]) -> list[str]:
        """`count` rows, intents in equal parts, each far enough from every other and from the word sets in `used`."""
        lines = []
        for index in range(count):
            turn, intent = index // len(INTENTS), INTENTS[index % len(INTENTS)]
            lap, place = divmod(turn, len(self.words.templates[intent]))
            case = intent, self.words.templates[intent][place], (place + lap) % 2 == 0
            message, answer = self.row(*case)
            while any(shared(word_set(message), other) > MAX_SHARED for other in used):
                message, answer = self.row(*case)
            used.append(word_set(message))
            content = json.dumps(vars(answer), separators=(",", ":"))
            turns = [{"role": "user", "content": INSTRUCTION + message}, {"role": "assistant", "content": content}]
            lines.append(json.dumps({"messages": turns}))
        return sorted(lines, key=lambda _: self.rng.random())


def word_set(message: str) -> set[str]:
    return set(re.findall(r"\w+", message.lower()))


def shared(one: set[str], other: set[str]) -> float:
    """The part of all words of both sets that is in both."""
    return len(one & other) / len(one | other)


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    used: list[set[str]] = []
    for name, words, count, seed in (("train", TRAIN, 200, 1), ("valid", VALID, 40, 2)):
        text = "\n".join(Maker(words, random.Random(seed)).rows(count, used)) + "\n"
        (folder / f"{name}.jsonl").write_bytes(text.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
