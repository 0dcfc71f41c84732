"""Chat templates render as published checkpoints and transformers do, or say what is wrong."""

import json
from pathlib import Path

import pytest

from mmrl.errors import UserError
from mmrl.text import ChatTemplate, builtin_template

HERE = Path(__file__).parent
USER = {"role": "user", "content": "Hi"}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "é <b>",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "é", "n": [1, None]}}}
CONVERSATIONS = {
    "plain": [USER],
    "system": [{"role": "system", "content": "S"}, USER],
    "answered": [USER, {"role": "assistant", "content": " A\n"}, USER],
    "called": [
        {"role": "system", "content": "S"},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "f", "content": "1"},
        {"role": "tool", "name": "f", "content": "2"},
        {"role": "assistant", "content": "A", "tool_calls": [CALL]},
        {"role": "tool", "name": "f", "content": "3"},
    ],
}


def example(name):
    given = json.loads((HERE / f"{name}_prompt.json").read_text())
    return given["messages"], given["tools"], (HERE / f"{name}_prompt.txt").read_text()


def as_text(message):
    """The message with text in place of a list of one part."""
    content = message["content"]
    return message | {"content": content[0]["text"]} if len(content) == 1 else message


@pytest.mark.parametrize("name", ["m1", "m2"])
def test_minimax_prompts_equal_the_published_ones_byte_for_byte(name):
    messages, tools, expected = example(name)
    assert builtin_template(name).render(messages, tools) == expected


def test_m1_takes_text_wrapped_tools_and_structured_calls_as_well():
    messages, tools, expected = example("m1")
    tools = [{"type": "function", "function": tool} for tool in tools]
    messages = [as_text(message) for message in messages]
    messages[2] = {
        "role": "assistant",
        "reasoning_content": "r",
        "content": "",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": {"location": "X"}}}],
    }
    assert builtin_template("m1").render(messages, tools) == expected


def test_m2_keeps_reasoning_after_the_last_user_message_only():
    def turns(*after):
        answer = {"role": "assistant", "content": "<think>\nplan\n</think>\n\nA"}
        return builtin_template("m2").render([USER, answer, *after], add_generation_prompt=False)

    system = "]~!b[]~b]system\nYou are a helpful assistant.[e~[\n"
    first = f"{system}]~b]user\nHi[e~[\n]~b]ai\n"
    assert turns() == f"{first}<think>\nplan\n</think>\n\nA[e~[\n"
    assert turns(USER) == f"{first}A[e~[\n]~b]user\nHi[e~[\n"


def test_m2_has_lists_of_tool_results_with_a_newline_and_names_date_and_place():
    messages = [
        {"role": "system", "content": "S", "current_date": "D", "current_location": "L"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": [{"type": "text", "text": "a"}, {"output": "b"}]},
    ]
    assert builtin_template("m2").render(messages, add_generation_prompt=False) == (
        "]~!b[]~b]system\nS\nCurrent date: D\nCurrent location: L[e~[\n"
        ']~b]ai\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">é</parameter>\n'
        '<parameter name="n">[1, null]</parameter>\n</invoke>\n</minimax:tool_call>[e~[\n'
        "]~b]tool\n<response>a\n</response>\n<response>b\n</response>[e~[\n"
    )


def test_chatml_presents_tools_calls_and_results_as_qwen_does():
    schema = json.dumps(TOOL, ensure_ascii=False)
    assert builtin_template("chatml").render(CONVERSATIONS["called"], [TOOL]) == (
        "<|im_start|>system\nS\n\n# Tools\n\nYou may call one or more functions to assist with the "
        "user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:"
        f"\n<tools>\n{schema}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": "é", "n": [1, null]}}'
        "\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n"
        "</tool_response><|im_end|>\n"
        '<|im_start|>assistant\nA\n<tool_call>\n{"name": "f", "arguments": {"x": "é", "n": [1, '
        "null]}}\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama3_puts_tools_into_the_first_user_message():
    schema = json.dumps(TOOL, ensure_ascii=False, indent=4)
    system = "<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    rendered = builtin_template("llama3", {"bos_token": "<|begin_of_text|>"}).render(
        CONVERSATIONS["called"][:4], [TOOL]
    )
    assert rendered == (
        f"<|begin_of_text|>{system}Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n"
        "\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, "
        "please respond with a JSON for a function call with its proper arguments that best "
        "answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary '
        f"of argument name and its value}}.Do not use variables.\n\n{schema}\n\nHi<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "f", "parameters": {"x": "é", '
        '"n": [1, null]}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"1"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.oracle
@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ["chatml", "llama3", "m1", "m2"])
def test_transformers_renders_the_same_from_the_same_template(
    name, conversation, tools, generation, trained_bpe
):
    from transformers import PreTrainedTokenizerFast

    template = builtin_template(name, {"bos_token": "<s>"})
    oracle = PreTrainedTokenizerFast(tokenizer_object=trained_bpe, bos_token="<s>")
    messages = CONVERSATIONS[conversation]
    assert template.render(messages, tools, generation) == oracle.apply_chat_template(
        messages,
        tools=tools,
        chat_template=template.source,
        add_generation_prompt=generation,
        tokenize=False,
    )


# Each line depends on a setting of the Jinja environment.
ENVIRONMENT = """
  {% for m in messages %}
    {% if m.role == "system" %}{% continue %}{% endif %}
{{ m.content }}
  {% generation %}
{{ tools | tojson(indent=2) }}{{ {"b": "é<", "a": 1} | tojson(sort_keys=true) }}
  {% endgeneration %}
    {% break %}
  {% endfor %}
{{ strftime_now("%%") }} {{ documents is none }} {{ extra }} {{ eos_token }}
"""


@pytest.mark.oracle
def test_the_jinja_environment_is_that_of_transformers(trained_bpe):
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast(tokenizer_object=trained_bpe, eos_token="</s>")
    template = ChatTemplate("t", ENVIRONMENT, variables={"eos_token": "</s>"})
    messages = CONVERSATIONS["system"]
    rendered = template.render(messages, [TOOL], extra="more")
    assert rendered == oracle.apply_chat_template(
        messages,
        tools=[TOOL],
        chat_template=ENVIRONMENT,
        add_generation_prompt=True,
        tokenize=False,
        extra="more",
    )
    assert "more" in rendered and "é <b>" in rendered


def test_a_template_that_wants_lists_of_parts_gets_them_from_text():
    source = (
        "{% for m in messages %}{{ m.content[0].text + m.content[0].name | d('') }}{% endfor %}"
    )
    template = ChatTemplate("parts", source)
    tool = {"role": "tool", "name": "f", "content": "1"}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert template.render([USER, tool]) == "Hi1f"
    assert template.render(parts) == "Hi"


def test_arguments_that_are_json_text_become_objects():
    text = {"function": {"name": "f", "arguments": json.dumps(CALL["function"]["arguments"])}}
    template = builtin_template("chatml")

    def rendered(call):
        return template.render([USER, {"role": "assistant", "content": "", "tool_calls": [call]}])

    assert rendered(text) == rendered(CALL)


def test_a_template_for_tools_is_used_when_there_are_tools():
    template = ChatTemplate("two", "plain", tool_source="with tools")
    assert template.render([USER]) == "plain"
    assert template.render([USER], []) == "plain"
    assert template.render([USER], [TOOL]) == "with tools"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("\n{% if %}", r"line 2 of the template"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages.append(1) }}", "unsafe|append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_a_template_refuses_names_the_template_the_reason_and_the_roles(source, message):
    with pytest.raises(UserError, match=rf"chat template mine refuses .*\(user\): .*{message}"):
        ChatTemplate("mine", source).render([USER])


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("m2", [USER, {"role": "tool", "content": "1"}], "assistant message with tool_calls"),
        ("m1", [USER, {"role": "tool", "content": "1"}], "needs the name of the tool"),
        ("llama3", [{"role": "assistant", "content": "A"}], "first user message"),
        (
            "llama3",
            [USER, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}],
            "one tool call at most",
        ),
        *(
            (name, [{"role": "oracle", "content": "A"}], "oracle")
            for name in ("chatml", "m1", "m2")
        ),
    ],
)
def test_built_in_templates_refuse_messages_that_they_cannot_show(name, messages, reason):
    with pytest.raises(UserError, match=f"chat template {name} refuses.*{reason}"):
        builtin_template(name).render(messages, [TOOL])


def test_messages_need_a_role_and_built_in_names_are_suggested():
    with pytest.raises(UserError, match="object with a 'role', got {'content': 'Hi'}"):
        builtin_template("m1").render([{"content": "Hi"}])
    with pytest.raises(UserError, match="no built-in chat template 'chatm'. Did you mean chatml"):
        builtin_template("chatm")
