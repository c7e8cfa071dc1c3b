"""A chat template of our own: ChatML with tools, by the means that published ones use.

Macros, loop controls, `tojson`, `items`, `trim`, keys printed as tags, messages sliced, refusals.
"""

from collections.abc import Iterable
from pathlib import Path

from engine_support import CONTEXT_LENGTH, write_model

CHATML = """\
{% macro described(schema) %}
    {%- for key in schema if key not in ['type', 'description'] %}
        {%- if schema[key] is mapping or (schema[key] is sequence and schema[key] is not string) %}
            {{- '<' ~ key ~ '>' ~ (schema[key] | tojson | safe) ~ '</' ~ key ~ '>' }}
        {%- else %}
            {{- '<' ~ key ~ '>' ~ (schema[key] | string) ~ '</' ~ key ~ '>' }}
        {%- endif %}
    {%- endfor %}
{% endmacro %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- if system is defined or tools %}
    {{- '<|im_start|>system\\n' + (system | default('You help.')) }}
    {%- if tools %}
        {{- '\\n\\n# Tools\\n<tools>' }}
        {%- for tool in tools %}
            {%- if tool.type != 'function' %}{% continue %}{% endif %}
            {%- if tool.function.name is not string or tool.function.name[:1] == '!' %}
                {{- raise_exception('cannot be called ' ~ tool.function.name[1:]) }}
            {%- endif %}
            {{- '\\n<name>' ~ tool.function.name ~ '</name>' }}
            {{- '\\n<description>' ~ (tool.function.description | default('') | trim) }}
            {%- for name, schema in tool.function.parameters.properties | items %}
                {{- '\\n<parameter><name>' ~ name ~ '</name><type>' ~ schema.type ~ '</type>' }}
                {{- described(schema) }}
            {%- endfor %}
        {%- endfor %}
        {{- '\\n</tools>\\nCall one so:\\n<tool_call>\\n<function=NAME>\\n</function>' }}
        {{- '\\n</tool_call>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in turns %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content | trim | length > 0 %}
            {{- '\\n' + message.content | trim }}
        {%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
            {%- for name, value in call.function.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {{- value if value is string else value | tojson | safe }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role in ['user', 'assistant'] %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem is defined and loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('no place for a ' ~ message.role ~ ' here') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def write_chat_model(
    folder: Path,
    *,
    template: str = CHATML,
    context_length: int = CONTEXT_LENGTH,
    without: Iterable[str] = (),
) -> Path:
    """Write a random checkpoint that brings a chat template; `without` these special tokens."""
    write_model(folder, context_length=context_length, without=without)
    (folder / "chat_template.jinja").write_text(template)
    return folder
