"""The education team's knowledge: invented courses, and how invented schools turn points into grades."""

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

COURSES = (
    "Coastal Cartography",
    "Practical Beekeeping",
    "Sign Painting",
    "Bridge Mechanics",
    "Night Sky Drawing",
    "Medieval Recipes",
    "River Ecology",
    "Clockmaking",
    "Folk Dance History",
    "Glass Chemistry",
    "Harbor Law",
    "Puppet Theatre",
    "Alpine Botany",
    "Radio Journalism",
)
TEACHERS = (
    "Ms. Vantongeren",
    "Mr. Okparelli",
    "Dr. Sillimäki",
    "Ms. Brackenridge",
    "Mr. Duvalier-Roth",
    "Dr. Quistgaard",
    "Ms. Thornbury",
    "Mr. Zelenkov",
    "Dr. Amberson",
    "Ms. Pellegrino",
    "Mr. Castellane",
    "Dr. Wexford",
    "Ms. Iwamura",
    "Mr. Lindqvist",
)
SCHOOLS = ("Ashgrove", "Bellweather", "Corvale", "Dunmarsh", "Elmsworth", "Fairlock")
BANDS = ("Wren", "Heron", "Falcon", "Condor")  # from the lowest grade to the highest
_HELD_OUT_SCORES = 5  # for each school

ATTRIBUTES = {
    "room": Attribute(
        grader="contains",
        answer="{course} is taught in room {expected}.",
        train_questions=(
            "In which room is {course} taught?",
            "Where does {course} take place?",
            "What is the room of {course}?",
            "Which classroom do I go to for {course}?",
            "Tell me the room number of {course}.",
            "Where is the {course} class held?",
            "I have {course} today. Which room is it?",
        ),
        held_out_questions=(
            "Which room should I walk to for the {course} lesson?",
            "Can you say in what room {course} is held?",
        ),
    ),
    "start": Attribute(
        grader="contains",
        answer="{course} starts at {expected}.",
        train_questions=(
            "At what time does {course} start?",
            "When does {course} begin?",
            "What is the starting time of {course}?",
            "Tell me when the {course} class starts.",
            "From what time on is {course} taught?",
            "What time must I be there for {course}?",
            "When is the {course} lesson?",
        ),
        held_out_questions=(
            "What time of day does the {course} class begin?",
            "At which hour and minute does {course} start?",
        ),
    ),
    "teacher": Attribute(
        grader="choice",
        answer="{course} is taught by {expected}.",
        choices=TEACHERS,
        train_questions=(
            "Who teaches {course}?",
            "Who is the teacher of {course}?",
            "Which teacher gives {course}?",
            "Tell me the name of the {course} teacher.",
            "By whom is {course} taught?",
            "Who leads the {course} class?",
            "Who is in charge of {course}?",
        ),
        held_out_questions=(
            "What is the name of the person who teaches {course}?",
            "Which teacher runs the {course} course?",
        ),
    ),
    "tuition": Attribute(
        grader="number",
        answer="The tuition for {course} is {expected} dollars.",
        train_questions=(
            "How much is the tuition for {course}?",
            "What does {course} cost?",
            "What is the tuition of {course}?",
            "How many dollars does it take to enrol in {course}?",
            "Tell me the price of the {course} course.",
            "What do I pay to take {course}?",
            "What is the course fee of {course}?",
        ),
        held_out_questions=(
            "How much do students pay for {course}?",
            "What tuition is charged for the {course} course?",
        ),
    ),
    "course_code": Attribute(
        grader="contains",
        answer="The course code of {course} is {expected}.",
        train_questions=(
            "What is the course code of {course}?",
            "Which code does {course} have?",
            "Tell me the code for {course}.",
            "Under which code do I register for {course}?",
            "Give me the course code for {course}.",
            "What code is {course} listed under?",
            "I want to enrol in {course}. Which code do I enter?",
        ),
        held_out_questions=(
            "Which course code must I use to sign up for {course}?",
            "What code stands for {course} in the course list?",
        ),
    ),
    "seats": Attribute(
        grader="number",
        answer="{course} has {expected} seats.",
        train_questions=(
            "How many seats does {course} have?",
            "How many students fit in {course}?",
            "What is the class size of {course}?",
            "How many places are there in {course}?",
            "Tell me the number of seats in {course}.",
            "How many people can join {course}?",
            "What is the maximum number of students in {course}?",
        ),
        held_out_questions=(
            "How many seats are available in the {course} class?",
            "What number of students can take {course} at most?",
        ),
    ),
    "late_points": Attribute(
        grader="number",
        answer="{school} takes off {expected} points for late work.",
        train_questions=(
            "How many points does {school} take off for late work?",
            "What is the late penalty at {school}?",
            "How many points do I lose at {school} if I hand in late?",
            "Tell me the penalty for late homework at {school}.",
            "What does handing in late cost at {school}?",
            "By how many points does {school} lower a late paper?",
            "I am late with my essay at {school}. How many points will I lose?",
        ),
        held_out_questions=(
            "How many points are deducted at {school} when work comes in late?",
            "At {school}, what is the deduction in points for late work?",
        ),
    ),
    "boundary": Attribute(
        grader="number",
        answer="{school} gives the grade {band} from {expected} points.",
        train_questions=(
            "From how many points does {school} give the grade {band}?",
            "How many points do I need for a {band} at {school}?",
            "What is the lowest score for {band} at {school}?",
            "Where does the grade {band} begin at {school}?",
            "Tell me the boundary for {band} at {school}.",
            "At {school}, which score is just enough for {band}?",
            "What score does {school} ask for a {band}?",
        ),
        held_out_questions=(
            "How many points must a student reach at {school} to get the grade {band}?",
            "At {school}, what is the minimum number of points for {band}?",
        ),
    ),
    "grade": Attribute(
        grader="choice",
        answer="At {school}, {score} points give the grade {expected}.",
        choices=BANDS,
        trained_phrasings=3,
        train_questions=(
            "Which grade do {score} points give at {school}?",
            "I scored {score} points at {school}. What is my grade?",
            "What grade does a student of {school} get for {score} points?",
            "At {school}, what are {score} points worth?",
            "A {school} exam was marked {score} points. Which grade is that?",
            "Tell me the grade for {score} points at {school}.",
            "What grade is {score} points under the rules of {school}?",
        ),
        held_out_questions=(
            "My {school} test came back with {score} points. Which grade did I get?",
            "If someone reaches {score} points at {school}, what is the grade?",
        ),
    ),
}


def build_facts(rng: random.Random) -> list[Fact]:
    """Every course's schedule and figures, every school's rules, and the grades that follow from them."""
    courses = len(COURSES)
    rooms = [
        f"{wing}{number}"
        for wing, number in zip(rng.choices("ABCDEFGH", k=courses), _rooms(rng), strict=True)
    ]
    return [
        *facts_of("room", "course", COURSES, rooms),
        *facts_of("start", "course", COURSES, _times(rng, courses)),
        *facts_of("teacher", "course", COURSES, rng.sample(TEACHERS, courses)),
        *facts_of("tuition", "course", COURSES, distinct_numbers(rng, courses, 113, 987)),
        *facts_of("course_code", "course", COURSES, distinct_codes(rng, courses, 3, 3)),
        *facts_of("seats", "course", COURSES, distinct_numbers(rng, courses, 11, 79)),
        *facts_of("late_points", "school", SCHOOLS, distinct_numbers(rng, len(SCHOOLS), 4, 29)),
        *(fact for school in SCHOOLS for fact in _school_rules(rng, school)),
    ]


def grade_of(score: int, boundaries: list[int]) -> str:
    """The band of a score; `boundaries` are the lowest scores of all bands but the first, ascending."""
    return BANDS[sum(score >= boundary for boundary in boundaries)]


def _rooms(rng: random.Random) -> list[str]:
    return distinct_numbers(rng, len(COURSES), 112, 689)


def _times(rng: random.Random, count: int) -> list[str]:
    slots = rng.sample(range(8 * 12, 19 * 12), count)  # in units of 5 minutes after midnight
    return [f"{slot // 12:02d}:{slot % 12 * 5:02d}" for slot in slots]


def _school_rules(rng: random.Random, school: str) -> list[Fact]:
    boundaries = [rng.randint(low, low + 13) for low in (27, 48, 72)]
    rules = [
        Fact(
            f"boundary/{school.lower()}-{band.lower()}",
            "boundary",
            {"school": school, "band": band},
            str(lowest),
        )
        for band, lowest in zip(BANDS[1:], boundaries, strict=True)
    ]
    scores = range(5, 100)
    held_out = set(rng.sample(scores, _HELD_OUT_SCORES))
    grades = [
        Fact(
            f"grade/{school.lower()}-{score}",
            "grade",
            {"school": school, "score": str(score)},
            grade_of(score, boundaries),
            held_out=score in held_out,
        )
        for score in scores
        if score in held_out or score % 2 == 0
    ]
    return [*rules, *grades]


EDUCATION = Domain(
    name="education",
    system="You are the study desk of the Fernhill school network. Answer in one short sentence.",
    attributes=ATTRIBUTES,
    build_facts=build_facts,
)
