"""Renders the cases of template_cases.json with Jinja2, set up as Hugging Face's apply_chat_template sets it up,
and compares with the snapshots of crates/engine/tests/text_templates.rs. Needs only: pip install jinja2."""

import datetime
import glob
import json
import os
import sys

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
SNAPSHOTS = os.path.join(ROOT, "crates", "engine", "tests", "snapshots")


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = lambda f: datetime.datetime(2026, 3, 2, 12, 34, 56).strftime(f)

data = json.load(open(os.path.join(HERE, "template_cases.json"), encoding="utf-8"))
paths = sorted(glob.glob(os.path.join(HERE, "templates", "*.jinja")))
paths.append(os.path.join(ROOT, "models", "demo", "chat_template.jinja"))
bad = errors = equal = 0
for path in paths:
    name = os.path.basename(path).removesuffix(".jinja")
    name = "demo" if name == "chat_template" else name
    template = env.from_string(open(path, encoding="utf-8").read())
    for case in data["cases"]:
        try:
            text = template.render(
                messages=data["messages"][case["messages"]],
                tools=data["tools"] if case["tools"] else None,
                documents=None,
                add_generation_prompt=True,
                bos_token="<s>",
                eos_token="</s>",
                **case["kwargs"],
            )
        except Exception as e:
            text, error = None, f"{type(e).__name__}: {e}"
        slug = f"{name}__{case['name']}"
        snapshot = open(os.path.join(SNAPSHOTS, f"text_templates__{slug}.snap"), encoding="utf-8").read()
        # insta writes a header between two lines of dashes, the content, and one line end.
        ours = snapshot.split("---\n", 2)[2].removesuffix("\n")
        ours = json.loads(ours)
        if text is None:
            errors += 1
            # The one leniency of our engine: a loop over None is a loop over nothing.
            lenient = error == "TypeError: 'NoneType' object is not iterable"
            ok = "error" in ours or lenient
            verdict = "both refuse" if "error" in ours else "only Jinja2 refuses"
            print(f"{verdict} {slug}: {error} | {ours.get('error')}")
        else:
            ok = ours.get("text") == text
            equal += ok
            if not ok:
                print(f"DIFFERS {slug}\n  jinja2 {text!r}\n  ours   {ours!r}")
        bad += not ok
print(f"{equal} equal, {errors} refused by Jinja2, {bad} different")
sys.exit(bad != 0)
