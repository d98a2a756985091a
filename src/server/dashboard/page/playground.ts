/**
 * The playground: forks a prompt into branches side by side, and branches into more.
 * @module
 */
import { call } from './api.ts';
import type { BranchCard } from './branch-card.ts';
import { byId, setText } from './dom.ts';
import { ForkGroup, type Held, type Sampling } from './fork-group.ts';
import { count } from './format.ts';

/** Without use, the server lets a fork's prefix go after this time. */
const TTL_S = 900;

const field = (id: string): HTMLInputElement => byId<HTMLInputElement>(id);

export class Playground {
  readonly #form = byId<HTMLFormElement>('fork-form');
  readonly #prompt = byId<HTMLTextAreaElement>('prompt');
  readonly #fork = byId<HTMLButtonElement>('fork');
  readonly #stopAll = byId<HTMLButtonElement>('stop-all');
  readonly #status = byId('playground-status');
  readonly #into = byId('groups');
  readonly #groups = new Set<ForkGroup>();
  readonly #onRun: () => void;
  #made = 0;
  #busy = false;
  model: string | null = null;

  /** @param onRun called when something begins to run */
  constructor(onRun: () => void) {
    this.#onRun = onRun;
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.#begin('the prompt', '', () => this.#holdPrompt());
    });
    this.#stopAll.addEventListener('click', () => {
      for (const group of this.#groups) if (group.running > 0) group.stopAll();
    });
    field('branches').addEventListener('input', () => this.#name());
    this.#prompt.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    });
    window.addEventListener('pagehide', () => {
      for (const group of [...this.#groups]) group.close();
    });
    this.#name();
  }

  get running(): boolean {
    return [...this.#groups].some((group) => group.running > 0);
  }

  #name(): void {
    const { valueAsNumber } = field('branches');
    const text = Number.isNaN(valueAsNumber)
      ? 'branches'
      : count(valueAsNumber, 'branch', 'branches');
    setText(this.#fork, `Fork into ${text}`);
  }

  #sampling(): Sampling {
    const seed = field('seed').valueAsNumber;
    return {
      branches: field('branches').valueAsNumber,
      maxTokens: field('max-tokens').valueAsNumber,
      temperature: field('temperature').valueAsNumber,
      topP: field('top-p').valueAsNumber,
      topK: field('top-k').valueAsNumber,
      seed: Number.isNaN(seed) ? null : seed,
    };
  }

  /** Lets the server compute the prompt and hold it. */
  async #holdPrompt(): Promise<Held> {
    const content = this.#prompt.value;
    const chat = this.#form.elements.namedItem('mode') as RadioNodeList;
    const ttl = { ttl_seconds: TTL_S };
    if (chat.value === 'text') return call('POST', '/v1/prefixes', { text: content, ...ttl });
    const messages = [{ role: 'user', content }];
    const { tokens } = await call<{ tokens: number[] }>('POST', '/tokenize', { messages });
    return call('POST', '/v1/prefixes', { tokens, ...ttl });
  }

  /** Holds a prefix and streams branches from it. */
  async #begin(from: string, inherited: string, hold: () => Promise<Held>): Promise<void> {
    if (this.#busy || this.model === null || !this.#form.reportValidity()) return;
    this.#busy = true;
    this.#fork.disabled = true;
    setText(this.#status, `Computing ${from}…`);
    this.#onRun();
    try {
      const group = new ForkGroup({
        number: ++this.#made,
        from,
        inherited,
        model: this.model,
        prefix: await hold(),
        sampling: this.#sampling(),
        onAgain: (parent, card) => void this.#again(parent, card),
        onChange: () => this.#describe(),
        onClose: (closed) => {
          this.#groups.delete(closed);
          this.#describe();
        },
      });
      this.#groups.add(group);
      this.#into.prepend(group.element);
      this.#describe();
      void group.run();
      if (inherited !== '') group.element.scrollIntoView({ block: 'nearest' });
    } catch (error) {
      setText(this.#status, `It failed: ${(error as Error).message}`);
    } finally {
      this.#busy = false;
      this.#fork.disabled = false;
    }
  }

  /** New branches that continue a branch as far as it has come. */
  #again({ init }: ForkGroup, card: BranchCard): Promise<void> {
    const path = `/v1/prefixes/${encodeURIComponent(init.prefix.id)}/fork`;
    const { text } = card;
    return this.#begin(`branch ${card.name}`, init.inherited + text, () =>
      call('POST', path, { text, ttl_seconds: TTL_S }),
    );
  }

  #describe(): void {
    const running = [...this.#groups].reduce((sum, group) => sum + group.running, 0);
    this.#stopAll.disabled = running === 0;
    const text =
      running > 0
        ? `${count(running, 'branch', 'branches')} streaming`
        : this.#groups.size > 0
          ? 'All branches have ended.'
          : '';
    setText(this.#status, text);
  }
}
