"""Talks to a server with the official packages. Prints a line for each thing that works; the first that fails ends it."""

import json
import sys
from typing import Literal

import anthropic
import openai
import pydantic

BASE, WHAT = sys.argv[1:3]
STORY = "Tell me a story about a brave hedgehog."
NAME = "What is your name?"
WEATHER = "Get the weather in Lisbon with days 3."
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "The city."},
        "days": {"type": "integer", "description": "Number of days."},
    },
    "required": ["city", "days"],
}
RESULT = json.dumps({"temperature": 21, "status": "sunny"})


def openai_client(key="secret"):
    return openai.OpenAI(base_url=f"{BASE}/v1", api_key=key, max_retries=0, timeout=300)


def anthropic_client(key="secret"):
    return anthropic.Anthropic(base_url=BASE, api_key=key, max_retries=0, timeout=300)


def ok(what):
    print("ok", what, flush=True)


def user(text):
    return [{"role": "user", "content": text}]


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def chat():
    client = openai_client()
    fixed = {"model": "demo", "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(messages=user(STORY), **fixed)
    text = whole.choices[0].message.content
    assert len(text) > 20 and whole.usage.total_tokens > 24, whole
    ok("chat")

    pieces = client.chat.completions.create(messages=user(STORY), stream=True, **fixed)
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == text
    ok("chat streamed")

    # The helper takes an answer that its limit ended for a failure.
    options = {"stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(model="demo", temperature=0, messages=user(NAME))
    with client.chat.completions.stream(model="demo", temperature=0, messages=user(NAME), **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds, kinds
    assert final.choices[0].message.content == whole.choices[0].message.content, (whole, final)
    assert final.usage.completion_tokens == whole.usage.completion_tokens, (whole, final)
    assert len(final.choices[0].logprobs.content) > 10, final
    ok("chat with the streaming helper")

    tools = [{"type": "function", "function": {"name": "get_weather", "description": "Get the weather.",
                                               "parameters": SCHEMA}}]
    messages = user(WEATHER)
    for turn in range(3):
        answer = client.chat.completions.create(model="demo", temperature=0, messages=messages, tools=tools)
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            assert json.loads(call.function.arguments) == {"city": "Lisbon", "days": 3}, call
            messages.append({"role": "tool", "tool_call_id": call.id, "content": RESULT})
    assert turn == 1 and answer.choices[0].finish_reason == "stop", answer
    ok("a loop of calls")

    with client.chat.completions.stream(model="demo", temperature=0, messages=user(WEATHER), tools=tools) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert json.loads(done[0].arguments) == {"city": "Lisbon", "days": 3}, done
    ok("a streamed call")

    class Trip(pydantic.BaseModel):
        city: Literal["Lisbon", "Paris"]
        days: Literal[1, 2, 3]

    parsed = client.chat.completions.parse(model="demo", temperature=0, messages=user(WEATHER), response_format=Trip)
    assert parsed.choices[0].message.parsed.city in ("Lisbon", "Paris"), parsed
    ok("an answer parsed into a class")

    text = client.completions.create(prompt="Once upon", **fixed)
    assert len(text.choices[0].text) > 10
    assert client.models.list().data[0].id == client.models.retrieve("demo").id == "demo"
    ok("completions and models")

    raises(openai.AuthenticationError, lambda: openai_client("no").models.list())
    raises(openai.NotFoundError, lambda: client.models.retrieve("other"))
    raises(openai.NotFoundError, lambda: client.embeddings.create(model="demo", input="x"))
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(messages=user("word " * 3000), **fixed))
    assert error.code == "context_length_exceeded", error
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(model="demo", messages=[]))
    assert error.param == "messages", error
    ok("errors of every class")

    answer = client.chat.completions.with_raw_response.create(messages=user(STORY), **fixed)
    assert answer.headers["x-request-id"].startswith("req_") and answer.parse()._request_id, answer.headers
    ok("request ids")


def responses():
    client = openai_client()
    fixed = {"model": "demo", "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(input=STORY, instructions="Be brief.", **fixed)
    assert len(whole.output_text) > 20 and whole.status == "incomplete", whole
    ok("responses")

    # The helper waits for an answer that is complete.
    whole = client.responses.create(model="demo", temperature=0, input=NAME)
    with client.responses.stream(model="demo", temperature=0, input=NAME) as stream:
        numbers = [event.sequence_number for event in stream]
        final = stream.get_final_response()
    assert numbers == list(range(len(numbers))), numbers
    assert final.output_text == whole.output_text and final.status == "completed", final
    ok("responses streamed")

    tools = [{"type": "function", "name": "get_weather", "description": "Get the weather.", "parameters": SCHEMA}]
    turns = user(WEATHER)
    for turn in range(3):
        answer = client.responses.create(model="demo", temperature=0, input=turns, tools=tools)
        turns += answer.output
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            break
        for call in calls:
            assert json.loads(call.arguments) == {"city": "Lisbon", "days": 3}, call
            turns.append({"type": "function_call_output", "call_id": call.call_id, "output": RESULT})
    assert turn == 1 and answer.output_text, answer
    ok("a loop of calls")

    one = client.responses.create(input=STORY, store=True, **fixed)
    two = client.responses.create(input="And then?", previous_response_id=one.id, **fixed)
    assert two.usage.input_tokens > one.usage.input_tokens + 24, two
    ok("an answer that goes on from another")


def messages():
    client = anthropic_client()
    fixed = {"model": "claude", "max_tokens": 24, "extra_body": {"temperature": 0}}
    whole = client.messages.create(messages=user(STORY), system="Be brief.", **fixed)
    text = whole.content[0].text
    assert len(text) > 20 and whole.stop_reason == "max_tokens", whole
    ok("messages")

    with client.messages.stream(messages=user(STORY), system="Be brief.", **fixed) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().usage.output_tokens == 24
    ok("messages streamed")

    counted = client.messages.count_tokens(model="claude", messages=user(STORY), system="Be brief.")
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0), (counted, usage)
    ok("count_tokens")

    tools = [{"name": "get_weather", "description": "Get the weather.", "input_schema": SCHEMA}]
    turns = user(WEATHER)
    for turn in range(3):
        with client.messages.stream(model="claude", max_tokens=100, messages=turns, tools=tools,
                                    extra_body={"temperature": 0}) as stream:
            answer = stream.get_final_message()
        turns.append({"role": "assistant", "content": answer.content})
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            break
        assert answer.stop_reason == "tool_use" and calls[0].input == {"city": "Lisbon", "days": 3}, answer
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": RESULT} for call in calls]
        turns.append({"role": "user", "content": results})
    assert turn == 1 and answer.stop_reason == "end_turn", answer
    ok("a loop of calls")

    begun = [*user(STORY), {"role": "assistant", "content": text[:12]}]
    answer = client.messages.create(messages=begun, system="Be brief.", **fixed)
    assert text.startswith(text[:12] + answer.content[0].text[:4]), (text, answer)
    ok("an answer that was begun")

    raises(anthropic.AuthenticationError, lambda: anthropic_client("no").messages.create(messages=user("a"), **fixed))
    error = raises(anthropic.BadRequestError, lambda: client.messages.create(messages=user("word " * 3000), **fixed))
    assert "prompt is too long" in str(error) and error.request_id, error
    ok("errors")


{"chat": chat, "responses": responses, "messages": messages}[WHAT]()
