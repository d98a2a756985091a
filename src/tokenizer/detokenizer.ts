/**
 * Tokens to text while they arrive: a character whose bytes are spread over several tokens is
 * held back until it is whole.
 * @module
 */
import type { Tokenizer } from './tokenizer.ts';

/** Made by `Tokenizer.stream()`; one for each sequence. */
export class Detokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecial: boolean;
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  #atStart: boolean;

  constructor(tokenizer: Tokenizer, skipSpecial: boolean, continues: boolean) {
    this.#tokenizer = tokenizer;
    this.#skipSpecial = skipSpecial;
    this.#atStart = !continues && tokenizer.stripsLeadingSpace;
  }

  /** The text that became certain with this token; may be empty. */
  push(id: number): string {
    if (this.#skipSpecial && this.#tokenizer.isSpecial(id)) return '';
    let bytes = this.#tokenizer.bytesOf(id);
    if (this.#atStart && bytes.length > 0) {
      this.#atStart = false;
      if (bytes[0] === 0x20) bytes = bytes.subarray(1);
    }
    return this.#decoder.decode(bytes, { stream: true });
  }

  /** What is still held back: U+FFFD for an unfinished character, otherwise nothing. */
  end(): string {
    return this.#decoder.decode();
  }
}
