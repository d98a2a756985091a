/**
 * Errors as OpenAI's clients know them: a status, a type, a code and the field that is wrong.
 * No path and no stack ever leaves the server.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

interface ErrorDetails {
  /** The request's field that is wrong, as the client wrote it. */
  readonly param?: string | null | undefined;
  readonly code?: string | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

/** What a client is told. */
export class ApiError extends Error {
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, message: string, details: ErrorDetails = {}) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.param = details.param ?? null;
    this.code = details.code ?? null;
    this.headers = details.headers ?? {};
  }

  get body(): ErrorBody {
    const { message, param, code } = this;
    return { error: { message, type: typeOf(this.status), param, code } };
  }
}

function typeOf(status: number): string {
  if (status === 401 || status === 403) return 'authentication_error';
  if (status === 408) return 'timeout_error';
  if (status === 429) return 'rate_limit_error';
  return status < 500 ? 'invalid_request_error' : 'server_error';
}

/** A request with a wrong field. */
export const badRequest = (message: string, param?: string | null, code?: string): ApiError =>
  new ApiError(400, message, { param, code: code ?? 'invalid_value' });

/** Engine options as the API names them. */
const API_NAMES: Readonly<Record<string, string>> = {
  maxTokens: 'max_tokens',
  minTokens: 'min_tokens',
  topK: 'top_k',
  topP: 'top_p',
  minP: 'min_p',
  repetitionPenalty: 'repetition_penalty',
  presencePenalty: 'presence_penalty',
  frequencyPenalty: 'frequency_penalty',
  logitBias: 'logit_bias',
  stopTokenIds: 'stop_token_ids',
  ignoreEos: 'ignore_eos',
  lengthPenalty: 'length_penalty',
  cacheSalt: 'cache_salt',
  beams: 'n',
  promptLogprobs: 'logprobs',
};
const FIELDS = /^(?:unknown option )?([A-Za-z]+)/;

/** Seconds after which a client whose request found no room should come again. */
const FULL_RETRY_S = 1;

/**
 * What the client is told about any failure.
 * @param promptField the field that held the prompt: prompt, messages, input, text
 */
export function toApiError(error: unknown, promptField = 'prompt'): ApiError {
  if (error instanceof ApiError) return error;
  if (!(error instanceof FlashForgeError)) {
    return new ApiError(500, 'the server failed', { code: 'internal_error' });
  }
  switch (error.code) {
    case 'request':
    case 'model':
      return requestError(error.message, promptField);
    case 'out-of-pages':
      // A sequence that exceeds the whole cache will never fit; anything else may fit later.
      if (/^a sequence of /.test(error.message)) {
        return badRequest(error.message, promptField, 'context_length_exceeded');
      }
      return new ApiError(429, error.message, {
        code: 'kv_cache_full',
        headers: { 'retry-after': String(FULL_RETRY_S) },
      });
    case 'aborted':
      return new ApiError(503, 'the server is shutting down', { code: 'shutting_down' });
    default:
      return new ApiError(500, 'the engine failed and is being restarted', {
        code: 'engine_failed',
      });
  }
}

function requestError(message: string, promptField: string): ApiError {
  let text = message;
  for (const [name, apiName] of Object.entries(API_NAMES)) {
    text = text.replaceAll(new RegExp(`\\b${name}\\b`, 'g'), apiName);
  }
  const word = FIELDS.exec(message)?.[1] ?? '';
  const known = API_NAMES[word] ?? (/^(stop|seed|n|temperature)$/.test(word) ? word : null);
  if (/^(the grammar|constrained output)/.test(message)) {
    return badRequest(text, 'response_format', 'invalid_grammar');
  }
  const long = /^prompt must have at most/.test(message);
  return badRequest(text, known ?? promptField, long ? 'context_length_exceeded' : undefined);
}
