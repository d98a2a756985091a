/**
 * Text to token ids and back. Encoding is the work of `@huggingface/tokenizers`; decoding is a
 * table of each token's bytes, so that a stream never cuts a character.
 * @module
 */
import { Tokenizer as Encoder } from '@huggingface/tokenizers';
import { FlashForgeError } from '../base/errors.ts';
import { Detokenizer } from './detokenizer.ts';
import { type TokenBytes, tokenBytes, vocabulary } from './token-bytes.ts';
import type { TokenizerJson } from './tokenizer-json.ts';

/** Everything that makes a tokenizer; plain data that may be sent to another thread. */
export interface TokenizerParts {
  /** Where it came from, for messages. */
  readonly source: string;
  readonly json: TokenizerJson;
  readonly bosId: number | null;
  /** Tokens that end a generation. */
  readonly stopIds: readonly number[];
  /** Jinja source, or null when the model has none. */
  readonly chatTemplate: string | null;
  /** Special tokens by role (bos_token, eos_token, ...), as chat templates name them. */
  readonly roles: Readonly<Record<string, string>>;
}

export interface EncodeOptions {
  /** Add what the model's own files put around a text (a BOS token); default true. */
  readonly addSpecial?: boolean;
  /** Read the text of special tokens as these tokens; default true. */
  readonly parseSpecial?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out of the text; default true. */
  readonly skipSpecial?: boolean;
  /** The tokens continue a text, so that a leading space is theirs; default false. */
  readonly continues?: boolean;
}

const NO_BYTES = new Uint8Array(0);

/** A model's tokenizer. Encoding a text of n characters takes O(n) time, about 1 us a character. */
export class Tokenizer {
  readonly parts: TokenizerParts;
  /** One more than the largest token id. */
  readonly vocabSize: number;
  readonly bosId: number | null;
  readonly stopIds: ReadonlySet<number>;
  readonly stripsLeadingSpace: boolean;
  readonly #table: TokenBytes;
  readonly #special: ReadonlySet<number>;
  readonly #specialText: RegExp | null;
  readonly #encoder: Encoder;
  #plainEncoder: Encoder | null = null;

  /** @throws FlashForgeError 'model' for a description that the library cannot run. */
  constructor(parts: TokenizerParts) {
    this.parts = parts;
    this.#table = tokenBytes(parts.json, parts.source);
    this.#encoder = makeEncoder(parts.json, parts.source);
    const special = parts.json.added_tokens.filter((token) => token.special);
    this.#special = new Set(special.map((token) => token.id));
    this.#specialText = special.length === 0 ? null : anyOf(special.map((token) => token.content));
    this.vocabSize = this.#table.bytes.length;
    this.bosId = parts.bosId;
    this.stopIds = new Set(parts.stopIds);
    this.stripsLeadingSpace = this.#table.stripsLeadingSpace;
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const { addSpecial = true, parseSpecial = true } = options;
    const plain = !parseSpecial && this.#specialText?.test(text) === true;
    const encoder = plain ? this.#withoutSpecial() : this.#encoder;
    return encoder.encode(text, { add_special_tokens: addSpecial }).ids;
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const stream = this.stream(options);
    let text = '';
    for (const id of ids) text += stream.push(id);
    return text + stream.end();
  }

  /** A decoder for tokens that arrive one by one. */
  stream(options: DecodeOptions = {}): Detokenizer {
    return new Detokenizer(this, options.skipSpecial ?? true, options.continues ?? false);
  }

  /** The token's bytes, not necessarily whole characters; empty for an id without a token. */
  bytesOf(id: number): Uint8Array {
    return this.#table.bytes[id] ?? NO_BYTES;
  }

  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /** The id of a special or added token by its text, or null. */
  idOf(content: string): number | null {
    return this.parts.json.added_tokens.find((token) => token.content === content)?.id ?? null;
  }

  /** Most texts hold no special token's text, so this second encoder is made when one does. */
  #withoutSpecial(): Encoder {
    if (this.#plainEncoder === null) {
      const { json, source } = this.parts;
      const added_tokens = json.added_tokens.filter((token) => !token.special);
      const vocab = { ...json.model, vocab: withSpecial(json) };
      this.#plainEncoder = makeEncoder({ ...json, added_tokens, model: vocab }, source);
    }
    return this.#plainEncoder;
  }
}

/** The post-processor looks special tokens up by name, also where they are not parsed. */
function withSpecial(json: TokenizerJson): TokenizerJson['model']['vocab'] {
  if (Array.isArray(json.model.vocab)) return json.model.vocab;
  const special = json.added_tokens.filter((token) => token.special);
  return {
    ...Object.fromEntries(vocabulary(json)),
    ...Object.fromEntries(special.map((token) => [token.content, token.id])),
  };
}

function anyOf(texts: readonly string[]): RegExp {
  return new RegExp(texts.map((text) => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')).join('|'));
}

function makeEncoder(json: TokenizerJson, source: string): Encoder {
  try {
    return new Encoder(json, {});
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlashForgeError('model', `${source} has a tokenizer that cannot be used: ${reason}`, {
      cause,
    });
  }
}
