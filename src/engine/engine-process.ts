/**
 * An engine in a process of its own, seen like a worker thread: for when a fault on the device has
 * ended its use for the process that asks.
 * @module
 */
import { type ChildProcess, fork } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { EngineStart } from './rpc.ts';

/** Emits 'message', 'error' and 'exit' as a worker does. */
export class EngineProcess extends EventEmitter {
  readonly #child: ChildProcess;

  constructor(script: URL, start: EngineStart) {
    super();
    this.#child = fork(fileURLToPath(script), { serialization: 'advanced' });
    this.#child.on('message', (message) => this.emit('message', message));
    this.#child.on('error', (error) => this.emit('error', error));
    this.#child.on('exit', (code) => this.emit('exit', code));
    this.postMessage(start);
  }

  postMessage(message: unknown): void {
    if (this.#child.connected) this.#child.send(message as object);
  }

  ref(): void {
    this.#child.ref();
    this.#child.channel?.ref();
  }

  unref(): void {
    this.#child.unref();
    this.#child.channel?.unref();
  }

  async terminate(): Promise<void> {
    this.#child.kill('SIGKILL');
  }
}
