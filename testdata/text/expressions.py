"""Records in expressions.json what Jinja2, set up as Hugging Face's apply_chat_template sets it up, prints for each
expression that a chat template could use; crates/engine/tests/text_templates.rs compares. An answer of null is an error.
Needs only: pip install jinja2. `--check` compares with what is recorded and writes nothing."""

import datetime
import json
import os
import re
import sys

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))

CONTEXT = {
    "s": "Hello, World", "t": "  pad\t\n", "u": "zażółć ß 日本 😀", "lines": "a\nb\r\nc\n\nd", "empty": "",
    "csv": "a,b,,c", "num": "42", "n": 7, "neg": -3, "f": 2.5, "big": 12345678901234567890123, "yes": True,
    "no": False, "nil": None, "e20": 1e20, "tiny": 1.5e-7, "whole": 3.0, "xs": [3, 1, 2], "mixed": [1, "a", None, True, 2.5],
    "words": ["pear", "Apple", "fig"], "none_list": [], "d": {"b": 1, "a": "x", "c": [1, {"k": None}]}, "empty_d": {},
    "people": [{"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "bob", "age": 25}, {"name": "Cy", "age": 31}],
    "m": {"role": "user", "content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": "é"}}}]},
    "nested": [[1, 2], [3], []], "q": "it's \"q\"", "bs": "a\\b", "html": "<b>&'\"</b>",
}

EXPRESSIONS = r"""
s is string
s is sequence
xs is sequence
d is sequence
n is sequence
nil is sequence
missing is sequence
xs is iterable
s is iterable
d is iterable
n is iterable
nil is iterable
missing is iterable
d is mapping
xs is mapping
s is mapping
n is number
f is number
yes is number
s is number
n is integer
yes is integer
f is integer
whole is integer
f is float
n is float
yes is boolean
n is boolean
nil is none
missing is none
missing is defined
s is defined
missing is undefined
n is odd
n is even
n is divisibleby(7)
n is divisibleby 7
n is eq 7
n is ne(7)
n is gt 6
n is lt 6
n is ge 7
n is le 6
n is in [1, 7]
n is in(xs)
n is not in xs
"lo" in s
"lo" not in s
"a" in d
1 in d
3 in xs
yes is true
n is true
no is false
nil is false
n is sameas 7
nil is sameas nil
yes is sameas true
s is upper
"ABC" is upper
s is lower
"abc" is lower
s is callable
range is callable
s is escaped
"upper" is filter
"nope" is filter
"string" is test
s is not string
not s is string
s is equalto "x"
n is number and s is string
s is startingwith "H"
'%s' % 1
'%s and %s' % (1, 'b')
'%d' % 3.7
'%05d' % n
'%5.2f|' % f
'%-6s|' % s
'%6s|' % 'ab'
'%x %X %o' % (255, 255, 8)
'%e' % 12345.678
'%g' % 0.00001
'%r' % 'a'
'%c' % 'z'
'%%' % ()
'%(a)s-%(b)s' % d
'%+d' % n
'% d' % n
'%s' % nil
'%s' % yes
'%s' % [1, 'a']
'%s' % f
'%s %s' % (1,)
'%d' % 'a'
7 % 3
-7 % 3
7 % -3
7.5 % 2
1 % 0
s % 1
s.upper()
s.lower()
s.title()
s.capitalize()
s.swapcase()
"they're bill's".title()
"ﬁ ß".upper()
"ÀÉ".casefold()
s.center(20)
s.center(21, '*') + '|'
"ab".center(5, '-')
"abc".center(6, '-')
s.ljust(15, '.') + '|'
s.rjust(15, '.')
num.zfill(5)
"-42".zfill(6)
"+42".zfill(6)
"".zfill(3)
s.split()
s.split(', ')
t.split()
csv.split(',')
csv.split(',', 1)
csv.split(',', maxsplit=1)
csv.split(sep=',')
csv.rsplit(',', 1)
csv.rsplit(',')
"a b  c".rsplit(None, 1)
"a b  c".rsplit()
"a b  c".split(' ')
"a b  c".split(None, 1)
" a b ".split(maxsplit=1)
"".split()
"".split(',')
csv.split('')
lines.splitlines()
lines.splitlines(True)
"a\u2028b\x0bc".splitlines()
s.partition(', ')
s.partition('zz')
csv.rpartition(',')
csv.rpartition('zz')
s.removeprefix('Hello')
s.removeprefix('x')
s.removesuffix('World')
s.removesuffix('x')
s.index('W')
s.index('zz')
s.rindex('o')
s.find('o')
s.find('o', 5)
s.find('o', 5, 8)
s.find('zz')
s.rfind('o')
s.rfind('o', 0, 6)
u.find('日')
s.count('o')
s.count('o', 5)
s.count('')
s.startswith('Hell')
s.startswith(('x', 'H'))
s.startswith(['H'])
s.startswith('W', 7)
s.endswith('ld')
s.endswith(('x', 'd'))
s.strip()
t.strip()
t.lstrip()
t.rstrip() + '|'
'xxaxx'.strip('x')
'xyaxy'.lstrip('xy')
'xyaxy'.rstrip('yx')
'abc'.strip('')
'\x1c a\x85'.strip() | length
s.replace('l', 'L')
s.replace('l', 'L', 1)
s.replace('l', '')
'abc'.replace('', '-')
'abc'.replace('', '-', 2)
s.replace('l', 'L', -1)
','.join(words)
','.join(s)
','.join(xs)
''.join([])
s.isalpha()
'abc'.isalpha()
'abc1'.isalnum()
'12'.isdigit()
'½'.isdigit()
'½'.isnumeric()
'²'.isdigit()
'12'.isdecimal()
''.isdigit()
'abc'.islower()
'ABC1'.isupper()
'123'.isupper()
'Abc Def'.istitle()
'  '.isspace()
'abc'.isascii()
'abc'.isidentifier()
'a-b'.isidentifier()
u.isascii()
'a\tb'.expandtabs(4)
'abc'.translate({})
'{} {}'.format(1, 'a')
'{0}-{1}-{0}'.format('x', 'y')
'{a}'.format(a=3)
'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')
'{:05d}'.format(42)
'{:.2f}'.format(f)
'{:,}'.format(1234567)
'{!r}'.format('a')
'{{}}'.format()
'{x[b]}'.format(x=d)
'{}'.format()
'abc'.encode('utf-8')
s[0]
s[-1]
s[1:4]
s[::-1]
s[:-1]
s[100]
s[7:][:3]
u[7:9]
s|length
u|length
s|upper
s|lower
s|title
"hello-world foo_bar (baz)"|title
s|capitalize
s|trim
t|trim
'xxaxx'|trim('x')
s|replace('l', 'L')
s|replace('l', 'L', 1)
s|center(20)
'a'|center(4) ~ '|'
s|first
s|last
s|list
s|reverse
s|truncate(8)
s|truncate(8, true)
s|truncate(5, true, '')
s|truncate(100)
"foo bar baz qux"|truncate(9)
"foo bar baz qux"|truncate(11, false, '...', 0)
s|wordcount
"a b c d e f g h"|wordwrap(5)
lines|indent
lines|indent(2)
lines|indent(2, true)
lines|indent(2, first=true)
lines|indent(2, false, true)
lines|indent('> ')
lines|indent(width='> ', first=true, blank=true)
"%s-%s"|format(1, 'b')
"%(x)s"|format(x=3)
"%5.1f"|format(f)
html|e
html|escape
html|safe
html|forceescape
html|striptags
"a b&c=d/é"|urlencode
d|urlencode
{'class': 'x', 'id': 1}|xmlattr
1000000|filesizeformat
1000|filesizeformat(true)
n|string
n|string|length
num|int
num|int + 1
'x'|int
'x'|int(5)
'0x1f'|int(0, 16)
'3.7'|int
3.99|int
yes|int
nil|int
'1.5'|float
'x'|float
'x'|float(1.0)
n|float
f|round
2.5|round
3.5|round
2.675|round(2)
2.4|round(0, 'ceil')
2.6|round(method='floor')
1234.5|round(-2)
7|round
neg|abs
-2.5|abs
xs|length
d|length
n|length
missing|length
xs|count
xs|first
xs|last
none_list|first
none_list|last
xs|sum
xs|sum(start=10)
people|sum(attribute='age')
xs|min
xs|max
none_list|max
words|min
words|max
people|max(attribute='age')
xs|sort
xs|sort(reverse=true)
words|sort
words|sort(case_sensitive=true)
people|sort(attribute='age')|map(attribute='name')|join(',')
people|sort(attribute='age,name')|map(attribute='name')|list
xs|reverse
xs|reverse|list
xs|join
xs|join(', ')
words|join(d='-')
people|join(', ', attribute='name')
mixed|join('|')
d|join(',')
mixed|list
d|list
xs|unique|list
['a', 'A', 'b']|unique|list
['a', 'A', 'b']|unique(case_sensitive=true)|list
people|unique(attribute='age')|map(attribute='name')|list
xs|map('string')|list
words|map('upper')|list
words|map('replace', 'p', 'P')|list
people|map(attribute='name')|list
people|map(attribute='tags', default='none')|list
people|map(attribute='tags.0')|list
xs|select('odd')|list
xs|select|list
[0, 1, '', 'a', none]|select|list
[0, 1, '', 'a', none]|reject|list
xs|select('gt', 1)|list
xs|select('>', 1)|list
xs|reject('equalto', 1)|list
people|selectattr('tags')|map(attribute='name')|list
people|selectattr('tags', 'defined')|list|length
people|selectattr('age', 'equalto', 31)|map(attribute='name')|list
people|selectattr('age', '==', 31)|list|length
people|selectattr('name', 'in', ['Ann'])|list|length
people|rejectattr('age', 'gt', 30)|map(attribute='name')|list
people|groupby('age')|map('first')|list
people|groupby('age')|map(attribute='grouper')|list
people|groupby('age')|map(attribute='list')|map('length')|list
xs|batch(2)|list
xs|batch(2, 'x')|list
xs|slice(2)|list
xs|slice(2, 'x')|map('list')|list
d|dictsort
d|dictsort(reverse=true)
{'b': 1, 'A': 2}|dictsort
{'b': 1, 'A': 2}|dictsort(true)
{'b': 1, 'A': 2}|dictsort(by='value')
d|items|list
d.items()
d.items()|list
d.keys()|list
d.values()|list
d.keys()
d.values()
d.get('a')
d.get('z')
d.get('z', 5)
d.get('z') is none
d['a']
d.a
d.zzz
d['zzz'] is defined
d.b + 1
d.items
d.keys is defined
d.copy()
d|attr('a')
m|attr('role')
s|attr('upper')
m.content
m['content']
m.tool_calls[0].function.arguments
m.tool_calls[0]['function']['name']
m.get('role', '')
m.missing.deeper
m.missing is defined
missing
missing|default('x')
missing|d('x')
empty|default('x')
empty|default('x', true)
nil|default('x')
nil|default('x', boolean=true)
missing.attr
missing()
missing + 'x'
missing ~ 'x'
missing or 'x'
not missing
missing == none
missing|string
missing|list
missing|upper
missing|join
missing|tojson
nil.attr
nil + 1
nil ~ 'x'
nil|upper
nil|string
nil|length
1 + 1
1 + 1.5
'a' + 'b'
'a' + 1
[1] + [2]
(1,) + (2,)
d + d
xs + 'a'
+1
+n
-n
- f
+f * 2
1 - +1
+'a'
2 * 3
'ab' * 3
3 * 'ab'
[1, 2] * 2
'ab' * 0
'ab' * -1
'a' * 1.5
7 / 2
6 / 2
7 // 2
-7 // 2
7.5 // 2
1 / 0
1 // 0
2 ** 3
2 ** -1
2 ** 0.5
-2 ** 2
2 ** 3 ** 2
2 ** 100
10 ** 20
10 ** 40
big
big + 1
big|tojson
big|string
e20
e20|string
e20 ~ ''
e20|tojson
tiny
tiny ~ ''
whole
whole|int
whole ~ ''
1e20
1e16
1e15
1e-5
0.0001
1.0
1.10
0.1 + 0.2
100000000000000000000.0
1e400
-1e400
[1e20, 1e-7]
'%s' % e20
1_000
1 == 1.0
1 == true
'1' == 1
nil == none
[1, 2] == [1, 2]
(1, 2) == [1, 2]
{'a': 1} == {'a': 1}
1 < 2 < 3
1 < 2 > 3
'a' < 'b'
'a' < 1
[1, 2] < [1, 3]
nil < 1
1 != 2
s == "Hello, World"
yes and no
yes or no
not yes
n and s
empty or 'x'
0 or nil
1 and 2
'a' ~ 1 ~ nil ~ yes
1 ~ 2
f ~ ''
xs ~ ''
d ~ ''
s if yes else 'n'
s if no
(s if no) is defined
'x' if empty else 'y'
xs[0]
xs[-1]
xs[10]
xs[10] is defined
xs[1:]
xs[:2]
xs[::-1]
xs[::2]
xs[-2:]
xs[5:]
xs[:-1]|list
(1, 2, 3)[1:]
(1, 2)
(1,)
()
[]
{}
[1, 'a', none, true, 2.5]
['it\'s']
["it's \"q\""]
['\n\t\\']
['é😀\x01\x7f']
{'a': 1, 'b': [1, 'x']}
{1: 2}
{true: 'x'}
{'a': none}
{none: 1}
d
people[0]
m
xs
mixed
nested
q
[q]
[bs]
bs
none
None
true
True
False
yes
nil
nested|map('length')|list
nested|sum(start=[])
range(3)
range(3)|list
range(1, 7, 2)|list
range(5, 0, -2)|list
range(0)
range(3)|length
range(10)[2]
range(10)[2:4]|list
1 in range(3)
xs.index(1)
xs.index(9)
xs.count(3)
xs.append(4)
xs.pop()
xs.copy()
d.update({'x': 1})
d.pop('a')
d.setdefault('a', 1)
d.clear()
(1, 2).index(2)
(1, 2).count(1)
dict(a=1, b=2)
dict(a=1).b is defined
dict([('a', 1)])
dict(d, z=1)|length
namespace(a=1).a
lipsum is defined
cycler('a', 'b').next()
joiner(', ')() ~ 'x'
s|tojson
u|tojson
html|tojson
d|tojson
d|tojson(indent=2)
d|tojson(indent=4, ensure_ascii=True)
xs|tojson
mixed|tojson
nil|tojson
yes|tojson
f|tojson
whole|tojson
tiny|tojson
(1, 2)|tojson
[]|tojson
{}|tojson
{}|tojson(indent=2)
[[], {}]|tojson(indent=2)
{1: 2}|tojson
{true: 1}|tojson
{none: 1}|tojson
{1.5: 1}|tojson
d|tojson(separators=(',', ':'))
d|tojson(sort_keys=true)
u|tojson(ensure_ascii=true)
"\u2028\x00\x7f"|tojson
range(3)|tojson
s.upper|tojson
1e400|tojson
{'b': 1, 'a': 2}|tojson(sort_keys=true, indent=1)
s|pprint
d|pprint
xs|random is number
['a']|random
s.upper().lower().title()
(s ~ '!')|upper
-n|abs
-3|abs
-(3)|abs
2 + 3|string|length
'a' 'b'
'a' 'b' ~ 'c'
"\x41\u00e9\U0001F600\n\\"
'\d'
"a\⏎b"
'\101'
'tab\there'
s.__class__
s.__len__()
d.__class__
''.format.__globals__
x.y.z
raise_exception('no')
strftime_now('%Y-%m-%d %H:%M')
strftime_now('%d %b %Y')
strftime_now('%-d %B')
(xs|length) > 2 and s is defined
s is defined and s is not none
xs|map('int')|sum
xs|first|string + 'x'
people|map('attr', 'name')|list
people|selectattr('name', 'ne', 'bob')|map(attribute='age')|sum
people|map(attribute='age')|unique|list
people[-1].name
people[-1]['name'][0]
people|last|attr('name')
m.tool_calls|map(attribute='function.name')|join(',')
m['tool_calls'][0].function.arguments.items()|list
m.tool_calls[0].function.arguments|items|list
none_list or 'empty'
none_list == []
d == {}
empty_d|length == 0
not empty_d
s|length > 3
(1, 'a')|join('-')
[1, 2, 3]|join('-')|length
'a,b'|replace(',', ';')|upper
'abc'|list|reverse|join
s.split(',')[0]
s.split(',')[-1].strip()
s.split(',')|last|trim
u.upper()
u.split()
u|reverse
u|title
u.center(20, '·')
s.lower() == 'hello, world'
'x'.join(['a'])
'a' if 'b' in 'abc' else 'c'
(none, 1)|first
{'a': 1}.a
{'a': {'b': 2}}['a']['b']
[1, 2][0]
[[1, 2], [3, 4]][1][0]
'abc'[1]
loop is defined
self is defined
caller is defined
varargs is defined
{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }};{% endfor %}
{% for x in xs %}{{ loop.previtem|default('-') }}{{ loop.nextitem|default('-') }};{% endfor %}
{% for x in xs %}{{ loop.cycle('a', 'b') }}{% endfor %}
{% for x in xs %}{{ loop.changed(x) }}{% endfor %}
{% for x in xs if x > 1 %}{{ x }}{{ loop.length }}{% else %}none{% endfor %}
{% for x in none_list %}x{% else %}empty{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k in d %}{{ k }}{% endfor %}
{% for c in s %}{{ c }}.{% endfor %}
{% for x in nil %}x{% endfor %}
{% for x in missing %}x{% endfor %}
{% for x in n %}x{% endfor %}
{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% endfor %}
{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for g in people|groupby('age') %}{{ g.grouper }}:{{ g.list|length }};{% endfor %}
{% for age, list in people|groupby('age') %}{{ age }}:{{ list|length }};{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is number %}{{ x }}{% else %}({{ loop(x) }}){% endif %}{% endfor %}
{% for x in xs %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}
{% for x in xs %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% set x = 1 %}{% for i in xs %}{% set x = x + i %}{% endfor %}{{ x }}
{% set ns = namespace(x=1) %}{% for i in xs %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}
{% set ns = namespace(a=1, b='x') %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set a = b = 1 %}{{ a }}
{% set x %}  hi {{ n }}{% endset %}{{ x|trim }}|{{ x is string }}
{% set x | upper %}hi{% endset %}{{ x }}
{% if n > 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}
{% macro f(a, b=2) %}{{ a }}-{{ b }};{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(a=5, b=6) }}{{ f() }}
{% macro f(a) %}{{ caller(a) }}{% endmacro %}{% call(x) f(3) %}[{{ x }}]{% endcall %}
{% macro f(x) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}
{% macro f() %}{{ varargs|join(',') }}|{{ kwargs|length }}{% endmacro %}{{ f(1, 2, a=3) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f() %}x{% endmacro %}{{ f() is string }}{{ f()|length }}{{ f.name }}
{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% filter upper %}abc{% endfilter %}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}
{% raw %}{{ x }}{% endraw %}
{# comment #}x
{%- if yes -%}  a  {%- endif -%}
  {% if yes %}  ⏎a⏎  {% endif %}⏎b
a⏎  {% if yes %} x⏎{% endif %}  ⏎
{% if yes %}⏎⏎a{% endif %}⏎⏎
{{ 'a' -}}   b
a   {{- 'b' }}
a⏎⏎  {{- 'b' }}
a⏎  {%+ if yes %}b{% endif %}
a⏎{%+ if yes %}b{% endif %}
{% if yes +%}⏎b{% endif %}
a⏎  {# x #}⏎b
a⏎  {#- x -#}⏎b
a  {{ n }}  ⏎b
a⏎  {% set z = 1 %} {% if yes %}⏎b{% endif %}
{{ n }}⏎
{{ n }}⏎⏎
{%- set x = 1 -%}  ⏎ b
{%- for x in xs -%}⏎ {{ x }} ⏎{%- endfor -%}
{{ "{{" }}{{ '%}' }}
{{ '{%' }}
{% do xs.append(1) %}
{% autoescape true %}{{ html }}{% endautoescape %}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as x %}
{% block b %}x{% endblock %}
{% generation %}x{% endgeneration %}
{% trans %}x{% endtrans %}
{% debug %}
{{ xs[0] if xs else none }}{{ '' if not xs }}
{{- s }}
{{ s }}{{ n }}⏎⏎  {{ s }}  
{% set x = namespace() %}{% set x.y = [] %}{% set x.y = x.y + [1] %}{{ x.y }}
{% set d2 = dict(d, **{'z': 9}) %}{{ d2.z }}
{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}
{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1, 2,) }}
{{ s | upper | lower }}
{{ foo.bar }}
{% if foo.bar %}x{% else %}y{% endif %}
{% if missing is defined and missing.x %}x{% else %}y{% endif %}
{% if m.tool_calls is defined and m.tool_calls is iterable and m.tool_calls | length > 0 %}calls{% endif %}
{% if m.content is string %}text{% elif m.content is iterable %}parts{% endif %}
{% set x = "a" if yes else "b" %}{{ x }}
{% set x = (n, s)[1] %}{{ x }}
{% set parts = s.split(', ') %}{{ parts[1] }}{{ parts|length }}
{% for i in range(2, 0, -1) %}{{ i }}{% endfor %}
{% for m2 in people[::-1] %}{{ m2.name }}{% endfor %}
{% for x in xs|sort|reverse %}{{ x }}{% endfor %}
{% for k, v in d|dictsort %}{{ k }}{% endfor %}
{% for k, v in d|items %}{{ k }}{% endfor %}
{% for x in d.values() %}{{ x }}{% endfor %}
{% for t2 in ({'a': 1}, {'a': 2}) %}{{ t2.a }}{% endfor %}
{% if loop is undefined %}x{% endif %}
{% if not loop.last %}x{% endif %}
{{ "a" ~ (1 if yes else 2) ~ "b" }}
{{ ("a", "b") | join }}
{{ '<|' + m.role + '|>' }}
{{ m.role + ':' + m.content | trim + '!' }}
{{ m['role'] | upper ~ '\n' }}
{{ ''.join(['a', 'b']) + "\n" }}
{%- for x in xs %}⏎{{ x }}⏎{%- endfor %}
"""


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


class Generation(jinja2.ext.Extension):
    """The generation tag of apply_chat_template, without its bookkeeping."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime(2026, 3, 2, 12, 34, 56).strftime(f)
    return env


def template(line):
    """A line of the list as a template: ⏎ is a line end, and an expression is printed."""
    line = line.replace("⏎", "\n")
    whole = line.startswith(" ") or "{%" in line.replace("'{%'", "") or "{#" in line or re.search(r"(^|[^'])\{\{", line)
    return line if whole else "{{ " + line + " }}"


def main():
    path = os.path.join(HERE, "expressions.json")
    env = environment()
    cases = []
    for source in map(template, EXPRESSIONS.strip("\n").split("\n")):
        try:
            answer = env.from_string(source).render(**json.loads(json.dumps(CONTEXT)))
        except Exception:
            answer = None
        if answer is None or " at 0x" not in answer:  # an address says nothing
            cases.append([source, answer])
    text = '{"context": ' + json.dumps(CONTEXT, ensure_ascii=False) + ',\n"cases": [\n'
    text += ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases) + "\n]}\n"
    if "--check" in sys.argv:
        same = open(path, encoding="utf-8").read() == text
        print(f"{len(cases)} expressions: {'as recorded' if same else 'DIFFERENT from what is recorded'}")
        sys.exit(not same)
    open(path, "w", encoding="utf-8").write(text)
    print(f"{len(cases)} expressions, {sum(c[1] is None for c in cases)} errors")


main()
