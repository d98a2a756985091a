/**
 * The branches of one fork: they share a prefix that the server holds, and one connection.
 * @module
 */
import { ApiError, call, deletePrefix, stream } from './api.ts';
import { BranchCard, type Usage } from './branch-card.ts';
import { make, setText } from './dom.ts';
import { bytes, count, round } from './format.ts';

/** As the form has it. */
export interface Sampling {
  readonly branches: number;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topP: number;
  readonly topK: number;
  /** Null = another one each time. */
  readonly seed: number | null;
}

/** A prefix that the server holds for the page. */
export interface Held {
  readonly id: string;
  readonly tokens: number;
  readonly cached_tokens: number;
}

export interface GroupInit {
  readonly number: number;
  /** "prompt", or the branch that it was forked from. */
  readonly from: string;
  readonly inherited: string;
  readonly model: string;
  readonly prefix: Held;
  readonly sampling: Sampling;
  readonly onAgain: (group: ForkGroup, card: BranchCard) => void;
  readonly onChange: () => void;
  readonly onClose: (group: ForkGroup) => void;
}

interface Choice {
  readonly text: string;
  readonly finish_reason: 'stop' | 'length' | null;
}
interface Chunk {
  readonly choices?: readonly Choice[];
  readonly usage?: Usage;
  readonly error?: { readonly message: string };
}
interface BranchEvent {
  readonly branch: number;
  readonly event: Chunk | null;
}

export class ForkGroup {
  readonly element = make('section', 'panel group');
  readonly init: GroupInit;
  readonly cards: readonly BranchCard[];
  readonly #note = make('p', 'note');
  readonly #streamId = crypto.randomUUID();
  #closed = false;

  constructor(init: GroupInit) {
    this.init = init;
    const { number, from, inherited, sampling } = init;
    this.cards = Array.from({ length: sampling.branches }, (_, index): BranchCard => {
      const card: BranchCard = new BranchCard(`${number}.${index + 1}`, inherited, {
        stop: () => this.#stop(index),
        again: () => init.onAgain(this, card),
      });
      return card;
    });
    const title = make('h3', '', `Fork ${number} of ${from}`);
    title.id = `fork-${number}`;
    this.element.setAttribute('aria-labelledby', title.id);
    const close = make('button', 'quiet', 'Close');
    close.type = 'button';
    close.setAttribute('aria-describedby', title.id);
    close.addEventListener('click', () => this.close());
    const head = make('div', 'heading');
    head.append(title, this.#note, close);
    const grid = make('div', 'cards');
    grid.append(...this.cards.map(({ element }) => element));
    this.element.append(head, grid);
    this.#describe();
  }

  get running(): number {
    return this.cards.filter((card) => card.running).length;
  }

  /** Streams all branches; returns when the last one has ended. */
  async run(): Promise<void> {
    const { model, prefix, sampling } = this.init;
    const request = {
      model,
      prefix_id: prefix.id,
      prompt: '',
      max_tokens: sampling.maxTokens,
      temperature: sampling.temperature,
      top_p: sampling.topP,
      top_k: sampling.topK,
      stream_options: { include_usage: true },
    };
    const requests = this.cards.map((_, index) =>
      sampling.seed === null ? request : { ...request, seed: sampling.seed + index },
    );
    try {
      await stream('/dashboard/branches', { id: this.#streamId, requests }, (event) =>
        this.#receive(event as BranchEvent),
      );
      this.#endAll('the stream has ended early');
    } catch (error) {
      this.#endAll(error instanceof Error ? error.message : String(error));
    }
  }

  stopAll(): void {
    for (const card of this.cards) card.stopping();
    this.#stop(null);
  }

  /** Stops everything and lets go of the prefix. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.running > 0) this.stopAll();
    deletePrefix(this.init.prefix.id);
    this.element.remove();
    this.init.onClose(this);
  }

  #stop(branch: number | null): void {
    call('POST', `/dashboard/branches/${this.#streamId}/stop`, { branch }).catch((error) => {
      // It was over before the server heard of it.
      if (error instanceof ApiError && error.status === 404) return;
      setText(this.#note, `Could not stop: ${(error as Error).message}`);
    });
  }

  #receive({ branch, event }: BranchEvent): void {
    const card = this.cards[branch];
    if (event === null) {
      if (card.running) card.end('finished');
    } else if (event.error !== undefined) {
      card.end('failed', event.error.message);
    } else {
      if (event.usage !== undefined) {
        card.usage = event.usage;
        card.end(card.state);
      }
      for (const { text, finish_reason: reason } of event.choices ?? []) {
        if (text !== '') card.append(text);
        if (reason !== null) card.end(reason === 'length' ? 'length' : 'finished');
      }
    }
    this.#describe();
    this.init.onChange();
  }

  #endAll(why: string): void {
    for (const card of this.cards) if (card.running) card.end('failed', why);
    this.#describe();
    this.init.onChange();
  }

  #describe(): void {
    const { prefix, sampling } = this.init;
    const branches = count(sampling.branches, 'branch', 'branches');
    const shared = `${count(prefix.tokens, 'token')} shared by ${branches}`;
    const done = this.cards.flatMap(({ usage }) => (usage === null ? [] : [usage.kv_cache]));
    if (done.length === 0) {
      setText(this.#note, shared);
      return;
    }
    const read = done.reduce((sum, each) => sum + each.bytes_read, 0);
    const flat = done.reduce((sum, each) => sum + each.bytes_flat, 0);
    const factor = read === 0 ? '' : ` (${round(flat / read)} ×)`;
    const which = done.length < this.cards.length ? `${done.length} that have ended read` : 'read';
    setText(this.#note, `${shared}; ${which} ${bytes(read)} of KV, flat ${bytes(flat)}${factor}`);
  }
}
