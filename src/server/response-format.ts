/**
 * What the text must conform to: response_format and forced tool calls as grammars of the engine.
 * @module
 */
import type { GrammarSource } from '../engine/grammar-source.ts';
import { badRequest } from './api-error.ts';
import type { ChatRequest, ResponseFormat, Tool } from './chat-schema.ts';
import type { ToolForm } from './tool-calls.ts';

export function grammarOf(format: ResponseFormat | null | undefined): GrammarSource | undefined {
  switch (format?.type) {
    case 'json_object':
      return { kind: 'json' };
    case 'json_schema':
      return { kind: 'schema', schema: format.json_schema.schema };
    default:
      return undefined;
  }
}

/** A grammar where a call is demanded; with 'auto' the model is free to call or not. */
export function toolGrammar(
  { tools, tool_choice: choice, response_format: format }: ChatRequest,
  form: ToolForm,
): GrammarSource | undefined {
  if (choice == null || choice === 'auto' || choice === 'none') return undefined;
  if (format != null && format.type !== 'text') {
    throw badRequest('response_format must not be given with a forced tool', 'response_format');
  }
  const wanted = choice === 'required' ? null : choice.function.name;
  const found = (tools ?? []).filter((tool) => wanted === null || tool.function.name === wanted);
  if (found.length === 0) {
    throw badRequest(
      `tool_choice.function.name must be one of the tools, got ${JSON.stringify(wanted)}`,
      'tool_choice.function.name',
    );
  }
  return { kind: 'tags', tags: found.map((tool) => callTag(tool, form)) };
}

/** One call of this tool as the family writes it. */
function callTag(tool: Tool, { name: family, open, close, argumentsField }: ToolForm) {
  const [list, end] = family === 'mistral' ? ['[', ']'] : ['', ''];
  const [before, after] = family === 'hermes' ? ['\n', '\n'] : ['', ''];
  const name = JSON.stringify(tool.function.name);
  return {
    begin: `${open}${before}${list}{"name": ${name}, "${argumentsField}": `,
    schema: tool.function.parameters ?? { type: 'object' },
    end: `}${end}${after}${close}`,
  };
}
