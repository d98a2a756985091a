/**
 * Chat messages to a prompt, by the model's own Jinja template.
 * @module
 */
import { Template } from '@huggingface/jinja';
import { FlashForgeError, show } from '../base/errors.ts';
import type { TokenizerParts } from './tokenizer.ts';

/** One message; templates may read further fields (tool_calls, name, ...). */
export interface ChatMessage {
  readonly role: string;
  readonly content: string | readonly unknown[] | null;
  readonly [field: string]: unknown;
}

export interface ChatOptions {
  /** End with the opening of the assistant's turn; default true. */
  readonly addGenerationPrompt?: boolean;
  /** Descriptions of tools, handed to the template as they are. */
  readonly tools?: readonly unknown[];
  /** Further variables that the template reads, such as enable_thinking. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/**
 * A compiled chat template. The rendered text already holds the special tokens: encode it with
 * `addSpecial: false`.
 */
export class ChatTemplate {
  readonly #template: Template;
  readonly #roles: Readonly<Record<string, string>>;

  /** @throws FlashForgeError 'model' when the model has no template or it cannot be parsed. */
  constructor(parts: Pick<TokenizerParts, 'chatTemplate' | 'roles' | 'source'>) {
    if (parts.chatTemplate === null) {
      throw new FlashForgeError(
        'model',
        `${parts.source} has no chat template: give a plain prompt instead of messages`,
      );
    }
    this.#roles = parts.roles;
    try {
      this.#template = new Template(parts.chatTemplate);
    } catch (cause) {
      throw new FlashForgeError(
        'model',
        `${parts.source} has a chat template that cannot be parsed: ${firstLine(cause)}`,
        { cause },
      );
    }
  }

  /**
   * @throws FlashForgeError 'request' when the messages are malformed or the template refuses them.
   */
  render(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    checkMessages(messages);
    try {
      // The library itself provides raise_exception and strftime_now.
      return this.#template.render({
        ...this.#roles,
        ...options.variables,
        messages,
        tools: options.tools ?? null,
        documents: null,
        add_generation_prompt: options.addGenerationPrompt ?? true,
      });
    } catch (cause) {
      throw new FlashForgeError(
        'request',
        `the model's chat template refused the messages: ${firstLine(cause)}`,
        { cause },
      );
    }
  }
}

function checkMessages(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new FlashForgeError(
      'request',
      `messages must be a list with at least one message, got ${show(messages)}`,
    );
  }
  for (const [index, message] of messages.entries()) {
    if (typeof message !== 'object' || message === null || typeof message.role !== 'string') {
      throw new FlashForgeError(
        'request',
        `messages[${index}] must have a role and content, got ${show(message)}`,
      );
    }
    const { content } = message as { content?: unknown };
    if (
      typeof content !== 'string' &&
      !Array.isArray(content) &&
      message.tool_calls === undefined
    ) {
      throw new FlashForgeError(
        'request',
        `messages[${index}].content must be text or a list of parts, got ${show(content)}`,
      );
    }
  }
}

function firstLine(cause: unknown): string {
  const text = cause instanceof Error ? cause.message : String(cause);
  return text.split('\n', 1)[0];
}
