/**
 * `flashforge profile` on the CPU: measured once, told where it is kept, measured again on demand.
 * @module
 */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { profileText } from '../../src/cli/profile-command.ts';
import { profileProblem } from '../../src/plan/cost-model.ts';
import { defaultProfile } from '../../src/plan/default-profile.ts';
import { runCli } from '../helpers/run-cli.ts';

const folder = mkdtempSync(join(tmpdir(), 'flashforge-profile-'));
after(() => rmSync(folder, { recursive: true, force: true }));

test('the first measures, the second reads, --force measures again; doctor names it', async () => {
  const run = async (...more: string[]) => {
    const words = ['profile', '--device', 'cpu', '--provider', 'wasm', '--head-dim', '32'];
    const shape = ['--heads', '6', '--kv-heads', '2', '--json', '-', ...more];
    const result = await runCli([...words, ...shape], { FLASHFORGE_CACHE: folder });
    assert.equal(result.code, 0, result.stderr);
    return { ...JSON.parse(result.stdout), told: result.stderr };
  };
  const first = await run();
  assert.equal(first.measured, true);
  assert.equal(profileProblem(first.profile), undefined);
  assert.ok(existsSync(first.path));
  assert.match(first.told, /measured now, kept in .*\.json/);
  const second = await run();
  assert.equal(second.measured, false);
  assert.deepEqual(second.profile, first.profile);
  assert.equal((await run('--force')).measured, true);
  const doctor = await runCli(['doctor', '--json', '-'], { FLASHFORGE_CACHE: folder });
  assert.match(doctor.stdout, /measured for .*head_dim 32, f16, group 3/);
});

test('the table has a row for each number of query vectors, then the fixed costs', () => {
  const profile = { ...defaultProfile('cuda', 128), mergeUs: 5.25 };
  const text = profileText({ profile, path: '/kept.json', measured: false });
  assert.match(text, /^query vectors {2}16 tokens {2}1024 tokens {2}16384 tokens$/m);
  assert.match(text, /^ +128 .* 23\.1 +370$/m);
  assert.match(text, /^a plan with merges, once +5\.25 us$/m);
  assert.match(text, /measured before, from \/kept\.json$/);
});
