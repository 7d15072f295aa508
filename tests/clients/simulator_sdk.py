"""The official openai SDK against the simulator itself: whole, streamed, tools, JSON, models, errors.

Usage: simulator_sdk.py BASE_URL     (for example http://127.0.0.1:4010/v1)
Needs the package openai. Ends with 0 when everything held, else with the first assertion that did not.
"""

import asyncio
import sys

import openai

MESSAGES = [{"role": "user", "content": "Olá! Qual é o prazo de entrega do meu pedido?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
FORCED = {"type": "function", "function": {"name": "get_weather"}}


def whole(client):
    raw = client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=MESSAGES)
    answer = raw.parse()
    assert answer.object == "chat.completion" and answer.model == "gpt-4o-mini", answer
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "stop", answer
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0, usage
    # The SDK builds its objects without validation; the declared types hold all the same.
    type(answer).model_validate_json(raw.text)
    return answer


def streamed(client, expected):
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1 and len({chunk.created for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected.choices[0].message.content, text
    assert chunks[-2].choices[0].finish_reason == "stop", chunks[-2]
    assert chunks[-1].choices == [] and chunks[-1].usage == expected.usage, chunks[-1]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for chunk in chunks:
        type(chunk).model_validate(chunk.model_dump())
    plain = list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True))
    assert len(plain) == len(chunks) - 1 and all(chunk.usage is None for chunk in plain)


def limits(client):
    short = client.chat.completions.create(model="gpt-4", messages=MESSAGES, max_tokens=3)
    assert short.usage.completion_tokens == 3 and short.choices[0].finish_reason == "length", short
    several = client.chat.completions.create(model="gpt-4", messages=MESSAGES, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2], several
    full = several.choices[0].message.content
    stop = full[8:14]
    stopped = client.chat.completions.create(model="gpt-4", messages=MESSAGES, stop=[stop])
    assert stopped.choices[0].message.content == full[: full.index(stop)], stopped


def tools(client):
    call = {"model": "gpt-4o", "messages": MESSAGES, "tools": [WEATHER]}
    required = client.chat.completions.create(**call, tool_choice="required").choices[0]
    assert required.finish_reason == "tool_calls" and required.message.content is None, required
    assert required.message.tool_calls[0].function.name == "get_weather", required
    # The SDK's own accumulation of a stream, as applications use it.
    with client.chat.completions.stream(**call, tool_choice=FORCED) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in events, events
    function = final.choices[0].message.tool_calls[0].function
    assert function.parsed_arguments["unit"] == "c" and function.parsed_arguments["city"], function
    answer = client.chat.completions.create(**call)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls, answer


def models(client):
    ids = [model.id for model in client.models.list()]
    assert "gpt-4o-mini" in ids and "claude-haiku-4-5" in ids, ids
    assert client.models.retrieve("claude-haiku-4-5").owned_by == "anthropic"
    assert client.models.retrieve("meta-llama/llama-3.2-3b-instruct").object == "model"


def errors(client):
    table = [
        ("status=400", openai.BadRequestError),
        ("status=401", openai.AuthenticationError),
        ("status=404", openai.NotFoundError),
        ("status=429", openai.RateLimitError),
        ("status=500", openai.InternalServerError),
        ("cut", openai.APIConnectionError),
    ]
    for fault, expected in table:
        try:
            client.chat.completions.create(
                model="gpt-4o", messages=MESSAGES, extra_headers={"x-simulate-fault": fault}
            )
        except expected as error:
            assert fault == "cut" or error.body["message"], error
        else:
            raise AssertionError(f"{fault} went unnoticed")
    try:
        client.chat.completions.create(model="gpt-4o", messages=[])
    except openai.BadRequestError as error:
        assert error.param == "messages", error
    else:
        raise AssertionError("no messages went unnoticed")
    # An error inside a stream, asked for by a member that passes gateways.
    stream = client.chat.completions.create(
        model="gpt-4o", messages=MESSAGES, stream=True, extra_body={"x_simulate_fault": "error-after=2"}
    )
    seen = 0
    try:
        for _ in stream:
            seen += 1
    except openai.APIError:
        assert seen == 3, seen
    else:
        raise AssertionError("an error inside a stream went unnoticed")


async def together(base_url):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        asked = [client.chat.completions.create(model="gpt-4o", messages=MESSAGES) for _ in range(20)]
        answers = await asyncio.gather(*asked)
    assert len({answer.choices[0].message.content for answer in answers}) == 1


def main():
    base_url = sys.argv[1]
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=30) as client:
        streamed(client, whole(client))
        limits(client)
        tools(client)
        models(client)
        errors(client)
    asyncio.run(together(base_url))
    print(f"openai {openai.__version__} accepts {base_url}")


if __name__ == "__main__":
    main()
