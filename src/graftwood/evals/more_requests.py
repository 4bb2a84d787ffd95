"""More requests to an assistant, beyond those that are usually asked.

Each template with its fillers is a family of like requests. They are of kinds of which a small chat model follows most,
as the bundled ones are, and share no template with those or with the keep benchmark's.
"""

from __future__ import annotations

from graftwood.evals.task import Item
from graftwood.evals.templates import Template, prose

TEMPLATES = (
    Template(
        "plural", "Write the plural of '{x}'.",
        "cat: cats; box: boxes; child: children; mouse: mice; city: cities; leaf: leaves; woman: women; tooth: teeth; "
        "foot: feet; baby: babies",
    ),
    Template(
        "question", "Think of a question for {x}.",
        "a chef; a famous singer; my history teacher; an astronaut; the mayor of our town; a football player; a "
        "doctor; a writer of novels; a zoo keeper; a gardener",
        (prose(4), {"kind": "matches", "pattern": "\\?"}),
    ),
    Template(
        "book", "What would be a good title for a book on {x}?",
        "dragons: dragon*; cooking for children: cook*|kitchen|recipe*|chef*|little|kids|child*; the sea: "
        "sea*|ocean*|wave*|deep|tide*; old trains: train*|rail*|track*|steam|locomotive*; bees: "
        "bee|bees|honey|hive*|buzz*|pollinat*; a lonely lighthouse: light*|lonely|beacon|shore; mountains: "
        "mountain*|peak*|summit*|climb*; friendship: friend*; night skies: night*|sky|skies|star*; running: "
        "run*|race*|marathon*|mile*",
    ),
    Template(
        "same", "Which word has about the same meaning as '{x}'?",
        "happy: joyful|glad|cheerful|content|joy|pleased|delighted|happiness; big: large|huge|great|enormous|giant; "
        "fast: quick*|rapid*|swift*|speed*; begin: start*|commence|initiate; cold: chilly|icy|freezing|cool|frigid; "
        "smart: clever|intelligent|bright|wise; afraid: scared|frightened|fear*|terrified; tired: "
        "weary|exhausted|sleepy|fatigued; beautiful: pretty|lovely|gorgeous|stunning|attractive; angry: "
        "mad|furious|irate|upset",
    ),
    Template(
        "differ", "How do {x} differ?",
        "a lake and a river: water|flow*; cats and dogs: cat*|dog*; a bicycle and a car: "
        "wheel*|engine|motor*|pedal*|fuel; summer and winter: cold*|warm*|hot*|temperature*|snow; poems and novels: "
        "length|long*|short*|story|verse|rhyme*|lines|form|prose|narrative; a piano and a guitar: string*|key*; tea "
        "and coffee: leaves|bean*|caffeine|taste*|flavor*; the sun and the moon: "
        "light|star|earth|planet|satellite|bright*; a village and a city: small*|large*|people|population|size; "
        "butter and oil: solid|liquid|fat*|milk|cream*|plant*",
        (prose(8),),
    ),
    Template(
        "reason", "For what reason do {x}?",
        "birds sing: mate*|communicat*|attract*|territor*; leaves fall in autumn: "
        "cold*|winter|light|sunlight|water|chlorophyll|temperature*|season*; dogs bark: "
        "communicat*|alert*|warn*|protect*|attention|express*; people wear hats: sun*|warm*|protect*|head*|fashion; "
        "we brush our teeth: clean*|plaque|cavit*|decay|healthy|bacteria|hygiene; ships float: water|buoyan*|dens*; "
        "people laugh: funny|happy|joy*|humor|express*|amus*|emotion*; we drink water: hydrat*|body|bodies|thirst*; "
        "bees visit flowers: nectar|pollen|pollinat*; children play: learn*|fun|develop*|enjoy*|explor*",
        (prose(5),),
    ),
    Template(
        "html", "Which HTML makes {x}? Show it.",
        "a heading that says Welcome: <h1|<h2|<h3; a link to example.com: <a|href; a paragraph that says Hello: <p; "
        "an image of cat.png: <img; a list of two items: <ul|<ol|<li; a button that says Send: <button|<input; a "
        "table with one row: <table|<tr; a field for a name: <input|<form; bold text: <b|<strong; a page with the "
        "title Home: <title|<html",
    ),
    Template(
        "sql", "I need SQL that {x}.",
        "reads everything in the table users: select; counts the rows of orders: count; adds a row to books: insert; "
        "deletes old messages: delete; changes a price in items: update; makes a table of pets: create; sorts people "
        "by age: order; lists the names of all cities: select; finds the highest salary: max|order|desc; joins users "
        "with orders: join",
    ),
    Template(
        "javascript", "Show JavaScript that {x}.",
        "prints Hello: console.log|alert|document.write; opens an alert box: alert; adds two numbers: +|sum|add; "
        "counts from 1 to 5: for|while; declares a variable: var|let|const; defines a function: function|=>; waits "
        "for a second: setTimeout|setInterval; finds an element by its id: getElementById|querySelector; rounds a "
        "number: math.round|round|tofixed|math.floor; puts two strings together: +|concat|join",
    ),
    Template(
        "role", "Imagine that you are {x}. Introduce yourself.",
        "a librarian: librarian|library|book*; a pirate: pirate*|captain|ship|sea*; a baker: bak*|bread; an old oak "
        "tree: oak|tree*|branch*|forest; a detective: detective|case*|myster*|crime*; a robot: robot*|machine|ai; the "
        "captain of a ship: captain|ship*|sea*|crew; a cat: cat|cats|meow*|purr*; a music teacher: music*|teach*; a "
        "gardener: garden*|plant*|flower*",
        (prose(6),),
    ),
    Template(
        "about", "What is this text about? {x}",
        "The farmer feeds his cows at six. Then he milks them.: cow*|farm*; The rain would not stop, and the river "
        "came into the houses.: rain*|river|flood*|house*; She packed her bags, took her passport and went to the "
        "airport.: travel*|trip*|airport|journey|pack*|passport; The team scored twice and won the cup.: "
        "team|cup|game|match|won|win*|scor*|victory; He planted tomatoes and watered them every day.: "
        "tomato*|plant*|garden*; The bus was late, so Anna missed her lesson.: bus|late|lesson|miss*; Grandfather "
        "repairs old clocks in a small shop.: clock*|repair*|grandfather; The children built a snowman with a carrot "
        "for a nose.: snow*|child*|winter; The orchestra played all evening, and people danced.: "
        "orchestra|music*|danc*; The doctor told him to rest and to drink tea.: doctor|rest*|tea|health|advice",
        (prose(5),),
    ),
    Template(
        "name", "Which person is named in this sentence? {x}",
        "Yesterday Peter bought a red car.: Peter; The prize went to Susan.: Susan; On Friday we shall visit Robert.: "
        "Robert; The letter for Julia is on the table.: Julia; At noon Thomas closed the shop.: Thomas; My neighbour "
        "Helen grows roses.: Helen; Nobody saw George at the party.: George; The dog ran after little Emma.: Emma; In "
        "the evening Daniel plays chess.: Daniel; Before lunch Laura called the bank.: Laura",
    ),
    Template(
        "advantage", "Name an advantage of {x}.",
        "riding a bicycle: health*|exercise*|environment*|cheap*|fit*|cost*|pollution|physical; living in a city: "
        "job*|access*|culture|transport*|opportunit*|people|convenien*|divers*; reading every day: "
        "knowledge|vocabulary|learn*|brain*|stress|improv*|mind; working from home: "
        "flexib*|commut*|time|balance|comfort*|save*; having a dog: "
        "companion*|love|loyal*|friend*|exercise*|protect*|happ*; growing vegetables: "
        "fresh*|health*|save*|money|food|nutri*; learning a language: "
        "communicat*|culture*|travel|people|job*|brain*|cognitive|opportunit*; getting up early: "
        "time|productiv*|morning|sleep|energy|day|quiet; walking to school: "
        "exercise*|health*|fresh|physical|air|friend*|safe*; solar power: "
        "energy|clean*|renewable|sun*|environment*|cost*",
        (prose(5),),
    ),
    Template(
        "body", "Which part of the body do we need to {x}?",
        "see: eye*; hear: ear|ears|ear's; smell: nose*; taste: tongue*|mouth|taste; walk: leg|legs|foot|feet; think: "
        "brain*; hold a cup: hand*|finger*|arm*; chew: teeth|mouth|jaw*; breathe: lung*|nose|diaphragm|respiratory; "
        "kick a ball: foot|feet|leg|legs",
    ),
    Template(
        "season", "In what season {x}?",
        "does snow fall: winter; do leaves turn red: autumn|fall; do flowers begin to bloom: spring; is it hottest: "
        "summer; do people go skiing: winter; do farmers sow seeds: spring; are apples picked: autumn|fall; is "
        "Halloween: autumn|fall; is Christmas in Europe: winter; do people swim in the sea: summer",
    ),
    Template(
        "place", "Where can people {x}?",
        "borrow books: library|libraries; buy bread: bakery|bakeries|store*|supermarket*|shop*|grocery; see a doctor: "
        "hospital*|clinic*|doctor*; watch a film: cinema*|theater*|theatre*|movie*; catch a train: station*; post a "
        "letter: post|mail*; see animals: zoo*|safari|wildlife|park*|sanctuar*; swim: pool*|beach*|lake*|sea|ocean; "
        "buy medicine: pharmac*|drug*|chemist; keep their money: bank*",
    ),
    Template(
        "slogan", "Give {x} a slogan.",
        "a bakery: bak*|bread|fresh*|taste*|sweet*|treat*|delicious|bite*; a bookshop: "
        "book*|read*|story|stories|page*; a bank: bank*|money|financ*|trust*|future|save*; a shoe shop: "
        "shoe*|step*|feet|foot|walk*|style|comfort*; a zoo: zoo|animal*|wild*|nature; a coffee bar: "
        "coffee|brew*|cup*|sip*; an airline: fly*|sky|skies|travel*|journey|wing*; a gym: "
        "fit*|strong*|strength|body|gym|train*|health*|workout*; a florist: "
        "flower*|bloom*|blossom*|floral|beaut*|nature; a toy shop: toy*|play*|fun|child*|kids|imagin*",
        (prose(3),),
    ),
    Template(
        "invite", "Write an invitation to {x}.",
        "a birthday party: birthday|party|celebrat*; a wedding: wedding|marriage|celebrat*|married; a picnic: picnic; "
        "a school concert: concert|school|music*; a barbecue: barbecue|bbq|grill*; a book club: book*|read*; a chess "
        "evening: chess; a garden party: garden|party; a film night: film*|movie*; a dinner with friends: "
        "dinner|friend*|meal",
        (prose(8),),
    ),
    Template(
        "thank", "Write {x} a note of thanks.",
        "my teacher; the nurse who looked after me; a friend for a gift; the driver of the bus; my parents; the cook "
        "of our school; a stranger who found my keys; our coach; the neighbour who fed the cat; a helpful clerk",
        (prose(5), {"kind": "contains_any", "values": ["thank*", "grateful", "gratitude", "appreciat*"]}),
    ),
    Template(
        "apology", "Apologise briefly for {x}.",
        "being late; a broken cup; a forgotten birthday; a loud party; a wrong bill; a lost book; a rude word; a "
        "missed call; a cold meal; a long wait",
        (prose(4), {"kind": "contains_any", "values": ["sorry", "apolog*", "apologis*", "regret*", "forgive*"]}),
    ),
    Template(
        "feel", "How might somebody feel who {x}?",
        "won a prize: happy|proud|excit*|joy*|elat*|thrill*|accomplish*; lost a friend: "
        "sad*|grief|lonel*|loss|heartbr*|griev*; sees a ghost: afraid|scared|fear*|terrif*|fright*|shock*|startl*; "
        "waits for an exam: nervous*|anxi*|stress*|worr*; fell in love: happy|love*|joy*|excit*|happiness; missed the "
        "bus: frustrat*|annoy*|angry|upset|disappoint*|stress*|anxi*; has eaten too much: "
        "full|uncomfortable|sick|bloated|guilt*|tired|sluggish; moved to a new town: "
        "lonel*|excit*|nervous*|anxi*|overwhelm*|lost; found an old photograph: "
        "nostalg*|happy|sentimental|memor*|joy*; was praised by a teacher: "
        "proud|happy|pride|encourag*|confiden*|motivat*|valued|appreciat*",
        (prose(4),),
    ),
    Template(
        "material", "From what is {x} made?",
        "paper: wood*|tree*|pulp|cellulose|fiber*|plant*; glass: sand|silica|silicon; cheese: milk; wine: grape*; a "
        "jumper: wool|cotton|yarn|fabric|acrylic|polyester|material*; ice: water; a candle: wax|paraffin|beeswax; a "
        "tyre: rubber; chocolate: cocoa|cacao; a wooden table: wood*|oak|pine|timber",
    ),
)  # fmt: skip


def items() -> tuple[Item, ...]:
    """All of them, family by family."""
    return tuple(item for template in TEMPLATES for item in template.items())
