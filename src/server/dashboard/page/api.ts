/**
 * Calls of the server. The API key is kept for this tab only and sent to this server only.
 * @module
 */

const KEY = 'flashforge-api-key';

/** An error answer of the server. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

export const hasKey = (): boolean => sessionStorage.getItem(KEY) !== null;
export const setKey = (key: string): void => sessionStorage.setItem(KEY, key);
export const forgetKey = (): void => sessionStorage.removeItem(KEY);

function headers(): Record<string, string> {
  const key = sessionStorage.getItem(KEY);
  return {
    'content-type': 'application/json',
    ...(key === null ? {} : { authorization: `Bearer ${key}` }),
  };
}

async function errorOf(response: Response): Promise<ApiError> {
  const fallback = `the server answered ${response.status}`;
  try {
    const { error } = (await response.json()) as { error?: { message?: string } };
    return new ApiError(response.status, error?.message ?? fallback);
  } catch {
    return new ApiError(response.status, fallback);
  }
}

/** @throws ApiError, or TypeError when the server cannot be reached. */
export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const response = await fetch(path, {
    method,
    headers: headers(),
    cache: 'no-store',
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  if (!response.ok) throw await errorOf(response);
  return (await response.json()) as T;
}

/** Lets go of prefixes also while the page is being closed. */
export function deletePrefix(id: string): void {
  const init = { method: 'DELETE', headers: headers(), keepalive: true };
  fetch(`/v1/prefixes/${encodeURIComponent(id)}`, init).catch(() => undefined);
}

/**
 * Posts a request whose answer is a stream of events.
 * @throws as `call`; what goes wrong in the middle is an event.
 */
export async function stream(
  path: string,
  body: unknown,
  onEvent: (event: unknown) => void,
): Promise<void> {
  const init = { method: 'POST', headers: headers(), body: JSON.stringify(body) };
  const response = await fetch(path, init);
  if (!response.ok || response.body === null) throw await errorOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split('\n\n');
    text = events.pop() ?? '';
    for (const event of events) {
      if (event.startsWith('data: {')) onEvent(JSON.parse(event.slice('data: '.length)));
    }
  }
}
