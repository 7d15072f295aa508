#!/usr/bin/env python3
"""Uses Tollstream as the official openai SDK does: streamed, whole, models, and every error class.

    openai_sdk.py BASE_URL API_KEY [--model NAME] [--foreign-organization NAME]

BASE_URL ends in /v1. Ends with 0 when everything is as expected, else says what is not and ends with 1.
"""

import argparse
import sys
import uuid
from decimal import Decimal

import openai

MESSAGES = [{"role": "user", "content": "Say something short about rivers."}]


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def streamed(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True))
    expect(len(chunks) >= 3, f"a stream has a role, content and an end; {len(chunks)} chunks came")
    expect(len({chunk.id for chunk in chunks}) == 1, "all chunks have one id")
    expect(all(chunk.object == "chat.completion.chunk" for chunk in chunks), "all are chunks")
    first = next(chunk for chunk in chunks if chunk.choices)
    expect(first.choices[0].delta.role == "assistant", f"the first chunk has the role: {first}")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    expect(text.strip(), "the stream has content")
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    expect(ends == ["stop"], f"one finish reason, stop: {ends}")
    expect(all(chunk.usage is None for chunk in chunks), "usage comes only when it is asked for")


def streamed_with_usage(client, model):
    options = {"include_usage": True}
    stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True, stream_options=options)
    chunks = list(stream)
    expect(chunks[-1].usage is not None, f"the last chunk has the usage: {chunks[-1]}")
    expect(not chunks[-1].choices, "the chunk with the usage has no choices")
    usage = chunks[-1].usage
    expect(usage.prompt_tokens > 0 and usage.completion_tokens > 0, f"tokens are counted: {usage}")
    expect(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, f"the total is the sum: {usage}")


def stream_headers(client, model):
    create = client.chat.completions.with_raw_response.create
    raw = create(model=model, messages=MESSAGES, stream=True, extra_headers={"x-request-id": "sdk-stream-1"})
    expect(raw.headers["content-type"].startswith("text/event-stream"), f"content type: {raw.headers}")
    expect(raw.headers["x-request-id"] == "sdk-stream-1", f"the client's request id comes back: {raw.headers}")
    expect(raw.headers.get("x-tollstream-model"), f"the model that answers is named: {raw.headers}")
    expect(raw.headers.get("x-tollstream-tier"), f"the tier is named: {raw.headers}")
    list(raw.parse())


def whole(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
    answer = raw.parse()
    expect(answer.object == "chat.completion", f"object: {answer.object}")
    expect(answer.choices[0].message.role == "assistant", "the answer is the assistant's")
    expect(answer.choices[0].message.content, "the answer has content")
    expect(answer.choices[0].finish_reason == "stop", f"finish reason: {answer.choices[0].finish_reason}")
    expect(answer.usage and answer.usage.total_tokens > 0, f"usage: {answer.usage}")
    expect(raw.headers.get("x-request-id"), "a request id is given")
    expect(float(raw.headers["x-tollstream-cost-usd"]) > 0, f"a whole answer has its cost: {raw.headers}")


def asked_again(client, model):
    create = client.chat.completions.with_raw_response.create
    headers = {"Idempotency-Key": f"sdk {uuid.uuid4()}"}
    answers = [create(model=model, messages=MESSAGES, extra_headers=headers) for _ in range(2)]
    expect("idempotent-replayed" not in answers[0].headers, f"the first one is new: {answers[0].headers}")
    expect(answers[1].headers.get("idempotent-replayed") == "true", f"the second one is not: {answers[1].headers}")
    expect(answers[0].parse() == answers[1].parse(), "both are the same answer")
    ids = {answer.headers["x-request-id"] for answer in answers}
    expect(len(ids) == 1, f"of one request: {ids}")
    refused(
        openai.ConflictError, 409, "idempotency_key_reused",
        lambda: client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=7, extra_headers=headers
        ),
    )
    streams = []
    headers = {"Idempotency-Key": f"sdk {uuid.uuid4()}"}
    for _ in range(2):
        stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True, extra_headers=headers)
        streams.append(list(stream))
    expect(len(streams[0]) >= 3 and streams[0] == streams[1], "a stream is streamed again, chunk by chunk")


def metadata(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, metadata={"user_tier": "vip", "team": "search"}, user="user-1"
    )
    expect(answer.choices[0].message.content, "metadata is accepted")


def chosen_by_the_gateway(client, _model):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=MESSAGES)
    expect(raw.parse().choices[0].message.content, "auto answers")
    expect(raw.headers.get("x-tollstream-model") not in (None, "auto"), f"auto becomes a model: {raw.headers}")


def models(client, model):
    listed = [entry.id for entry in client.models.list()]
    expect(model in listed, f"{model} is listed: {listed}")
    expect("auto" in listed, f"auto is listed: {listed}")
    expect(client.models.list().model_extra["limits"]["organization"], "the limits of the organization are told")
    found = client.models.retrieve(model)
    for price in found.model_extra["prices"]:
        dollars, pico = price["per_million_tokens_usd"]["output"], price["per_token_pico_usd"]["output"]
        expect(Decimal(dollars) * 1_000_000 == pico, f"both prices are the same: {price}")
    expect(found.model_extra["prices"] and found.model_extra["context_window"] > 0, f"price and context: {found}")
    expect(found.id == model and found.object == "model" and found.owned_by, f"the model is described: {found}")
    try:
        client.models.retrieve("no-such-model")
    except openai.NotFoundError as error:
        expect(error.code == "model_not_found", f"code: {error.code}")
    else:
        raise AssertionError("an unknown model is not found")


def refused(kind, status, code, call):
    try:
        call()
    except kind as error:
        expect(error.status_code == status, f"status {error.status_code}, not {status}: {error}")
        expect(error.code == code, f"code {error.code}, not {code}: {error}")
        expect(error.message and error.request_id, f"a message and a request id: {error}")
    else:
        raise AssertionError(f"no {kind.__name__} was raised")


def errors(client, model, foreign):
    create = client.chat.completions.create
    stranger = client.with_options(api_key="sk-nobody-knows-this")
    for stream in (False, True):
        refused(
            openai.AuthenticationError, 401, "invalid_api_key",
            lambda: stranger.chat.completions.create(model=model, messages=MESSAGES, stream=stream),
        )
        refused(
            openai.NotFoundError, 404, "model_not_found",
            lambda: create(model="no-such-model", messages=MESSAGES, stream=stream),
        )
        refused(openai.BadRequestError, 400, "invalid_value", lambda: create(model=model, messages=[], stream=stream))
        refused(
            openai.PermissionDeniedError, 403, "organization_not_covered",
            lambda: create(model=model, messages=MESSAGES, stream=stream, metadata={"organization_id": foreign}),
        )
    refused(openai.AuthenticationError, 401, "invalid_api_key", lambda: list(stranger.models.list()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("api_key")
    parser.add_argument("--model", default="gpt-4o-mini")
    parser.add_argument("--foreign-organization", default="an-organization-of-somebody-else")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.base_url, api_key=arguments.api_key, max_retries=0, timeout=30)
    model = arguments.model

    checks = [
        ("streamed", lambda: streamed(client, model)),
        ("streamed with usage", lambda: streamed_with_usage(client, model)),
        ("headers of a stream", lambda: stream_headers(client, model)),
        ("whole", lambda: whole(client, model)),
        ("asked again with an Idempotency-Key", lambda: asked_again(client, model)),
        ("metadata", lambda: metadata(client, model)),
        ("auto", lambda: chosen_by_the_gateway(client, model)),
        ("models", lambda: models(client, model)),
        ("errors", lambda: errors(client, model, arguments.foreign_organization)),
    ]
    failed = 0
    for name, check in checks:
        try:
            check()
        except Exception as error:  # Every mismatch is told, not only the first.
            failed += 1
            print(f"FAILED {name}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            print(f"ok {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
