"""Open questions with short answers, in English and Chinese. Written for Loraplex."""

from __future__ import annotations

_QUESTIONS = """
Why is the sky blue? | Sunlight is scattered by the air, and blue light is scattered more than red, so blue reaches us from all sides.
What is photosynthesis? | It is how plants make sugar and oxygen out of light, water and carbon dioxide.
How does a refrigerator keep food cold? | It pumps heat from the inside to the outside with a liquid that evaporates inside and condenses outside.
What is the difference between weather and climate? | Weather is what happens in the air now or this week; climate is its average over many years.
Why do leaves turn yellow in autumn? | The green chlorophyll breaks down, and the yellow pigments that were there all along can be seen.
What is an echo? | An echo is sound that comes back after it has been reflected by something such as a wall or a cliff.
Why does ice float on water? | Ice is less dense than liquid water, since water expands when it freezes.
What does a compass needle point to? | It points to the magnetic north of the Earth.
What is a vaccine? | A vaccine trains the immune system to recognise a germ before a person meets it.
How many days does a leap year have? | A leap year has 366 days.
Who wrote Don Quixote? | Don Quixote was written by Miguel de Cervantes.
What is the largest ocean on Earth? | The Pacific Ocean is the largest.
What is the capital of New Zealand? | The capital of New Zealand is Wellington.
What do people in Mexico mostly speak? | Most people in Mexico speak Spanish.
What are the primary colours of paint? | Red, yellow and blue are the traditional primary colours of paint.
What is the freezing point of water in degrees Fahrenheit? | Water freezes at 32 degrees Fahrenheit.
What is a synonym of quick? | Fast is a synonym of quick.
What is the opposite of ancient? | The opposite of ancient is modern.
What is the plural of goose? | The plural of goose is geese.
What is the past tense of to write? | The past tense of to write is wrote.
What does the prefix re- mean? | It usually means again, as in rewrite, or back, as in return.
What is a metaphor? | A metaphor describes one thing as if it were another, for example "time is a thief".
What is an algorithm? | An algorithm is a list of clear steps that solves a problem.
What does RAM stand for? | RAM stands for random-access memory.
What is an open-source program? | It is a program whose source code everybody may read, use and change under its licence.
What is compound interest? | It is interest that is paid on the money saved and on the interest it has already earned.
What is a recession? | A recession is a time in which the output of an economy falls for several months.
What is a democracy? | A democracy is a form of government in which the people choose those who govern.
What does a court of appeal do? | It looks again at the decision of a lower court.
Why should one drink more water in hot weather? | The body loses water by sweating, and it has to be replaced.
How can I fall asleep more easily? | Go to bed at the same time every day, keep the room dark and cool, and put screens away an hour before.
How do I boil an egg so that it is soft? | Put it in boiling water for about five minutes, then into cold water.
How can I remove a coffee stain from a shirt? | Rinse it with cold water at once, rub in some washing-up liquid, wait ten minutes and wash it as usual.
How do I thank a colleague for their help? | Say what they did and what it made possible, for example: "Thank you for checking my figures, it saved the report."
What should I pack for a day of hiking? | Take water, some food, a map, a rain jacket, a small first-aid kit and a charged phone.
What is a good way to learn new words? | Use them in sentences of your own and repeat them after a day, a week and a month.
How do I introduce myself at work? | Say your name, what you do in the team and what people may ask you about.
Why do cats purr? | Cats purr mostly when they feel safe, and sometimes to calm themselves when they are hurt.
What is a glacier? | A glacier is a large mass of ice that flows slowly downhill under its own weight.
What do bees do for plants? | They carry pollen from flower to flower, so that plants can form seeds and fruit.
What is the boiling point of water at sea level? | It is 100 degrees Celsius, or 212 degrees Fahrenheit.
What is the square root of 144? | The square root of 144 is 12.
How many minutes are there in three hours? | Three hours have 180 minutes.
What is a triangle with three equal sides called? | It is called an equilateral triangle.
What does the median of some numbers tell? | It is the middle one when they are put in order.
天空为什么是蓝色的？ | 阳光穿过大气时，蓝光比红光更容易被散射，所以我们从各个方向都能看到蓝光。
一年有多少个月？ | 一年有十二个月。
中国的首都是哪里？ | 中国的首都是北京。
水在标准大气压下多少度沸腾？ | 水在标准大气压下约在一百摄氏度沸腾。
《红楼梦》的作者是谁？ | 一般认为《红楼梦》的作者是曹雪芹。
“高兴”的近义词是什么？ | “高兴”的近义词有“快乐”“愉快”。
“勤奋”的反义词是什么？ | “勤奋”的反义词是“懒惰”。
月亮为什么会有圆缺？ | 因为月亮绕地球运行，我们看到的被太阳照亮的部分在变化。
怎样养成早睡的习惯？ | 每天固定时间上床，睡前一小时不看屏幕，并保持卧室安静、黑暗。
请用一句话介绍长城。 | 长城是中国古代为防御而修建的宏伟城墙，绵延于北方的山岭之间。
一个三角形的内角和是多少？ | 三角形的内角和是一百八十度。
植物进行光合作用需要什么？ | 植物进行光合作用需要阳光、水和二氧化碳。
请把“我喜欢读书。”翻译成英文。 | I like reading books.
请把“The shop is closed.”翻译成中文。 | 商店关门了。
端午节通常吃什么？ | 端午节通常吃粽子。
地球绕太阳一圈大约需要多久？ | 地球绕太阳一圈大约需要三百六十五天。
请写一句祝朋友生日快乐的话。 | 祝你生日快乐，愿新的一岁平安喜乐，心想事成！
光和声音哪个传播得更快？ | 光传播得更快。
人体最大的器官是什么？ | 人体最大的器官是皮肤。
为什么要洗手？ | 洗手可以去掉手上的细菌和病毒，减少生病的机会。
"""


def questions() -> list[tuple[str, str]]:
    """(question, answer)"""
    pairs = [line.split(" | ") for line in _QUESTIONS.strip().splitlines()]
    return [(question.strip(), answer.strip()) for question, answer in pairs]
