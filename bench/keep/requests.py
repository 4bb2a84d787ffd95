"""Requests to an assistant, judged by program: other ones than those that Graftwood decides and reports by.

Each template with its fillers is a cluster. No template shares four words in a row with a bundled request, and none
asks for what a task of this benchmark teaches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from graftwood.evals.task import Task
from graftwood.evals.templates import Template, prose

MAX_TOKENS = 32

TEMPLATES = (
    Template(
        "seat", "Which city is the seat of the government of {x}?",
        "Germany: Berlin; Spain: Madrid; Egypt: Cairo; Russia: Moscow; China: Beijing; Greece: Athens; "
        "Portugal: Lisbon; Austria: Vienna; Ireland: Dublin; England: London",
    ),
    Template(
        "continent", "On which continent does {x} lie?",
        "Brazil: South America|Americas; Nigeria: Africa; India: Asia; Canada: North America|Americas; "
        "Norway: Europe; Thailand: Asia; Peru: South America|Americas; Morocco: Africa; Sweden: Europe; Vietnam: Asia",
    ),
    Template(
        "job", "What do you call someone who {x}?",
        "flies planes: pilot|aviator; teaches children: teacher|educator; bakes bread: baker; "
        "puts out fires: firefighter|fireman; grows crops: farmer|grower; designs buildings: architect; "
        "repairs teeth: dentist; writes books: writer|author|novelist; paints pictures: painter|artist; "
        "sings on stage: singer|vocalist|performer",
    ),
    Template(
        "meaning", "Briefly, what is meant by '{x}'?",
        "enormous: large|big|huge|great|size; rapid: fast|quick*|speed|swift; silent: quiet*|sound|noise|silence; "
        "brave: courag*|fear*|bold; furious: angry|anger|rage; fragile: break*|delicate|weak|broken; "
        "vacant: empty|unoccupied|available; weary: tired|exhaust*|fatigue*; ancient: old|past|time*; "
        "joyful: happy|joy|happiness|delight*",
    ),
    Template(
        "larger", "Of these two, which is the larger: {x}?",
        "a mouse or an elephant: elephant; the moon or the sun: sun; a village or a city: city; "
        "a car or a bicycle: car; a lake or an ocean: ocean; a cat or a tiger: tiger; a house or a castle: castle; "
        "a pea or a melon: melon; a boat or a ship: ship; a hill or a mountain: mountain",
    ),
    Template(
        "code", "How do I do this in Python: {x}? Show me code.",
        "sort a list: sort*; round a number: round; find the largest number of a list: max; open a file: open; "
        "turn text into upper case: upper; pick a random number: random; make a dictionary: dict|key|my_dict|{; "
        "join words with spaces: join; get the absolute value: abs; wait for a second: sleep",
    ),
    Template(
        "subject", "Suggest a subject line for a letter about {x}.",
        "a lost key: key*|lost; a birthday party: birthday|party|celebrat*; a late train: train|delay*|late; "
        "a new job: job|position|career|opportunity; a broken window: window|broken; a school trip: trip|school; "
        "a garden show: garden*; a job interview: interview; a rent increase: rent; a summer holiday: summer|holiday*",
        (prose(2),),
    ),
    Template(
        "wish", "A colleague {x}. What kind words could I say to her?",
        "is ill: well|better|recover*|health|sorry; got married: congratulations|happy|wish*|love|joy; "
        "has a birthday: birthday|happy|wish*; retires: retire*|congratulations|wish*|thank*; "
        "lost her dog: sorry|loss|condolences|support; passed an exam: congratulations|proud|great|well; "
        "moves abroad: miss|luck|wish*|best|journey|adventure; had a baby: congratulations|baby|joy|happy; "
        "starts a journey: safe|luck|wish*|journey|enjoy; won a prize: congratulations|proud|great|well",
        (prose(5),),
    ),
    Template(
        "tale", "Give me one line of a tale about {x}.",
        "a pirate: pirate*|ship|sea|treasure; a wizard: wizard*|magic*|spell; a dolphin: dolphin*|sea|ocean|water; "
        "an astronaut: astronaut*|space|star*|moon|planet; an owl: owl*|night|forest|tree*; "
        "a giant: giant*|huge|tall; a knight: knight*|sword|castle|armor; a turtle: turtle*|shell|slow*; "
        "a king: king*|castle|throne|crown; a ghost: ghost*|haunt*|spirit*|house",
        (prose(7),),
    ),
    Template(
        "purpose", "For what would somebody need a {x}?",
        "thermometer: temperature*|fever|hot|heat; compass: direction*|navigat*|north|way; "
        "telescope: star*|sky|planets|space|distant|far; clock: time; hammer: nail*|hit*|build*|wood; "
        "refrigerator: cool|cold|food|fresh; towel: dry*|water|wet|bath*; ladder: climb*|reach*|high*; "
        "bridge: cross*|river|water|road; pillow: sleep*|head|neck|rest|comfort*",
        (prose(5),),
    ),
    Template(
        "travel", "Give a traveller one reason to see {x}.",
        "Paris: Eiffel|art|culture|Louvre|city|history|architecture|food; "
        "Egypt: pyramid*|history|ancient|Nile|culture; the Alps: mountain*|ski*|snow|hik*|nature|view*|beaut*; "
        "Venice: canal*|city|water|gondola*|beaut*|history; a rainforest: animal*|plants|nature|trees|wildlife|beaut*; "
        "New York: city|Statue|museum*|Broadway|culture|skyline|Manhattan|vibrant; Iceland: nature|volcan*|landscape*|"
        "glacier*|northern|beaut*; India: culture|Taj|food|history|temple*|diverse; a vineyard: wine*|grape*|taste; "
        "Athens: Acropolis|history|ancient|Parthenon|culture|ruins",
        (prose(6),),
    ),
    Template(
        "member", "Mention two {x}, that is enough.",
        "rivers: Nile|Amazon|Mississippi|Thames|Danube|Rhine|Ganges|Yangtze|river; "
        "metals: gold|silver|iron|copper|aluminum|steel|zinc|lead|tin|titanium; "
        "insects: ant|ants|bee|bees|butterfl*|beetle*|fly|flies|mosquito*|grasshopper*; "
        "flowers: rose*|lil*|tulip*|daisy|daisies|sunflower*|orchid*|daffodil*; "
        "languages: English|Spanish|French|German|Chinese|Mandarin|Python|Japanese|Arabic; "
        "birds: eagle*|robin*|sparrow*|parrot*|owl*|crow*|bluebird*|cardinal*|hawk*; "
        "tools: hammer*|saw*|screwdriver*|wrench*|drill*|pliers; "
        "spices: pepper|cinnamon|cumin|turmeric|ginger|paprika|salt|nutmeg; "
        "clothes: shirt*|dress*|pants|jeans|jacket*|shoes|sock*|hat*|coat*|sweater*; "
        "board games: chess|monopoly|checkers|scrabble|risk|catan",
    ),
    Template(
        "advice", "My {x}. What should I do?",
        "tooth hurts: dentist; car does not start: battery|mechanic|engine|check*|fuel; "
        "plant is dry: water*; room is dark: light*|lamp*|window*|curtain*; phone is empty: charg*|battery|plug*; "
        "shirt is dirty: wash*|clean*|laundry; soup is bland: salt|spice*|season*|flavor*|herb*|pepper; "
        "bicycle has a flat tyre: tire*|tyre*|tube|pump*|patch|repair*; "
        "cat is ill: vet|veterinarian|doctor; window is broken: repair*|replace*|glass|fix*",
        (prose(5),),
    ),
    Template(
        "home", "Where does a {x} usually live?",
        "fish: water|sea|ocean*|river*|lake*|pond*; bird: nest*|tree*|forest*|sky|woodland*; "
        "camel: desert*|Africa|Asia|arid|dry; bee: hive*|colon*|nest*; monkey: tree*|jungle*|forest*|rainforest*; "
        "penguin: Antarctica|south*|ice|cold|Antarctic; farmer: farm*|rural|country*; king: castle*|palace*; "
        "spider: web*|garden*|house*|corner*|tree*|dark; whale: sea*|ocean*|water*",
    ),
    Template(
        "verse",
        "Rhyme two lines on {x}.",
        "a cat: cat*|purr*|paw*; the rain: rain*|drop*|wet|sky; a garden: garden*|flower*|bloom*|green; "
        "the night: night*|star*|moon|dark*; a friend: friend*; the wind: wind*|blow*|breeze*; "
        "a train: train*|track*|rail*; winter: winter*|snow*|cold|ice; the sea: sea*|wave*|ocean|shore; "
        "an old house: house*|home|door*|wall*|room*",
        (prose(6),),
    ),
    Template(
        "colour",
        "Tell me the colour of {x}.",
        "snow: white; blood: red; coal: black|dark; an emerald: green; chocolate: brown; a flamingo: pink; "
        "a banana: yellow; a carrot: orange; milk: white|cream*; the sky: blue",
    ),
    Template(
        "know",
        "Share one thing that you know about {x}.",
        "the moon: moon*|lunar|earth*; dolphins: dolphin*; chocolate: chocolate*|cocoa; the Romans: roman*|rome; "
        "chess: chess*|king|board|game; coffee: coffee*|bean*|caffeine; volcanoes: volcan*|lava|magma|erupt*; "
        "bicycles: bicycl*|bike*|wheel*; honey: honey|bee|bees; penguins: penguin*",
        (prose(6),),
    ),
    Template(
        "kind",
        "What sort of thing is a {x}?",
        "violin: instrument*|musical; salmon: fish*; hammer: tool*; rose: flower*|plant*; eagle: bird*; "
        "diamond: gem*|stone*|mineral*|carbon|crystal*; poodle: dog*|breed*; novel: book*|story|fiction|literary; "
        "taxi: vehicle*|car|cab|transport*; trout: fish*",
    ),
    Template(
        "ideas",
        "I am out of ideas for {x}. Help me with a few.",
        "dinner: chicken|pasta|soup|salad|rice|vegetable*|meal*|dish*; a rainy day: read*|movie*|book*|game*|indoor*; "
        "a gift for a teacher: book*|card*|gift*|mug|pen; a school play: play*|story|character*|stage; "
        "a birthday cake: cake*|chocolate|frosting|cream; a picnic: food|sandwich*|picnic*|blanket*|fruit*; "
        "my garden: garden*|plant*|flower*|tree*; a holiday: trip*|travel*|beach*|holiday*|vacation*|visit*; "
        "a costume: costume*|dress*|mask*|wear*|character*; a game with children: game*|play*|hide*|children|kids",
        (prose(6),),
    ),
    Template(
        "recipe",
        "What goes into {x}?",
        "pancakes: flour|egg*|milk; a salad: lettuce|tomato*|vegetable*|greens; an omelette: egg*; "
        "a pizza: cheese|tomato*|dough|crust|sauce; bread: flour|yeast|dough; "
        "a sandwich: bread|cheese|meat|ham|lettuce; vegetable soup: vegetable*|carrot*|broth|onion*; "
        "lemonade: lemon*|sugar|water; a fruit salad: fruit*|apple*|banana*|berries; "
        "mashed potatoes: potato*|butter|milk",
    ),
    Template(
        "take",
        "What should people take along to {x}?",
        "the beach: towel*|sunscreen|water|swim*|hat; a hike: water|boots|map|food|shoes|snack*; "
        "a wedding: gift*|present*|dress|ring*|flower*; a picnic: food|blanket*|sandwich*|basket|drink*; "
        "a swimming pool: towel*|swim*|goggles|sunscreen; a ski trip: ski*|warm|jacket*|glove*|boots; "
        "school: book*|pencil*|bag|backpack|notebook*|pen; a birthday party: gift*|present*|cake|card; "
        "a library: book*|card|notebook*|laptop; a job interview: resume*|question*|portfolio|cv|confiden*",
        (prose(4),),
    ),
)  # fmt: skip


def task() -> Task:
    """All requests as a task of the judge."""
    items = tuple(item for template in TEMPLATES for item in template.items())
    return Task(
        name="requests",
        title="requests followed",
        kind="program",
        version=1,
        chance=0.0,
        source="bench/keep",
        licence="Apache-2.0",
        read=lambda: items,
        max_tokens=MAX_TOKENS,
    )


def shared_run(template: str, prompts: Sequence[str], words: int = 4) -> str | None:
    """A run of so many words that a template's own words share with one of `prompts`, if any."""
    runs = {run for prompt in prompts for run in _runs(prompt, words)}
    own = [run for part in template.split("{x}") for run in _runs(part, words)]
    return next((run for run in own if run in runs), None)


def _runs(text: str, words: int) -> list[str]:
    said = re.findall(r"[\w']+", text.lower())
    return [" ".join(said[start : start + words]) for start in range(len(said) - words + 1)]
