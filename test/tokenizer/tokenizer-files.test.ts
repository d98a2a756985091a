/**
 * Tokenizers of model directories: roles, stop tokens, chat templates, refusals.
 * @module
 */
import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ChatTemplate } from '../../src/tokenizer/chat-template.ts';
import { ggufTokenizer } from '../../src/tokenizer/gguf-tokenizer.ts';
import { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { directoryTokenizer } from '../../src/tokenizer/tokenizer-files.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { byteLevelMetadata, sentencePieceMetadata } from '../helpers/tiny-tokenizer.ts';

const folder = temporaryFolder();
const write = (name: string, value: unknown): void =>
  writeFileSync(join(folder, name), typeof value === 'string' ? value : JSON.stringify(value));

/** The same tokenizer as a directory and as a GGUF header. */
const gguf = ggufTokenizer(byteLevelMetadata(), 'tiny');

test('a directory gives the same tokens as the GGUF header, stop tokens from every file', () => {
  // The spelling of the original files; it is corrected when read.
  const digits = { type: 'Digits', individual_digits: true };
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, use_regex: true };
  write('tokenizer.json', {
    ...gguf.json,
    pre_tokenizer: { type: 'Sequence', pretokenizers: [digits, byteLevel] },
  });
  write('config.json', { eos_token_id: 1 });
  write('generation_config.json', { eos_token_id: [1, 7] });
  write('tokenizer_config.json', {
    bos_token: { content: '<|im_start|>' },
    eos_token: '<|im_start|>',
    chat_template: [{ name: 'default', template: 'D' }],
  });
  const parts = directoryTokenizer(folder);
  assert.equal(parts.bosId, 0);
  assert.deepEqual([...parts.stopIds].sort(), [0, 1, 7]);
  assert.equal(parts.chatTemplate, 'D');
  const [a, b] = [new Tokenizer(parts), new Tokenizer(gguf)];
  for (const text of ['hello world', ' 12  ٣४ x\u0085y\ufeffz', "it's\n\n ok"]) {
    assert.deepEqual(a.encode(text), b.encode(text));
  }
  write('chat_template.jinja', 'J');
  assert.equal(directoryTokenizer(folder).chatTemplate, 'J');
  rmSync(join(folder, 'chat_template.jinja'));
});

test('files that are no tokenizer are refused with their name', () => {
  write('tokenizer.json', '{');
  assert.throws(() => directoryTokenizer(folder), /tokenizer\.json is not valid JSON/);
  write('tokenizer.json', { ...gguf.json, model: { type: 'WordPiece', vocab: {} } });
  assert.throws(() => directoryTokenizer(folder), /type "WordPiece", supported are BPE/);
  write('tokenizer.json', { ...gguf.json, added_tokens: [{ id: -1, content: 'x' }] });
  assert.throws(() => directoryTokenizer(folder), /added token without a valid id/);
  write('tokenizer.json', { ...gguf.json, decoder: { type: 'CTC' } });
  assert.throws(() => new Tokenizer(directoryTokenizer(folder)), /decoder .*CTC.*supported/);
  rmSync(join(folder, 'tokenizer.json'));
  assert.throws(() => directoryTokenizer(folder), /has no tokenizer\.json/);
});

test('chat templates render messages, tools and the refusal of a template', () => {
  const template = new ChatTemplate(gguf);
  const messages = [{ role: 'user', content: 'hi' }];
  const turn = '<|im_start|>user\nhi<|im_end|>\n';
  assert.equal(template.render(messages), `${turn}<|im_start|>assistant\n`);
  assert.equal(template.render(messages, { addGenerationPrompt: false }), turn);

  const made = (chatTemplate: string): ChatTemplate => new ChatTemplate({ ...gguf, chatTemplate });
  const tools = [{ type: 'function', function: { name: 'f' } }];
  const named = made('{% if tools %}{{ tools[0].function.name }}{% endif %}{{ eos_token }}{{ x }}');
  assert.equal(named.render(messages, { tools, variables: { x: 5 } }), 'f<|im_end|>5');
  assert.equal(named.render(messages), '<|im_end|>');
  assert.throws(
    () => made("{{ raise_exception('no system role') }}").render(messages),
    /chat template refused the messages: .*no system role/,
  );
  assert.throws(() => made('{% if %}'), /chat template that cannot be parsed/);
  assert.throws(
    () => new ChatTemplate(ggufTokenizer(sentencePieceMetadata(), 'tiny.gguf')),
    /tiny\.gguf has no chat template: give a plain prompt/,
  );
  const bad = (value: unknown): string => template.render(value as typeof messages);
  assert.throws(() => bad([]), /messages must be a list with at least one/);
  assert.throws(() => bad([{ content: 'x' }]), /messages\[0\] must have a role/);
  assert.throws(() => bad([{ role: 'user', content: 5 }]), /messages\[0\]\.content must be text/);
});
