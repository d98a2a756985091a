/**
 * Prompts as the command line gives them: one text, or a file with one prompt a line or JSONL.
 * @module
 */
import { FlashForgeError, show } from '../base/errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { readTextFile } from './read-text.ts';

/** A plain text goes to the model as it is; messages go through the model's chat template. */
export type Prompt = { readonly text: string } | { readonly messages: readonly ChatMessage[] };

/**
 * Reads a file of prompts; empty lines are skipped. A file whose first line starts with "{" is
 * JSONL, each line {"prompt": text} or {"messages": [{"role", "content"}, ...]}.
 * @throws FlashForgeError 'input' naming the line and what is wrong with it.
 */
export function parsePrompts(text: string, source: string): Prompt[] {
  const lines = text.split(/\r?\n/).map((line, index) => ({ line, number: index + 1 }));
  const filled = lines.filter(({ line }) => line.trim() !== '');
  if (filled.length === 0) {
    throw new FlashForgeError('input', `${source} must hold at least one prompt, it is empty`);
  }
  const jsonl = filled[0].line.trimStart().startsWith('{');
  return filled.map(({ line, number }) =>
    jsonl ? parseLine(line, `${source} line ${number}`) : { text: line },
  );
}

function parseLine(line: string, at: string): Prompt {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw new FlashForgeError('input', `${at} is not valid JSON: ${show(line)}`, { cause });
  }
  const { prompt, messages } = (value ?? {}) as { prompt?: unknown; messages?: unknown };
  if ((prompt === undefined) === (messages === undefined)) {
    throw new FlashForgeError('input', `${at} must have either "prompt" or "messages"`);
  }
  if (messages !== undefined) return { messages: checkMessages(messages, at) };
  if (typeof prompt === 'string' && prompt !== '') return { text: prompt };
  throw new FlashForgeError(
    'input',
    `${at}: prompt must be text with at least one character, got ${show(prompt)}`,
  );
}

function checkMessages(value: unknown, at: string): readonly ChatMessage[] {
  if (!Array.isArray(value) || value.length === 0) {
    throw new FlashForgeError(
      'input',
      `${at}: messages must be a list with at least one message, got ${show(value)}`,
    );
  }
  for (const [index, message] of value.entries()) {
    if (typeof message?.role === 'string' && typeof message.content === 'string') continue;
    throw new FlashForgeError(
      'input',
      `${at}: messages[${index}] must have role and content as text, got ${show(message)}`,
    );
  }
  return value;
}

/**
 * Puts `prefix` before the prompt: before a plain text as it is, in messages before the first
 * one's content.
 */
export function withPrefix(prefix: string, prompt: Prompt): Prompt {
  if ('text' in prompt) return { text: prefix + prompt.text };
  const [first, ...rest] = prompt.messages;
  return { messages: [{ ...first, content: prefix + (first.content as string) }, ...rest] };
}

/** @throws FlashForgeError 'input' when the file cannot be read. */
export function readText(path: string, option: string): string {
  try {
    return readTextFile(path);
  } catch (cause) {
    const reason = (cause as Error).message;
    throw new FlashForgeError('input', `${option} ${path} cannot be read: ${reason}`, { cause });
  }
}
