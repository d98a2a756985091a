/**
 * The dashboard's files: read once, served by exact name, with a policy that lets the page load
 * nothing from anywhere else.
 * @module
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { extname, join } from 'node:path';
import { ApiError } from './api-error.ts';

const FOLDER = join(import.meta.dirname, 'dashboard');
const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
};
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
  "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/** (name, content); only what lies in the folder itself has a name here. */
function readFiles(): Map<string, Buffer> {
  const files = new Map<string, Buffer>();
  if (!existsSync(FOLDER)) return files;
  for (const entry of readdirSync(FOLDER, { withFileTypes: true })) {
    if (!entry.isFile() || TYPES[extname(entry.name)] === undefined) continue;
    files.set(entry.name, readFileSync(join(FOLDER, entry.name)));
  }
  return files;
}

let files: Map<string, Buffer> | null = null;

/** @throws ApiError 404 for any other name. */
export function staticFile(name: string): Response {
  files ??= readFiles();
  const content = files.get(name);
  if (content === undefined) {
    throw new ApiError(404, `${JSON.stringify(name)} is not here`, { code: 'not_found' });
  }
  return new Response(new Uint8Array(content), {
    headers: {
      'content-type': TYPES[extname(name)],
      'cache-control': 'no-cache',
      'content-security-policy': POLICY,
    },
  });
}
