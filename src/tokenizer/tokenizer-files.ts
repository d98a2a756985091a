/**
 * The tokenizer of a model directory: `tokenizer.json` and what stands about special tokens and
 * chat in the files beside it.
 * @module
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { FlashForgeError } from '../base/errors.ts';
import { vocabulary } from './token-bytes.ts';
import type { TokenizerParts } from './tokenizer.ts';
import { readTokenizerJson, type TokenizerJson } from './tokenizer-json.ts';

type Fields = Readonly<Record<string, unknown>>;

/**
 * @throws FlashForgeError 'model' when there is no tokenizer.json or a file is not valid.
 */
export function directoryTokenizer(directory: string): TokenizerParts {
  const path = join(directory, 'tokenizer.json');
  if (!existsSync(path)) {
    throw new FlashForgeError('model', `${directory} has no tokenizer.json`);
  }
  const json = readTokenizerJson(readJson(path), path);
  const config = readJson(join(directory, 'tokenizer_config.json'));
  const ids = [
    ...tokenIds(readJson(join(directory, 'generation_config.json')).eos_token_id),
    ...tokenIds(readJson(join(directory, 'config.json')).eos_token_id),
  ];
  const roles = tokenRoles(config, readJson(join(directory, 'special_tokens_map.json')));
  const bosId = roles.bos_token === undefined ? null : idOf(json, roles.bos_token);
  const eosId = roles.eos_token === undefined ? null : idOf(json, roles.eos_token);
  const stopIds = [...new Set(eosId === null ? ids : [...ids, eosId])];
  return {
    source: path,
    json,
    bosId,
    stopIds,
    chatTemplate: chatTemplate(directory, config),
    roles,
  };
}

/** An absent file is an empty object: all but tokenizer.json are optional. */
function readJson(path: string): Fields {
  if (!existsSync(path)) return {};
  try {
    const value: unknown = JSON.parse(readFileSync(path, 'utf8'));
    if (typeof value === 'object' && value !== null) return value as Fields;
  } catch (cause) {
    throw new FlashForgeError('model', `${path} is not valid JSON`, { cause });
  }
  throw new FlashForgeError('model', `${path} must hold a JSON object`);
}

const tokenIds = (value: unknown): number[] =>
  (Array.isArray(value) ? value : [value]).filter((id) => Number.isInteger(id) && id >= 0);

/** Special tokens stand as text or as {content}. */
function tokenRoles(...files: Fields[]): Record<string, string> {
  const roles: Record<string, string> = {};
  for (const file of files) {
    for (const [key, value] of Object.entries(file)) {
      if (!key.endsWith('_token') || key in roles) continue;
      const text = (value as { content?: unknown } | null)?.content ?? value;
      if (typeof text === 'string') roles[key] = text;
    }
  }
  return roles;
}

function idOf(json: TokenizerJson, text: string): number | null {
  const added = json.added_tokens.find((token) => token.content === text);
  if (added !== undefined) return added.id;
  for (const [piece, id] of vocabulary(json)) if (piece === text) return id;
  return null;
}

/** A file of its own goes before the field; of several named templates "default" is taken. */
function chatTemplate(directory: string, config: Fields): string | null {
  const path = join(directory, 'chat_template.jinja');
  if (existsSync(path)) return readFileSync(path, 'utf8');
  const value = config.chat_template;
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return null;
  const named = value as { name?: string; template?: string }[];
  return named.find((entry) => entry.name === 'default')?.template ?? null;
}
