/**
 * Runs a request as a stream of events. What fails before the first event is an ordinary error
 * answer; what fails later is an error event in the stream.
 * @module
 */
import { toApiError } from './api-error.ts';
import { EventStream } from './event-stream.ts';
import type { Exchange } from './exchange.ts';

/** A client that waits in the queue gets its headers at the latest after this time. */
const HEADERS_AFTER_MS = 2000;

export type Send = (event: unknown) => void;

/**
 * @param run sends events until the request is done
 * @param promptField for errors; see `toApiError`
 * @throws whatever `run` throws before its first event.
 */
export async function streamResponse(
  exchange: Exchange,
  promptField: string,
  run: (send: Send) => Promise<void>,
): Promise<Response> {
  const { slowReaderBytes } = exchange.parts.settings;
  const stream = new EventStream(slowReaderBytes, (why) => {
    exchange.stop(why === 'slow' ? 'slow' : 'gone');
  });
  let begin: () => void = () => {};
  const begun = new Promise<void>((resolve) => {
    begin = resolve;
  });
  const timer = setTimeout(() => begin(), HEADERS_AFTER_MS);
  let started = false;
  const done = run((event) => {
    begin();
    stream.send(event);
  });
  exchange.streams = true;
  const ended = done.then(
    () => stream.end(),
    (error: unknown) => {
      if (!started) throw error;
      const known = toApiError(error, promptField);
      exchange.log.info({ status: known.status, code: known.code }, 'stream failed');
      exchange.failed = true;
      stream.send(known.body);
      stream.end();
    },
  );
  try {
    await Promise.race([begun, ended]);
  } catch (error) {
    exchange.streams = false;
    stream.end();
    throw error;
  } finally {
    clearTimeout(timer);
  }
  started = true;
  void ended.catch(() => undefined).finally(() => exchange.finish());
  return new Response(stream.body, {
    headers: {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
    },
  });
}
