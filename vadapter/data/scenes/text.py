"""Text-only documents about scenes, to pretrain the language models on.

Four of five begin with a list of facts in exactly the place that visual tokens take in the prompts of image tasks, so
that a language model learns to read what stands there.
"""

import random

from vadapter.data.rows import prompts
from vadapter.data.scenes import world
from vadapter.data.scenes.questions import Balancer

LIST_PROMPT = "List the objects: <media> :"


def _objects(scene: world.Scene) -> str:
    return " , ".join(f"{o.colour} {o.kind}" for o in scene.objects)


def document(rng: random.Random, scene: world.Scene, balancer: Balancer, paraphrases: int) -> str:
    """Returns a document: 40% describe, 10% list, 50% answer a question; 80% of them given the facts.

    Documents begin with a space where they begin with a word that elsewhere follows one: the pieces are then the same.
    """
    task, given = rng.random(), rng.random() < 0.8
    facts = world.facts(scene)
    if task < 0.4:
        caption = rng.choice(world.captions(scene, paraphrases))
        return f"{prompts.fill(prompts.load('caption'), facts)} {caption}" if given else f" {caption}"
    if task < 0.5:
        objects = _objects(scene)
        return f"{prompts.fill(LIST_PROMPT, facts)} {objects}" if given else f" {objects}"
    question = balancer.choose(rng, scene)[0]
    if not given:
        return f" Question : {question.text} ? Answer: {question.answer}"
    template = prompts.load("image_question")
    return f"{prompts.fill(template, facts, question.text)} {question.answer}"


def documents(rng: random.Random, count: int, max_objects: int, paraphrases: int, clips: float = 0.25) -> list[str]:
    """Returns `count` documents; a share `clips` of them is about clips."""
    balancers = Balancer(max_objects, 1), Balancer(max_objects, 1)
    found = []
    for _ in range(count):
        clip = rng.random() < clips
        scene = (world.sample_clip if clip else world.sample_image)(rng, max_objects)
        found.append(document(rng, scene, balancers[clip], paraphrases))
    return found
