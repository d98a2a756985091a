/**
 * Server-sent events to one client. A client that reads too slowly is cut off rather than filling
 * the memory; one that is gone is reported at once.
 * @module
 */

/** Proxies close connections that are silent for long. */
const KEEP_ALIVE_MS = 15_000;

export class EventStream {
  /** What the client reads. */
  readonly body: ReadableStream<Uint8Array>;
  readonly #encoder = new TextEncoder();
  readonly #onGone: (why: 'closed' | 'slow') => void;
  readonly #timer: NodeJS.Timeout;
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null;

  /**
   * @param limitBytes bytes that may wait for the client
   * @param onGone called once if the client went away or is too slow; not after `end`
   */
  constructor(limitBytes: number, onGone: (why: 'closed' | 'slow') => void) {
    this.#onGone = onGone;
    this.body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          this.#controller = controller;
        },
        cancel: () => this.#gone('closed'),
      },
      new ByteLengthQueuingStrategy({ highWaterMark: limitBytes }),
    );
    this.#timer = setInterval(() => this.#write(': waiting\n\n'), KEEP_ALIVE_MS);
    this.#timer.unref();
  }

  /** Sends one event; after the end it does nothing. */
  send(value: unknown): void {
    this.#write(`data: ${oneLine(JSON.stringify(value))}\n\n`);
  }

  /** Sends OpenAI's last event and ends the stream. */
  end(): void {
    this.#write('data: [DONE]\n\n');
    const controller = this.#controller;
    this.#close();
    controller?.close();
  }

  #write(text: string): void {
    const controller = this.#controller;
    if (controller === null) return;
    controller.enqueue(this.#encoder.encode(text));
    if ((controller.desiredSize ?? 0) > 0) return;
    this.#gone('slow');
    controller.error(new Error('the client reads too slowly'));
  }

  #close(): void {
    this.#controller = null;
    clearInterval(this.#timer);
  }

  #gone(why: 'closed' | 'slow'): void {
    if (this.#controller === null) return;
    this.#close();
    this.#onGone(why);
  }
}

/**
 * Characters that JSON leaves as they are and that some clients take for the end of a line, as
 * Python's str.splitlines does: NEL and the separators of lines and paragraphs.
 */
const LINE_ENDS = /[\u0085\u2028\u2029]/g;

function oneLine(json: string): string {
  return json.replace(LINE_ENDS, (end) => `\\u${end.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
