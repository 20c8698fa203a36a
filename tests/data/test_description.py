from vadapter.base import resources
from vadapter.data import mixture_description, tasks
from vadapter.data.rows import vocabulary

SAMPLE = resources.folder("data") / "samples" / "captions.jsonl"


def test_what_a_task_does_to_text_and_pictures_is_known_from_its_name():
    name = tasks.jsonl_task(
        "described", str(SAMPLE), holdout=0.5, caption_prompt="Say <media> what.", resize="pad", vocabulary="scenes"
    )
    found = mixture_description.describe(name)
    assert found["resize"] == "pad"
    assert found["prompts"]["caption"] == "Say <media> what."
    assert "<question>" in found["prompts"]["image_question"]
    assert (found["vocabulary"], found["prompt_format"]) == ("", "plain")
    assert found["sha256"] == vocabulary.sha256("")
    shipped = str(vocabulary.locate(""))
    assert (
        mixture_description.describe(tasks.jsonl_task("described", str(SAMPLE), vocabulary=shipped))["vocabulary"]
        == shipped
    )
