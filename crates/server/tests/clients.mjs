// Talks to a server with the official package. Prints a line for each thing that works; the first that fails ends it.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [base, what] = process.argv.slice(2);
const STORY = "Tell me a story about a brave hedgehog.";
const NAME = "What is your name?";
const WEATHER = "Get the weather in Lisbon with days 3.";
const LISBON = { city: "Lisbon", days: 3 };
const RESULT = { temperature: 21, status: "sunny" };
const Weather = z.object({ city: z.string().describe("The city."), days: z.int().describe("Number of days.") });
const Trip = z.object({ city: z.enum(["Lisbon", "Paris"]), days: z.union([z.literal(1), z.literal(2)]) });

const connect = (more) => new OpenAI({ baseURL: `${base}/v1`, apiKey: "secret", maxRetries: 0, timeout: 300_000, ...more });
const client = connect();
const ok = (what) => console.log("ok", what);
const user = (content) => [{ role: "user", content }];
const fixed = { model: "demo", temperature: 0 };

async function chat() {
  const short = { ...fixed, messages: user(STORY), max_tokens: 24 };
  const whole = await client.chat.completions.create(short);
  const text = whole.choices[0].message.content;
  assert(text.length > 20 && whole.usage.completion_tokens === 24, text);
  let joined = "";
  for await (const chunk of await client.chat.completions.create({ ...short, stream: true }))
    joined += chunk.choices[0].delta.content ?? "";
  assert.equal(joined, text);
  ok("chat, whole and streamed");

  const named = await client.chat.completions.create({ ...fixed, messages: user(NAME) });
  const more = { logprobs: true, top_logprobs: 2, stream_options: { include_usage: true } };
  const stream = client.chat.completions.stream({ ...fixed, messages: user(NAME), ...more });
  const seen = new Set();
  for (const name of ["chunk", "content.delta", "content.done", "logprobs.content.delta"])
    stream.on(name, () => seen.add(name));
  assert.equal(await stream.finalContent(), named.choices[0].message.content);
  const final = await stream.finalChatCompletion();
  assert.equal(seen.size, 4, [...seen]);
  assert.equal(final.usage.completion_tokens, named.usage.completion_tokens);
  const logprobs = final.choices[0].logprobs.content;
  assert(logprobs.length > 10 && logprobs.every((of) => of.logprob <= 0 && of.top_logprobs.length === 2), logprobs);
  ok("the streaming helper, with logprobs");

  for (const streamed of [true, false]) {
    const calls = [];
    const tool = zodFunction({
      name: "get_weather",
      description: "Get the weather.",
      parameters: Weather,
      function: (given) => (calls.push(given), RESULT),
    });
    const runner = client.chat.completions.runTools({ ...fixed, messages: user(WEATHER), tools: [tool], stream: streamed });
    assert.match(await runner.finalContent(), /temperature|sunny/);
    assert.deepEqual(calls, [LISBON]);
    assert.deepEqual(runner.messages.map((of) => of.role), ["user", "assistant", "tool", "assistant"]);
  }
  ok("a loop of calls, streamed and whole");

  const format = { ...fixed, messages: user(WEATHER), response_format: zodResponseFormat(Trip, "trip") };
  const parsed = await client.chat.completions.parse(format);
  Trip.parse(parsed.choices[0].message.parsed);
  const streamed = await client.chat.completions.stream(format).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, parsed.choices[0].message.parsed);
  ok("an answer parsed into a schema");
}

async function responses() {
  const whole = await client.responses.create({ ...fixed, input: NAME, instructions: "Be brief." });
  assert(whole.output_text.length > 20 && whole.status === "completed", whole);
  const stream = client.responses.stream({ ...fixed, input: NAME, instructions: "Be brief." });
  let number = 0;
  for await (const event of stream) assert.equal(event.sequence_number, number++, event.type);
  const final = await stream.finalResponse();
  assert.equal(final.output_text, whole.output_text);
  assert.equal(final.output.length, whole.output.length);
  ok("responses, whole and streamed");

  const format = { ...fixed, input: WEATHER, text: { format: zodTextFormat(Trip, "trip") } };
  const parsed = await client.responses.parse(format);
  Trip.parse(parsed.output_parsed);
  ok("an answer parsed into a schema");

  const parameters = z.toJSONSchema(Weather);
  const tools = [{ type: "function", name: "get_weather", description: "Get the weather.", parameters, strict: true }];
  const input = user(WEATHER);
  let answer;
  for (let turn = 0; turn < 3; turn++) {
    answer = await client.responses.stream({ ...fixed, input, tools }).finalResponse();
    input.push(...answer.output);
    const calls = answer.output.filter((item) => item.type === "function_call");
    if (calls.length === 0) break;
    for (const call of calls) {
      assert.deepEqual(call.parsed_arguments, LISBON);
      input.push({ type: "function_call_output", call_id: call.call_id, output: JSON.stringify(RESULT) });
    }
  }
  assert.match(answer.output_text, /temperature|sunny/);
  assert.equal(input.filter((item) => item.type === "function_call").length, 1);
  ok("a loop of calls");
}

// The error of a request that must fail.
async function failure(kind, status, request) {
  const error = await request().then((found) => assert.fail(`${kind.name}: ${JSON.stringify(found)}`), (error) => error);
  assert(error instanceof kind, error);
  assert.equal(error.status, status, error);
  return error;
}

async function errors() {
  const short = { ...fixed, messages: user(STORY), max_tokens: 4 };
  await failure(OpenAI.AuthenticationError, 401, () => connect({ apiKey: "no" }).models.list());
  await failure(OpenAI.NotFoundError, 404, () => client.models.retrieve("other"));
  await failure(OpenAI.NotFoundError, 404, () => client.embeddings.create({ model: "demo", input: "x" }));
  const defaultHeaders = { origin: "http://elsewhere.test" };
  await failure(OpenAI.PermissionDeniedError, 403, () => connect({ defaultHeaders }).chat.completions.create(short));
  const long = { ...short, messages: user("word ".repeat(3000)) };
  const full = await failure(OpenAI.BadRequestError, 400, () => client.chat.completions.create(long));
  assert.equal(full.code, "context_length_exceeded");
  const empty = await failure(OpenAI.BadRequestError, 400, () => client.chat.completions.create({ ...short, messages: [] }));
  assert.equal(empty.param, "messages");
  assert.match(empty.requestID, /^req_/);
  const large = { ...short, messages: user("word ".repeat(100_000)) };
  await failure(OpenAI.APIError, 413, () => client.chat.completions.create(large));
  await failure(OpenAI.APIConnectionError, undefined, () => connect({ baseURL: "http://127.0.0.1:1/v1" }).models.list());
  ok("requests that are refused");

  // One is answered and one waits: a third is too many.
  const endless = { ...short, max_tokens: 900, stream: true, ignore_eos: true };
  const left = new AbortController();
  const open = () => client.chat.completions.create(endless, { signal: left.signal });
  const kept = [await open(), await open()];
  await failure(OpenAI.RateLimitError, 429, () => client.chat.completions.create(short));
  await failure(OpenAI.RateLimitError, 429, () => client.responses.create({ ...fixed, input: STORY }));
  left.abort();
  for (const stream of kept) for await (const _ of stream);
  ok("a full queue");

  const whole = { ...short, max_tokens: 900, ignore_eos: true };
  const broken = new AbortController();
  const aborted = client.chat.completions.create(whole, { signal: broken.signal });
  setTimeout(() => broken.abort(), 20);
  await failure(OpenAI.APIUserAbortError, undefined, () => aborted);
  const impatient = connect({ timeout: 20 });
  await failure(OpenAI.APIConnectionTimeoutError, undefined, () => impatient.chat.completions.create(whole));
  ok("answers that are given up");
}

async function loading() {
  const error = await failure(OpenAI.InternalServerError, 503, () => client.models.list());
  assert.equal(error.type, "service_unavailable");
  ok("a server that loads");
}

await { chat, responses, errors, loading }[what]();
