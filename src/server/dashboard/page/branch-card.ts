/**
 * One branch on the page: its text as it grows, its state, and what can be done with it.
 * @module
 */
import { make, setText } from './dom.ts';
import { count } from './format.ts';

/** Characters of what came before that a card shows. */
const TAIL = 120;

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
  readonly kv_cache: { readonly bytes_read: number; readonly bytes_flat: number };
}

export type BranchState = 'waiting' | 'streaming' | 'finished' | 'length' | 'stopped' | 'failed';

const NAMES: Readonly<Record<BranchState, string>> = {
  waiting: 'waiting',
  streaming: 'streaming',
  finished: 'ended by itself',
  length: 'token limit reached',
  stopped: 'stopped',
  failed: 'failed',
};

export interface CardActions {
  readonly stop: () => void;
  readonly again: () => void;
}

export class BranchCard {
  readonly element = make('article', 'card');
  /** "1.3" is the third branch of fork 1. */
  readonly name: string;
  readonly #status = make('span', 'status');
  readonly #body = make('div', 'text');
  readonly #text = document.createTextNode('');
  readonly #stop = make('button', '', 'Stop');
  readonly #again = make('button', '', 'Branch again');
  #state: BranchState = 'waiting';
  #tokens = 0;
  /** The stop button was pressed; the server has yet to say so. */
  #stopping = false;
  usage: Usage | null = null;

  /** @param inherited text of the branches that this one continues */
  constructor(name: string, inherited: string, actions: CardActions) {
    this.name = name;
    const heading = make('h4', '', `Branch ${name}`);
    heading.id = `branch-${name}`;
    this.element.setAttribute('aria-labelledby', heading.id);
    const head = make('div', 'card-head');
    head.append(heading, this.#status);
    this.#body.tabIndex = 0;
    this.#body.setAttribute('role', 'region');
    this.#body.setAttribute('aria-label', `Text of branch ${name}`);
    if (inherited !== '') {
      const cut = inherited.length > TAIL;
      const tail = `${cut ? '… ' : ''}${inherited.slice(cut ? -TAIL : 0)}`;
      this.#body.append(make('span', 'inherited', tail));
    }
    this.#body.append(this.#text);
    for (const button of [this.#stop, this.#again]) {
      button.type = 'button';
      button.setAttribute('aria-describedby', heading.id);
    }
    this.#stop.addEventListener('click', () => {
      this.#stopping = true;
      this.#stop.disabled = true;
      actions.stop();
    });
    this.#again.addEventListener('click', actions.again);
    const foot = make('div', 'card-foot');
    foot.append(this.#stop, this.#again);
    this.element.append(head, this.#body, foot);
    this.#show();
  }

  /** Its own text so far. */
  get text(): string {
    return this.#text.data;
  }

  get state(): BranchState {
    return this.#state;
  }

  get running(): boolean {
    return this.#state === 'waiting' || this.#state === 'streaming';
  }

  append(text: string): void {
    const body = this.#body;
    const atEnd = body.scrollHeight - body.scrollTop - body.clientHeight < 8;
    this.#text.appendData(text);
    this.#tokens++;
    this.#state = 'streaming';
    if (atEnd) body.scrollTop = body.scrollHeight;
    this.#show();
  }

  end(state: BranchState, why = ''): void {
    this.#state = this.#stopping && state === 'failed' ? 'stopped' : state;
    if (this.#state === 'failed') this.#body.append(make('p', 'error', why));
    this.#show();
  }

  /** Whoever pressed the button, the branch is being stopped. */
  stopping(): void {
    this.#stopping = true;
  }

  #show(): void {
    const tokens = this.usage?.completion_tokens;
    const size = tokens === undefined ? '' : ` · ${count(tokens, 'token')}`;
    // Tokens without text of their own come with the next one: the exact count comes at the end.
    const so =
      this.#tokens > 0 && tokens === undefined ? ` · ≈ ${count(this.#tokens, 'token')}` : '';
    setText(this.#status, `${NAMES[this.#state]}${size}${so}`);
    this.element.dataset.state = this.#state;
    this.#stop.disabled = !this.running || this.#stopping;
    this.#again.disabled = this.text === '';
  }
}
