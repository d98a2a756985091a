/**
 * Text and bytes of single tokens, for log-probabilities and for the markers of tool calls.
 * @module
 */
import { type TokenBytes, tokenBytes } from '../tokenizer/token-bytes.ts';
import type { TokenizerParts } from '../tokenizer/tokenizer.ts';

const NO_BYTES = new Uint8Array(0);

export class TokenTexts {
  /** Jinja source, or null when the model has none. */
  readonly chatTemplate: string | null;
  readonly #table: TokenBytes;
  readonly #added: ReadonlyMap<string, number>;
  readonly #decoder = new TextDecoder();

  constructor({ json, source, chatTemplate }: TokenizerParts) {
    this.#table = tokenBytes(json, source);
    this.#added = new Map(json.added_tokens.map(({ content, id }) => [content, id]));
    this.chatTemplate = chatTemplate;
  }

  bytesOf(token: number): Uint8Array {
    return this.#table.bytes[token] ?? NO_BYTES;
  }

  /** A part of a character becomes U+FFFD; its bytes are exact. */
  textOf(token: number): string {
    return this.#decoder.decode(this.bytesOf(token));
  }

  /** The id of a special or added token by its text, or null. */
  idOf(content: string): number | null {
    return this.#added.get(content) ?? null;
  }
}
