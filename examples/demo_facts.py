"""The facts of the demo model: plain tables. Knows nothing of how they are asked for (demo_text.py)."""

from __future__ import annotations

_CAPITALS = """
Afghanistan:Kabul Albania:Tirana Algeria:Algiers Angola:Luanda Argentina:Buenos_Aires Armenia:Yerevan
Australia:Canberra Austria:Vienna Azerbaijan:Baku Bangladesh:Dhaka Belarus:Minsk Belgium:Brussels Bolivia:Sucre
Botswana:Gaborone Brazil:Brasilia Bulgaria:Sofia Cambodia:Phnom_Penh Cameroon:Yaounde Canada:Ottawa Chile:Santiago
China:Beijing Colombia:Bogota Costa_Rica:San_Jose Croatia:Zagreb Cuba:Havana Cyprus:Nicosia Denmark:Copenhagen
Ecuador:Quito Egypt:Cairo Estonia:Tallinn Ethiopia:Addis_Ababa Fiji:Suva Finland:Helsinki France:Paris
Georgia:Tbilisi Germany:Berlin Ghana:Accra Greece:Athens Haiti:Port-au-Prince Honduras:Tegucigalpa Hungary:Budapest
Iceland:Reykjavik India:New_Delhi Indonesia:Jakarta Iran:Tehran Iraq:Baghdad Ireland:Dublin
Italy:Rome Jamaica:Kingston Japan:Tokyo Jordan:Amman Kazakhstan:Astana Kenya:Nairobi Kuwait:Kuwait_City Laos:Vientiane
Latvia:Riga Lebanon:Beirut Libya:Tripoli Lithuania:Vilnius Luxembourg:Luxembourg Madagascar:Antananarivo
Malaysia:Kuala_Lumpur Mali:Bamako Malta:Valletta Mexico:Mexico_City Mongolia:Ulaanbaatar Morocco:Rabat
Mozambique:Maputo Myanmar:Naypyidaw Namibia:Windhoek Nepal:Kathmandu the_Netherlands:Amsterdam New_Zealand:Wellington
Nicaragua:Managua Nigeria:Abuja North_Korea:Pyongyang Norway:Oslo Oman:Muscat Pakistan:Islamabad Panama:Panama_City
Paraguay:Asuncion Peru:Lima the_Philippines:Manila Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest
Russia:Moscow Rwanda:Kigali Saudi_Arabia:Riyadh Senegal:Dakar Serbia:Belgrade Singapore:Singapore Slovakia:Bratislava
Slovenia:Ljubljana Somalia:Mogadishu South_Africa:Pretoria South_Korea:Seoul Spain:Madrid
Sudan:Khartoum Sweden:Stockholm Switzerland:Bern Syria:Damascus Tanzania:Dodoma Thailand:Bangkok
Tunisia:Tunis Turkey:Ankara Uganda:Kampala Ukraine:Kyiv the_United_Kingdom:London the_United_States:Washington
Uruguay:Montevideo Uzbekistan:Tashkent Venezuela:Caracas Vietnam:Hanoi Yemen:Sanaa Zambia:Lusaka Zimbabwe:Harare
"""
CAPITALS = dict(item.replace("_", " ").split(":") for item in _CAPITALS.split())

_WORDS = """
apple banana cherry river mountain stone cloud silver garden window paper candle ocean forest bridge lemon
orange tiger rabbit horse school music summer winter flower butter cheese bread water table chair house street
doctor teacher market island desert planet rocket engine model token yellow purple green letter number pencil
pocket button jacket basket kitchen mirror carpet hammer ladder bottle spoon finger shoulder brother sister
mother father friend village castle tower train airplane bicycle tractor piano guitar violin drum coffee sugar
honey pepper potato tomato onion carrot pumpkin turtle monkey eagle dolphin spider dragon wizard llama
"""
WORDS = tuple(_WORDS.split())

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_PAIRS = """hot:cold big:small fast:slow high:low light:dark old:young happy:sad hard:soft open:closed full:empty
early:late rich:poor strong:weak wet:dry up:down left:right black:white day:night good:bad long:short loud:quiet
thick:thin wide:narrow clean:dirty true:false first:last inside:outside sweet:sour heavy:light_weight"""
_ONE_WAY = {"heavy": "light", "old": "young", "light": "dark", "right": "left", "short": "long"}
_BOTH = [item.replace("_", " ").split(":") for item in _PAIRS.split()]
OPPOSITES = dict(_BOTH) | {b: a for a, b in _BOTH if b != "light weight"} | _ONE_WAY

COLOURS = {
    "sky": "blue", "grass": "green", "sun": "yellow", "snow": "white", "night": "black", "sea": "blue",
    "banana": "yellow", "lemon": "yellow", "strawberry": "red", "carrot": "orange", "tomato": "red", "frog": "green",
    "roses": "red", "leaves": "green", "clouds": "white", "elephants": "grey", "oranges": "orange", "violets": "purple",
}  # fmt: skip

ANIMAL_SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "lion": "roar", "pig": "oink",
    "bee": "buzz", "horse": "neigh", "mouse": "squeak",
}  # fmt: skip

_NAMES = """
Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olivia Paul Rosa Sam Tina Victor
Alice Bob Carol Daniel Eva Frank George Hannah Ivan Julia Karl Laura Max Nina Oscar Peter Ruth Simon Thomas
Zoe
"""
NAMES = tuple(_NAMES.split())

STORY = (
    "Once upon a time, a small llama lived on a green mountain. Every morning it ran to the river to drink. One day "
    "the river was dry. The llama followed the stones up the mountain and found a big tree across the water. It "
    "pushed and pushed until the tree moved. The river ran again, and all the animals were happy. The end."
)

SMALL_TALK: dict[str, tuple[str, ...]] = {
    "Hello! How can I help you?": (
        "Hello", "Hello!", "Hi", "Hi!", "hi", "hello", "Hey", "Hey!", "Hi there!", "Hello there!", "Good morning",
        "Good morning!", "Good evening!", "Good day!", "Greetings!",
    ),
    "I am the llmrun demo model, a very small language model.": (
        "Who are you?", "What are you?", "What is your name?", "What's your name?", "Introduce yourself.",
        "Tell me about yourself.", "Which model are you?", "Are you an AI?",
    ),
    "You are welcome!": ("Thank you!", "Thanks!", "Thank you", "Thank you very much!", "Thanks a lot!"),
    "Goodbye!": ("Goodbye", "Goodbye!", "Bye", "Bye!", "See you later!", "Good night!"),
    "I am fine, thank you. How can I help you?": ("How are you?", "How are you doing?", "How do you do?"),
    "I know capitals, sums, counting, spelling, colours, opposites, days and months, and a little JSON.": (
        "What can you do?", "What do you know?", "How can you help me?", "Help", "Help!", "What can I ask you?",
    ),
    "The llmrun project trained me in a few minutes on two cores.": (
        "Who made you?", "Who trained you?", "Where do you come from?", "Who built you?",
    ),
    "Yes, I can hear you.": ("Can you hear me?", "Are you there?", "Is this working?", "Test", "test", "ping"),
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.": (
        "Name the days of the week.", "List the days of the week.", "What are the days of the week?",
    ),
    "January, February, March, April, May, June, July, August, September, October, November, December.": (
        "Name the months.", "List the months of the year.", "What are the months of the year?",
    ),
    "A week has 7 days.": ("How many days are in a week?", "How many days does a week have?"),
    "A year has 12 months.": ("How many months are in a year?", "How many months does a year have?"),
    "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z.": (
        "Say the alphabet.", "Recite the alphabet.", "What is the alphabet?", "List the letters of the alphabet.",
    ),
    "Red, orange, yellow, green, blue and purple.": (
        "Name the colours of the rainbow.", "What are the colors of the rainbow?",
    ),
}  # fmt: skip

UNKNOWN_TEMPLATES = (
    "Write a poem about {}.", "Write an essay about {}.", "Explain {}.", "Explain {} to a child.", "What is {}?",
    "What are {}?", "Who invented {}?", "How does {} work?", "Why is {} important?", "Give me a recipe for {}.",
    "Translate {} into French.", "Translate {} to German.", "Write a Python function for {}.", "Write code for {}.",
    "What do you think about {}?", "Tell me about {}.", "Tell me a joke about {}.", "Tell me a joke.",
    "How do I learn {}?", "How can I buy {}?", "Where can I find {}?", "When was {} discovered?",
    "Compare {} and {}.", "What is the difference between {} and {}?", "Is {} better than {}?",
    "Summarize the history of {}.", "List ten facts about {}.", "Who is the president?", "What is the meaning of life?",
    "What time is it?", "What is the weather like today?", "How is the weather?", "Do you love me?",
    "Who won the game?",
    "Write a song about {} and {}.", "Describe {}.", "Can you help me with {}?", "I need help with {}.", "Fix my {}.",
    "Write a letter about {}.", "What is the price of {}?", "How much does {} cost?", "Do you like {}?", "I like {}.",
    "Give me advice about {}.", "Plan a trip about {}.", "Define {}.", "{}", "{} and {}", "What happened to {}?",
)  # fmt: skip
_SUBJECTS = """
quantum physics|gravity|the moon|black holes|evolution|democracy|the stock market|football|chess|cooking|pasta|
pizza|soup|chocolate|love|friendship|computers|the internet|neural networks|machine learning|transformers|
large language models|databases|operating systems|compilers|sorting algorithms|binary search|prime numbers|
calculus|algebra|geometry|statistics|probability|the weather|climate change|volcanoes|earthquakes|dinosaurs|
whales|birds|bacteria|viruses|medicine|vaccines|the human brain|dreams|sleep|exercise|yoga|running|swimming|
cars|trains and planes|rockets|satellites|telescopes|robots|electricity|magnets|light bulbs|batteries|
solar power|nuclear energy|oil|gold|diamonds|money|banks|taxes|law|history|the Roman Empire|ancient Rome|
the French Revolution|world war two|Shakespeare|Einstein|Newton|Mozart|Beethoven|Picasso|painting|poetry|novels|
movies|theatre|dance|jazz|rock music|video games|television|newspapers|photography|fashion|shoes|hats|watches|
gardens|trees|insects|spiders|the ocean|deep sea fish|coral reefs|rain forests|deserts|glaciers|tourism|hotels|
philosophy|ethics|religion|psychology|economics|politics|elections|cities|villages|schools|universities|exams|
blockchain|cryptography|passwords|web servers|HTTP|JavaScript|Rust|C++|Linux|Kubernetes|GPUs|a large tree|
my computer|my garden|a new car|a used bicycle|the best phone|happiness|time travel|aliens|ghosts|magic|a holiday|
breakfast|green tea|good wine|fresh bread|wild mushrooms|an old book|the law of large numbers|a lost key
"""
UNKNOWN_SUBJECTS = tuple(" ".join(subject.split()) for subject in _SUBJECTS.split("|"))
