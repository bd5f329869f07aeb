"""Model families with a syntax of their own for tool calls, in small: each with its special tokens and a chat template
of the same structure as the published one, written anew.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from published_formats import ALTERNATE, CHATML, QWEN, QWEN3, _byte_level, _sentence_pieces

CALLS = "{% for call in m.tool_calls %}"
ARGUMENTS = "{% for key, value in call.function.arguments | items %}"
AS_TEXT = "{{ value if value is string else value | tojson }}"


def _template(
    *,
    user: str,
    assistant: str,
    result: str,
    header: str,
    tools: str = "",
    system: str = "",
    first: str = "",
    last: str = "",
) -> str:
    """A loop over messages `m`. `first` and `last`: around each run of results."""
    system = system or user.replace("'user'", "'system'")
    begins = "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}" + first + "{% endif %}"
    ends = "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}" + last + "{% endif %}"
    return (
        tools + "{% for m in messages %}"
        "{% if m.role == 'system' %}"
        + system
        + "{% elif m.role == 'user' %}"
        + user
        + "{% elif m.role == 'assistant' %}"
        "{% set thought = m.reasoning_content or '' %}{% set said = m.content or '' %}"
        + assistant
        + "{% else %}"
        + (begins if first else "")
        + result
        + (ends if last else "")
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + header
        + "{% endif %}"
    )


def _chatml(calls: str, *, thinks: str = "", header: str = "", shows: str = "", end: str = "", result: str = "") -> str:
    """In ChatML, with results inside a message of the user."""
    tools = (
        "{% if tools %}<|im_start|>system\n# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
        "</tools>\n" + shows + "<|im_end|>\n{% endif %}"
    )
    return _template(
        tools=tools,
        user="{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
        system="{{ '<|im_start|>system\n' + m.content + '<|im_end|>\n' }}",
        assistant="{{ '<|im_start|>assistant\n' }}" + thinks + "{{ said }}" + calls + end + "{{ '<|im_end|>\n' }}",
        first="{{ '<|im_start|>user' }}",
        result=result or "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}",
        last="{{ '<|im_end|>\n' }}",
        header="{{ '<|im_start|>assistant\n' }}" + header,
    )


JSON_CALLS = (
    CALLS + "{% if said or not loop.first %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' + (call.function.arguments | tojson)'
    " + '}\n</tool_call>' }}{% endfor %}"
)
XML = (
    CALLS + "{% if loop.first %}{{ '\n\n' if said else '' }}{% else %}{{ '\n' }}{% endif %}"
    "{{ '<tool_call>\n<function=' + call.function.name + '>\n' }}"
    + ARGUMENTS
    + "{{ '<parameter=' + key + '>\n' }}VALUE{{ '\n</parameter>\n' }}{% endfor %}"
    "{{ '</function>\n</tool_call>' }}{% endfor %}"
)
XML_CALLS, PYTHON_XML = (
    XML.replace("VALUE", AS_TEXT),
    XML.replace(
        "VALUE",
        "{{ value | tojson if value is mapping or (value is sequence and value is not string) else value | string }}",
    ),
)
THINKS = "{{ '<think>\n' + thought + '\n</think>\n\n' }}"
LLAMA = _template(
    tools="{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n"
    'Answer with {"name": its name, "parameters": its arguments}.'
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|eot_id|>{% endif %}",
    user="{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}",
    system="{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}",
    assistant="{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    + CALLS
    + "{{ '{\"name\": \"' + call.function.name + '\", \"parameters\": ' + (call.function.arguments | tojson) + '}' }}"
    "{% endfor %}{% else %}{{ said | trim }}{% endif %}{{ '<|eot_id|>' }}",
    result="{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}",
    header="{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
)
ID_OF_NINE = "{% if call.id | length != 9 %}{{ raise_exception('an id has 9 characters') }}{% endif %}"
MISTRAL_TOOLS = "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
MISTRAL_V3 = _template(
    tools=MISTRAL_TOOLS,
    user="{{ '[INST]' + m.content + '[/INST]' }}",
    assistant="{% if m.tool_calls %}[TOOL_CALLS]["
    + CALLS
    + ID_OF_NINE
    + '{{ \'{"name": "\' + call.function.name + \'", "arguments": \' + (call.function.arguments | tojson) + '
    "', \"id\": \"' + call.id + '\"}' }}{% if not loop.last %}, {% endif %}{% endfor %}]"
    "{% else %}{{ said }}{% endif %}{{ eos_token }}",
    result='{{ \'[TOOL_RESULTS]{"content": \' + (m.content | tojson) + \', "call_id": "\' + m.tool_call_id + '
    "'\"}[/TOOL_RESULTS]' }}",
    header="",
)
MISTRAL_V11 = _template(
    tools=MISTRAL_TOOLS,
    user="{{ '[INST]' + m.content + '[/INST]' }}",
    system="{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}",
    assistant="{{ said }}"
    + CALLS
    + ID_OF_NINE
    + "{{ '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' }}"
    "{{ call.function.arguments | tojson }}{% endfor %}{{ eos_token }}",
    result="{{ '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}",
    header="",
)
HARMONY = _template(
    tools="<|start|>system<|message|># Valid channels: analysis, commentary, final.<|end|>"
    "{% if tools %}<|start|>developer<|message|># Tools\n{% for tool in tools %}{{ 'type ' + tool.function.name }}"
    "{% endfor %}<|end|>{% endif %}{% set last = namespace(name='') %}",
    user="{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}",
    system="{{ '<|start|>developer<|message|>' + m.content + '<|end|>' }}",
    assistant="{% if m.tool_calls and m.thinking and said %}{{ raise_exception('content and thinking') }}{% endif %}"
    "{% set thought = m.thinking or (said if m.tool_calls else '') %}"
    "{% if thought and (loop.last or m.tool_calls) %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' }}{% endif %}"
    "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}{% set last.name = call.name %}"
    "{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' + "
    "(call.arguments | tojson) + '<|call|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + said }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}",
    result="{{ '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' + "
    "(m.content | tojson) + '<|end|>' }}",
    header="<|start|>assistant",
)
DEEPSEEK_FENCED = _template(  # arguments as text; no list of tools; thoughts are dropped
    tools="{{ bos_token }}",
    user="{{ '<｜User｜>' + m.content }}",
    system="{{ m.content }}",
    assistant="{{ '<｜Assistant｜>' + said.split('</think>')[-1] }}{% if m.tool_calls %}<｜tool▁calls▁begin｜>"
    + CALLS
    + "{{ '\n' if not loop.first else '' }}"
    "{{ '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\n```json\n' + "
    "call.function.arguments + '\n```<｜tool▁call▁end｜>' }}{% endfor %}<｜tool▁calls▁end｜>{% endif %}{{ eos_token }}",
    first="<｜tool▁outputs▁begin｜>",
    result="{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}",
    last="<｜tool▁outputs▁end｜>",
    header="{% if messages[-1].role != 'tool' %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
)
DEEPSEEK_V31 = _template(
    tools="{{ bos_token }}",
    user="{{ '<｜User｜>' + m.content }}",
    system="{{ m.content }}",
    assistant="{{ '<｜Assistant｜></think>' + said }}{% if m.tool_calls %}<｜tool▁calls▁begin｜>"
    + CALLS
    + "{{ '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + (call.function.arguments | tojson) + "
    "'<｜tool▁call▁end｜>' }}{% endfor %}<｜tool▁calls▁end｜>{% endif %}{{ eos_token }}",
    result="{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}",
    header="{% if messages[-1].role != 'tool' %}{{ '<｜Assistant｜></think>' }}{% endif %}",
)
DSML = _template(
    tools='{{ bos_token }}{% if tools %}## Tools\n{{ tools | tojson }}\nWrite <｜DSML｜invoke name="...">{% endif %}',
    user="{{ '<｜User｜>' + m.content }}",
    system="{{ m.content }}",
    assistant="{{ '<｜Assistant｜></think>' + said }}"
    "{% if m.tool_calls %}{{ '\n\n<｜DSML｜function_calls>\n' }}"
    + CALLS
    + "{{ '<｜DSML｜invoke name=\"' + call.function.name + '\">\n' }}"
    + ARGUMENTS
    + "{{ '<｜DSML｜parameter name=\"' + key + '\" string=\"' + ('true' if value is string else 'false') + '\">' }}"
    + AS_TEXT
    + "{{ '</｜DSML｜parameter>\n' }}{% endfor %}{{ '</｜DSML｜invoke>\n' }}{% endfor %}"
    "</｜DSML｜function_calls>{% endif %}"
    "{{ eos_token }}",
    first="{{ '\n\n<function_results>' }}",
    result="{{ '\n<result>' + m.content + '</result>' }}",
    last="{{ '\n</function_results>\n\n' }}",
    header="{{ '</think>' if messages[-1].role == 'tool' else '<｜Assistant｜></think>' }}",
)
GLM = _template(
    tools="[gMASK]<sop>{% if tools %}<|system|>\n{{ tools | tojson }}\n<tool_call>name\n<arg_key>key</arg_key>\n"
    "<arg_value>value</arg_value>\n</tool_call>{% endif %}",
    user="{{ '<|user|>\n' + m.content }}",
    system="{{ '<|system|>\n' + m.content }}",
    assistant="{{ '<|assistant|>\n<think>' + thought + '</think>' }}{% if said.strip() %}{{ '\n' + said.strip() }}"
    "{% endif %}"
    + CALLS
    + "{{ '\n<tool_call>' + call.function.name + '\n' }}"
    + ARGUMENTS
    + "{{ '<arg_key>' + key + '</arg_key>\n<arg_value>' }}"
    + AS_TEXT
    + "{{ '</arg_value>\n' }}{% endfor %}"
    "{{ '</tool_call>' }}{% endfor %}",
    first="<|observation|>",
    result="{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}",
    last=" ".strip(),
    header="<|assistant|>",
)
KIMI = _template(
    tools="{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}"
    "{% set seen = namespace(calls=0) %}",
    user="{{ '<|im_user|>user<|im_middle|>' + m.content + '<|im_end|>' }}",
    system="{{ '<|im_system|>system<|im_middle|>' + m.content + '<|im_end|>' }}",
    assistant="{{ '<|im_assistant|>assistant<|im_middle|>' + said }}{% if m.tool_calls %}<|tool_calls_section_begin|>"
    + CALLS
    + "{{ '<|tool_call_begin|>functions.' + call.function.name + ':' + (seen.calls | string) + "
    "'<|tool_call_argument_begin|>' + (call.function.arguments | tojson) + '<|tool_call_end|>' }}"
    "{% set seen.calls = seen.calls + 1 %}{% endfor %}<|tool_calls_section_end|>{% endif %}<|im_end|>",
    result="{{ '<|im_system|>tool<|im_middle|>## Return of ' + m.tool_call_id + '\n' + m.content + '<|im_end|>' }}",
    header="<|im_assistant|>assistant<|im_middle|>",
)
PHI4 = _template(
    tools="{% if tools %}<|system|>{% for tool in tools %}<|tool|>{{ tool.function | tojson }}<|/tool|>{% endfor %}"
    "<|end|>{% endif %}",
    user="{{ '<|user|>' + m.content + '<|end|>' }}",
    system="{{ '<|system|>' + m.content + '<|end|>' }}",
    assistant="{{ '<|assistant|>' + said }}"
    + CALLS
    + "{{ '<|tool_call|>' + (call.function | tojson) + '<|/tool_call|>' }}"
    "{% endfor %}<|end|>",
    result="{{ '<|tool_response|>' + (m.content | tojson) + '<|end|>' }}",
    header="<|assistant|>",
).replace("{% if add_generation_prompt %}<|assistant|>{% endif %}",
          "{{ '<|assistant|>' if add_generation_prompt else eos_token }}")  # fmt: skip
GEMMA3 = _template(  # no calls, no results, no system prompt
    tools="{{ bos_token }}{% set turns = messages %}" + ALTERNATE + "{% endfor %}",
    user="{{ '<start_of_turn>user\n' + m.content | trim + '<end_of_turn>\n' }}",
    system="{{ raise_exception('no system prompt') }}",
    assistant="{{ '<start_of_turn>model\n' + said | trim + '<end_of_turn>\n' }}",
    result="{{ raise_exception('no results') }}",
    header="{{ '<start_of_turn>model\n' }}",
)
GEMMA4 = (
    "{% macro show(value) %}{% if value is string %}{{ '<|\"|>' + value + '<|\"|>' }}"
    "{% elif value is boolean %}{{ 'true' if value else 'false' }}"
    "{% elif value is mapping %}{{ '{' }}{% for k, v in value | dictsort %}{{ k + ':' }}{{ show(v) }}"
    "{{ ',' if not loop.last else '' }}{% endfor %}{{ '}' }}"
    "{% elif value is iterable %}[{% for v in value %}{{ show(v) }}{{ ',' if not loop.last else '' }}{% endfor %}]"
    "{% else %}{{ value }}{% endif %}{% endmacro %}"
) + _template(
    tools="{{ bos_token }}{% if tools %}<|turn>system\n{% for tool in tools %}"
    "{{ '<|tool>declaration:' + tool.function.name + '<tool|>' }}{% endfor %}{{ '<turn|>\n' }}{% endif %}",
    user="{{ '<|turn>user\n' + m.content | trim + '<turn|>\n' }}",
    system="{{ '<|turn>system\n' + m.content | trim + '<turn|>\n' }}",
    assistant="{{ '<|turn>model\n' }}{% if thought %}{{ '<|channel>thought\n' + thought + '\n<channel|>' }}{% endif %}"
    "{{ said }}" + CALLS + "{{ '<|tool_call>call:' + call.function.name }}{{ show(call.function.arguments) }}"
    "{{ '<tool_call|>' }}{% endfor %}{% if not m.tool_calls %}{{ '<turn|>\n' }}{% endif %}",
    result="{{ '<|tool_response>response:' + m.name + '{value:<|\"|>' + m.content + '<|\"|>}<tool_response|>' }}",
    header="{% if messages[-1].role != 'tool' %}{{ '<|turn>model\n' }}{% endif %}",
)
COHERE = _template(
    tools="{{ bos_token }}{% if tools %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ tools | tojson }}"
    "<|END_OF_TURN_TOKEN|>{% endif %}{% set seen = namespace(calls=0, results=0) %}",
    user="{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}",
    system="{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}",
    assistant="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% if m.tool_calls %}"
    "{{ '<|START_THINKING|>' + thought + '<|END_THINKING|><|START_ACTION|>[\n' }}"
    + CALLS
    + '{{ \'    {"tool_call_id": "\' + (seen.calls | string) + \'", "tool_name": "\' + call.function.name + '
    "'\", \"parameters\": ' + (call.function.arguments | tojson) + '}' }}{{ ',\n' if not loop.last else '\n' }}"
    "{% set seen.calls = seen.calls + 1 %}{% endfor %}]<|END_ACTION|>{% else %}"
    "{{ '<|START_RESPONSE|>' + said + '<|END_RESPONSE|>' }}{% endif %}"
    "<|END_OF_TURN_TOKEN|>",
    first="{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[' }}",
    result='{{ \'\n    {"tool_call_id": "\' + (seen.results | string) + \'", "results": {"0": \' + '
    "(m.content | tojson) + '}}' }}{% set seen.results = seen.results + 1 %}",
    last="{{ '\n]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>' }}",
    header="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)
LFM_PLAIN = _template(
    tools="{% if tools %}{{ '<|im_start|>system\nList of tools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}",
    user="{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}",
    system="{{ '<|im_start|>system\n' + m.content + '<|im_end|>\n' }}",
    assistant="{{ '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}",
    result="{{ '<|im_start|>tool\n<|tool_response_start|>' + m.content + '<|tool_response_end|><|im_end|>\n' }}",
    header="{{ '<|im_start|>assistant\n' }}",
)
LFM_CALLS = (
    "{% if m.tool_calls %}<|tool_call_start|>[" + CALLS + "{{ call.function.name + '(' }}" + ARGUMENTS +
    "{{ key + '=' }}{% if value is string %}{{ \"'\" + value + \"'\" }}{% else %}"
    "{{ value | tojson if value is mapping else value | string }}{% endif %}{{ ', ' if not loop.last else '' }}"
    "{% endfor %}"
    ")" + "{{ ', ' if not loop.last else '' }}{% endfor %}]<|tool_call_end|>{% endif %}"
)  # fmt: skip
LFM_THINKS = "{% if m.thinking %}{{ '<think>' + m.thinking + '</think>' }}{% endif %}"
MINIMAX = _template(
    tools="{% if tools %}{{ ']~b]system\n' + (tools | tojson) + '\n<minimax:tool_call>\n<invoke name=\"n\">[e~[\n' }}"
    "{% endif %}",
    user="{{ ']~b]user\n' + m.content + '[e~[\n' }}",
    system="{{ ']~b]system\n' + m.content + '[e~[\n' }}",
    assistant="{{ ']~b]ai\n' }}{% if thought %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}"
    "{% if m.tool_calls %}{{ '\n<minimax:tool_call>\n' }}"
    + CALLS
    + "{{ '<invoke name=\"' + call.function.name + '\">\n' }}"
    + ARGUMENTS
    + "{{ '<parameter name=\"' + key + '\">' }}"
    + AS_TEXT
    + "{{ '</parameter>\n' }}{% endfor %}"
    "{{ '</invoke>\n' }}{% endfor %}{{ '</minimax:tool_call>' }}{% endif %}{{ '[e~[\n' }}",
    first="]~b]tool",
    result="{{ '\n<response>' + m.content + '</response>' }}",
    last="{{ '[e~[\n' }}",
    header="{{ ']~b]ai\n<think>\n' }}",
)
SMOLLM3 = _template(  # lists the tools under another name, shows a call, and leaves calls to the content
    tools="{% if xml_tools %}{{ '<|im_start|>system\n' }}{{ xml_tools | tojson }}"
    '{{ \'\nWrite <tool_call>{"name": "its name", "arguments": {}}</tool_call><|im_end|>\n\' }}{% endif %}',
    user="{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
    system="{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
    assistant="{{ '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}",
    result="{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}",
    header="{{ '<|im_start|>assistant\n' }}",
)
UNKNOWN = _chatml(CALLS + "{{ '@@' + call.function.name + '@@' + (call.function.arguments | tojson) }}{% endfor %}")


@dataclass(frozen=True)
class Family:
    form: dict[str, Any]  # as in published_formats.FORMATS
    template: str
    syntax: str
    kind: str = "written"  # of its dialect
    ends: tuple[str, ...] = ()  # of its generation_config
    calls: int = 3  # how many a turn can hold
    thinks: bool = True  # the template shows thoughts


def _tokens(*special: str, eos: str, bos: str = "") -> dict[str, Any]:
    return {"special": sorted({*special, eos, *([bos] if bos else [])}), "eos": eos, **({"bos": bos} if bos else {})}


THINK = {"added": ["<think>", "</think>"]}
DEEPSEEK = _tokens(
    "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>",
) | THINK  # fmt: skip
MISTRAL = {
    **_tokens("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
              "[TOOL_CONTENT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
              bos="<s>", eos="</s>"),
}  # fmt: skip
MISTRAL_OLD = MISTRAL | {"special": ["<unk>", *MISTRAL["special"]], "pieces": "first"}
LFM = _tokens(
    *CHATML, "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>",
    eos="<|im_end|>",
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "qwen2.5": Family(QWEN, _chatml(JSON_CALLS), "hermes", thinks=False),
    "qwen3": Family(QWEN3, _chatml(JSON_CALLS, thinks="{% if thought %}" + THINKS + "{% endif %}"), "hermes"),
    "hermes3": Family(QWEN,  # written for tools alone: it fails without any
                      "{% for tool in tools %}{% endfor %}"
                      + _chatml(JSON_CALLS).replace("{{ said }}", "{{ said if not m.tool_calls else '' }}"),
                      "hermes", thinks=False),
    "qwen3.5": Family(QWEN3, _chatml(XML_CALLS, thinks=THINKS, header="{{ '<think>\n' }}",
                                     result="{{ '\n<tool_response>\n' + m.content | trim + '\n</tool_response>' }}"),
                      "qwen_xml"),
    "qwen3-coder": Family(QWEN3, _chatml(PYTHON_XML), "qwen_xml", thinks=False),
    "nemotron3": Family(QWEN3, _chatml(XML_CALLS, thinks="{{ '<think>\n' + thought + '\n</think>\n' }}",
                                       header="{{ '<think>\n' }}", end="{{ '\n' if m.tool_calls else '' }}"),
                        "qwen_xml"),
    "llama3.1": Family(
        _tokens("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>", "<|end_of_text|>",
                bos="<|begin_of_text|>", eos="<|eot_id|>"),
        LLAMA, "llama", ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), thinks=False),
    "mistral-v3": Family(MISTRAL_OLD, MISTRAL_V3, "mistral", thinks=False),
    "mistral-v11": Family(MISTRAL, MISTRAL_V11, "mistral", thinks=False),
    "gpt-oss": Family(
        _tokens("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|endoftext|>", eos="<|return|>"),
        HARMONY, "harmony", ends=("<|return|>", "<|endoftext|>", "<|call|>"), calls=1),
    "deepseek-v3": Family(DEEPSEEK, DEEPSEEK_FENCED, "deepseek", thinks=False),
    "deepseek-v3.1": Family(DEEPSEEK, DEEPSEEK_V31, "deepseek", thinks=False),
    "deepseek-v3.2": Family(DEEPSEEK, DSML, "dsml", thinks=False),
    "glm4.5": Family(
        _tokens("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", eos="<|endoftext|>")
        | {"added": ["<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
                     "</arg_value>", "<tool_response>", "</tool_response>"]},
        GLM, "glm", ends=("<|endoftext|>", "<|user|>", "<|observation|>")),
    "kimi-k2": Family(
        _tokens("<|im_user|>", "<|im_system|>", "<|im_assistant|>", "<|im_middle|>", "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
                "<|tool_call_argument_begin|>", eos="<|im_end|>"), KIMI, "kimi", thinks=False),
    "phi4-mini": Family(
        _tokens("<|user|>", "<|system|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>",
                "<|tool_response|>", "<|end|>", eos="<|endoftext|>"),
        PHI4, "phi", ends=("<|end|>", "<|endoftext|>"), thinks=False),
    "gemma3": Family(
        _tokens("<start_of_turn>", "<end_of_turn>", bos="<bos>", eos="<eos>"), GEMMA3, "hermes", kind="described",
        thinks=False),
    "gemma4": Family(
        _tokens("<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
                "<tool_response|>", "<|channel>", "<channel|>", '<|"|>', bos="<bos>", eos="<eos>"),
        GEMMA4, "gemma", ends=("<eos>", "<turn|>", "<|tool_response>")),
    "cohere": Family(
        _tokens("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|CHATBOT_TOKEN|>",
                "<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>",
                "<|END_RESPONSE|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>", bos="<BOS_TOKEN>",
                eos="<|END_OF_TURN_TOKEN|>"),
        COHERE, "cohere"),
    "lfm2": Family(LFM, LFM_PLAIN, "lfm", kind="shown", thinks=False),
    "lfm2.5": Family(LFM | THINK, LFM_PLAIN.replace("{{ '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}",
                     "{{ '<|im_start|>assistant\n' }}" + LFM_THINKS + "{{ said }}" + LFM_CALLS
                     + "{{ '<|im_end|>\n' }}"),
                     "lfm"),
    "minimax-m2": Family(_tokens("]~b]", eos="[e~[") | {"added": ["<think>", "</think>", "<minimax:tool_call>",
                                                                  "</minimax:tool_call>"]}, MINIMAX, "minimax"),
    "smollm3": Family(_tokens(*CHATML, eos="<|im_end|>"), SMOLLM3, "hermes", kind="shown", thinks=False),
}  # fmt: skip


@cache
def tokenizer_of(name: str, template: str | None = None) -> Any:
    """The tokenizer of a family, or another template with its tokens. Do not change it: tests share it."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    form = FAMILIES[name].form
    backend = _sentence_pieces(form) if "pieces" in form else _byte_level(form)
    backend.add_tokens([AddedToken(text, normalized=False) for text in form.get("added", ())])
    names = {f"{kind}_token": form[kind] for kind in ("bos", "eos", "pad") if kind in form}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template or FAMILIES[name].template
    return tokenizer


def ends_of(name: str) -> list[int]:
    """The end tokens that the family's generation_config names."""
    return list(tokenizer_of(name).convert_tokens_to_ids(list(FAMILIES[name].ends)))
