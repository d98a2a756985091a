/**
 * Profiles on disk: what is read back, and what is not taken for a profile.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { defaultProfile } from '../../src/plan/default-profile.ts';
import type { CostProfile } from '../../src/plan/plan.ts';
import {
  keptProfiles,
  profilePath,
  readProfile,
  saveProfile,
} from '../../src/plan/profile-store.ts';

const folder = mkdtempSync(join(tmpdir(), 'flashforge-profiles-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const profile: CostProfile = { ...defaultProfile('cuda', 128), device: 'card', kernel: 'v1' };
const key = { device: 'card', kernel: 'v1', of: [580, 'sources'] };

test('a profile comes back as it was kept, and leaves no draft', () => {
  const path = profilePath(key, folder);
  assert.equal(readProfile(path, key), null);
  saveProfile(path, profile);
  assert.deepEqual(readProfile(path, key), profile);
  assert.equal(readdirSync(dirname(path)).length, 1);
});

test('whatever it depends on gives another file', () => {
  const keys = [
    key,
    { ...key, device: 'another card' },
    { ...key, kernel: 'v2' },
    { ...key, of: [581, 'sources'] },
    { ...key, of: [580, 'other sources'] },
  ];
  assert.equal(new Set(keys.map((one) => profilePath(one, folder))).size, keys.length);
});

test('what is damaged, not finite or of another device is not taken', () => {
  const path = profilePath(key, folder);
  saveProfile(path, profile);
  const text = readFileSync(path, 'utf8');
  const broken: string[] = [
    '',
    'null',
    text.slice(0, -20),
    text.replace('"itemUs"', '"item"'),
    JSON.stringify({ ...profile, us: profile.us.slice(1) }),
    JSON.stringify({ ...profile, us: profile.us.map((row) => row.map(() => -1)) }),
    JSON.stringify({ ...profile, mergeUs: null, partialUs: 'x' }),
    JSON.stringify({ ...profile, tokens: [...profile.tokens].reverse() }),
    JSON.stringify({ ...profile, device: 'another card' }),
  ];
  for (const content of broken) {
    writeFileSync(path, content);
    assert.equal(readProfile(path, key), null, content.slice(0, 60));
  }
  writeFileSync(path, broken[2]);
  assert.deepEqual(keptProfiles(folder), [], 'nor listed');
  saveProfile(path, profile);
  assert.deepEqual(keptProfiles(folder), [profile]);
});

test('a folder that cannot be written costs nothing but the file', () => {
  const blocked = join(folder, 'blocked');
  mkdirSync(blocked);
  writeFileSync(join(blocked, 'profiles'), 'a file where the folder should be');
  const path = profilePath(key, blocked);
  saveProfile(path, profile);
  assert.equal(readProfile(path, key), null);
});
