/**
 * Prefixes that clients hold in the tree by name: each has an owner, a size and a time to live,
 * which every use renews.
 * @module
 */
import { randomBytes } from 'node:crypto';
import { ceilDiv } from '../base/math.ts';
import { ApiError } from './api-error.ts';
import type { ApiMessage } from './chat-schema.ts';
import type { EngineHost } from './engine-host.ts';
import type { Settings } from './server-options.ts';
import type { Tenant } from './tenants.ts';

export interface HeldPrefix {
  readonly id: string;
  /** Id of the owner. */
  readonly tenant: string;
  /** Handle of the branch in the engine. */
  readonly branch: number;
  readonly tokens: number;
  /** What it was made of; null for text and tokens. */
  readonly messages: readonly ApiMessage[] | null;
  /** Shared by all tenants. */
  readonly public: boolean;
  /** The salt under which it lies in the cache. */
  readonly salt: string;
  readonly parent: string | null;
  /** Unix time in ms. */
  readonly createdMs: number;
  readonly ttlMs: number;
  lastUseMs: number;
  /** Tokens that no other prefix accounts for. */
  ownTokens: number;
  /** The prefix that accounts for the tokens before those; null = there are none. */
  accountedBy: string | null;
}

const SWEEP_MS = 1000;

export class PrefixStore {
  readonly #host: EngineHost;
  readonly #settings: Settings;
  readonly #prefixes = new Map<string, HeldPrefix>();
  /** Ids that are taken while their prefix is being computed. */
  readonly #reserved = new Set<string>();
  readonly #timer: NodeJS.Timeout;

  constructor(host: EngineHost, settings: Settings) {
    this.#host = host;
    this.#settings = settings;
    this.#timer = setInterval(() => this.#sweep(), SWEEP_MS);
    this.#timer.unref();
  }

  get size(): number {
    return this.#prefixes.size;
  }

  /** Prefixes that the tenant may use, oldest first. */
  list(tenant: Tenant): HeldPrefix[] {
    this.#sweep();
    return [...this.#prefixes.values()].filter((each) => visible(each, tenant));
  }

  /**
   * A prefix for use: its time to live begins again.
   * @throws ApiError 404 for one that is unknown, expired or somebody else's, which look the same.
   */
  use(id: string, tenant: Tenant, field: string | null): HeldPrefix {
    const found = this.peek(id, tenant, field);
    found.lastUseMs = Date.now();
    return found;
  }

  /** The same without renewing it. */
  peek(id: string, tenant: Tenant, field: string | null): HeldPrefix {
    this.#sweep();
    const found = this.#prefixes.get(id);
    if (found !== undefined && visible(found, tenant)) return found;
    throw new ApiError(404, `prefix ${JSON.stringify(id)} is unknown or has expired`, {
      param: field,
      code: 'prefix_not_found',
    });
  }

  /**
   * Takes an id for a prefix that is about to be computed.
   * @throws ApiError 409 for an id in use, 429 when too many prefixes are held.
   */
  reserve(id: string | null | undefined): string {
    this.#sweep();
    const { prefixLimit } = this.#settings;
    if (this.#prefixes.size + this.#reserved.size >= prefixLimit) {
      throw new ApiError(429, `at most ${prefixLimit} prefixes may be held at a time`, {
        code: 'prefix_limit',
        headers: { 'retry-after': '1' },
      });
    }
    const name = id ?? `prefix_${randomBytes(12).toString('hex')}`;
    if (this.#prefixes.has(name) || this.#reserved.has(name)) {
      throw new ApiError(409, `prefix ${JSON.stringify(name)} exists already`, {
        param: 'id',
        code: 'prefix_exists',
      });
    }
    this.#reserved.add(name);
    return name;
  }

  unreserve(id: string): void {
    this.#reserved.delete(id);
  }

  /**
   * Holds a computed prefix under its reserved id.
   * @throws ApiError 429 when prefixes would hold too much of the cache.
   */
  add(prefix: HeldPrefix, pageSize: number, pages: number): void {
    const allowed = Math.floor(pages * this.#settings.prefixPagesShare);
    let held = ceilDiv(prefix.ownTokens, pageSize);
    for (const each of this.#prefixes.values()) held += ceilDiv(each.ownTokens, pageSize);
    if (held > allowed) {
      throw new ApiError(429, `prefixes may hold ${allowed} KV pages, this one makes it ${held}`, {
        code: 'prefix_limit',
        headers: { 'retry-after': '1' },
      });
    }
    this.#reserved.delete(prefix.id);
    this.#prefixes.set(prefix.id, prefix);
  }

  /** Lets a prefix go; requests that run on it are not disturbed. */
  remove(id: string): void {
    const prefix = this.#prefixes.get(id);
    if (prefix === undefined) return;
    this.#prefixes.delete(id);
    this.#bequeath(prefix);
    this.#host.send({ kind: 'release', branch: prefix.branch });
  }

  /** What forks share with a prefix that goes stays in the cache: the first one accounts for it. */
  #bequeath({ id, ownTokens, accountedBy }: HeldPrefix): void {
    let heir: HeldPrefix | null = null;
    for (const each of this.#prefixes.values()) {
      if (each.accountedBy !== id) continue;
      each.accountedBy = heir === null ? accountedBy : heir.id;
      if (heir !== null) continue;
      heir = each;
      each.ownTokens += ownTokens;
    }
  }

  /** The engine is gone, and every prefix with it. */
  forgetAll(): void {
    this.#prefixes.clear();
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #sweep(): void {
    const now = Date.now();
    for (const { id, lastUseMs, ttlMs } of this.#prefixes.values()) {
      if (now - lastUseMs >= ttlMs) this.remove(id);
    }
  }
}

const visible = (prefix: HeldPrefix, tenant: Tenant): boolean =>
  prefix.public || prefix.tenant === tenant.id;
