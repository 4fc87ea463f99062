"""The words of the world `word_problems`: many ways to say each thing, so that a student cannot learn one by heart.

Fields in braces: `name`, `she`, `her`, `She`, `Her` of the person, `things`, `n` a number of the text,
`s` the amount at the start, `a` the answer.
"""

PEOPLE = [
    *((name, "she", "her") for name in ("Maya", "Lena", "Amara", "Sofia", "Ruth", "Nadia", "Clara", "Priya")),
    *((name, "he", "his") for name in ("Tom", "Ravi", "Omar", "Jonas", "Felix", "Diego", "Karim", "Hugo")),
]
THINGS = [
    "shells",
    "marbles",
    "stickers",
    "apples",
    "coins",
    "cards",
    "buttons",
    "pencils",
    "beads",
    "stamps",
    "candles",
    "tickets",
]

STARTS = [
    "{name} has {n} {things}.",
    "In the morning {name} counts {n} {things}.",
    "{name} begins the week with {n} {things}.",
    "There are {n} {things} in {name}'s box.",
    "{name} owns {n} {things}.",
]
EVENTS = {
    "+": [
        "{She} finds {n} more.",
        "Then {name} buys another {n} {things}.",
        "A friend gives {name} {n} {things}.",
        "Later {she} wins {n} {things} in a game.",
        "{n} more {things} arrive by post.",
        "{She} adds {n} that {she} had forgotten.",
    ],
    "-": [
        "{She} gives {n} to a friend.",
        "Then {name} loses {n} {things}.",
        "{n} of them break.",
        "{She} sells {n} {things} at the market.",
        "{Her} brother takes {n}.",
        "{She} leaves {n} {things} at school.",
    ],
    "*": [
        "Then the number of {things} grows to {n} times what it was.",
        "{She} trades them for {n} times as many {things}.",
        "An uncle brings enough for {name} to have {n} times as many.",
        "A lucky draw multiplies {her} {things} by {n}.",
    ],
}
DISTRACTORS = [
    "{Her} sister is {n} years old.",
    "It is {n} degrees outside.",
    "The walk home takes {n} minutes.",
    "{n} children are watching.",
    "A bag to keep things in costs {n} dollars.",
    "{name} lives at number {n}.",
    "There are {n} books on the shelf.",
]
QUESTIONS = [
    "How many {things} does {name} have now?",
    "How many {things} are there in the end?",
    "What is the number of {things} that {name} ends with?",
    "With how many {things} does {name} end?",
]

OPENINGS = [
    "Okay, step by step.",
    "Let me work it out.",
    "Alright, I follow the {things}.",
    "First, what is asked? The {things} at the end.",
    "Let me see what happens.",
    "Hmm, one change at a time.",
]
FIRST_AMOUNTS = [
    "{name} starts with {s}.",
    "At the start there are {s} {things}.",
    "We begin at {s}.",
    "The first amount is {s}.",
]
STEPS = {
    "+": ["{She} gets {n}: ", "Plus {n}: ", "Then {n} come in, so ", "Add the {n}. Now ", "Next a gain of {n}. "],
    "-": ["{She} gives up {n}: ", "Minus {n}: ", "Then {n} go away, so ", "Take off {n}. Now ", "Next a loss of {n}. "],
    "*": ["Times {n}: ", "It grows {n} times: ", "Now {n} times as many, so ", "Multiply by {n}. "],
}
ANSWERS = [
    "So the answer is {a}.",
    "That makes {a} {things}.",
    "So {name} ends with {a} {things}.",
    "The result is {a}.",
    "That leaves {a} in the end.",
]

CHECKS = {
    "again": [
        "Wait, let me go through it again.",
        "Let me redo the sums to be sure.",
        "Hmm, better to compute it once more.",
        "Let me repeat the steps slowly.",
    ],
    "backwards": [
        "Let me also check it backwards from {a}.",
        "Going the other way, from {a}:",
        "To verify, undo the steps, starting at {a}.",
        "Does it come back to the start? From {a}:",
    ],
    "amounts": [
        "Another look, at the amounts one after the other:",
        "The amounts in a row are",
        "As a list of what there was each time:",
        "Writing down only the amounts:",
    ],
    "numbers": [
        "Did I use the right numbers?",
        "Let me reread the question for numbers that I missed.",
        "Which numbers of the text count?",
        "Wait, is every number accounted for?",
    ],
}
VERDICTS = {
    "again": ["It is {a} again.", "Same result, {a}.", "Still {a}.", "So {a} holds."],
    "backwards": [
        "That is the {s} from the start, so it fits.",
        "Back at {s}, good.",
        "And {s} is where we began.",
        "It returns to {s}, as it should.",
    ],
    "amounts": ["The last one is {a}.", "It ends at {a}.", "So {a} is last.", "The end of it is {a}."],
    "numbers": ["So {a} stands.", "The answer stays {a}.", "Nothing changes, {a}.", "Then {a} is right."],
}
USED = ["The ones that count are {used}", "I used {used}", "Those for the {things} are {used}"]
UNUSED = [
    "{unused} is about something else.",
    "{unused} does not matter here.",
    "{unused} has nothing to do with {things}.",
]
CONCLUSIONS = [
    "I am sure now.",
    "Everything agrees.",
    "Good, all of it fits together.",
    "That settles it.",
    "No mistake that I can see.",
]
REPLIES = [
    "{name} has \\boxed{{{a}}} {things}.",
    "The answer is \\boxed{{{a}}}.",
    "There are \\boxed{{{a}}} {things}.",
    "In the end {name} has \\boxed{{{a}}} {things}.",
]
