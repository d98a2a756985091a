/**
 * Models of the Hugging Face hub, kept in the cache folder that the Python libraries use too
 * (models--owner--name with blobs, refs and snapshots). Listing is the work of @huggingface/hub;
 * files are downloaded here, because its own download neither resumes nor checks.
 * @module
 */
import { existsSync, readFileSync } from 'node:fs';
import { copyFile, mkdir, readdir, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import type { ListFileEntry } from '@huggingface/hub';
import { homeFolder } from '../base/env.ts';
import { FlashForgeError } from '../base/errors.ts';
import type { ResolvedModel, ResolveOptions } from './reference.ts';
import { downloadFile, onDisk, reasonOf, UnreachableError } from './reference-download.ts';

/** A parsed `hf:owner/repo[@revision][:file]`. */
export interface HubReference {
  readonly text: string;
  readonly repo: string;
  readonly revision: string;
  readonly file: string | null;
}

/** Waiting longer than this for the hub's first answers is worse than using another source. */
const PROBE_MS = 4_000;

/** Small files that belong to a model; weights are chosen separately. */
const COMPANIONS = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
]);
const INDEX = 'model.safetensors.index.json';

const environment = (name: string): string | undefined => process.env[name] || undefined;

const hubUrl = (): string => environment('HF_ENDPOINT') ?? 'https://huggingface.co';
const huggingFaceHome = (): string =>
  environment('HF_HOME') ??
  join(environment('XDG_CACHE_HOME') ?? join(homeFolder(), '.cache'), 'huggingface');
const cacheRoot = (): string =>
  environment('HF_HUB_CACHE') ??
  environment('HUGGINGFACE_HUB_CACHE') ??
  join(huggingFaceHome(), 'hub');

export const hubIsOffline = (): boolean =>
  /^(1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? '');

function accessToken(): string | undefined {
  const set = environment('HF_TOKEN');
  if (set !== undefined) return set;
  const path = environment('HF_TOKEN_PATH') ?? join(huggingFaceHome(), 'token');
  return existsSync(path) ? readFileSync(path, 'utf8').trim() || undefined : undefined;
}

const folderOf = (reference: HubReference): string =>
  join(cacheRoot(), `models--${reference.repo.replaceAll('/', '--')}`);

/** Brings the model from the hub, or from the cache where the hub cannot be reached. */
export async function resolveHub(
  reference: HubReference,
  options: ResolveOptions,
): Promise<ResolvedModel> {
  if (options.offline === true || hubIsOffline()) {
    const cached = await cachedModel(reference);
    if (cached !== null) return cached;
    throw new FlashForgeError(
      'io',
      `${reference.text} is not in the cache (${folderOf(reference)}) and the hub is switched off`,
    );
  }
  try {
    return await fetchModel(reference, options);
  } catch (error) {
    if (!(error instanceof UnreachableError)) throw error;
    const cached = await cachedModel(reference);
    if (cached === null) throw error;
    options.log?.(`${error.message}; using the copy in the cache`);
    return cached;
  }
}

/** The complete copy in the cache, or null. */
export async function cachedModel(reference: HubReference): Promise<ResolvedModel | null> {
  const folder = folderOf(reference);
  const ref = join(folder, 'refs', reference.revision);
  const commit = existsSync(ref) ? readFileSync(ref, 'utf8').trim() : reference.revision;
  const snapshot = join(folder, 'snapshots', commit);
  // `stat` follows the links: one whose blob is missing does not count.
  const names = existsSync(snapshot) ? await readdir(snapshot, { recursive: true }) : [];
  const present: string[] = [];
  for (const name of names) {
    const path = name.replaceAll('\\', '/');
    if (
      await stat(join(snapshot, path)).then(
        (found) => found.isFile(),
        () => false,
      )
    ) {
      present.push(path);
    }
  }
  const wanted = wantedFiles(reference, present, snapshot);
  if (wanted === null || !wanted.every((name) => present.includes(name))) return null;
  return describe(reference, snapshot, wanted, 'cache');
}

async function fetchModel(
  reference: HubReference,
  options: ResolveOptions,
): Promise<ResolvedModel> {
  const hub = await openHub(reference, options.signal);
  const snapshot = join(folderOf(reference), 'snapshots', hub.commit);
  const names = [...hub.entries.keys()];
  if (names.includes(INDEX) && reference.file === null) await bring(INDEX);
  const wanted = wantedFiles(reference, names, snapshot);
  if (wanted === null) throw noWeights(reference, names);
  for (const name of wanted) await bring(name);
  await writeRef(reference, hub.commit);
  return describe(reference, snapshot, wanted, 'hub');

  async function bring(name: string): Promise<void> {
    const entry = hub.entries.get(name);
    if (entry === undefined) {
      throw new FlashForgeError('model', `${reference.text} has no file ${name}`);
    }
    await bringFile(reference, hub, entry, join(snapshot, name), options);
  }
}

/** What the hub said about the repository. */
interface HubListing {
  readonly commit: string;
  readonly entries: ReadonlyMap<string, ListFileEntry>;
  readonly headers: Readonly<Record<string, string>>;
}

async function openHub(
  reference: HubReference,
  signal: AbortSignal | undefined,
): Promise<HubListing> {
  const { modelInfo, listFiles } = await import('@huggingface/hub');
  const token = accessToken();
  const headers = token === undefined ? {} : { Authorization: `Bearer ${token}` };
  // The header is set here: the library refuses tokens of other servers than the hub's own.
  const limited: typeof fetch = (input, init) => {
    const limit = AbortSignal.timeout(PROBE_MS);
    return fetch(input, {
      ...init,
      headers: { ...(init?.headers as Record<string, string>), ...headers },
      signal: signal === undefined ? limit : AbortSignal.any([signal, limit]),
    });
  };
  const common = { hubUrl: hubUrl(), fetch: limited };
  try {
    const { repo, revision } = reference;
    const info = await modelInfo({
      ...common,
      name: repo,
      revision,
      additionalFields: ['sha'],
    });
    const entries = new Map<string, ListFileEntry>();
    const recursive = reference.file?.includes('/') === true;
    const listing = listFiles({ ...common, repo, revision: info.sha, recursive });
    for await (const entry of listing) if (entry.type === 'file') entries.set(entry.path, entry);
    return { commit: info.sha, entries, headers };
  } catch (cause) {
    throw hubError(cause, reference, signal);
  }
}

function hubError(cause: unknown, reference: HubReference, signal?: AbortSignal): FlashForgeError {
  if (signal?.aborted === true) {
    return new FlashForgeError('aborted', `reading ${reference.text} was cancelled`);
  }
  const status = (cause as { statusCode?: number }).statusCode;
  const answer = `the hub answered ${status}`;
  if (status === 401 || status === 403) {
    const hint =
      accessToken() === undefined
        ? 'set HF_TOKEN to a token that may read it'
        : 'the token in use may not read it (a gated model needs its terms accepted)';
    return new FlashForgeError(
      'io',
      `${reference.text} does not exist or is not public (${answer}): ${hint}`,
      { cause },
    );
  }
  if (status === 404) {
    const what = `repository ${reference.repo} at revision ${reference.revision}`;
    return new FlashForgeError('io', `the hub has no ${what} (${answer})`, { cause });
  }
  const reason =
    status !== undefined
      ? answer
      : (cause as Error).name === 'TimeoutError'
        ? `no answer within ${PROBE_MS / 1000} s`
        : reasonOf(cause);
  return new UnreachableError(`the hub at ${hubUrl()} cannot be reached (${reason})`, { cause });
}

/**
 * The files to load, out of those that exist; null when they hold no weights we can choose.
 * A repository with several .gguf files and no safetensors needs the file in the reference.
 */
function wantedFiles(
  reference: HubReference,
  names: readonly string[],
  snapshot: string,
): string[] | null {
  if (reference.file !== null) {
    const parts = /^(.+)-00001-of-(\d{5})\.gguf$/.exec(reference.file);
    if (parts === null) return [reference.file];
    const [, stem, total] = parts;
    return Array.from(
      { length: Number(total) },
      (_, i) => `${stem}-${String(i + 1).padStart(5, '0')}-of-${total}.gguf`,
    );
  }
  const companions = names.filter((name) => COMPANIONS.has(name));
  if (names.includes(INDEX)) {
    return [...companions, INDEX, ...shardsOf(join(snapshot, INDEX))];
  }
  if (names.includes('model.safetensors')) return [...companions, 'model.safetensors'];
  const single = (ending: string): string[] => names.filter((name) => name.endsWith(ending));
  if (single('.safetensors').length === 1) return [...companions, ...single('.safetensors')];
  return single('.gguf').length === 1 ? single('.gguf') : null;
}

/** The weight files that an index names. */
function shardsOf(path: string): string[] {
  try {
    const { weight_map } = JSON.parse(readFileSync(path, 'utf8')) as {
      weight_map: Record<string, string>;
    };
    const names = [...new Set(Object.values(weight_map))];
    // The names become paths in the cache: nothing may lead out of it.
    if (names.every((name) => /^[\w][\w.-]*\.safetensors$/.test(name))) return names;
  } catch {
    // Falls through to the error below.
  }
  throw new FlashForgeError('model', `${path} must name .safetensors files in weight_map`);
}

function noWeights(reference: HubReference, names: readonly string[]): FlashForgeError {
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  return new FlashForgeError(
    'model',
    ggufs.length > 1
      ? `${reference.text} holds ${ggufs.length} .gguf files, name one: ` +
          `${reference.text}:${ggufs[0]}`
      : `${reference.text} holds neither .safetensors nor .gguf weights`,
  );
}

async function bringFile(
  reference: HubReference,
  hub: HubListing,
  entry: ListFileEntry,
  link: string,
  options: ResolveOptions,
): Promise<void> {
  if (existsSync(link)) return;
  const hash = entry.lfs?.oid ?? entry.oid;
  if (hash === undefined || !/^[0-9a-f]{40,64}$/.test(hash)) {
    throw new UnreachableError(`the hub gave no checksum for ${entry.path}`);
  }
  const blob = join(folderOf(reference), 'blobs', hash);
  if (!existsSync(blob)) {
    options.log?.(`downloading ${entry.path} of ${reference.repo}`);
    const path = entry.path.split('/').map(encodeURIComponent).join('/');
    await downloadFile({
      name: entry.path,
      url: `${hubUrl()}/${reference.repo}/resolve/${hub.commit}/${path}`,
      headers: hub.headers,
      target: blob,
      bytes: entry.lfs?.size ?? entry.size,
      checksum: { algorithm: entry.lfs === undefined ? 'git' : 'sha256', hex: hash },
      signal: options.signal,
      onProgress: options.onProgress ?? (() => undefined),
    });
  }
  await linkTo(blob, link);
}

/** A relative link, so that the cache may be moved; a copy where links are not possible. */
async function linkTo(blob: string, link: string): Promise<void> {
  await onDisk(link, async () => {
    await mkdir(dirname(link), { recursive: true });
    const temporary = `${link}.${process.pid}.tmp`;
    await rm(temporary, { force: true });
    try {
      await symlink(relative(dirname(link), blob), temporary);
    } catch {
      await copyFile(blob, temporary);
    }
    await rename(temporary, link);
  });
}

async function writeRef(reference: HubReference, commit: string): Promise<void> {
  if (reference.revision === commit) return;
  const path = join(folderOf(reference), 'refs', reference.revision);
  await onDisk(path, async () => {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(`${path}.${process.pid}.tmp`, commit);
    await rename(`${path}.${process.pid}.tmp`, path);
  });
}

async function describe(
  reference: HubReference,
  snapshot: string,
  names: readonly string[],
  source: 'hub' | 'cache',
): Promise<ResolvedModel> {
  const files = [];
  for (const name of names) {
    const path = join(snapshot, name);
    files.push({ name, path, bytes: (await stat(path)).size });
  }
  const gguf = names.find((name) => name.endsWith('.gguf'));
  const path = gguf === undefined ? snapshot : join(snapshot, gguf);
  return { reference: reference.text, path, files, source };
}
