"""Runs a loop of calls through agent frameworks. Prints a line for each thing that works; the first that fails ends it."""

import asyncio
import sys
from typing import Literal

import agents
import openai
import pydantic
import pydantic_ai
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

BASE, WHAT = sys.argv[1:3]
NAME = "What is your name?"
WEATHER = "Get the weather in Lisbon with days 3."
CLIENT = openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="secret", max_retries=0, timeout=300)


class Trip(pydantic.BaseModel):
    city: Literal["Lisbon", "Paris"]
    days: Literal[1, 2, 3]


def ok(what):
    print("ok", what, flush=True)


def weather(called):
    """A tool that notes its calls."""

    def get_weather(city: str, days: int) -> dict:
        """Get the weather.

        Args:
            city: The city.
            days: Number of days.
        """
        called.append((city, days))
        return {"temperature": 21, "status": "sunny"}

    return get_weather


async def openai_agents():
    agents.set_tracing_disabled(True)
    settings = agents.ModelSettings(temperature=0, max_tokens=200)
    models = {"Responses": agents.OpenAIResponsesModel("demo", CLIENT),
              "Chat": agents.OpenAIChatCompletionsModel("demo", CLIENT)}
    for name, model in models.items():
        called = []
        agent = agents.Agent(name="Helper", model=model, model_settings=settings,
                             tools=[agents.function_tool(weather(called))])
        whole = await agents.Runner.run(agent, WEATHER)
        assert called == [("Lisbon", 3)] and whole.final_output, (called, whole)
        ok(f"{name}: a loop of calls")

        streamed = agents.Runner.run_streamed(agent, WEATHER)
        kinds = [event.type async for event in streamed.stream_events()]
        items = [item.type for item in streamed.new_items]
        assert items == ["tool_call_item", "tool_call_output_item", "message_output_item"], items
        assert streamed.final_output == whole.final_output and "raw_response_event" in kinds, kinds
        ok(f"{name}: a streamed loop")

        answer = await agents.Runner.run(agent, [*whole.to_input_list(), {"role": "user", "content": NAME}])
        assert len(answer.final_output) > 20 and len(called) == 2, answer
        ok(f"{name}: a conversation that goes on")

        held = agents.Agent(name="Held", model=model, model_settings=settings, output_type=Trip)
        assert isinstance((await agents.Runner.run(held, WEATHER)).final_output, Trip)
        ok(f"{name}: an answer of a class")


async def pydantic_agents():
    provider = OpenAIProvider(openai_client=CLIENT)
    settings = {"temperature": 0, "max_tokens": 200}
    for name, kind in {"Chat": OpenAIChatModel, "Responses": OpenAIResponsesModel}.items():
        called = []
        agent = pydantic_ai.Agent(kind("demo", provider=provider), model_settings=settings)
        agent.tool_plain(weather(called))
        whole = await agent.run(WEATHER)
        assert called == [("Lisbon", 3)] and whole.output, (called, whole)
        assert whole.usage.requests == 2 and whole.usage.input_tokens > 100, whole.usage
        ok(f"{name}: a loop of calls")

        async with agent.run_stream(WEATHER) as streamed:
            text = "".join([piece async for piece in streamed.stream_text(delta=True)])
        assert text == whole.output and len(called) == 2, (text, whole)
        ok(f"{name}: a streamed loop")

        answer = await agent.run(NAME, message_history=whole.all_messages())
        assert len(answer.output) > 20 and len(called) == 2, answer
        ok(f"{name}: a conversation that goes on")

        # The class is a tool here, whose call is required.
        held = pydantic_ai.Agent(kind("demo", provider=provider), model_settings=settings, output_type=Trip)
        assert isinstance((await held.run(WEATHER)).output, Trip)
        native = pydantic_ai.NativeOutput(Trip)
        assert isinstance((await held.run(WEATHER, output_type=native)).output, Trip)
        ok(f"{name}: an answer of a class")


asyncio.run({"openai-agents": openai_agents, "pydantic-ai": pydantic_agents}[WHAT]())
