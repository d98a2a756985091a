/**
 * Tool calls in a model's text, in the forms of the supported families, found while the text
 * streams. Text that may be the beginning of a call is held back until that is decided.
 * @module
 */
import { randomBytes } from 'node:crypto';

/** How a family of models writes a call. */
export interface ToolForm {
  readonly name: 'hermes' | 'llama3' | 'mistral';
  /** What opens a list of calls. Empty: a JSON object at the very beginning of the text. */
  readonly open: string;
  /** What closes it; empty: the end of the text. */
  readonly close: string;
  /** Names of the field that holds the arguments. */
  readonly argumentsField: string;
  /** A special token that stands for `open`, as special tokens have no text in the stream. */
  readonly openToken: string | null;
}

const HERMES: ToolForm = {
  name: 'hermes',
  open: '<tool_call>',
  close: '</tool_call>',
  argumentsField: 'arguments',
  openToken: null,
};
const LLAMA3: ToolForm = {
  name: 'llama3',
  open: '',
  close: '',
  argumentsField: 'parameters',
  openToken: '<|python_tag|>',
};
const MISTRAL: ToolForm = {
  name: 'mistral',
  open: '[TOOL_CALLS]',
  close: '',
  argumentsField: 'arguments',
  openToken: '[TOOL_CALLS]',
};

/** The form of the model with this chat template (Jinja source). */
export function toolForm(template: string): ToolForm {
  if (template.includes('[TOOL_CALLS]')) return MISTRAL;
  if (/"parameters":/.test(template) && template.includes('<|python_tag|>')) return LLAMA3;
  return HERMES;
}

export interface ToolCall {
  readonly id: string;
  readonly type: 'function';
  readonly function: { readonly name: string; readonly arguments: string };
}

export interface Parsed {
  /** Text that is certainly not part of a call. */
  readonly text: string;
  readonly calls: readonly ToolCall[];
}

const NOTHING: Parsed = { text: '', calls: [] };

/** Reads one choice's text. What looks like a call and is none comes back as text. */
export class ToolCallReader {
  readonly #form: ToolForm;
  #held = '';
  /** Inside a call: after `open`, before `close`. */
  #inside = false;
  /** Nothing but white space so far: the only place where a bare JSON call may begin. */
  #atStart = true;
  /** A call was found: white space between and after calls is not content. */
  #found = false;

  constructor(form: ToolForm) {
    this.#form = form;
  }

  /** Takes the next piece of text. */
  push(piece: string): Parsed {
    this.#held += piece;
    let text = '';
    const calls: ToolCall[] = [];
    for (;;) {
      const step = this.#inside ? this.#readInside(false) : this.#readOutside();
      if (step === null) break;
      text += step.text;
      calls.push(...step.calls);
    }
    if (this.#found) text = text.trim() === '' ? '' : text;
    return text === '' && calls.length === 0 ? NOTHING : { text, calls };
  }

  /** The text has ended. */
  end(): Parsed {
    if (this.#inside) return this.#readInside(true) ?? NOTHING;
    const text = this.#held;
    this.#held = '';
    return { text: this.#found && text.trim() === '' ? '' : text, calls: [] };
  }

  /** Null when no more can be decided now. */
  #readOutside(): Parsed | null {
    const { open } = this.#form;
    if (this.#held === '') return null;
    if (open === '') return this.#readBareStart();
    const at = this.#held.indexOf(open);
    if (at >= 0) {
      const text = this.#held.slice(0, at);
      this.#held = this.#held.slice(at + open.length);
      this.#inside = true;
      return { text, calls: [] };
    }
    let keep = Math.min(open.length - 1, this.#held.length);
    while (keep > 0 && !open.startsWith(this.#held.slice(-keep))) keep--;
    if (keep === this.#held.length) return null;
    const text = this.#held.slice(0, this.#held.length - keep);
    this.#held = this.#held.slice(this.#held.length - keep);
    return { text, calls: [] };
  }

  #readBareStart(): Parsed | null {
    const text = this.#held;
    const begin = text.trimStart();
    if (this.#atStart && begin === '') return null;
    if (this.#atStart && begin.startsWith('{')) {
      this.#inside = true;
      return NOTHING;
    }
    this.#atStart = false;
    this.#held = '';
    return { text, calls: [] };
  }

  #readInside(ended: boolean): Parsed | null {
    const { open, close } = this.#form;
    const at = close === '' ? -1 : this.#held.indexOf(close);
    if (at < 0 && !ended) return null;
    const inner = at < 0 ? this.#held : this.#held.slice(0, at);
    this.#held = at < 0 ? '' : this.#held.slice(at + close.length);
    this.#inside = false;
    this.#atStart = false;
    const calls = readCalls(inner);
    if (calls === null) return { text: open + inner + (at < 0 ? '' : close), calls: [] };
    this.#found = true;
    return { text: '', calls };
  }
}

/** The calls in a JSON object, a list, or objects with semicolons between; null = no calls. */
function readCalls(text: string): ToolCall[] | null {
  const value = parse(text) ?? parse(`[${text.trim().replaceAll(/\}\s*;\s*\{/g, '},{')}]`);
  const list = Array.isArray(value) ? value : [value];
  const calls = list.map(readCall);
  return calls.length === 0 || calls.includes(null) ? null : (calls as ToolCall[]);
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function readCall(value: unknown): ToolCall | null {
  if (typeof value !== 'object' || value === null) return null;
  const { name, arguments: args, parameters } = value as Record<string, unknown>;
  if (typeof name !== 'string' || name === '') return null;
  const given = args ?? parameters ?? {};
  const text = typeof given === 'string' ? given : JSON.stringify(given);
  return { id: toolCallId(), type: 'function', function: { name, arguments: text } };
}

/** Nine letters and digits: the strictest family (Mistral) accepts nothing else. */
const toolCallId = (): string => randomBytes(5).toString('hex').slice(0, 9);
