/**
 * Tool calls are found in a family's text however it is cut into pieces.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ToolCallReader, toolForm } from '../../src/server/tool-calls.ts';

const HERMES = toolForm('{% if tools %}<tool_call>{% endif %}');
const LLAMA3 = toolForm(
  '{"name": function name, "parameters": dictionary} <|python_tag|> "parameters":',
);
const MISTRAL = toolForm('[AVAILABLE_TOOLS] [TOOL_CALLS]');

const one = (field: string) => `{"name": "f", "${field}": {"a": [1, "}"]}}`;
/** [form, text, content, names of the calls] */
const CASES = [
  [HERMES, 'no call at all', 'no call at all', []],
  [HERMES, `<tool_call>\n${one('arguments')}\n</tool_call>`, '', ['f']],
  [
    HERMES,
    `Sure.<tool_call>${one('arguments')}</tool_call>\n<tool_call>{"name":"g"}</tool_call>`,
    'Sure.',
    ['f', 'g'],
  ],
  [HERMES, 'a < b and <tool', 'a < b and <tool', []],
  [HERMES, '<tool_call>not json</tool_call>', '<tool_call>not json</tool_call>', []],
  [HERMES, `<tool_call>${one('arguments')}`, '', ['f']],
  [LLAMA3, one('parameters'), '', ['f']],
  [LLAMA3, `  ${one('parameters')}; {"name": "g", "parameters": {}}`, '', ['f', 'g']],
  [LLAMA3, '{"an": "object"}', '{"an": "object"}', []],
  [LLAMA3, `text, then ${one('parameters')}`, `text, then ${one('parameters')}`, []],
  [MISTRAL, `[TOOL_CALLS] [${one('arguments')}, {"name":"g","arguments":{}}]`, '', ['f', 'g']],
  [MISTRAL, 'plain [TOOL', 'plain [TOOL', []],
] as const;

test('the form follows the chat template', () => {
  assert.deepEqual(
    [HERMES, LLAMA3, MISTRAL].map(({ name }) => name),
    ['hermes', 'llama3', 'mistral'],
  );
});

test('calls and content are the same for every way to cut the text', () => {
  for (const [form, text, content, names] of CASES) {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 9 })), (sizes) => {
        const reader = new ToolCallReader(form);
        let found = '';
        const calls: string[] = [];
        const take = ({ text, calls: more }: ReturnType<ToolCallReader['push']>): void => {
          found += text;
          calls.push(...more.map((call) => call.function.name));
          for (const { id, function: f } of more) {
            assert.match(id, /^[a-z0-9]{9}$/);
            JSON.parse(f.arguments);
          }
        };
        let at = 0;
        for (const size of sizes) {
          take(reader.push(text.slice(at, at + size)));
          at += size;
        }
        take(reader.push(text.slice(at)));
        take(reader.end());
        assert.equal(found.trim(), content);
        assert.deepEqual(calls, names);
      }),
      { numRuns: 50, seed: 1 },
    );
  }
});
