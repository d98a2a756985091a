/**
 * Messages of the API as the chat templates of models expect them.
 * @module
 */
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { badRequest } from './api-error.ts';
import type { ApiMessage, Tool } from './chat-schema.ts';

type ToolCalls = Extract<ApiMessage, { role: 'assistant' }>['tool_calls'];

/** Text parts become one text; `developer` is OpenAI's newer word for `system`. */
export function templateMessages(messages: readonly ApiMessage[]): ChatMessage[] {
  return messages.map((message, index) => {
    const role = message.role === 'developer' ? 'system' : message.role;
    const content = textOf(message.content);
    const name = message.name == null ? {} : { name: message.name };
    if (message.role === 'tool') {
      return { role, content, tool_call_id: message.tool_call_id, ...name };
    }
    if (message.role !== 'assistant') return { role, content, ...name };
    const calls = templateCalls(message.tool_calls, index);
    if (calls.length === 0 && message.content == null) {
      throw badRequest(
        `messages[${index}].content must be text where there are no tool_calls`,
        `messages[${index}].content`,
      );
    }
    return { role, content, ...name, ...(calls.length === 0 ? {} : { tool_calls: calls }) };
  });
}

function textOf(content: ApiMessage['content']): string {
  if (content == null) return '';
  return typeof content === 'string' ? content : content.map(({ text }) => text).join('');
}

/** Templates write the arguments as JSON themselves, so that they get the value. */
function templateCalls(calls: ToolCalls, index: number): unknown[] {
  return (calls ?? []).map(({ id, type, function: { name, arguments: text } }, call) => {
    try {
      return { id, type, function: { name, arguments: JSON.parse(text) } };
    } catch {
      const field = `messages[${index}].tool_calls[${call}].function.arguments`;
      throw badRequest(`${field} must be JSON`, field);
    }
  });
}

/** A template that ignores tools would drop them silently. */
export const knowsTools = (template: string): boolean => /\btools\b/.test(template);

/**
 * Tools written into the messages, for models whose template has no place for them: the words
 * around them are the form that Hermes and Qwen models were trained on, which others follow best.
 */
export function withToolTexts(
  messages: readonly ChatMessage[],
  tools: readonly Tool[],
): ChatMessage[] {
  const list = tools.map((tool) => JSON.stringify(tool)).join('\n');
  const instructions =
    'You may call functions. Their descriptions, one a line:\n' +
    `<tools>\n${list}\n</tools>\n` +
    'To call one, answer with its name and arguments as JSON inside tool_call tags:\n' +
    '<tool_call>\n{"name": <function name>, "arguments": <arguments object>}\n</tool_call>';
  const plain = messages.map(plainMessage);
  const first = plain[0];
  if (first?.role !== 'system') return [{ role: 'system', content: instructions }, ...plain];
  return [{ ...first, content: `${first.content}\n\n${instructions}` }, ...plain.slice(1)];
}

function plainMessage(message: ChatMessage): ChatMessage {
  if (message.role === 'tool') {
    return { role: 'user', content: `<tool_response>\n${message.content}\n</tool_response>` };
  }
  const { tool_calls: calls, ...rest } = message;
  if (!Array.isArray(calls)) return message;
  const texts = calls.map(
    (call: { function: unknown }) => `<tool_call>\n${JSON.stringify(call.function)}\n</tool_call>`,
  );
  return { ...rest, content: [message.content, ...texts].filter((text) => text !== '').join('\n') };
}
