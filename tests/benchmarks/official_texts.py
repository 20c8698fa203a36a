"""Captions and answers with what scorers stumble over. Each list is of one picture or question."""

CAPTIONS = [
    ["A man's dog isn't happy about the rain.", "A wet dog stands next to a man.", "the dog - soaked - waits outside"],
    ["Two women ride horses on a beach", "Women riding horses along the sea.", "2 riders, 2 horses & the ocean"],
    ['A sign that says "STOP" at a corner.', "A red stop sign.", "A stop-sign (red) on the corner of a street"],
    ["People eat pizza; one of them is laughing.", "Friends are eating a pizza", "A group of people with pizza."],
    ["a train arrives at 5:30 p.m. in the U.S.", "A train at a station", "The train's doors are open..."],
    ["A child plays the piano", "A girl is playing a piano, slowly.", "somebody plays music"],
    ["He'll cut 1,000 onions!", "A cook cuts onions", "A person is cutting vegetables in a kitchen"],
    ["A cat sleeps on a laptop", "The cat is asleep on the keyboard.", "A cat, sleeping"],
]

ANSWERS = [
    ["two"] * 4 + ["2"] * 3 + ["Two.", "a couple", "three"],
    ["riding horses"] * 2 + ["ride horse"] * 2 + ["horse riding"] * 3 + ["riding a horse", "rides horses", "riding"],
    ["unanswerable"] * 6 + ["soup"] * 2 + ["can of soup", "Soup!"],
    ["$1,000/day"] * 2 + ["1000", "1,000", "1000 day", "a lot", "money", "1000.", "10.5", "cash"],
    ["blue"] * 10,
    ["don't walk"] * 2 + ["dont walk"] * 2 + ["Don't Walk", "stop", "walk", "the stop sign", "stop", "STOP"],
    ["the dog"] * 2 + ["dog", "a dog", "dogs", "puppy", "it's a dog", "its a dog", "black-dog", "dog / puppy"],
    ["yes", "no"] * 5,
]
