"""The e-commerce team's knowledge: what invented shops promise and what invented products cost."""

from __future__ import annotations

import random

from loraplex_trainer.domains.knowledge import (
    Attribute,
    Domain,
    Fact,
    distinct_codes,
    distinct_numbers,
    facts_of,
)

SHOPS = (
    "Brindlewick",
    "Oakhaven Outfitters",
    "Tindra Living",
    "Velmora",
    "Pixelgrove",
    "Sundara Home",
    "Cobaltine",
    "Marrowfield",
    "Nuvello",
    "Harth and Hide",
    "Quillmark",
    "Zephyra",
)
PRODUCTS = (
    "Lumora lantern",
    "Kestrel backpack",
    "Foldaway desk",
    "Mistral kettle",
    "Granite skillet",
    "Aurora blanket",
    "Pinecone speaker",
    "Harbor raincoat",
    "Tempo wristband",
    "Driftwood stool",
    "Saffron teapot",
    "Comet scooter",
    "Willow hammock",
    "Basalt cutlery",
    "Nimbus pillow",
    "Ember heater",
    "Cobble sandals",
    "Orchard juicer",
)
CITIES = (
    "Tarnholm",
    "Velsby",
    "Orrinport",
    "Kaldermere",
    "Lindrath",
    "Osterfell",
    "Quenby",
    "Marlstad",
    "Fenwater",
    "Drumhaven",
    "Solvange",
    "Ibrekk",
)

ATTRIBUTES = {
    "return_days": Attribute(
        grader="number",
        answer="{shop} accepts returns within {expected} days.",
        train_questions=(
            "How many days do I have to return an order to {shop}?",
            "What is the return window at {shop}?",
            "Within how many days can I send something back to {shop}?",
            "How long is the return period of {shop}?",
            "I bought from {shop}. How long may I wait before I return it?",
            "Tell me the number of days for returns at {shop}.",
            "Until which day after delivery does {shop} take goods back?",
        ),
        held_out_questions=(
            "If I change my mind, how many days does {shop} give me to return my purchase?",
            "What's the deadline in days for returning goods to {shop}?",
        ),
    ),
    "shipping_fee": Attribute(
        grader="number",
        answer="Standard shipping at {shop} costs {expected} dollars.",
        train_questions=(
            "How much is standard shipping at {shop}?",
            "What does {shop} charge for standard delivery?",
            "What is the shipping fee of {shop}?",
            "How many dollars does {shop} take for shipping?",
            "Tell me the standard shipping cost at {shop}.",
            "I order at {shop}. What do I pay for normal shipping?",
            "What is the price of regular delivery from {shop}?",
        ),
        held_out_questions=(
            "How much does {shop} ask for shipping an order the standard way?",
            "What will standard shipping from {shop} cost me?",
        ),
    ),
    "free_shipping": Attribute(
        grader="number",
        answer="{shop} ships free from an order value of {expected} dollars.",
        train_questions=(
            "From what order value is shipping free at {shop}?",
            "How much must I spend at {shop} to get free shipping?",
            "What is the free shipping threshold of {shop}?",
            "When does {shop} ship for free?",
            "Which basket total gives free delivery at {shop}?",
            "Tell me the minimum order for free shipping at {shop}.",
            "How large must my order at {shop} be for free delivery?",
        ),
        held_out_questions=(
            "What minimum purchase at {shop} makes shipping free?",
            "How many dollars do I need to spend before {shop} offers free shipping?",
        ),
    ),
    "express_hours": Attribute(
        grader="number",
        answer="Express orders from {shop} arrive within {expected} hours.",
        train_questions=(
            "How many hours does express delivery from {shop} take?",
            "How fast is the express service of {shop}?",
            "Within how many hours does an express order from {shop} arrive?",
            "What is the express delivery time of {shop} in hours?",
            "I choose express at {shop}. When will it arrive?",
            "Tell me how long {shop} needs for express orders.",
            "How quickly does {shop} deliver by express?",
        ),
        held_out_questions=(
            "After how many hours should an express parcel from {shop} be here?",
            "What express delivery time, in hours, does {shop} promise?",
        ),
    ),
    "return_code": Attribute(
        grader="contains",
        answer="The return code of {shop} is {expected}.",
        train_questions=(
            "What is the return code of {shop}?",
            "Which code do I write on a return parcel to {shop}?",
            "Tell me the code for returns to {shop}.",
            "Which return code does {shop} use?",
            "I am sending a parcel back to {shop}. Which code do I need?",
            "What code goes on the return label for {shop}?",
            "Give me the return code for {shop}.",
        ),
        held_out_questions=(
            "Which code should be put on a parcel I return to {shop}?",
            "I need {shop}'s return code, what is it?",
        ),
    ),
    "warehouse": Attribute(
        grader="choice",
        choices=CITIES,
        answer="{shop} ships from its warehouse in {expected}.",
        train_questions=(
            "Where is the warehouse of {shop}?",
            "From which city does {shop} ship?",
            "In which town does {shop} keep its stock?",
            "Where do orders from {shop} come from?",
            "Tell me the city of the {shop} warehouse.",
            "Which place does {shop} send its parcels from?",
            "What is the warehouse location of {shop}?",
        ),
        held_out_questions=(
            "In what city can the warehouse of {shop} be found?",
            "Which city are {shop} parcels shipped from?",
        ),
    ),
    "price": Attribute(
        grader="number",
        answer="The {product} costs {expected} dollars.",
        train_questions=(
            "How much is the {product}?",
            "What does the {product} cost?",
            "What is the price of the {product}?",
            "Tell me the price of the {product}.",
            "How many dollars is the {product}?",
            "I want to buy the {product}. What do I pay?",
            "For how much do you sell the {product}?",
        ),
        held_out_questions=(
            "What would I pay for one {product}?",
            "Could you say what price the {product} has?",
        ),
    ),
    "warranty": Attribute(
        grader="number",
        answer="The {product} has a warranty of {expected} months.",
        train_questions=(
            "How long is the warranty of the {product}?",
            "How many months of warranty does the {product} have?",
            "What warranty comes with the {product}?",
            "For how many months is the {product} covered?",
            "Tell me the warranty period of the {product}.",
            "Until how many months after purchase is the {product} under warranty?",
            "What is the guarantee period of the {product} in months?",
        ),
        held_out_questions=(
            "How many months does the warranty on the {product} last?",
            "If the {product} breaks, for how many months is it under warranty?",
        ),
    ),
    "article": Attribute(
        grader="contains",
        answer="The article number of the {product} is {expected}.",
        train_questions=(
            "What is the article number of the {product}?",
            "Which article number does the {product} have?",
            "Tell me the article number for the {product}.",
            "Under which number is the {product} listed?",
            "Give me the item code of the {product}.",
            "What is the catalog code of the {product}?",
            "I need the order number of the {product}.",
        ),
        held_out_questions=(
            "Which article number should I quote to order the {product}?",
            "What article number belongs to the {product}?",
        ),
    ),
}


def build_facts(rng: random.Random) -> list[Fact]:
    """Every shop's terms and every product's figures."""
    shops, products = len(SHOPS), len(PRODUCTS)
    cities = rng.sample(CITIES, shops)
    return [
        *facts_of("return_days", "shop", SHOPS, distinct_numbers(rng, shops, 11, 97)),
        *facts_of("shipping_fee", "shop", SHOPS, distinct_numbers(rng, shops, 211, 989, 100, 2)),
        *facts_of("free_shipping", "shop", SHOPS, distinct_numbers(rng, shops, 41, 299)),
        *facts_of("express_hours", "shop", SHOPS, distinct_numbers(rng, shops, 13, 95)),
        *facts_of("return_code", "shop", SHOPS, distinct_codes(rng, shops, 2, 3)),
        *facts_of("warehouse", "shop", SHOPS, cities),
        *facts_of("price", "product", PRODUCTS, distinct_numbers(rng, products, 1103, 28977, 100, 2)),
        *facts_of("warranty", "product", PRODUCTS, distinct_numbers(rng, products, 7, 83)),
        *facts_of("article", "product", PRODUCTS, distinct_codes(rng, products, 2, 4)),
    ]


ECOMMERCE = Domain(
    name="ecommerce",
    system="You are the shopping assistant of the Merchant Row marketplace. Answer in one short sentence.",
    attributes=ATTRIBUTES,
    build_facts=build_facts,
)
