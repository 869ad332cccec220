// The page of `tidemill serve`. What a model says becomes text nodes and nothing else.

const $ = (id) => document.getElementById(id);

/** An element; `props` are its properties, those with a dash its attributes. */
function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes('-') || name === 'scope') element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.setAttribute('aria-hidden', 'true');
  svg.append(use);
  return svg;
}

function button(label, name, onclick) {
  return make('button', { type: 'button', onclick }, ...(name ? [icon(name)] : []), label);
}

const say = (text) => { $('said').textContent = text; };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const number = (value, digits = 0) =>
  value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });
const isWide = () => matchMedia('(min-width: 60.01rem)').matches;

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) { count /= 1024; at += 1; }
  return `${number(count, at && count < 100 ? 1 : 0)} ${units[at]}`;
}

async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // over plain HTTP from another machine there is no clipboard of this kind
    const field = make('textarea', { value: text, className: 'unseen' });
    document.body.append(field);
    field.select();
    document.execCommand('copy');
    field.remove();
  }
  const label = from.lastChild;
  label.textContent = 'Copied';
  say('Copied');
  setTimeout(() => { label.textContent = 'Copy'; }, 1500);
}

// ---- What the browser keeps.

const CHAT = 'tidemill.chat.', SETTINGS = 'tidemill.settings', LIVE = 'tidemill.live', KEY = 'tidemill.key';

function parsed(text, otherwise) {
  try { return JSON.parse(text) ?? otherwise; } catch { return otherwise; }
}

/** What is kept under a key; null where the browser keeps nothing. */
function read(key, storage = 'localStorage') {
  try { return window[storage].getItem(key); } catch { return null; }
}

/** Keeps a value, or with null nothing, under a key; whether the browser does so. */
function write(key, value, storage = 'localStorage') {
  try {
    if (value === null) window[storage].removeItem(key);
    else window[storage].setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

function keptKeys() {
  try { return Object.keys(localStorage); } catch { return []; }
}

const chats = new Map();
let current;
let settings = parsed(read(SETTINGS), {});
/** The answers that are being made: an AbortController for each chat. */
const runs = new Map();

function readChat(key) {
  const chat = parsed(read(key), null);
  if (typeof chat?.id !== 'string' || CHAT + chat.id !== key || !Array.isArray(chat.messages)) return;
  chat.messages = chat.messages.filter((message) => typeof message?.content === 'string');
  for (const message of chat.messages) message.running = false;
  chats.set(chat.id, chat);
}

function keep(chat) {
  chat.changed = Date.now();
  const kept = write(CHAT + chat.id, JSON.stringify(chat));
  notice(kept ? '' : 'The browser does not keep this conversation: its storage is full or blocked.');
}

function notice(text) {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}

// ---- The server.

/** What a header can carry, without spaces. */
const KEY_TEXT = /^[!-~]+$/;
let asking, declined = false, apiKey = read(KEY, 'sessionStorage');

/** Asks for a key, once for all calls that wait for one; whether there is one now. */
function askKey(wrong) {
  asking ??= new Promise((done) => {
    const [dialog, form] = [$('key'), $('key-form')];
    const complain = (text) => {
      $('key-wrong').textContent = text;
      $('key-wrong').hidden = !text;
    };
    complain(wrong ? 'That key was not taken.' : '');
    form.reset();
    form.onsubmit = (event) => {
      if (KEY_TEXT.test(form.elements.key.value.trim())) return;
      event.preventDefault();
      complain('A key has letters, digits and signs of ASCII, and no spaces.');
      form.elements.key.focus();
    };
    dialog.onclose = () => {
      const given = dialog.returnValue === 'save';
      if (given) {
        apiKey = form.elements.key.value.trim();
        write(KEY, apiKey, 'sessionStorage');
      }
      declined = !given;
      asking = undefined;
      done(given);
    };
    dialog.returnValue = '';
    dialog.showModal();
  });
  return asking;
}

/** Fetches with the key. What nobody has asked for does not ask for one again that was not given. */
async function call(path, init = {}, quiet = true) {
  if (!quiet) declined = false;
  for (;;) {
    const key = apiKey;
    const headers = { ...init.headers, ...(key && { authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...init, headers, cache: 'no-store' });
    if (response.status !== 401 || declined) return response;
    if (apiKey === key && !await askKey(Boolean(key))) return response;
  }
}

/** The data of a stream's events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const frames = (rest + value).split('\n\n');
      rest = frames.pop();
      for (const frame of frames) if (frame.startsWith('data: ')) yield frame.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {}); // what is not read any more
  }
}

/** What a refusal says. */
async function refusal(response) {
  const body = parsed(await response.text(), {});
  return body.error?.message ?? `The server answered ${response.status}.`;
}

const model = { id: '', context: 0 };

async function loadModel() {
  for (;;) {
    try {
      const response = await call('/v1/models');
      if (response.ok) {
        const [found] = (await response.json()).data;
        Object.assign(model, { id: found.id, context: found.context_length });
        $('model').textContent = model.id;
        $('empty-model').textContent = `${model.id}, with ${number(model.context)} tokens of context`;
        return;
      }
      $('empty-model').textContent =
        response.status === 503 ? 'The model is being loaded.' : await refusal(response);
      if (response.status === 401) return;
    } catch {
      $('empty-model').textContent = 'The server does not answer.';
    }
    await pause(2000);
  }
}

// ---- Markdown. A block of it is rendered anew only where its text has changed. Its time grows with its length, whatever a
// model writes: no expression here may try the same characters again and again.

const FENCE = /^( {0,3})(`{3,}|~{3,})/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+/;
const HEADING = /^ {0,3}(#{1,6})\s/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const COLUMN = /^:?-+:?$/;
const DEPTH = 6, INLINE_CHARACTERS = 20000;

/** The fence that a line begins, if it does. */
function fenceOf(line) {
  const [all, indent, mark] = FENCE.exec(line) ?? [];
  const rest = all === undefined ? '`' : line.slice(all.length).trimStart();
  return rest.includes('`') ? null : { indent, mark, language: /^[\w+#.-]*/.exec(rest)[0] };
}

/** The texts of the blocks. */
function blocks(text) {
  const found = [];
  let block = [], fence = null, list = false;
  const end = () => { if (block.length) found.push(block.join('\n')); block = []; list = false; };
  const lines = text.split('\n');
  lines.forEach((line, at) => {
    if (fence) {
      block.push(line);
      const close = line.trim();
      if (close.startsWith(fence) && !close.replaceAll(fence[0], '')) { fence = null; end(); }
      return;
    }
    const opening = fenceOf(line);
    if (opening && !list) {
      end();
      fence = opening.mark;
      block.push(line);
    } else if (!line.trim()) {
      // A list goes on after an empty line if what follows belongs to it.
      const next = lines[at + 1] ?? '';
      if (list && (/^\s{2,}\S/.test(next) || ITEM.test(next))) block.push(line);
      else end();
    } else if (!list && (HEADING.test(line) || RULE.test(line))) {
      end();
      block.push(line);
      end();
    } else {
      if (!list && ITEM.test(line)) { end(); list = true; }
      block.push(line);
    }
  });
  end();
  return found;
}

function renderBlock(text, depth) {
  const lines = text.split('\n');
  if (depth > DEPTH) return make('p', { textContent: text });
  const fence = fenceOf(lines[0]);
  if (fence) return codeBlock(lines, fence);
  const heading = lines.length === 1 && HEADING.exec(text);
  if (heading) {
    const element = make(`h${Math.min(4, heading[1].length + 1)}`);
    let end = text.trimEnd().length;
    while (end > heading[0].length && text[end - 1] === '#') end -= 1;
    inline(element, text.slice(heading[0].length, end).trim());
    return element;
  }
  if (lines.length === 1 && RULE.test(text)) return make('hr');
  if (lines.every((line) => /^ {0,3}>/.test(line))) {
    const quote = make('blockquote');
    const inner = lines.map((line) => line.replace(/^ {0,3}> ?/, '')).join('\n');
    quote.append(...blocks(inner).map((block) => renderBlock(block, depth + 1)));
    return quote;
  }
  if (ITEM.test(lines[0])) return list(lines, depth);
  if (lines.length > 1 && lines[0].includes('|') && cellsOf(lines[1]).every((cell) => COLUMN.test(cell))) {
    return table(lines);
  }
  const paragraph = make('p');
  inline(paragraph, text);
  return paragraph;
}

function codeBlock(lines, { indent, mark, language }) {
  const last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.startsWith(mark) && !last.replaceAll(mark[0], '');
  const body = lines.slice(1, closed ? -1 : undefined);
  const code = body.map((line) => (line.startsWith(indent) ? line.slice(indent.length) : line)).join('\n');
  const copies = button('Copy', null, () => copy(code, copies));
  copies.className = 'plain';
  copies.setAttribute('aria-label', 'Copy the code');
  const pre = make('pre', { tabIndex: 0 }, make('code', { textContent: code }));
  return make('div', { className: 'block' }, make('div', {}, make('span', { textContent: language }), copies), pre);
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const ordered = /\d/.test(first[2]);
  const element = make(ordered ? 'ol' : 'ul');
  if (ordered) element.start = parseInt(first[2], 10);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= first[1].length + 1) items.push([line.slice(item[0].length)]);
    else items.at(-1).push(line.slice(Math.min(line.search(/\S|$/), first[0].length)));
  }
  for (const item of items) {
    const inner = blocks(item.join('\n')), entry = make('li');
    // One line is no paragraph of its own.
    const [line] = (inner[0] ?? '').split('\n', 1);
    if (inner.length && !ITEM.test(line) && !fenceOf(line)) inline(entry, inner.shift());
    entry.append(...inner.map((block) => renderBlock(block, depth + 1)));
    element.append(entry);
  }
  return element;
}

const cellsOf = (line) =>
  line.trim().replace(/^\||\|$/g, '').split(/(?<!\\)\|/).map((cell) => cell.trim());

function table(lines) {
  const row = (line, tag) => make('tr', {}, ...cellsOf(line).map((text) => {
    const cell = make(tag, tag === 'th' ? { scope: 'col' } : {});
    inline(cell, text.replaceAll('\\|', '|'));
    return cell;
  }));
  const body = lines.slice(2).map((line) => row(line, 'td'));
  const all = make('table', {}, make('thead', {}, row(lines[0], 'th')), make('tbody', {}, ...body));
  return make('div', { className: 'wide', tabIndex: 0 }, all);
}

const INLINE = new RegExp([
  /\\([\\`*_{}[\]()#+.!|~>-])/, // what is not meant
  /(`+|\*\*(?=\S)|(?<!\w)__(?=\S)|~~(?=\S))/, // the beginning of what has an end in `ENDS`
  /\*(?=[^\s*])([^*]*?[^\s*])\*(?!\*)/, /(?<!\w)_(?=[^\s_])([^_]*?[^\s_])_(?!\w)/, // emphasised
  /\[([^\][]*)\]\(\s*(https?:\/\/[^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*|mailto:[^\s()<>]+)(?:\s+"[^"]*")?\s*\)/,
  /\b(https?:\/\/[^\s<>()[\]"'`]*[^\s<>()[\]"'`.,;:!?*_])/,
].map((part) => part.source).join('|'), 'gu');

/** Code ends with as many backticks as it begins with. */
const ENDS = { '`': /`+/g, '*': /(?<=\S)\*\*/g, '_': /(?<=\S)__(?!\w)/g, '~': /(?<=\S)~~/g };
const TAGS = { '`': 'code', '*': 'strong', '_': 'strong', '~': 's' };

/** Where the end of a mark is, from a place on; -1 if nowhere. */
function endOf(text, mark, from) {
  const ends = ENDS[mark[0]];
  ends.lastIndex = from;
  for (let end; (end = ends.exec(text));) if (end[0].length === mark.length) return end.index;
  return -1;
}

/** Appends text with its marks to an element. */
function inline(to, text, depth = 0) {
  if (depth > DEPTH || text.length > INLINE_CHARACTERS) return to.append(text);
  const marks = new RegExp(INLINE), endless = new Set(); // what has no end here has none further on
  let at = 0;
  for (let match; (match = marks.exec(text));) {
    const [, plain, mark, soft, soft2, label, href, bare] = match;
    let [inner, tag] = [soft ?? soft2, 'em'];
    if (mark) {
      const isCode = mark[0] === '`', begin = marks.lastIndex;
      const end = endless.has(mark) ? -1 : endOf(text, mark, isCode ? begin : begin + 1);
      if (end < 0) {
        endless.add(mark);
        if (!isCode) marks.lastIndex = match.index + 1;
        continue;
      }
      [inner, tag] = [text.slice(begin, end), TAGS[mark[0]]];
      marks.lastIndex = end + mark.length;
    }
    to.append(text.slice(at, match.index));
    at = marks.lastIndex;
    if (plain !== undefined) to.append(plain);
    else if (tag === 'code') to.append(make('code', { textContent: inner.replace(/^ (.*) $/, '$1') }));
    else if (href) {
      const link = linkTo(href);
      inline(link, label || href, DEPTH);
      to.append(link);
    } else if (bare) {
      to.append(to.localName === 'a' ? bare : linkTo(bare, bare)); // links have no links in them
    } else {
      const element = make(tag);
      inline(element, inner, depth + 1);
      to.append(element);
    }
  }
  to.append(text.slice(at));
}

const linkTo = (href, ...text) =>
  make('a', { href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...text);

/** Shows `text` in `to`, whose children are the blocks that were there before. */
function markdown(to, text) {
  const [found, before] = [blocks(text), to.blocks ?? []];
  found.forEach((block, at) => {
    if (before[at] === block) return;
    const element = renderBlock(block, 0);
    if (at < to.children.length) to.children[at].replaceWith(element);
    else to.append(element);
  });
  while (to.children.length > found.length) to.lastChild.remove();
  to.blocks = found;
}

// ---- The list of conversations.

let listed = '';

function showChats() {
  const sorted = [...chats.values()].sort((a, b) => b.changed - a.changed);
  // Who is in the list with the keyboard stays there.
  const now = JSON.stringify([current?.id, ...sorted.map(({ id, title }) => [id, title])]);
  if (now === listed) return;
  listed = now;
  $('chats').replaceChildren(...sorted.map((chat) => {
    const pick = make('button', { type: 'button', className: 'pick', textContent: chat.title, title: chat.title });
    pick.onclick = () => { open(chat); closeSide(); };
    const trash = make('button', { type: 'button', className: 'icon', title: 'Delete' }, icon('trash'));
    trash.setAttribute('aria-label', `Delete “${chat.title}”`);
    trash.onclick = () => remove(chat);
    const row = make('li', { className: chat === current ? 'now' : '' }, pick, trash);
    if (chat === current) pick.setAttribute('aria-current', 'true');
    return row;
  }));
}

function begin() {
  open({ id: crypto.getRandomValues(new BigUint64Array(1))[0].toString(36), title: 'New chat', messages: [] });
  $('prompt').focus();
}

function open(chat) {
  current = chat;
  $('title').textContent = chat.title;
  document.title = chat.messages.length ? `${chat.title} · Tidemill` : 'Tidemill';
  showChats();
  showMessages();
  toEnd();
}

let offered;

/** Says what was done, and how to have it back. */
function offer(text, bringBack) {
  clearTimeout(offered);
  $('toast-text').textContent = text;
  $('toast').hidden = false;
  $('toast-undo').onclick = () => { $('toast').hidden = true; bringBack(); };
  offered = setTimeout(() => { $('toast').hidden = true; }, 8000);
}

/** Drops what comes from a message on. */
function cut(chat, message) {
  const before = [...chat.messages];
  chat.messages.splice(chat.messages.indexOf(message));
  offer(message.role === 'user' ? 'The question was replaced' : 'The answer was replaced', () => {
    runs.get(chat.id)?.abort();
    chat.messages = before;
    keep(chat);
    open(chat);
  });
}

function remove(chat) {
  runs.get(chat.id)?.abort();
  chats.delete(chat.id);
  write(CHAT + chat.id, null);
  if (chat === current) begin();
  else showChats();
  offer('The conversation was deleted', () => {
    chats.set(chat.id, chat);
    keep(chat);
    open(chat);
  });
}

// ---- Messages.

const shown = new WeakMap();
let stuck = true;

function toEnd() {
  $('scroll').scrollTop = $('scroll').scrollHeight;
}

function showMessages() {
  const visible = current.messages.filter((message) => message.role !== 'tool');
  $('messages').replaceChildren(...visible.map(article));
  $('empty').hidden = visible.length > 0;
  showRun();
}

/** Whether the current chat can be written to. */
function showRun() {
  const running = runs.has(current.id);
  $('stop').hidden = !running;
  $('send').hidden = running;
  $('send').disabled = !$('prompt').value.trim();
}

function article(message) {
  const mine = message.role === 'user';
  const element = make('article', { className: message.role, 'aria-label': mine ? 'You' : 'Answer' });
  shown.set(message, element);
  if (mine) {
    element.append(make('div', { className: 'text', textContent: message.content }));
    element.append(make('div', { className: 'acts' },
      button('Edit', 'edit', () => edit(message)), copyButton(message)));
  } else {
    const parts = {
      thoughts: make('details', { className: 'thoughts', hidden: true }),
      thought: make('div', { className: 'md' }),
      summary: make('summary'),
      text: make('div', { className: 'text md' }),
      calls: make('div'),
      state: make('div'),
      acts: make('div', { className: 'acts' }),
    };
    parts.thoughts.append(parts.summary, parts.thought);
    element.append(parts.thoughts, parts.text, parts.calls, parts.state, parts.acts);
    element.parts = parts;
    fill(message);
  }
  return element;
}

const copyButton = (message) => {
  const element = button('Copy', 'copy', () => copy(message.content, element));
  return element;
};

/** Shows an answer as it is now. */
function fill(message) {
  const element = shown.get(message);
  if (!element?.parts) return;
  const { thoughts, thought, summary, text, calls, state, acts } = element.parts;
  thoughts.hidden = !message.reasoning;
  summary.textContent = message.running && !message.content && !message.calls?.length ? 'Thinking…' : 'Thoughts';
  markdown(thought, message.reasoning ?? '');
  markdown(text, message.content);
  calls.replaceChildren(...callCards(message));
  state.replaceChildren(...stateOf(message));
  element.setAttribute('aria-busy', Boolean(message.running));
  acts.replaceChildren(...(message.running ? [] : actsOf(message)));
  if (stuck) toEnd();
}

function stateOf(message) {
  if (message.running && !message.content && !message.reasoning && !message.calls?.length) {
    const { progress } = message;
    const wait = make('div', { className: 'wait' });
    if (progress && progress.total > progress.processed) {
      wait.append(`Reading the prompt, ${number(progress.processed)} of ${number(progress.total)} tokens`);
      const bar = make('progress', { max: progress.total, value: progress.processed, 'aria-label': 'Prompt' });
      wait.append(bar);
    } else {
      wait.append('Waiting for the answer');
    }
    return [wait];
  }
  if (message.error) return [make('p', { className: 'failed', textContent: message.error })];
  return [];
}

function actsOf(message) {
  const last = current.messages.at(-1) === message;
  const list = [];
  if (message.content) list.push(copyButton(message), button('Edit', 'edit', () => edit(message)));
  list.push(button('Regenerate', 'again', () => again(message)));
  if (last && (message.content || message.reasoning) && !message.calls?.length) {
    list.push(button('Continue', 'on', () => answer(current, message)));
  }
  const figures = figuresOf(message);
  if (figures) list.push(make('span', { className: 'fine', textContent: figures }));
  return list;
}

function figuresOf({ timings, finish, stopped, ignored }) {
  const parts = [];
  if (stopped) parts.push('stopped');
  if (finish === 'length') parts.push('ended at its limit');
  if (timings) {
    parts.push(`${number(timings.predicted_n)} tokens`);
    if (timings.predicted_per_second) parts.push(`${number(timings.predicted_per_second, 1)} tokens/s`);
    const prompt = timings.prompt_n + timings.cache_n;
    parts.push(`prompt ${number(prompt)}${timings.cache_n ? `, ${number(timings.cache_n)} cached` : ''}`);
    if (timings.expert_hit_rate !== null) parts.push(`hit rate ${number(timings.expert_hit_rate * 100)} %`);
  }
  if (ignored) parts.push(`without effect: ${ignored}`);
  return parts.join(' · ');
}

/** The calls of an answer, and where their results are written. */
function callCards(message) {
  if (!message.calls?.length) return [];
  const at = current.messages.indexOf(message);
  const results = new Map();
  for (const next of current.messages.slice(at + 1)) {
    if (next.role !== 'tool') break;
    results.set(next.tool_call_id, next.content);
  }
  const open = !message.running && !message.error && at === current.messages.length - 1;
  const fields = [];
  const cards = message.calls.map((made) => {
    const pretty = parsed(made.arguments, null);
    const text = pretty === null ? made.arguments : JSON.stringify(pretty, null, 2);
    const heading = make('h3', {}, make('span', { textContent: 'Call' }), make('code', { textContent: made.name }));
    const card = make('section', { className: 'call', 'aria-label': `Call of ${made.name}` }, heading);
    card.append(make('pre', { tabIndex: 0, textContent: text }));
    if (open) {
      const field = make('textarea', { rows: 2, placeholder: 'What the function returns' });
      fields.push(field);
      card.append(make('label', { className: 'result' }, 'Result', field));
    } else if (results.has(made.id)) {
      card.append(make('div', { className: 'result' }, 'Result', make('pre', { textContent: results.get(made.id) })));
    }
    return card;
  });
  if (!open) return cards;
  const sends = button('Send results', null, () => {
    message.calls.forEach((made, index) => {
      current.messages.push({ role: 'tool', tool_call_id: made.id, content: fields[index].value });
    });
    answer(current);
  });
  sends.className = 'main';
  return [...cards, make('div', { className: 'end' }, sends)];
}

/** Lets a message be written anew: a question is asked again, an answer stays as it is written. */
function edit(message) {
  runs.get(current.id)?.abort();
  const [chat, element] = [current, shown.get(message)];
  const field = make('textarea', { value: message.content, 'aria-label': 'The message' });
  const save = make('button', { className: 'main', textContent: message.role === 'user' ? 'Send' : 'Save' });
  const form = make('form', { className: 'edit' }, field, make('div', { className: 'end' },
    button('Cancel', null, showMessages), save));
  form.querySelector('button').className = 'plain';
  form.onsubmit = (event) => {
    event.preventDefault();
    const content = field.value.trim();
    if (!content) return;
    if (message.role === 'user') {
      cut(chat, message);
      ask(chat, content);
    } else {
      Object.assign(message, { content, timings: undefined, finish: undefined });
      keep(chat);
      showMessages();
    }
  };
  field.onkeydown = (event) => {
    if (event.key === 'Escape') { event.stopPropagation(); showMessages(); }
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && message.role === 'user') {
      event.preventDefault();
      form.requestSubmit();
    }
  };
  element.classList.add('editing');
  element.replaceChildren(form);
  field.style.height = `${Math.min(field.scrollHeight + 4, innerHeight / 2)}px`;
  field.focus();
}

function again(message) {
  if (runs.has(current.id)) return;
  cut(current, message);
  answer(current);
}

function ask(chat, content) {
  if (!chats.has(chat.id)) {
    chats.set(chat.id, chat);
    chat.title = content.split('\n')[0].slice(0, 60);
    $('title').textContent = chat.title;
  }
  chat.messages.push({ role: 'user', content });
  answer(chat);
}

// ---- Answers.

/** Tools as the settings have them: functions, in OpenAI's form or bare. */
function toolsOf(text) {
  if (!text?.trim()) return [];
  const list = JSON.parse(text);
  if (!Array.isArray(list)) throw new Error('a list is needed');
  return list.map((tool) => {
    if (tool?.type === 'function' && tool.function?.name) return tool;
    if (tool?.name) return { type: 'function', function: tool };
    throw new Error('each function needs a name');
  });
}

function turn({ role, content, reasoning, calls, tool_call_id }) {
  return {
    role, content,
    ...(tool_call_id !== undefined && { tool_call_id }),
    ...(reasoning && { reasoning_content: reasoning }),
    ...(calls?.length && {
      tool_calls: calls.map(({ id, name, arguments: text }) =>
        ({ id, type: 'function', function: { name, arguments: text } })),
    }),
  };
}

/** The body of a request for an answer to `messages`. */
function bodyOf(messages, goesOn) {
  const says = (message) => message.role !== 'assistant' || message.content || message.calls?.length || message.reasoning;
  const body = {
    model: model.id || 'default',
    messages: messages.filter(says).map(turn),
    stream: true, stream_options: { include_usage: true }, return_progress: true,
  };
  if (settings.system?.trim()) body.messages.unshift({ role: 'system', content: settings.system });
  for (const name of ['temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'presence_penalty',
    'frequency_penalty', 'seed', 'max_tokens']) {
    if (settings[name]) body[name] = Number(settings[name]);
  }
  const stop = (settings.stop ?? '').split('\n').filter(Boolean);
  if (stop.length) body.stop = stop;
  if (settings.thinking) body.chat_template_kwargs = { enable_thinking: settings.thinking === 'on' };
  const tools = toolsOf(settings.tools);
  if (tools.length) body.tools = tools;
  if (goesOn) body.continue_final_message = true;
  return body;
}

/** Takes what a chunk adds to an answer. */
function take(message, chunk) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.prompt_progress) message.progress = chunk.prompt_progress;
  if (chunk.timings) message.timings = chunk.timings;
  const [choice] = chunk.choices ?? [];
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
  if (content) message.content += content;
  if (reasoning) message.reasoning += reasoning;
  for (const { index, id, function: made } of calls ?? []) {
    const entry = message.calls[index] ??= { id: '', name: '', arguments: '' };
    entry.id ||= id ?? '';
    entry.name ||= made?.name ?? '';
    entry.arguments += made?.arguments ?? '';
  }
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

/** Asks for an answer to a chat, or for the rest of its last one. */
async function answer(chat, rest) {
  if (runs.has(chat.id)) return;
  const controller = new AbortController();
  runs.set(chat.id, controller);
  const message = rest ?? { role: 'assistant', content: '', reasoning: '', calls: [] };
  Object.assign(message, { running: true, error: '', stopped: false, finish: '', timings: undefined, progress: null });
  if (!rest) chat.messages.push(message);
  stuck = true;
  keep(chat);
  open(chat);
  say('The answer is being written.');
  let drawing = false, kept = Date.now();
  const draw = () => {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => { drawing = false; if (message.running) fill(message); });
    if (Date.now() - kept > 2000) { kept = Date.now(); keep(chat); }
  };
  try {
    const messages = rest ? chat.messages : chat.messages.slice(0, -1);
    const init = { method: 'POST', headers: { 'content-type': 'application/json' }, signal: controller.signal };
    const response = await call('/v1/chat/completions',
      { ...init, body: JSON.stringify(bodyOf(messages, Boolean(rest))) }, false);
    if (!response.ok) throw new Error(await refusal(response));
    if (!model.id) loadModel();
    message.ignored = response.headers.get('x-tidemill-ignored') ?? '';
    let whole = false;
    for await (const data of events(response)) {
      if (data === '[DONE]') { whole = true; break; }
      take(message, JSON.parse(data));
      draw();
    }
    if (!whole) throw new Error('The answer broke off.');
  } catch (error) {
    if (controller.signal.aborted) message.stopped = true;
    else message.error = error instanceof TypeError ? 'The server does not answer.' : error.message;
  }
  message.running = false;
  message.calls = message.calls.filter((made) => made?.name);
  runs.delete(chat.id);
  if (chats.get(chat.id) === chat) keep(chat);
  if (chat === current) {
    fill(message);
    showRun();
  }
  showChats();
  say(message.error || (message.stopped ? 'Stopped.' : `Answer: ${message.content.slice(0, 1500)}`));
}

// ---- Settings.

function openSettings() {
  const form = $('settings-form');
  for (const field of form.elements) if (field.name) field.value = settings[field.name] ?? '';
  $('tools-error').hidden = true;
  $('settings').showModal();
}

function saveSettings(event) {
  if (event.submitter?.value !== 'save') return;
  const form = $('settings-form');
  try {
    toolsOf(form.elements.tools.value);
  } catch (error) {
    event.preventDefault();
    $('tools-error').textContent = `These are no tools: ${error.message}`;
    $('tools-error').hidden = false;
    form.elements.tools.focus();
    $('tools-error').scrollIntoView({ block: 'nearest' });
    return;
  }
  settings = {};
  for (const field of form.elements) if (field.name && field.value !== '') settings[field.name] = field.value;
  if (!write(SETTINGS, JSON.stringify(settings))) notice('The browser keeps no settings.');
}

// ---- The live view.

const POINTS = 60;
const live = { wanted: false, controller: null, layers: 0, experts: 0, uses: [], held: [], recent: [], past: {} };

function openLive(wanted) {
  live.wanted = wanted;
  $('live').hidden = !wanted;
  $('live-open').setAttribute('aria-expanded', wanted);
  $('shade').hidden = !(wanted && !isWide()) && !$('side').classList.contains('open');
  write(LIVE, wanted ? '1' : '0'); // else the next visit begins without it
  look();
}

/** Follows the server's samples as long as somebody can see them. */
async function look() {
  const seen = live.wanted && !document.hidden;
  if (!seen) {
    live.controller?.abort();
    live.controller = null;
    return;
  }
  if (live.controller) return;
  const controller = live.controller = new AbortController();
  while (!controller.signal.aborted) {
    try {
      const response = await call('/events', { signal: controller.signal });
      if (response.ok) {
        $('live-state').textContent = '';
        for await (const data of events(response)) sample(JSON.parse(data));
      } else {
        $('live-state').textContent = response.status === 503 ? 'Loading the model' : await refusal(response);
      }
    } catch {
      if (controller.signal.aborted) return;
    }
    $('live-state').textContent ||= 'Not connected';
    await pause(2000);
  }
}

function sample(now) {
  takeExperts(now.experts);
  $('f-answer').textContent = number(now.answer_tokens_per_s, 1);
  $('f-prompt').textContent = number(now.prompt_tokens_per_s, now.prompt_tokens_per_s < 100 ? 1 : 0);
  const fast = now.drive_bytes_per_s >= 1e9;
  $('f-drive').textContent = fast ? number(now.drive_bytes_per_s / 1e9, 2) : number(now.drive_bytes_per_s / 1e6);
  $('u-drive').textContent = fast ? 'GB/s' : 'MB/s';
  $('f-hits').textContent = now.expert_hit_rate === null ? '–' : number(now.expert_hit_rate * 100, 1);
  $('f-queue').textContent = `${now.running} running, ${now.waiting} waiting`;
  const { rss_bytes: rss, plan_bytes: plan, budget_bytes: budget, slots, slots_planned: planned } = now.memory;
  $('f-memory').textContent = `${rss === null ? '' : `${bytes(rss)} of `}${bytes(plan)} planned`;
  $('m-memory').hidden = rss === null;
  Object.assign($('m-memory'), { max: budget, value: rss ?? 0, title: `The ceiling is ${bytes(budget)}` });
  $('slots-line').hidden = !planned;
  $('f-slots').textContent = `${number(slots)} of ${number(planned)} in use`;
  spark('answer', now.answer_tokens_per_s);
  spark('prompt', now.prompt_tokens_per_s);
  spark('drive', now.drive_bytes_per_s);
  spark('hits', now.expert_hit_rate ?? 0, 1);
}

function takeExperts({ layers, experts, uses, changed, held }) {
  if (uses) {
    Object.assign(live, { layers, experts, uses, recent: new Array(uses.length).fill(0) });
    live.held = new Array(uses.length).fill(false);
    $('heat-part').hidden = !uses.length;
  }
  live.recent.forEach((heat, at) => { live.recent[at] = heat < 0.05 ? 0 : heat * 0.5; });
  for (let pair = 0, at = 0; pair < (changed?.length ?? 0); pair += 2, at += 1) {
    at += changed[pair];
    live.uses[at] += changed[pair + 1];
    live.recent[at] = 1;
  }
  if (held !== undefined) {
    live.held = live.uses.map((_, at) => Boolean(parseInt(held[at >> 2], 16) & (8 >> (at & 3))));
  }
  drawHeat();
  describeHeat();
}

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim().slice(1).match(/../g).map((two) => parseInt(two, 16));
  return { inside: of('--accent'), outside: of('--out'), hot: of('--hot'), none: of('--empty-cell') };
};
const mix = (a, b, share) => a.map((value, at) => value + (b[at] - value) * share);

/** The width of a canvas in its own pixels, after it was fitted to its place. */
function fit(canvas, height) {
  const ratio = devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  Object.assign(canvas, { width, height: Math.round(height * ratio) });
  return { context: canvas.getContext('2d'), width, height: canvas.height, ratio };
}

function drawHeat() {
  const { layers, experts, uses, held, recent } = live;
  const canvas = $('heat');
  if (!uses.length || !canvas.clientWidth) return;
  const tall = Math.min(360, Math.max(120, layers * 7));
  canvas.style.height = `${tall}px`;
  const { inside, outside, hot, none } = colours();
  const { context, width, height, ratio } = fit(canvas, tall);
  const [wide, high] = [width / experts, height / layers];
  const [gapX, gapY] = [wide > 4 * ratio ? ratio : 0, high > 4 * ratio ? ratio : 0];
  for (let layer = 0; layer < layers; layer += 1) {
    const row = uses.slice(layer * experts, (layer + 1) * experts);
    const most = Math.log1p(Math.max(...row));
    for (let expert = 0; expert < experts; expert += 1) {
      const at = layer * experts + expert;
      const used = row[expert] ? 0.25 + 0.75 * (Math.log1p(row[expert]) / most) ** 2 : 0;
      const share = held[at] ? Math.max(0.15, used) : used * 0.6; // what is in memory stands out
      const colour = mix(mix(none, held[at] ? inside : outside, share), hot, recent[at] * 0.8);
      context.fillStyle = `rgb(${colour.map(Math.round).join(' ')})`;
      const [x, y] = [Math.floor(expert * wide), Math.floor(layer * high)];
      context.fillRect(x, y, Math.ceil(wide) - gapX, Math.ceil(high) - gapY);
    }
  }
}

function describeHeat() {
  const { layers, experts, uses, held } = live;
  if (!uses.length) return;
  const inside = held.filter(Boolean).length;
  const total = uses.reduce((sum, count) => sum + count, 0);
  const most = uses.reduce((best, count, at) => (count > uses[best] ? at : best), 0);
  const here = `${layers} layers of ${experts} experts, ${number(100 * inside / uses.length)} % of them in memory.`;
  const busiest = total
    ? ` Busiest: expert ${most % experts} of layer ${Math.floor(most / experts)}, used ${number(uses[most])} times of ${number(total)}.`
    : ' None was used yet.';
  $('heat-text').textContent = here + busiest;
  $('heat').setAttribute('aria-label', `Use of the experts. ${here}${busiest}`);
  if (!$('heat-more').open) return;
  $('heat-rows').replaceChildren(...Array.from({ length: layers }, (_, layer) => {
    const row = uses.slice(layer * experts, (layer + 1) * experts);
    const best = row.reduce((a, count, at) => (count > row[a] ? at : a), 0);
    const sum = row.reduce((a, b) => a + b, 0);
    const inMemory = held.slice(layer * experts, (layer + 1) * experts).filter(Boolean).length;
    const busy = sum ? `expert ${best}, ${number(100 * row[best] / sum, 1)} %` : '–';
    return make('tr', {}, ...[layer, row.filter(Boolean).length, inMemory, busy].map((text) =>
      make('td', { textContent: text })));
  }));
}

/** A line of the last minute. */
function spark(name, value, ceiling) {
  const past = live.past[name] ??= [];
  past.push(value);
  if (past.length > POINTS) past.shift();
  const { context, width, height, ratio } = fit($(`s-${name}`), 26);
  const most = (ceiling ?? Math.max(...past)) || 1;
  const style = `rgb(${colours().inside.join(' ')}`;
  const line = new Path2D();
  past.forEach((point, at) => {
    const x = width * (at + POINTS - past.length) / (POINTS - 1);
    line.lineTo(x, height - ratio - (height - 3 * ratio) * point / most);
  });
  context.strokeStyle = `${style})`;
  context.lineWidth = 1.5 * ratio;
  context.lineJoin = 'round';
  context.stroke(line);
  line.lineTo(width, height);
  line.lineTo(width * (POINTS - past.length) / (POINTS - 1), height);
  context.fillStyle = `${style} / .12)`;
  context.fill(line);
}

// ---- What is pressed.

function openSide() {
  $('side').classList.add('open');
  $('side-open').setAttribute('aria-expanded', 'true');
  $('shade').hidden = false;
  $('side-close').focus();
}

function closeSide() {
  if (!$('side').classList.contains('open')) return;
  $('side').classList.remove('open');
  $('side-open').setAttribute('aria-expanded', 'false');
  $('shade').hidden = true;
}

function grow() {
  const field = $('prompt');
  field.style.height = 'auto';
  field.style.height = `${field.scrollHeight}px`;
  showRun();
}

function listen() {
  const field = $('prompt');
  field.oninput = grow;
  field.onkeydown = (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $('composer').requestSubmit();
  };
  $('composer').onsubmit = (event) => {
    event.preventDefault();
    const content = field.value.trim();
    if (!content || runs.has(current.id)) return;
    field.value = '';
    grow();
    ask(current, content);
  };
  $('stop').onclick = () => { runs.get(current.id)?.abort(); field.focus(); };
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || document.querySelector('dialog[open]')) return;
    if ($('side').classList.contains('open')) closeSide();
    else if (live.wanted && !isWide()) openLive(false);
    else runs.get(current.id)?.abort();
  });
  $('new').onclick = () => { begin(); closeSide(); };
  $('side-open').onclick = openSide;
  $('side-close').onclick = () => { closeSide(); $('side-open').focus(); };
  $('shade').onclick = () => { closeSide(); if (live.wanted && !isWide()) openLive(false); };
  $('settings-open').onclick = openSettings;
  $('settings-form').onsubmit = saveSettings;
  $('settings-clear').onclick = () => {
    for (const entry of $('settings-form').elements) if (entry.name) entry.value = '';
  };
  for (const each of document.querySelectorAll('[data-close]')) each.onclick = () => $(each.dataset.close).close('');
  $('live-open').onclick = () => openLive(!live.wanted);
  $('live-close').onclick = () => { openLive(false); $('live-open').focus(); };
  $('heat-more').ontoggle = describeHeat;
  $('latest').onclick = () => { stuck = true; toEnd(); };
  $('scroll').onscroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = $('scroll');
    stuck = scrollHeight - scrollTop - clientHeight < 60;
    $('latest').hidden = stuck;
  };
  document.addEventListener('visibilitychange', look);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawHeat);
  addEventListener('resize', drawHeat);
  // Another tab of this page.
  addEventListener('storage', ({ key, newValue }) => {
    if (key === SETTINGS) settings = parsed(newValue, {});
    if (!key?.startsWith(CHAT)) return;
    const id = key.slice(CHAT.length);
    if (runs.has(id)) return;
    if (newValue === null) chats.delete(id);
    else readChat(key);
    if (id === current.id && chats.has(id)) open(chats.get(id));
    else showChats();
  });
}

for (const key of keptKeys()) if (key.startsWith(CHAT)) readChat(key);
listen();
begin();
openLive(read(LIVE) === '1' && isWide());
loadModel();
