"""The prompts of a model as a chat template of transformers: the very text that vadapter writes.

One picture or video is asked about as `vadapter infer` does it, with the prompt of the training: that of captions where
the turn has no text, else that of questions, if there is one. All else is written as `TrainedModel.chat` writes it.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import jinja2.sandbox

from vadapter.data.rows import prompts
from vadapter.data.rows.text_vocabulary import TextVocabulary

IMAGE, VIDEO = "<image>", "<video>"
WHOLE_IMAGE = "<whole image>"  # a picture without the tiles that pictures of conversations have

_TEMPLATE = """\
{%- set start = START -%}{%- set format = FORMAT -%}{%- set prompts = PROMPTS -%}
{%- set marks = {'image': IMAGE, 'image_url': IMAGE, 'video': VIDEO, 'video_url': VIDEO} -%}
{%- macro turn(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}{%- set parts -%}
{%- for part in content -%}{{ marks.get(part.type, part.text) }}{%- endfor -%}
{%- endset -%}{{ parts | trim }}{%- endif -%}
{%- endmacro -%}
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- set media = namespace(kinds=[]) -%}
{%- for message in messages if message.content is not string -%}
{%- for part in message.content if part.type in marks -%}
{%- set media.kinds = media.kinds + [part.type | replace('_url', '')] -%}
{%- endfor -%}{%- endfor -%}
{{- start -}}
{%- set question = text_of(messages[0].content) | trim -%}
{%- set kind = (media.kinds[0] if media.kinds else '') + ('_question' if question else '') -%}
{%- if messages | length == 1 and media.kinds | length == 1 and kind in prompts -%}
{%- set prompt = prompts[kind] -%}
{{- format.before -}}
{{- (' ' if format.before and prompt.before and format.space else '') + prompt.before + prompt.mark -}}
{{- prompt.after.replace('<question>', question.rstrip('?').rstrip()) + format.between -}}
{%- else -%}
{%- set seen = namespace(first=true, system='') -%}
{%- for message in messages -%}
{%- set said = turn(message.content) -%}
{%- if message.role == 'system' -%}
{%- set seen.system = said -%}
{%- elif message.role == 'assistant' -%}
{{- (' ' if format.space else '') + said + format.end -}}
{%- else -%}
{%- set text = said and not said.startswith(IMAGE) and not said.startswith(VIDEO) -%}
{%- set space = ' ' if format.space and text else '' -%}
{%- if not seen.first -%}
{{- format.again + space + said -}}
{%- elif seen.system -%}
{{- format.system[0] + seen.system + format.system[1] + said -}}
{%- else -%}
{{- format.before + (space if format.before else format.lead if text else '') + said -}}
{%- endif -%}
{{- format.between -}}
{%- set seen.first = false -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
"""


def make(
    vocabulary: TextVocabulary,
    templates: Mapping[str, str],
    start: str,
    end: str,
    leads: bool,
    whole: Collection[str] = (),
) -> str:
    """Returns the template as Jinja.

    Args:
        vocabulary: of the model.
        templates: prompts with `<media>`, and `<question>` where the name says so: of `image`, `image_question`,
            `video`, `video_question`. What is not there is asked as a turn of a conversation.
        start: text of the token that begins a row.
        end: text of the token that ends an answer.
        leads: whether a row's first text has a space before it (Llama 2).
        whole: templates whose pictures have no tiles, where others have them.
    """
    form = vocabulary.format
    opens = form.before.startswith(form.tokens) if form.before and form.tokens else False
    lead = " " if leads else ""
    before = f"{lead}{form.before}" if form.before and not opens else form.before
    told: dict[str, Any] = {}
    for name, template in templates.items():
        first, after = prompts.split(prompts.without_examples(template))
        mark = VIDEO if name.startswith("video") else WHOLE_IMAGE if template in whole else IMAGE
        told[name] = {"before": f"{lead}{first}" if first and not form.before else first, "after": after, "mark": mark}
    system = (f"{lead}{form.system[0]}" if not form.system[0].startswith(form.tokens or ("\0",)) else form.system[0],)
    content = {
        "FORMAT": {
            "before": before,
            "between": form.between,
            "end": end,
            "space": form.space,
            "lead": "" if form.before else lead,
            "system": [*system, form.system[1]],
            "again": (start if form.restarts else "") + form.again,
        },
        "PROMPTS": told,
        "START": start,
        "IMAGE": IMAGE,
        "VIDEO": VIDEO,
    }
    names = "|".join(content)
    return re.sub(rf"\b({names})\b", lambda found: json.dumps(content[found[1]], ensure_ascii=False), _TEMPLATE)


def render(template: str, messages: list[dict[str, Any]]) -> str:
    """Returns what transformers makes of messages with a template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)
