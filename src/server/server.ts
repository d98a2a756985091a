/**
 * A running server: listens first, loads the model behind that, and ends in good order.
 * @module
 */
import { readFileSync } from 'node:fs';
import type { Server, ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { createAdaptorServer } from '@hono/node-server';
import { FlashForgeError } from '../base/errors.ts';
import { Admission } from './admission.ts';
import { ApiError } from './api-error.ts';
import { makeApp } from './app.ts';
import { BranchStreams } from './dashboard/branch-streams.ts';
import { EngineHost, type HostState } from './engine-host.ts';
import { makeLog } from './log.ts';
import type { Parts } from './parts.ts';
import { PrefixStore } from './prefix-store.ts';
import { Recent } from './recent.ts';
import { ServerMetrics } from './server-metrics.ts';
import { type ServerOptions, settingsOf } from './server-options.ts';
import { Tenants } from './tenants.ts';
import { Tracing } from './tracing.ts';

/** A client has this long for its headers, and for its whole request. */
const HEADERS_MS = 10_000;
const REQUEST_MS = 60_000;
const CHECK_MS = 2000;
const KEEP_ALIVE_MS = 10_000;
const HEADER_BYTES = 16 * 1024;
/** Sockets beyond this are refused: each costs memory before it has asked anything. */
const CONNECTIONS_MAX = 8192;
const POLL_MS = 20;

export class ApiServer {
  /** Where it listens. */
  readonly url: string;
  /** Settles when the model is loaded or cannot be. */
  readonly loaded: Promise<void>;
  readonly #http: Server;
  readonly #parts: Parts;
  #closing: Promise<void> | null = null;

  /** Made by `startServer`. */
  constructor(http: Server, parts: Parts) {
    this.#http = http;
    this.#parts = parts;
    this.url = urlOf(http.address() as AddressInfo);
    this.loaded = parts.host.load();
    // Whoever does not await it sees it in the log and in /health.
    this.loaded.then(
      () => parts.log.info({ model: parts.host.model?.reference }, 'ready'),
      (error: unknown) => parts.log.error({ reason: String(error) }, 'the model is not loaded'),
    );
  }

  get state(): HostState {
    return this.#parts.host.state;
  }

  /** Names under which the model is served; empty until it is loaded. */
  get models(): readonly string[] {
    return this.#parts.host.model?.names ?? [];
  }

  /**
   * Takes no more requests, lets the running ones end (at most `drainMs`), then ends everything.
   * @param now end the running ones too
   */
  close(now = false): Promise<void> {
    this.#closing ??= this.#close(now);
    return this.#closing;
  }

  async #close(now: boolean): Promise<void> {
    const { admission, host, prefixes, settings, log } = this.#parts;
    log.info({ open: admission.open }, 'shutting down');
    admission.drain();
    const closed = new Promise<void>((resolve) => this.#http.close(() => resolve()));
    this.#http.closeIdleConnections();
    const end = performance.now() + (now ? 0 : settings.drainMs);
    while (admission.open > 0 && performance.now() < end) await wait(POLL_MS);
    prefixes.close();
    await host.close();
    // Answers that are complete still reach their readers.
    const grace = setTimeout(() => this.#http.closeAllConnections(), HEADERS_MS / 10);
    this.#http.closeIdleConnections();
    await closed;
    clearTimeout(grace);
    this.#parts.logWriter.flushSync();
  }
}

/**
 * Starts a server. It answers as soon as this resolves; `loaded` tells when the model is there.
 * @throws FlashForgeError 'usage' for a bad option, 'io' when it cannot listen.
 */
export async function startServer(options: ServerOptions = {}): Promise<ApiServer> {
  const settings = settingsOf(options);
  const { log, writer } = makeLog(settings);
  const host = new EngineHost(settings, log);
  const prefixes = new PrefixStore(host, settings);
  host.onLost = () => prefixes.forgetAll();
  const parts: Parts = {
    settings,
    log,
    logWriter: writer,
    host,
    prefixes,
    tenants: new Tenants(settings),
    admission: new Admission(settings.queueLimit),
    metrics: new ServerMetrics(),
    recent: new Recent(),
    branchStreams: new BranchStreams(),
    tracing: await Tracing.open(),
  };
  const app = makeApp(parts, packageVersion());
  const http = createAdaptorServer({
    fetch: app.fetch,
    serverOptions: {
      maxHeaderSize: HEADER_BYTES,
      headersTimeout: HEADERS_MS,
      requestTimeout: REQUEST_MS,
      connectionsCheckingInterval: CHECK_MS,
      keepAliveTimeout: KEEP_ALIVE_MS,
      noDelay: true,
    },
  }) as Server;
  http.maxConnections = CONNECTIONS_MAX;
  http.on('clientError', refuse);
  http.on('checkExpectation', (_, response: ServerResponse) => {
    const { status, body } = new ApiError(417, 'only 100-continue may be expected', {
      code: 'invalid_http',
    });
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  });
  try {
    await listen(http, settings.host, settings.port);
  } catch (cause) {
    prefixes.close();
    const { code } = cause as NodeJS.ErrnoException;
    const where = `${settings.host}:${settings.port}`;
    throw new FlashForgeError('io', `cannot listen on ${where}: ${code}`, { cause });
  }
  return new ApiServer(http, parts);
}

function listen(http: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    http.once('error', reject);
    http.listen(port, host, () => {
      http.off('error', reject);
      resolve();
    });
  });
}

/** What is no HTTP, too large or too slow, before any route has seen it. */
function refuse(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const [status, message] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? ['431 Request Header Fields Too Large', 'the headers are too large']
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? ['408 Request Timeout', 'the request took too long to arrive']
        : ['400 Bad Request', 'the request is not valid HTTP'];
  const body = JSON.stringify({
    error: { message, type: 'invalid_request_error', param: null, code: 'invalid_http' },
  });
  socket.end(
    `HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-type: application/json\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

function urlOf({ address, port, family }: AddressInfo): string {
  return `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
}

function packageVersion(): string {
  for (let folder = import.meta.dirname; ; folder = dirname(folder)) {
    try {
      return JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')).version as string;
    } catch {
      if (folder === dirname(folder)) return '0.0.0';
    }
  }
}

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
