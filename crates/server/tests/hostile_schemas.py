"""Schemas that are made to do harm, for held.py."""

import random


def nested(depth, inner):
    for _ in range(depth):
        inner = {"anyOf": [inner, {"type": "array", "items": inner}]}
    return inner


def hostile():
    """Schemas that are made to do harm, by name."""
    text = {"type": "string"}
    ring = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{(i * 7 + 1) % 900}"},
                                                       "b": {"$ref": f"#/$defs/d{(i * 13 + 5) % 900}"}}}
            for i in range(900)}
    doubling = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "array", "items": {
        "$ref": f"#/$defs/d{i + 1}"}}]} for i in range(40)} | {"d40": text}
    powers = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)} | {"d30": text}
    wide = {f"p{i}": {"type": "string", "maxLength": 50} for i in range(2000)}
    lists = [{"type": "object", "properties": {f"k{i}": text, "z": {"type": "integer"}}} for i in range(300)]
    return {
        "minLength above maxLength": {"type": "string", "minLength": 9999999, "maxLength": 1},
        "minLength 10,000": {"type": "string", "minLength": 10000},
        "maxLength 10,000": {"type": "string", "maxLength": 10000},
        "three of maxLength 10,000": {"type": "object", "properties": {
            k: {"type": "string", "minLength": 5000, "maxLength": 10000} for k in "abc"}, "required": ["a", "b"]},
        "minItems 10,000": {"type": "array", "items": text, "minItems": 10000},
        "minItems 10,000 of minItems 10,000": {"type": "array", "minItems": 10000, "items": {
            "type": "array", "minItems": 10000, "items": text}},
        "maxProperties 10,000": {"type": "object", "minProperties": 9000, "maxProperties": 10000},
        "a $ref to itself": {"$ref": "#"},
        "two $ref in a ring": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"},
                                                             "b": {"$ref": "#/$defs/a"}}},
        "900 $ref in rings": {"$ref": "#/$defs/d0", "$defs": ring},
        "$ref 99 deep": {"$ref": "#/$defs/d0", "$defs": {
            f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(48)} | {"d48": text}},
        "enum of 10,000 words": {"enum": [f"word number {i}" for i in range(10000)]},
        "enum of 10,000 numbers": {"enum": list(range(10000))},
        "enum of 30,000 words of 30 letters": {"enum": [random.Random(i).randbytes(15).hex() for i in range(30000)]},
        "anyOf of 10,000 constants": {"anyOf": [{"const": f"c{i}"} for i in range(10000)]},
        "oneOf of 300 objects": {"oneOf": lists},
        "anyOf of 300 objects": {"anyOf": lists},
        "anyOf nested 11 times, twofold": nested(11, text),
        "anyOf nested 40 times by $ref": {"$ref": "#/$defs/d0", "$defs": doubling},
        "allOf nested 30 times by $ref": {"$ref": "#/$defs/d0", "$defs": powers},
        "allOf of 200 patterns": {"type": "string", "allOf": [{"pattern": f"a{{{i}}}b"} for i in range(200)]},
        "allOf of anyOf, 12 times 3": {"allOf": [{"anyOf": [
            {"properties": {f"k{i}{j}": text}, "required": [f"k{i}{j}"]} for j in range(3)]} for i in range(12)]},
        "pattern of 100 kB": {"type": "string", "pattern": "|".join(f"w{i * 7919}" for i in range(12000))},
        "pattern (a{1,1000}){1,1000}": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
        "pattern ((a|b)*a(a|b){20})": {"type": "string", "pattern": "^(a|b)*a(a|b){20}$"},
        "pattern with \\w{1,500}": {"type": "string", "pattern": "^\\w{1,500}@\\w{1,500}\\.\\w{2,9}$"},
        "pattern .*a.{400}": {"type": "string", "pattern": "a.{400}b"},
        "2000 properties": {"type": "object", "properties": wide},
        "2000 required properties": {"type": "object", "properties": wide, "required": list(wide)},
        "2000 patternProperties": {"type": "object", "patternProperties": {f"^p{i}": text for i in range(2000)}},
        "multipleOf 0.0000001": {"type": "number", "multipleOf": 0.0000001},
        "multipleOf 999983, bounds": {"type": "integer", "multipleOf": 999983, "minimum": 1},
        "allOf of two multipleOf": {"type": "integer", "allOf": [{"multipleOf": 99991}, {"multipleOf": 99989}]},
        "minimum of 300 digits": {"type": "integer", "minimum": int("9" * 300)},
        "nested 95 deep": deep(95),
    }


def deep(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema
