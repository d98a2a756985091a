/**
 * Measured cost profiles on disk, one JSON file for each device and kernel. One that is damaged, or
 * of another device, kernel or measurement, is measured again.
 * @module
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { keepFile } from '../base/cache-file.ts';
import { cacheFolder } from '../base/env.ts';
import { FlashForgeError } from '../base/errors.ts';
import { profileProblem } from './cost-model.ts';
import type { CostProfile } from './plan.ts';

/** A profile and where it comes from. */
export interface StoredProfile {
  readonly profile: CostProfile;
  /** Where it is kept; there may be no file if the folder cannot be written. */
  readonly path: string;
  /** True if it was measured now. */
  readonly measured: boolean;
}

/** What a profile depends on: it is kept under a name made of all of it. */
export interface ProfileKey {
  readonly device: string;
  readonly kernel: string;
  /** Anything else that changes what is measured: driver, kernel sources, the measurement. */
  readonly of: readonly (string | number)[];
}

/** Where the profile for `key` is kept. */
export function profilePath(key: ProfileKey, folder: string = cacheFolder()): string {
  const digest = createHash('sha256').update(JSON.stringify([key.device, key.kernel, ...key.of]));
  return join(folder, 'profiles', `${digest.digest('hex').slice(0, 24)}.json`);
}

/** The profile kept under `path`, or null if there is none that can be used. */
export function readProfile(path: string, key: ProfileKey): CostProfile | null {
  try {
    const profile = JSON.parse(readFileSync(path, 'utf8')) as CostProfile;
    const same = profile.device === key.device && profile.kernel === key.kernel;
    return same && profileProblem(profile) === undefined ? profile : null;
  } catch {
    // Missing or damaged: measured again.
    return null;
  }
}

/** Keeps a profile; a folder that cannot be written only costs the next start a measurement. */
export function saveProfile(path: string, profile: CostProfile): void {
  keepFile(path, `${JSON.stringify(profile)}\n`);
}

/**
 * A profile from what `flashforge profile --json` wrote, or from a kept file.
 * @throws FlashForgeError 'input' with what makes it unusable.
 */
export function parseProfile(text: string): CostProfile {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new FlashForgeError('input', `cost profile is not JSON: ${(error as Error).message}`);
  }
  const report = json as { readonly profile?: unknown } | null;
  const profile = (report?.profile ?? report) as CostProfile | null;
  const listed = [profile?.queries, profile?.tokens, profile?.us].every(Array.isArray);
  const problem =
    profile === null || !listed || !profile.us.every(Array.isArray)
      ? 'queries, tokens and us must be lists'
      : profileProblem(profile);
  if (problem === undefined) return profile as CostProfile;
  throw new FlashForgeError('input', `cost profile cannot be used: ${problem}`);
}

/** All profiles that are kept: for people who want to know what plans are made with. */
export function keptProfiles(folder: string = cacheFolder()): CostProfile[] {
  const at = join(folder, 'profiles');
  if (!existsSync(at)) return [];
  const kept: CostProfile[] = [];
  for (const name of readdirSync(at).filter((file) => file.endsWith('.json'))) {
    try {
      const profile = JSON.parse(readFileSync(join(at, name), 'utf8')) as CostProfile;
      if (profileProblem(profile) === undefined) kept.push(profile);
    } catch {
      // Damaged: whoever needs it measures again.
    }
  }
  return kept;
}
