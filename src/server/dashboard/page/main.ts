/**
 * The page's loop: asks the server for its state, shows it, asks again.
 * @module
 */
import { ApiError, call, forgetKey, hasKey, setKey } from './api.ts';
import type { Charts } from './charts.ts';
import { byId, setText } from './dom.ts';
import { showFigures } from './figures.ts';
import { PlanView } from './plan-view.ts';
import { Playground } from './playground.ts';
import type { State } from './state.ts';
import { TreeView } from './tree-view.ts';

const BUSY_MS = 400;
const IDLE_MS = 1500;

const tree = new TreeView();
const plan = new PlanView();
const playground = new Playground(() => void update());
const pause = byId('pause');
const keyForm = byId<HTMLFormElement>('key-form');
const keyField = byId<HTMLInputElement>('key');
const forget = byId<HTMLButtonElement>('forget');

let paused = false;
let asking = false;
let timer = 0;
/** Loaded behind the rest, which is also of use without them. */
let charts: Charts | null = null;
import('./charts.ts').then(
  (loaded) => {
    charts = new loaded.Charts();
  },
  () => setText(byId('charts-window'), 'The charts cannot be loaded.'),
);

function connection(kind: 'live' | 'wait' | 'lost' | 'paused', text: string): void {
  const element = byId('connection');
  element.dataset.kind = kind;
  setText(element, text);
}

function show(state: State): void {
  playground.model = state.model;
  setText(byId('model'), `${state.model} on ${state.device} (${state.provider})`);
  showFigures(state);
  tree.show(state.tree.nodes, state.tree.count, state.pages.size);
  plan.show(state.plan);
  charts?.show(state.recent, state.time);
}

function askForKey(rejected: boolean): void {
  connection('lost', 'API key needed');
  if (!keyForm.hidden && !rejected) return;
  setText(
    byId('key-why'),
    rejected
      ? 'The server does not know this key. Give another one; it stays in this tab only.'
      : 'This server asks for a key. It stays in this tab only.',
  );
  forgetKey();
  forget.hidden = true;
  keyForm.hidden = false;
  keyField.focus();
}

/** Asks for the state once; returns how long to wait for the next time. */
async function ask(): Promise<number> {
  try {
    const state = await call<State>('GET', '/dashboard/state');
    keyForm.hidden = true;
    forget.hidden = !hasKey();
    show(state);
    connection('live', 'Live');
    return playground.running || state.running > 0 ? BUSY_MS : IDLE_MS;
  } catch (error) {
    if (!(error instanceof ApiError)) connection('lost', 'Server not reachable');
    else if (error.status === 401) askForKey(hasKey());
    else if (error.status === 503) connection('wait', 'Loading the model…');
    else connection('lost', error.message);
    return IDLE_MS;
  }
}

async function update(): Promise<void> {
  if (asking) return;
  clearTimeout(timer);
  if (paused || document.hidden) return;
  asking = true;
  const wait = await ask();
  asking = false;
  // With the form open, the next question waits for its key.
  if (keyForm.hidden) timer = setTimeout(update, wait);
}

keyForm.addEventListener('submit', (event) => {
  event.preventDefault();
  setKey(keyField.value.trim());
  keyField.value = '';
  void update();
});
forget.addEventListener('click', () => {
  forgetKey();
  void update();
});
pause.addEventListener('click', () => {
  paused = !paused;
  pause.setAttribute('aria-pressed', String(paused));
  if (paused) connection('paused', 'Paused');
  else void update();
});
document.addEventListener('visibilitychange', () => void update());
void update();
