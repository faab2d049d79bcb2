"""Questions with one right choice, as examinations ask them. Written for Loraplex."""

from __future__ import annotations

# subject: question | right | wrong | wrong | wrong
_QUESTIONS = """
astronomy: Which planet is known for its bright rings? | Saturn | Mercury | Mars | Venus
astronomy: What does the Moon orbit? | the Earth | the Sun alone | Jupiter | Polaris
astronomy: What is a light-year a measure of? | distance | time | brightness | mass
astronomy: Which of these is a star? | the Sun | Neptune | Titan | Ceres
astronomy: Why do we see phases of the Moon? | we see different parts of its lit half | clouds cover it | it changes its shape | the Sun dims
biology: Which organelle releases most of the energy that a cell uses? | the mitochondrion | the ribosome | the cell wall | the vacuole
biology: What carries oxygen in human blood? | haemoglobin | insulin | keratin | starch
biology: Which of these animals lays eggs? | the platypus | the dolphin | the bat | the elephant
biology: Where are the instructions for building proteins kept? | in DNA | in water | in bone | in sweat
biology: Which kingdom do mushrooms belong to? | fungi | plants | animals | bacteria
biology: What do carnivores mostly eat? | meat | grass | minerals | nectar
biology: Which sense does the retina serve? | sight | hearing | taste | smell
chemistry: What is the chemical symbol of sodium? | Na | So | S | Sd
chemistry: Which particle in an atom has a negative charge? | the electron | the proton | the neutron | the nucleus
chemistry: What does a pH of 2 tell about a liquid? | it is acidic | it is basic | it is neutral | it is frozen
chemistry: Which of these is a mixture? | sea water | gold | oxygen gas | helium
chemistry: What is rust made of? | iron oxide | copper | salt | carbon
chemistry: Which change is a physical one? | ice melting | wood burning | iron rusting | milk souring
physics: What is the unit of force? | the newton | the joule | the watt | the volt
physics: Which of these travels fastest? | light | sound | a jet | a bullet
physics: What happens to most metals when they are heated? | they expand | they vanish | they turn to water | they lose their mass
physics: Which device measures electric current? | an ammeter | a barometer | a thermometer | a ruler
physics: What keeps planets in their orbits? | gravity | friction | magnetism | air pressure
physics: Which of these conducts electricity best? | copper | rubber | glass | wool
mathematics: What is the next prime number after 13? | 17 | 14 | 15 | 16
mathematics: How many sides does an octagon have? | eight | five | seven | six
mathematics: What is the sum of the angles of a triangle? | 180 degrees | 90 degrees | 270 degrees | 360 degrees
mathematics: Which number is a multiple of 9? | 72 | 70 | 74 | 76
mathematics: What is one quarter as a decimal? | 0.25 | 0.4 | 0.14 | 0.5
mathematics: What do we call a number that divides by 2 without remainder? | even | odd | prime | negative
geography: On which continent does Kenya lie? | Africa | Asia | Europe | South America
geography: Which sea lies between Italy and Croatia? | the Adriatic | the Baltic | the Black Sea | the Red Sea
geography: Which country has the city of Kyoto? | Japan | China | Thailand | India
geography: Which mountain range separates France from Spain? | the Pyrenees | the Andes | the Alps | the Urals
geography: What is the capital of Finland? | Helsinki | Turku | Oslo | Riga
geography: Which river flows through Cairo? | the Nile | the Danube | the Amazon | the Rhine
geography: Which of these is an island country? | Iceland | Austria | Chad | Bolivia
geography: What is a desert short of? | rain | sand | wind | sunlight
history: Who composed the opera The Magic Flute? | Mozart | Verdi | Wagner | Bizet
history: Which people built Machu Picchu? | the Inca | the Romans | the Vikings | the Greeks
history: What did Johannes Gutenberg bring to Europe? | printing with movable type | the telephone | the steam engine | the compass
history: In which century was the French Revolution? | the eighteenth | the fifteenth | the twelfth | the twentieth
history: Which wall came down in 1989? | the Berlin Wall | Hadrian's Wall | the Great Wall | the Western Wall
history: Who was the first human in space? | Yuri Gagarin | Neil Armstrong | John Glenn | Sally Ride
history: Which script did the ancient Egyptians carve? | hieroglyphs | the Latin alphabet | Cyrillic | kana
literature: Who wrote The Tempest? | William Shakespeare | Charles Dickens | Jane Austen | Mark Twain
literature: What is a haiku? | a short poem | a long novel | a stage play | a song book
literature: In a fable, who often speaks? | animals | machines | judges | nobody
literature: What is the person called who tells a story? | the narrator | the printer | the editor | the critic
computing: What does a CPU do? | it carries out instructions | it stores photographs for ever | it cools the room | it prints pages
computing: How many bits are in a byte? | eight | four | ten | sixteen
computing: Which of these is a programming language? | Python | Ethernet | Photoshop | Bluetooth
computing: What is a loop used for? | repeating steps | deleting a screen | naming a file | drawing power
computing: Which structure gives back the last item put in first? | a stack | a queue | a table | a tree
computing: What should a password be? | long and hard to guess | your name | short | the word password
economics: What usually happens to a price when demand rises and supply stays the same? | it rises | it falls | it becomes zero | nothing can be said at all
economics: What is inflation? | a general rise of prices | a kind of tax | a bank account | a trade in shares
economics: What does a budget show? | planned income and spending | the weather | past wars | legal cases
economics: What is paid for borrowing money? | interest | a salary | a dividend | a prize
law: What is a contract? | an agreement that binds | a kind of prison | a newspaper | a tax office
law: Who decides a case in court? | a judge or jury | the baker | the mail carrier | the witness
law: What does a witness do? | tells what they saw | writes the laws | arrests people | sells evidence
medicine: Which vitamin does skin make in sunlight? | vitamin D | vitamin C | vitamin K | vitamin B12
medicine: What does a doctor listen to with a stethoscope? | heart and lungs | the eyes | the skin | the hair
medicine: Which habit lowers the spread of germs most simply? | washing hands | holding the breath | standing still | speaking loudly
medicine: Where is insulin made? | in the pancreas | in the lungs | in the kneecap | in the ear
music: How many strings does a violin have? | four | six | eight | twelve
music: Which of these is a percussion instrument? | the drum | the flute | the cello | the trumpet
music: What does the tempo of a piece tell? | how fast it is played | who wrote it | which hall it needs | how long it was rehearsed
sport: How many players of one side are on the field in football? | eleven | nine | seven | fifteen
sport: In which sport is a shuttlecock used? | badminton | golf | rowing | judo
sport: How long is a marathon, roughly? | 42 kilometres | 10 kilometres | 21 kilometres | 100 kilometres
everyday life: Which tool is used to tighten a bolt? | a wrench | a saw | a brush | a funnel
everyday life: What should you do before crossing a road? | look both ways | close your eyes | run at once | sit down
everyday life: Which of these keeps food cold? | a refrigerator | a toaster | a kettle | an oven
everyday life: What is bread mostly made of? | flour | sugar | butter | eggs
everyday life: Which material is best for seeing through? | glass | wood | brick | iron
everyday life: What do you need to mail a letter? | a stamp | a hammer | a ticket | a passport
everyday life: Which season follows spring in Europe? | summer | winter | autumn | spring again
everyday life: Which of these floats on water? | a cork | a coin | a nail | a stone
philosophy: Who was the teacher of Plato? | Socrates | Newton | Galileo | Darwin
philosophy: What does logic study? | valid reasoning | old coins | the stars | cooking
philosophy: An argument whose conclusion must be true if its premises are is called what? | valid | long | polite | popular
psychology: What does memory allow us to do? | keep and recall what we learned | digest food | grow hair | see in the dark
psychology: What is a habit? | something done again and again with little thought | a rare accident | a kind of dream | a broken rule
earth science: What is the hot liquid that flows out of a volcano called? | lava | sand | slate | chalk
earth science: What causes day and night? | the Earth turning | the Moon's phases | ocean currents | the seasons
earth science: What is the layer of gas around the Earth called? | the atmosphere | the crust | the mantle | the core
earth science: What measures the strength of an earthquake? | a seismograph | a compass | a telescope | an hourglass
"""

Choice = tuple[str, str, str, tuple[str, ...]]
"""(subject, question, right answer, wrong answers)"""


def choices() -> list[Choice]:
    """All of them."""
    found = []
    for line in _QUESTIONS.strip().splitlines():
        subject, _, rest = line.partition(": ")
        question, right, *wrong = [part.strip() for part in rest.split(" | ")]
        found.append((subject, question, right, tuple(wrong)))
    return found
