/**
 * The files of the dashboard's page. They are open to anybody: without a key the page shows
 * nothing, and asks for one.
 * @module
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { extname, join } from 'node:path';

const FOLDER = join(import.meta.dirname, 'page');
const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
};

/**
 * Nothing but this server's own files and answers; no inline script, and no text that becomes
 * HTML or script, whatever a model writes.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ');

export interface PageFile {
  /** Path in the URL. */
  readonly path: string;
  readonly type: string;
  readonly body: Uint8Array<ArrayBuffer>;
  readonly etag: string;
}

/** All files of the page; none in a build that has left them out. */
export function pageFiles(): PageFile[] {
  if (!existsSync(join(FOLDER, 'index.html'))) return [];
  return readdirSync(FOLDER)
    .filter((name) => extname(name) in TYPES)
    .map((name) => {
      const body = new Uint8Array(readFileSync(join(FOLDER, name)));
      const hash = createHash('sha256').update(body).digest('base64url').slice(0, 22);
      return {
        path: name === 'index.html' ? '/' : `/dashboard/${name}`,
        type: TYPES[extname(name)],
        body,
        etag: `"${hash}"`,
      };
    });
}

/** @param known the entity tag that the browser has */
export function pageResponse({ type, body, etag }: PageFile, known: string | undefined): Response {
  const headers = {
    'content-type': type,
    'cache-control': 'no-cache',
    'content-security-policy': POLICY,
    etag,
  };
  if (known === etag) return new Response(null, { status: 304, headers });
  return new Response(body, { headers });
}
