/**
 * Chat templates against transformers' apply_chat_template (bench/fixtures/chat_templates.py).
 * @module
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import type { ChatMessage, ChatOptions } from '../../src/tokenizer/chat-template.ts';
import { ChatTemplate } from '../../src/tokenizer/chat-template.ts';
import { fixturePath } from '../helpers/fixtures.ts';

interface Case {
  readonly messages: readonly ChatMessage[];
  readonly options?: ChatOptions;
  /** What transformers wrote, or what the template raised. */
  readonly text?: string;
  readonly error?: string;
}

const fixtures = JSON.parse(readFileSync(fixturePath('chat-templates.json'), 'utf8')) as {
  readonly name: string;
  readonly template: string;
  readonly cases: readonly Case[];
}[];

for (const { name, template, cases } of fixtures) {
  test(`${name}: conversations as transformers writes them`, () => {
    const roles = { bos_token: '<s>', eos_token: '</s>' };
    const compiled = new ChatTemplate({ source: name, chatTemplate: template, roles });
    for (const { messages, options, text, error } of cases) {
      if (error === undefined) {
        assert.equal(compiled.render(messages, options), text);
      } else {
        assert.throws(() => compiled.render(messages, options), {
          code: 'request',
          message: `the model's chat template refused the messages: ${error}`,
        });
      }
    }
  });
}
