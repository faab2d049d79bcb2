"""Instructions to write, rewrite, sort, extract and list. Written for Loraplex."""

from __future__ import annotations

_TASKS = """
Write a story of three sentences about a lost key. || Mira looked for her key in every pocket and found only a button. On the way back a crow hopped beside her with something shiny in its beak. She traded the button for the key, and both went home content.
Write a story of two sentences about a lighthouse. || Every evening old Tomas climbed the hundred steps and lit the lamp. One night a ship he had never seen answered with three short flashes, and he knew his daughter was coming home.
Tell a very short story about a robot who paints. || The robot was built to paint fences white. One day it left a small blue bird in a corner, and by summer the whole street had asked for one.
Write four lines about rain. || Rain on the roof, a soft gray drum, / it taps the glass and says its name, / the gutters sing, the gardens hum, / and nothing after looks the same.
Write one sentence that makes a reader curious. || The letter had been posted yesterday, but its stamp was a hundred years old.
Continue in one sentence: The elevator stopped between two floors, and then || the lights went out and somebody in the corner began to whistle.
Describe an autumn morning in two sentences. || Mist lay over the field, and every spider web carried a row of drops. Somewhere a tractor coughed, and the first leaves let go.
Describe a kitchen without naming it. || Steam rises from a pot, a knife taps on a board, and the smell of onions leads everyone in.
Rewrite politely: Send me the file now. || Could you please send me the file as soon as you can?
Rewrite politely: You are wrong. || I see it a little differently; may I explain why?
Rewrite in the passive: The chef prepared the meal. || The meal was prepared by the chef.
Rewrite in the active: The song was written by two sisters. || Two sisters wrote the song.
Rewrite in the past tense: She walks to school and meets her friend. || She walked to school and met her friend.
Rewrite in the future: We visit our aunt. || We will visit our aunt.
Rewrite more simply: The precipitation necessitated the postponement of the event. || The event was put off because of the rain.
Rewrite more formally: We can't make it, sorry. || We regret that we are unable to attend.
Make this shorter: At this point in time we are not in a position to give an answer. || We cannot answer now.
Make this shorter: The reason why he left was that he was tired. || He left because he was tired.
Turn this into a question: The museum is open on Sundays. || Is the museum open on Sundays?
Turn this into a negative sentence: Tom likes spinach. || Tom does not like spinach.
Correct the sentence: He don't know where is the key. || He doesn't know where the key is.
Correct the sentence: I has two cats and a dogs. || I have two cats and a dog.
Correct the spelling: The wether is beautifull today. || The weather is beautiful today.
Correct the spelling: Please recieve this adress. || Please receive this address.
Put these words in alphabetical order: pear, apple, cherry, banana. || apple, banana, cherry, pear
Put these numbers in order, smallest first: 14, 3, 27, 9. || 3, 9, 14, 27
Put these words in alphabetical order: tiger, bear, otter, lynx. || bear, lynx, otter, tiger
Which word does not belong: chair, table, carrot, bed? || Carrot, since the others are furniture.
Which word does not belong: red, blue, square, green? || Square, since the others are colours.
Which word does not belong: piano, guitar, violin, spoon? || Spoon, since the others are instruments.
Name the city in this sentence: Last May we flew to Oslo for a wedding. || Oslo
Name the date in this sentence: The contract ends on 3 March. || 3 March
Name all animals in this sentence: The fox watched the hens while a horse slept. || fox, hens, horse
Name the person in this sentence: Yesterday Amelia repaired the old clock. || Amelia
Extract the numbers: Room 12 has 4 chairs and 2 tables. || 12, 4, 2
List three things that are round. || A coin, a wheel and the full moon.
List three means of transport. || A bus, a bicycle and a ship.
List five fruits. || Apple, banana, cherry, mango and pear.
List the days of the weekend. || Saturday and Sunday.
List four tools of a gardener. || A spade, a rake, a hose and shears.
List three ways to save electricity. || Switch off lights that nobody needs, use LED lamps, and let laundry dry on a line.
List the steps of making tea. || Boil water, pour it over the tea, wait three minutes, take the leaves out, and drink.
Give me three names for a bakery. || Golden Crumb, The Early Oven, Flour & Sons.
Give two arguments for cycling to work. || It keeps you fit, and it costs almost nothing.
Give one argument for and one against working from home. || For: no time is lost on the way. Against: it is harder to talk to colleagues.
Is a whale a fish or a mammal? || A whale is a mammal.
Is a tomato, to a botanist, a fruit or a vegetable? || To a botanist it is a fruit.
Which category fits: sports, politics or cooking? The striker scored twice in the second half. || sports
Which category fits: sports, politics or cooking? Parliament votes on the new budget tomorrow. || politics
Which category fits: sports, politics or cooking? Let the dough rest for an hour before you roll it out. || cooking
Which category fits: science, travel or fashion? The probe has sent pictures of a distant moon. || science
Which category fits: science, travel or fashion? Wide trousers and bright scarves return this winter. || fashion
Which category fits: science, travel or fashion? The night train reaches the coast at seven. || travel
Is this a question, a statement or a command? Close the door. || It is a command.
Is this a question, a statement or a command? Where is the nearest bank? || It is a question.
Is this a question, a statement or a command? Water boils at a lower temperature in the mountains. || It is a statement.
Summarize in one sentence: The town has built a new library. It has three floors, a reading garden and rooms for groups. It opens in June. || The town's new library, with three floors, a reading garden and group rooms, opens in June.
Summarize in one sentence: Sales fell in spring because of the strike. Since July they have grown again, and the year may end without a loss. || After a weak spring sales have recovered, and the year may end without a loss.
Write a short message that cancels a meeting. || Dear all, I have to cancel today's meeting. I will suggest a new date tomorrow. Sorry for the trouble.
Write a short invitation to a picnic. || Dear friends, we are having a picnic in the park on Saturday at noon. Bring a blanket and something to share!
Write a title for a text about saving water at home. || Every Drop Counts: Saving Water at Home
Explain to a child what a bank does. || A bank keeps your money safe, and lends some of it to people who pay it back later with a little more.
Explain to a child why we sleep. || While you sleep your body rests and grows, and your head tidies up all it has seen.
Explain in one sentence what gravity is. || Gravity is the pull between things that have mass, which keeps us on the ground.
Translate into French: Good morning. || Bonjour.
Translate into Spanish: Thank you very much. || Muchas gracias.
Translate into German: The house is big. || Das Haus ist groß.
What is the main idea: Trees cool cities. Their shade lowers the temperature of streets, and their leaves give off water. || Trees make cities cooler.
Answer with one word: What colour do blue and yellow paint make? || Green
Answer with one word: What do you use to open a lock? || Key
Answer with one word: What do you call the child of your uncle? || Cousin
"""

_DIALOGUES = """
I have a question about cooking rice. || Sure, what would you like to know? || How much water do I need for one cup? || About two cups of water for one cup of white rice.
My sister's birthday is next week. || How nice! Are you looking for an idea? || Yes, she likes plants. || Then a small herb garden for the window would suit her.
Let's play a game: I name an animal, you name its young. Dog. || Puppy. || Sheep. || Lamb.
I am thinking of learning an instrument. || Good idea. Do you prefer strings, keys or wind? || Strings, and something small. || Then the ukulele is a good start: it is small, cheap and easy to tune.
Can you help me plan a day in a city? || Gladly. Do you like museums, food or walking? || Walking. || Then begin at the river in the morning, cross the old town at noon, and end on a hill for the sunset.
你能帮我想一个周末计划吗？ || 当然可以，你更喜欢在家还是出门？ || 出门。 || 那可以上午去公园散步，下午逛书店，晚上和朋友一起吃饭。
"""


def tasks() -> list[tuple[str, ...]]:
    """(instruction, answer), and turns of dialogues"""
    lines = [*_TASKS.strip().splitlines(), *_DIALOGUES.strip().splitlines()]
    return [tuple(part.strip() for part in line.split(" || ")) for line in lines]
