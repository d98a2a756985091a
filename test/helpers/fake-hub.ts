/**
 * A local server with the few routes of the hub that a download uses, and ways to make it fail.
 * @module
 */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after } from 'node:test';

export const COMMIT = 'c'.repeat(40);

export interface FakeHub {
  readonly url: string;
  /** Files of owner/repo; those with `large` are stored as the hub stores weights. */
  readonly files: Map<string, { content: Buffer; large: boolean }>;
  /** Method, path and Range of every request. */
  readonly requests: string[];
  /** Answers every request with this status. */
  status: number;
  /** Cuts the next downloads after this many bytes each. */
  cuts: number[];
  /** Announces this checksum instead of the right one. */
  checksum: string | null;
  /** Announces this size instead of the right one. */
  size: number | null;
  /** Every request waits for ever. */
  silent: boolean;
}

export async function startFakeHub(): Promise<FakeHub> {
  const server = createServer((request, response) => answer(hub, request, response));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  const hub: FakeHub = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    files: new Map(),
    requests: [],
    status: 200,
    cuts: [],
    checksum: null,
    size: null,
    silent: false,
  };
  return hub;
}

function answer(hub: FakeHub, request: IncomingMessage, response: ServerResponse): void {
  const path = (request.url ?? '').split('?')[0];
  const authorization = request.headers.authorization ?? '-';
  hub.requests.push(`${path} ${request.headers.range ?? '-'} ${authorization}`);
  if (hub.silent) return;
  if (hub.status !== 200) {
    json(response, { error: 'no' }, hub.status);
    return;
  }
  if (/^\/api\/models\/owner\/repo\/revision\/(main|v1)$/.test(path)) {
    json(response, { _id: '1', id: 'owner/repo', sha: COMMIT, lastModified: 0 });
  } else if (path === `/api/models/owner/repo/tree/${COMMIT}`) {
    json(response, listing(hub));
  } else {
    const name = path.startsWith(`/owner/repo/resolve/${COMMIT}/`) ? path.split('/').at(-1) : '';
    const file = hub.files.get(decodeURIComponent(name ?? ''));
    if (file === undefined) json(response, { error: 'not found' }, 404);
    else send(hub, request, response, file.content);
  }
}

function listing(hub: FakeHub): object[] {
  return [...hub.files].map(([path, { content, large }]) => {
    const size = hub.size ?? content.length;
    const blob = `blob ${content.length}\0`;
    const oid = createHash('sha1').update(blob).update(content).digest('hex');
    const sha256 = createHash('sha256').update(content).digest('hex');
    const lfs = { oid: hub.checksum ?? sha256, size, pointerSize: 100 };
    return { type: 'file', path, size, oid: hub.checksum ?? oid, ...(large ? { lfs } : {}) };
  });
}

function send(
  hub: FakeHub,
  request: IncomingMessage,
  response: ServerResponse,
  content: Buffer,
): void {
  const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
  const rest = content.subarray(from);
  response.writeHead(from > 0 ? 206 : 200, { 'content-length': rest.length });
  const cut = hub.cuts.shift();
  if (cut === undefined) response.end(rest);
  else {
    // A reader drops what it has not consumed when the connection ends, so it gets some time.
    response.write(rest.subarray(0, cut), () => setTimeout(() => response.socket?.end(), 60));
  }
}

function json(response: ServerResponse, body: unknown, status = 200): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}
