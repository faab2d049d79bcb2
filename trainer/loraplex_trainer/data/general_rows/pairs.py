"""Pairs of sentences and single sentences to judge. Written for Loraplex."""

from __future__ import annotations

# first sentence | second sentence | whether they mean the same
_PARAPHRASES = """
The train was late because of the snow. | Snow delayed the train. | yes
The train was late because of the snow. | The train came early in spite of the snow. | no
She gave her brother a book for his birthday. | Her brother got a book from her on his birthday. | yes
She gave her brother a book for his birthday. | Her brother gave her a book for her birthday. | no
The museum opens at nine and closes at six. | From nine to six the museum is open. | yes
The museum opens at nine and closes at six. | The museum is open all night. | no
Nobody in the office speaks Finnish. | No one at the office can speak Finnish. | yes
Nobody in the office speaks Finnish. | Everybody in the office speaks Finnish. | no
The river rose two metres within a day. | In one day the water of the river climbed by two metres. | yes
The river rose two metres within a day. | The river fell two metres within a day. | no
He stopped smoking ten years ago. | It has been ten years since he gave up smoking. | yes
He stopped smoking ten years ago. | He began smoking ten years ago. | no
The committee approved the plan by a wide margin. | A large majority of the committee was for the plan. | yes
The committee approved the plan by a wide margin. | The committee turned the plan down. | no
The cake is too sweet for me. | I find the cake sweeter than I like. | yes
The cake is too sweet for me. | I would like the cake to be sweeter. | no
Maria is taller than Lena. | Lena is shorter than Maria. | yes
Maria is taller than Lena. | Lena is taller than Maria. | no
The shop sold out of umbrellas before noon. | By midday there were no umbrellas left in the shop. | yes
The shop sold out of umbrellas before noon. | The shop sells no umbrellas at all. | no
"""

# premise | hypothesis | whether it follows
_ENTAILMENTS = """
A boy is kicking a ball across the yard. | A child is playing outside. | yes
A boy is kicking a ball across the yard. | A boy is asleep in his bed. | no
All the windows of the house were open. | The kitchen window was open. | yes
All the windows of the house were open. | One window of the house was shut. | no
Two women are cooking soup together. | Some people are preparing food. | yes
Two women are cooking soup together. | The soup is being sold in a shop. | no
The bridge has been closed since Monday. | Cars cannot cross the bridge today. | yes
The bridge has been closed since Monday. | The bridge was built on Monday. | no
Peter won the race by three seconds. | Peter finished before everybody else. | yes
Peter won the race by three seconds. | Peter came second. | no
The dog chased the cat up a tree. | The cat is in a tree. | yes
The dog chased the cat up a tree. | The dog is up in the tree. | no
Every seat in the theatre was taken. | The theatre was full. | yes
Every seat in the theatre was taken. | Half of the seats were free. | no
She bought three apples and ate one of them. | She has eaten an apple. | yes
She bought three apples and ate one of them. | She bought no fruit. | no
The letter was written in 1912. | The letter is more than fifty years old. | yes
The letter was written in 1912. | The letter was written last week. | no
"""

# text | its mood
_SENTIMENTS = """
The soup was cold and the waiter ignored us. | negative
A charming little hotel, and the breakfast was superb. | positive
I wanted to leave after ten minutes; the plot makes no sense. | negative
My new bicycle rides like a dream. | positive
The headphones broke on the second day. | negative
What a friendly team, they solved my problem at once. | positive
The room smelled of smoke and the bed was hard. | negative
I have read this book three times and love it more each time. | positive
Support never answered my letters. | negative
The garden tour was the best part of our holiday. | positive
The film is far too long and the jokes fall flat. | negative
The colours are bright, the fabric is soft, and it fits perfectly. | positive
I regret buying this kettle, it leaks. | negative
Our guide was patient and full of stories. | positive
The update made my phone slow. | negative
The bread was fresh and the coffee excellent. | positive
"""

# sentence | whether it is good grammar
_GRAMMAR = """
The children are playing in the garden. | yes
The children is playing in the garden. | no
He has lived here since 2010. | yes
He have lived here since 2010. | no
Which of these books do you like best? | yes
Which of this books do you likes best? | no
We went home after the concert had ended. | yes
We goed home after the concert had ended. | no
She asked me where the station was. | yes
She asked me where was station the. | no
Neither of the answers is right. | yes
Them answers is both not rightly. | no
"""


def paraphrases() -> list[tuple[str, ...]]:
    """(first, second, yes or no)"""
    return _rows(_PARAPHRASES)


def entailments() -> list[tuple[str, ...]]:
    """(premise, hypothesis, yes or no)"""
    return _rows(_ENTAILMENTS)


def sentiments() -> list[tuple[str, ...]]:
    """(text, positive or negative)"""
    return _rows(_SENTIMENTS)


def grammar() -> list[tuple[str, ...]]:
    """(sentence, yes or no)"""
    return _rows(_GRAMMAR)


def _rows(text: str) -> list[tuple[str, ...]]:
    return [tuple(part.strip() for part in line.split(" | ")) for line in text.strip().splitlines()]
