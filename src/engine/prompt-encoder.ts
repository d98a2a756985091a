/**
 * Text and messages to token ids and back, as the engine's requests need them.
 * @module
 */
import { checkInteger, FlashForgeError, show } from '../base/errors.ts';
import { ChatTemplate } from '../tokenizer/chat-template.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { TextStream } from './generation.ts';
import type { PromptSource } from './rpc.ts';

export class PromptEncoder {
  readonly #tokenizer: Tokenizer;
  readonly #vocab: number;
  #template: ChatTemplate | null = null;

  constructor(tokenizer: Tokenizer, vocab: number) {
    this.#tokenizer = tokenizer;
    this.#vocab = vocab;
  }

  get eosIds(): ReadonlySet<number> {
    return this.#tokenizer.stopIds;
  }

  /**
   * The prompt's own tokens, without its branch's. A text that begins a sequence gets what the
   * model's files put around a text; one that continues a branch gets nothing.
   * @throws FlashForgeError 'request' for a source that is none, or ids out of range; 'model'
   * for messages where the model has no chat template.
   */
  encode(prompt: PromptSource): number[] {
    const { branch, text, tokens, messages, chat } = prompt;
    if (tokens !== undefined) {
      if (!Array.isArray(tokens)) throw refused('tokens must be a list', tokens);
      return tokens.map((id, at) =>
        checkInteger('request', `tokens[${at}]`, id, 0, this.#vocab - 1),
      );
    }
    if (messages !== undefined) {
      if (branch !== undefined) throw refused('messages cannot continue a prefix', messages);
      this.#template ??= new ChatTemplate(this.#tokenizer.parts);
      const rendered = this.#template.render(messages, chat);
      return this.#tokenizer.encode(rendered, { addSpecial: false });
    }
    if (typeof text !== 'string') throw refused('prompt must be text, token ids or messages', text);
    if (text === '') {
      if (branch !== undefined) return [];
      throw refused('prompt must not be empty', text);
    }
    return this.#tokenizer.encode(text, { addSpecial: branch === undefined });
  }

  decode(tokens: readonly number[]): string {
    return this.#tokenizer.decode(tokens);
  }

  /** The text of tokens that follow a prompt. */
  stream(): TextStream {
    return this.#tokenizer.stream({ continues: true });
  }

  /** A continuation's text at once. */
  decodeNew(tokens: readonly number[]): string {
    return this.#tokenizer.decode(tokens, { continues: true });
  }
}

const refused = (rule: string, value: unknown): FlashForgeError =>
  new FlashForgeError('request', `${rule}, got ${show(value)}`);
