/**
 * Files that cannot be used: exit code 1 and one sentence that names what is wrong.
 * @module
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { devNull, platform } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { assertFails, inTurns } from '../helpers/run-cli.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';
import { TINY, writeTinyGguf, writeTinySafetensors } from '../helpers/tiny-checkpoint.ts';

const FAILED = 1;
const folder = temporaryFolder();
const file = (name: string, content: string | Buffer): string => {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
};

const chat = writeTinyChatModel(folder);
const good = readFileSync(chat);
const withoutTokenizer = writeTinyGguf(folder);
const emptyFolder = join(folder, 'empty');
const badShapes = join(folder, 'shapes');
mkdirSync(emptyFolder);
mkdirSync(badShapes);
writeTinySafetensors(badShapes);
const config = JSON.parse(readFileSync(join(badShapes, 'config.json'), 'utf8'));
writeFileSync(join(badShapes, 'config.json'), JSON.stringify({ ...config, hidden_size: 512 }));

const replaced = (from: string, to: string): Buffer =>
  Buffer.from(good.toString('latin1').replaceAll(from, to), 'latin1');
const workload = (entry: object): string =>
  JSON.stringify([
    {
      name: 'w',
      nodes: [{ parent: -1, tokens: 8 }],
      requests: [0],
      q_heads: 4,
      kv_heads: 2,
      head_dim: 64,
      ...entry,
    },
  ]);

test('model files that are damaged or not supported', async () => {
  const unknown = writeTinyGguf(folder, { ...TINY, architecture: 'mamba' });
  const cases: readonly (readonly [string, RegExp])[] = [
    [join(folder, 'missing.gguf'), /model ".*missing\.gguf" is no file or directory here/],
    [file('notes.txt', 'x'), /notes\.txt" must end in \.gguf/],
    [file('empty.gguf', ''), /empty\.gguf/],
    [file('random.gguf', Buffer.alloc(4096, 'x')), /random\.gguf/],
    [file('header.gguf', good.subarray(0, 200)), /header\.gguf/],
    [file('short.gguf', good.subarray(0, good.length - 5000)), /short\.gguf/],
    [unknown, /architecture.*"?mamba/],
    [emptyFolder, /neither config\.json/],
    [badShapes, /shape|columns|rows|features|512/],
    [devNull, /model ".*" must be a \.gguf file or a directory|is no file or directory/],
    ['hf:nonsense', /model reference "hf:nonsense" must be hf:owner\/repo/],
    ['pip:x', /model reference "pip:x" must be pip:package==version/],
    ['hf:owner/not-in-the-cache', /not in the cache/],
  ];
  await inTurns(
    cases.map(
      ([path, message]) =>
        () =>
          assertFails(['inspect', path], FAILED, message, { HF_HUB_CACHE: emptyFolder }),
    ),
  );
});

test('models that cannot generate', async () => {
  const generate = (model: string, ...words: string[]): string[] => [
    'generate',
    '--model',
    model,
    ...words,
  ];
  const pre = file('pre.gguf', replaced('smollm', 'nobody'));
  const chatless = file(
    'chatless.gguf',
    replaced('tokenizer.chat_template', 'tokenizer.chat_nothing_'),
  );
  const messages = file('chat.jsonl', '{"messages":[{"role":"user","content":"hi"}]}');
  await inTurns([
    () => assertFails(generate(withoutTokenizer, '--prompt', 'x'), FAILED, /tokenizer\.ggml/),
    () => assertFails(generate(pre, '--prompt', 'x'), FAILED, /tokenizer\.ggml\.pre is "nobody"/),
    () => assertFails(generate(chatless, '--prompts', messages), FAILED, /no chat template/),
    () =>
      assertFails(
        generate(chat, '--prompt', 'x'.repeat(600)),
        FAILED,
        /prompt must have at most 511 tokens, as the model's context is 512, got 600/,
      ),
  ]);
});

test('prompt files that are missing, empty or malformed', async () => {
  const cases: readonly (readonly [string, RegExp])[] = [
    [
      join(folder, 'none.txt'),
      /--prompts .*none\.txt cannot be read: there is no such file or folder/,
    ],
    [folder, /cannot be read: it is a folder/],
    [file('blank.txt', '\n  \n'), /blank\.txt must hold at least one prompt/],
    [file('a.jsonl', '{"prompt":"x"}\n{"prompt":'), /a\.jsonl line 2 is not valid JSON/],
    [file('b.jsonl', '{"text":"x"}'), /b\.jsonl line 1 must have either "prompt" or "messages"/],
    [file('c.jsonl', '{"prompt":""}'), /line 1: prompt must be text .* got ""/],
    [file('d.jsonl', '{"messages":[]}'), /line 1: messages must be a list with at least one/],
    [file('e.jsonl', '{"messages":[{"role":1}]}'), /messages\[0\] must have role and content/],
    [file('g.txt', Buffer.from([0x68, 0xff, 0xfe])), /g\.txt cannot be read: it is not UTF-8 text/],
    [file('f.jsonl', '{"prompt":"x"}\nnull'), /line 2 must have either/],
  ];
  await inTurns(
    cases.map(
      ([path, message]) =>
        () =>
          assertFails(['generate', '--prompts', path], FAILED, message),
    ),
  );
});

test('files without an end are not read to the end', { skip: platform() === 'win32' }, async () => {
  const endless = /\/dev\/zero cannot be read: it has more than 268435456 bytes/;
  await assertFails(['generate', '--prompts', '/dev/zero'], FAILED, endless);
  await assertFails(['plan', '--workload', '/dev/zero'], FAILED, endless);
});

test('workloads that are no trees', async () => {
  const node = (parent: number, tokens: number): object => ({ parent, tokens });
  const cases: readonly (readonly [string, RegExp])[] = [
    ['{', /is not JSON/],
    ['[]', /at least one workload/],
    ['{}', /workload file must be a list/],
    [workload({ nodes: [node(1, 4), node(0, 4)] }), /nodes\[0\]\.parent/],
    [workload({ nodes: [node(0, 4)] }), /nodes\[0\]\.parent/],
    [workload({ nodes: [node(-1, 4), node(7, 4)] }), /nodes\[1\]\.parent .*7/],
    [workload({ nodes: [node(-1, -4)] }), /nodes\[0\]\.tokens .*-4/],
    [workload({ requests: [3] }), /requests\[0\] .*3/],
    [workload({ q_heads: 5 }), /q_heads/],
    [workload({ head_dim: 1e9 }), /head_dim/],
  ];
  const plan = (path: string): string[] => ['plan', '--workload', path];
  await inTurns([
    () => assertFails(plan(join(folder, 'none.json')), FAILED, /none\.json cannot be read/),
    ...cases.map(
      ([text, message], index) =>
        () =>
          assertFails(plan(file(`w${index}.json`, text)), FAILED, message),
    ),
  ]);
});

test('workloads of which none can be measured', async () => {
  const odd = file('odd.json', workload({ name: 'odd', head_dim: 40 }));
  const large = file('large.json', workload({ nodes: [{ parent: -1, tokens: 1e6 }] }));
  const bench = (path: string): string[] => ['bench', 'attention', '--workloads', path];
  await assertFails(bench(odd), FAILED, /none of the 1 workloads .* "odd".* multiple of 16.* 40/);
  await assertFails(
    [...bench(large), '--memory', '1'],
    FAILED,
    /none of the 1 workloads .* "w".* need \d+ MiB and 1 MiB are allowed/,
  );
});
