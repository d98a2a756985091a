/**
 * Optional OpenTelemetry traces: a span for each request where the user has installed the API and
 * set up an SDK; nothing otherwise.
 * @module
 */

/** A running span. */
export interface Span {
  set(name: string, value: string | number): void;
  end(failed: boolean): void;
}

const NO_SPAN: Span = { set: () => {}, end: () => {} };
/** SpanKind.SERVER and SpanStatusCode.ERROR of the API. */
const SERVER = 1;
const ERROR = 2;

type Api = typeof import('@opentelemetry/api');

export class Tracing {
  readonly #api: Api | null;

  private constructor(api: Api | null) {
    this.#api = api;
  }

  static async open(): Promise<Tracing> {
    return new Tracing(await import('@opentelemetry/api').catch(() => null));
  }

  /** @param headers of the request: the caller's trace context is taken from them */
  start(name: string, headers: Headers): Span {
    const api = this.#api;
    if (api === null) return NO_SPAN;
    const parent = api.propagation.extract(api.context.active(), Object.fromEntries(headers));
    const tracer = api.trace.getTracer('flashforge');
    const span = tracer.startSpan(name, { kind: SERVER }, parent);
    return {
      set: (key, value) => void span.setAttribute(key, value),
      end: (failed) => {
        if (failed) span.setStatus({ code: ERROR });
        span.end();
      },
    };
  }
}
