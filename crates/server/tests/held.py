"""Asks a server for many answers that are held to schemas, and checks each. By hand and in `cargo xtask soak held`.

    python3 -m venv V && V/bin/pip install jsonschema==4.26.0 && V/bin/pip install --no-deps bfcl-eval==2026.3.23
    V/bin/python crates/server/tests/held.py calls    --tidemill target/release/tidemill
    V/bin/python crates/server/tests/held.py accuracy --tidemill target/release/tidemill
    V/bin/python crates/server/tests/held.py cost     --tidemill target/release/tidemill

`calls` samples at temperature 1 and checks that what ended fits its schema. `accuracy` counts exact calls of
models/demo-eval with constraint, through the server, and without, by `eval tools`. `cost` measures what hostile
schemas cost before the first token. The status is 1 if anything is wrong.
"""

import argparse
import collections
import concurrent.futures
import copy
import http.client
import importlib.util
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import time

import jsonschema

from hostile_schemas import hostile

ROOT = pathlib.Path(__file__).resolve().parents[3]
HERMES = ROOT / "testdata/text/templates/Qwen-Qwen3-0.6B.jinja"
DETAILS = {
    "pattern", "format", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}
MOST_SECONDS = 1.0
MOST_BYTES = 100e6


class Server:
    """A server of the bundled model, on a free port."""

    def __init__(self, tidemill, template=None):
        command = [tidemill, "serve", "--port", "0", "--memory", "700MiB", "--ctx", "4096", "--queue", "64"]
        command += ["--chat-template", str(template)] if template else []
        self.log = tempfile.TemporaryFile("w+")
        # What a schema might do to the machine, it does to its server first.
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # noqa: E731
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log, preexec_fn=limit)
        self.port = None
        while not self.port or self.health() != 200:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended: {self.said()}")
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.said())
            self.port = int(found[1]) if found else None
            time.sleep(0.05)

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def health(self):
        try:
            return self.ask("GET", "/health")[0]
        except ConnectionError:
            return 0

    def ask(self, method, path, body=None, alone=False):
        """Status, headers, body, and seconds until the head came. If no other request runs, these are seconds of
        processors, and of an answer that is given the head alone is waited for."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60 if alone else 600)
        data = None if body is None else json.dumps(body)
        begin, worked = time.monotonic(), self.seconds()
        connection.request(method, path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        head = min(time.monotonic() - begin, self.seconds() - worked) if alone else time.monotonic() - begin
        text = "" if alone and answer.status == 200 else answer.read().decode()
        connection.close()  # which ends the answer
        return answer.status, answer.headers, text, head

    def memory(self, key):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) * 1024

    def seconds(self):
        """Of processors, which company on the machine does not lengthen."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


# Questions and schemas.

TYPES = {"dict": "object", "float": "number", "double": "number", "long": "integer", "tuple": "array",
         "list": "array", "String": "string", "Boolean": "boolean", "bool": "boolean", "char": "string"}
JSON_TYPES = {"object", "number", "integer", "array", "string", "boolean", "null"}


def as_schema(value):
    """A schema of bfcl-eval, which names types as Python and Java do, as JSON Schema."""
    schema = {}
    for key, inner in value.items():
        if key == "type":
            name = TYPES.get(inner, inner)
            if name in JSON_TYPES:
                schema[key] = name
        elif key == "properties":
            schema[key] = {name: as_schema(one) for name, one in inner.items() if isinstance(one, dict)}
        elif key in ("items", "additionalProperties") and isinstance(inner, dict):
            schema[key] = as_schema(inner)
        elif key in ("required", "enum", "description", "default", "items", "additionalProperties") or key in DETAILS:
            schema[key] = inner
    if schema.get("enum") and schema.get("type") == "array":
        schema.setdefault("items", {})["enum"] = schema.pop("enum")
    if "enum" in schema and not jsonschema_fits_some(schema):
        del schema["enum"]
    return schema


def jsonschema_fits_some(schema):
    plain = {"type": schema["type"]} if "type" in schema else {}
    return any(jsonschema.Draft202012Validator(plain).is_valid(value) for value in schema["enum"])


def questions(data):
    """Of all single-turn parts of bfcl-eval: what was asked, and the tools on offer."""
    found = []
    for path in sorted(data.glob("BFCL_v*.json")):
        for line in path.read_text().splitlines():
            case = json.loads(line) if line.startswith("{\"id\"") else {}
            if not case.get("function") or not case.get("question"):
                continue
            asked = [turn["content"] for turn in case["question"][0] if turn["role"] == "user"]
            tools = {}
            for one in case["function"]:
                parameters = as_schema(one["parameters"])
                tools[one["name"]] = {"name": one["name"], "description": one.get("description", "")[:200],
                                      "parameters": parameters}
            if asked and asked[-1] and len(asked[-1]) < 1000 and len(json.dumps(tools)) < 2500:
                found.append((asked[-1], list(tools.values())))
    if not found:
        raise SystemExit(f"no questions of bfcl-eval in {data}")
    return found


def enriched(schema, dice, defs):
    """The schema with more keywords than bfcl-eval uses, at random."""
    schema = copy.deepcopy(schema)
    for key, inner in list(schema.get("properties", {}).items()):
        schema["properties"][key] = enriched(inner, dice, defs)
    if isinstance(schema.get("items"), dict):
        schema["items"] = enriched(schema["items"], dice, defs)
    schema.pop("default", None)
    if "enum" in schema or dice.random() < 0.4:
        return schema
    kind = schema.get("type")
    low = dice.randint(0, 20)
    if kind == "string":
        schema.update(dice.choice([
            {"pattern": "^[A-Z][a-z]{1,8}$"}, {"pattern": "[0-9]{2}"}, {"pattern": "^(?:a|b)+-\\d*$"},
            {"minLength": 2, "maxLength": 24}, {"maxLength": 8}, {"enum": ["a", "two words", "\"c\"", "d\\n"]},
            {"format": dice.choice(["date", "date-time", "uuid", "ipv4", "email", "time"])}, {"const": "só €"},
            {"type": ["string", "null"]}, {"pattern": "^\\S+ \\S+$", "maxLength": 30}, {"not": {"const": "x"}},
        ]))
    elif kind in ("integer", "number"):
        schema.update(dice.choice([
            {"minimum": low, "maximum": low + 12}, {"exclusiveMinimum": -low}, {"enum": [1, 20, -3]},
            {"minimum": -3, "exclusiveMaximum": 150}, {"type": [kind, "null"]}, {"maximum": -low - 1},
        ] + [{"multipleOf": 5, "minimum": 0}] * (kind == "integer")))
    elif kind == "array":
        schema.update(dice.choice([{"minItems": 1, "maxItems": 3}, {"maxItems": 2}, {"minItems": 2},
                                   {"maxItems": 4, "uniqueItems": True}]))
    elif kind == "object" and schema.get("properties"):
        schema.update(dice.choice([{"additionalProperties": False}, {"required": list(schema["properties"])}]))
    if kind and dice.random() < 0.15:
        schema = dice.choice([{"anyOf": [schema, {"type": "null"}]}, {"allOf": [schema]},
                              {"oneOf": [schema, {"type": "null"}]}])
    if defs is not None and dice.random() < 0.15:
        defs[f"d{len(defs)}"] = schema
        schema = {"$ref": f"#/$defs/d{len(defs) - 1}"}
    return schema


def varied(parameters, dice):
    """A tool's parameters, half of the time with more keywords."""
    if dice.random() < 0.5 or not parameters.get("properties"):
        return parameters
    defs = {}
    whole = copy.deepcopy(parameters)
    for key, inner in whole["properties"].items():
        whole["properties"][key] = enriched(inner, dice, defs)
    if defs:
        whole["$defs"] = defs
    return whole


def request(number, cases, seed, most_tokens):
    """The body of one request; all is decided by `seed` and `number`."""
    dice = random.Random(seed * 1_000_003 + number)
    asked, tools = dice.choice(cases)
    body = {"model": "demo", "messages": [{"role": "user", "content": asked}], "temperature": 1,
            "seed": dice.randint(0, 1 << 30), "max_tokens": most_tokens, "stream": dice.random() < 0.5}
    strict = dice.random() < 0.4
    if dice.random() < 0.25:
        schema = varied(dice.choice(tools)["parameters"], dice)
        body["response_format"] = {"type": "json_schema",
                                   "json_schema": {"name": "answer", "schema": schema, "strict": strict}}
        return body
    more = dice.choice([0, 0, 1, 2])
    tools = tools + [tool for _ in range(more) for tool in dice.choice(cases)[1][:1]]
    tools = list({tool["name"]: tool for tool in tools}.values())
    if dice.random() < 0.4:
        tools = [dice.choice(tools)]
    functions = [dict(tool, parameters=varied(tool["parameters"], dice), strict=strict) for tool in tools]
    body["tools"] = [{"type": "function", "function": function} for function in functions]
    named = {"type": "function", "function": {"name": dice.choice(tools)["name"]}}
    body["tool_choice"] = dice.choice(["auto", "required", named])
    body["parallel_tool_calls"] = dice.random() < 0.5
    return body


# Answers.

def joined(text):
    """The answer that a stream's deltas make."""
    frames = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    if frames[-1] != "[DONE]":
        raise AssertionError(f"the stream ends with {frames[-1]}")
    message, finish = {"content": "", "tool_calls": []}, None
    for frame in frames[:-1]:
        for choice in json.loads(frame)["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                calls = message["tool_calls"]
                if call["index"] == len(calls):
                    calls.append({"id": call["id"], "function": {"name": "", "arguments": ""}})
                for key, piece in call["function"].items():
                    calls[call["index"]]["function"][key] += piece or ""
            finish = choice.get("finish_reason") or finish
    return message, finish


def without(schema, path, root):
    """Takes the keyword at `path` out of a schema; names may have slashes, and a reference is followed."""
    if isinstance(schema, dict) and str(schema.get("$ref", "")).startswith("#/$defs/"):
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    for end in range(1, len(path) + 1):
        key = "/".join(path[:end])
        inner = schema[int(key)] if isinstance(schema, list) and key.isdigit() else \
            schema.get(key) if isinstance(schema, dict) else None
        if inner is None:
            continue
        if end == len(path):
            del schema[key]
            return True
        if without(inner, path[end:], root):
            return True
    return False


def stripped(schema, drop):
    if isinstance(schema, dict):
        return {key: stripped(inner, drop) for key, inner in schema.items()
                if key not in drop or isinstance(inner, (dict, bool))}
    return [stripped(inner, drop) for inner in schema] if isinstance(schema, list) else schema


def any_of(schema):
    """Tools that are not strict have `oneOf` taken as `anyOf`."""
    if isinstance(schema, dict):
        return {"anyOf" if key == "oneOf" else key: any_of(inner) for key, inner in schema.items()}
    return [any_of(inner) for inner in schema] if isinstance(schema, list) else schema


def kept(function, ignored):
    """The schema of a tool without what the server said that it left out."""
    schema = copy.deepcopy(function["parameters"])
    if function["strict"]:
        return schema
    begin = f"tools: {function['name']}: parameters"
    for item in (one.strip() for one in ignored):
        if not item.startswith(begin):
            continue
        rest = item[len(begin):]
        if rest.startswith(": patterns"):
            schema = stripped(schema, DETAILS)
        elif rest.startswith(": all of it"):
            schema = {"type": "object"}
        elif not without(schema, rest.lstrip("/").split("/"), schema):
            raise AssertionError(f"the header names what is not there: {item}")
    return any_of(schema)


def misfit(value, schema, closed):
    """Why a value does not fit."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    errors = [f"{error.json_path}: {error.message}"[:200] for error in validator.iter_errors(value)]
    more = set(value) - set(schema.get("properties", {})) if closed and isinstance(value, dict) else ()
    return errors + ([f"undeclared {sorted(more)}"] if more else [])


def white_space(text):
    """White space outside strings that goes on for too long."""
    outside = re.sub(r'"(?:[^"\\]|\\.)*("|$)', '""', text, flags=re.S)
    found = re.search(r" {21}|\n *\n|[\t\r]", outside)
    return [f"white space without end: {text!r}"] if found else []


def wrong(body, status, headers, text, count):
    """What is wrong with an answer, and counts how it ended."""
    if status == 400:
        error = json.loads(text)["error"]
        count["refused"] += 1
        count[f"refused: {re.sub(r'.*: ', '', error['message'], count=1)[:90]}"] += 1
        fine = error["code"] == "invalid_schema" and error["message"]
        return [] if fine else [f"refused: {error}"]
    if status != 200:
        return [f"status {status}: {text[:300]}"]
    if body["stream"]:
        message, finish = joined(text)
    else:
        choice = json.loads(text)["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
    count[finish] += 1
    content, calls = message.get("content") or "", message.get("tool_calls") or []
    if "response_format" in body:
        if finish != "stop":
            return white_space(content)
        schema = body["response_format"]["json_schema"]["schema"]
        return white_space(content) + misfit(json.loads(content), schema, False)
    functions = {tool["function"]["name"]: tool["function"] for tool in body["tools"]}
    chosen = body["tool_choice"]
    errors = []
    if content.startswith("<tool_call>"):
        count["cut in a later call"] += 1  # which is text then, beside the calls before it
    elif chosen != "auto" and content:
        errors.append(f"text beside required calls: {content!r}")
    if (finish == "tool_calls") != bool(calls) and finish != "length":
        errors.append(f"{len(calls)} calls, and {finish}")
    if len(calls) > 1 and not body["parallel_tool_calls"]:
        errors.append(f"{len(calls)} calls, one may come")
    if finish == "stop" and chosen != "auto":
        errors.append("no call")
    ignored = (headers.get("x-tidemill-ignored") or "").split(",")
    for call in calls if finish == "tool_calls" else calls[:-1]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        allowed = functions if isinstance(chosen, str) else [chosen["function"]["name"]]
        if name not in allowed:
            errors.append(f"a call of {name!r}")
            continue
        count["calls"] += 1
        count["calls of enriched schemas"] += functions[name]["parameters"].get("$defs") is not None
        combined = {"$ref", "anyOf", "oneOf", "allOf", "patternProperties"} & set(functions[name]["parameters"])
        schema = kept(functions[name], ignored)
        closed = not combined and "additionalProperties" not in schema and schema.get("properties")
        errors += misfit(json.loads(arguments), schema, closed)
    return errors


def one(server, body, count):
    """Asks, checks, and says what is wrong and how long the head took."""
    status, headers, text, head = server.ask("POST", "/v1/chat/completions", body)
    try:
        errors = wrong(body, status, headers, text, count)
    except (ValueError, KeyError, IndexError, AssertionError) as error:
        errors = [f"{type(error).__name__}: {error}"]
    return [f"{error}\n  {json.dumps(body)}\n  {text[-1500:]}" for error in errors], head


def calls(options):
    """The first mode."""
    cases = questions(options.data)
    failed = False
    for name, template in [("tags", None), ("json", HERMES)]:
        if options.format not in ("both", name):
            continue
        count, slow, begin = collections.Counter(), [], time.monotonic()
        with Server(options.tidemill, template) as server, \
                concurrent.futures.ThreadPoolExecutor(options.threads) as threads:
            numbers = [options.only] if options.only is not None else range(options.count)
            bodies = {n: request(n, cases, options.seed, options.max_tokens) for n in numbers}
            asked = {threads.submit(one, server, body, count): n for n, body in bodies.items()}
            for done in concurrent.futures.as_completed(asked):
                errors, head = done.result()
                slow.append((head, asked[done]))
                for error in errors:
                    failed = True
                    print(f"WRONG {name} {asked[done]}: {error}", flush=True)
                if len(slow) % 100 == 0:
                    print(f"{name}: {len(slow)} in {time.monotonic() - begin:.0f} s", flush=True)
            seconds = time.monotonic() - begin
            worst = [costs(server, bodies[n]) for _, n in sorted(slow)[-5:]]
        print(json.dumps({"format": name, "asked": len(bodies), "seconds": round(seconds),
                          **dict(sorted(count.items()))}, ensure_ascii=False))
        held, free = max(worst)
        print(f"{name}: slowest head, alone: {held * 1e3:.0f} ms; without constraint {free * 1e3:.0f} ms")
        failed |= held - free > MOST_SECONDS
    return failed


def costs(server, body):
    """Seconds until the head of a request comes, which follows the compiled schema, and of the same without one."""
    plain = {key: value for key, value in body.items()
             if key not in ("tools", "tool_choice", "response_format", "parallel_tool_calls")}
    return tuple(server.ask("POST", "/v1/chat/completions", dict(one, stream=True, max_tokens=1), True)[3]
                 for one in (body, plain))


# What schemas cost.

def brief(template):
    """The template without the schemas of tools, whose length as a prompt is no cost of a constraint."""
    text = template.read_text().replace("tool | tojson", "tool.function.name")
    file = tempfile.NamedTemporaryFile("w", suffix=".jinja")
    file.write(text)
    file.flush()
    return file


def cost(options):
    """The third mode."""
    rows = []
    print("| schema | asked for as | status | ms | MB | said |\n|---|---|---|---|---|---|")
    for name, template in [("tags", ROOT / "models/demo/chat_template.jinja"), ("json", HERMES)]:
        asked = [(label, *way) for label, schema in hostile().items() for way in ways_to_ask(name, schema)
                 if not options.only or options.only in label]
        while asked:
            with brief(template) as file, Server(options.tidemill, file.name) as server:
                server.ask("POST", "/v1/chat/completions", dict(GO, response_format={"type": "json_object"}), True)
                while asked:
                    rows.append(costs_too_much(server, *asked.pop(0)))
                    if rows[-1] is None:
                        server.process.kill()  # it does not stop
                        break
    return any(row is not False for row in rows)


GO = {"model": "demo", "messages": [{"role": "user", "content": "Go."}], "stream": True}


def ways_to_ask(name, schema):
    """For an answer, and for an argument of a tool, strict and not."""
    if name == "tags":
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        yield "answer", dict(GO, response_format=form)
    for strict in (False, True):
        parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
        parameters |= {"$defs": schema["$defs"]} if "$defs" in schema else {}
        function = {"name": "f", "parameters": parameters, "strict": strict}
        tools = [{"type": "function", "function": function}]
        yield f"{'strict ' * strict}tool, {name}", dict(GO, tools=tools, tool_choice="required")


def costs_too_much(server, label, way, body):
    """Prints a row; `None` if no answer came."""
    server.forget_peak()
    before = server.memory("VmRSS")
    try:
        status, headers, text, head = server.ask("POST", "/v1/chat/completions", body, True)
    except OSError as error:
        status, text, head, headers = repr(error), "", 60, {}
    grown = 0 if server.process.poll() is not None else max(0, server.memory("VmHWM") - before)
    said = json.loads(text)["error"]["message"] if text else headers.get("x-tidemill-ignored") or ""
    bad = status not in (200, 400) or head > MOST_SECONDS or grown > MOST_BYTES
    print(f"| {label} | {way} | {status}{' WRONG' * bad} | {head * 1e3:.0f} | {grown / 1e6:.0f} | {said[:110]} |",
          flush=True)
    return None if isinstance(status, str) else bad


# Exact calls.

def written(turn):
    """A turn of the model as the bundled template writes it."""
    parts = [turn["content"]] if turn.get("content") else []
    texts = []
    for call in turn.get("tool_calls", []):
        values = "".join(f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
                         for key, value in call["function"]["arguments"].items())
        texts.append(f"<tool_call>\n<function={call['function']['name']}>\n{values}</function>\n</tool_call>")
    return "\n\n".join(parts + ["\n".join(texts)] * bool(texts))


def turns(path):
    """Cases of `eval tools`: those of the file, or the first turn of the model in each dialog."""
    for line in path.read_text().splitlines():
        case = json.loads(line)
        if "expected_text" in case:
            yield case
            continue
        at = next(i for i, message in enumerate(case["messages"]) if message["role"] == "assistant")
        yield {"messages": case["messages"][:at], "tools": case["tools"],
               "expected_text": written(case["messages"][at])}


def accuracy(options):
    """The second mode."""
    failed = False
    for path in [ROOT / "models/demo-eval/tool_prompts.jsonl", ROOT / "models/demo-eval/tool_dialogs.jsonl"]:
        cases = list(turns(path))
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("".join(json.dumps(case) + "\n" for case in cases))
            file.flush()
            command = [options.tidemill, "eval", "tools", "demo", file.name, "--json"]
            free = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        with Server(options.tidemill) as server, concurrent.futures.ThreadPoolExecutor(4) as threads:
            exact = sum(threads.map(lambda case: is_exact(server, case), cases))
        without_constraint = round(free["tool_exact"] * free["tool_n"])
        print(f"{path.name}: {len(cases)} cases, exact with constraint {exact}, without {without_constraint}")
        failed |= exact < without_constraint or free["tool_n"] != len(cases)
    return failed


def is_exact(server, case):
    body = {"model": "demo", "messages": case["messages"], "tools": case["tools"], "temperature": 0}
    status, _, text, _ = server.ask("POST", "/v1/chat/completions", dict(body, max_tokens=400))
    if status != 200:
        raise SystemExit(f"status {status}: {text}")
    message = json.loads(text)["choices"][0]["message"]
    made = [{"function": {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message.get("tool_calls") or []]
    return written({"content": message["content"], "tool_calls": made}) == case["expected_text"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["calls", "accuracy", "cost"])
    parser.add_argument("--tidemill", required=True, help="the program")
    parser.add_argument("--data", type=pathlib.Path, help="the folder of bfcl-eval's questions")
    parser.add_argument("--count", type=int, default=1000, help="answers for each format")
    parser.add_argument("--format", choices=["both", "tags", "json"], default="both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--only", help="the request of this number, or schemas of this name")
    options = parser.parse_args()
    if options.mode == "calls":
        options.only = None if options.only is None else int(options.only)
        if not options.data:
            found = importlib.util.find_spec("bfcl_eval")
            options.data = pathlib.Path(found.submodule_search_locations[0]) / "data" if found else None
        if not options.data:
            raise SystemExit("no bfcl_eval: pip install --no-deps bfcl-eval==2026.3.23, or --data FOLDER")
    sys.exit({"calls": calls, "accuracy": accuracy, "cost": cost}[options.mode](options))


if __name__ == "__main__":
    main()
