/**
 * Log-probabilities in the two shapes of OpenAI's API.
 * @module
 */
import type { PromptToken } from '../engine/generation.ts';
import type { TokenDetail } from '../engine/generation-stream.ts';
import type { TokenLogprob } from '../engine/sampler.ts';
import type { TokenLogprobBody } from './chat-schema.ts';
import type { CompletionLogprobs } from './completion-schema.ts';
import type { TokenTexts } from './token-texts.ts';

/** JSON has no infinity; a masked token may have one. */
const LOGPROB_MIN = -9999;
const finite = (logprob: number): number => Math.max(LOGPROB_MIN, logprob);

const entry = ({ token, logprob }: TokenLogprob, texts: TokenTexts) => ({
  token: texts.textOf(token),
  logprob: finite(logprob),
  bytes: [...texts.bytesOf(token)],
});

/** Of chat completions. */
export function chatLogprobs(
  details: readonly TokenDetail[],
  texts: TokenTexts,
): { content: TokenLogprobBody[]; refusal: null } {
  const content = details.map((detail) => ({
    ...entry(detail, texts),
    top_logprobs: detail.top.map((each) => entry(each, texts)),
  }));
  return { content, refusal: null };
}

/**
 * Of completions. The token itself stands among the best ones even where it is none of them.
 * @param offset characters before the first of these tokens
 */
export function completionLogprobs(
  details: readonly (TokenDetail | PromptToken)[],
  texts: TokenTexts,
  offset: number,
): NonNullable<CompletionLogprobs> {
  const tokens = details.map(({ token }) => texts.textOf(token));
  const textOffset: number[] = [];
  let at = offset;
  for (const token of tokens) {
    textOffset.push(Math.max(0, at));
    at += token.length;
  }
  return {
    tokens,
    token_logprobs: details.map(({ logprob }) => (logprob === null ? null : finite(logprob))),
    top_logprobs: details.map(({ token, logprob, top }) => {
      if (logprob === null || top === null) return null;
      const all = top.some((each) => each.token === token) ? top : [...top, { token, logprob }];
      return Object.fromEntries(
        all.map((each) => [texts.textOf(each.token), finite(each.logprob)]),
      );
    }),
    text_offset: textOffset,
  };
}

/**
 * Of an echoed prompt. What the model's files put before a text (a begin-of-text token) has no
 * place in the echo: its offset is 0.
 */
export function promptLogprobs(
  tokens: readonly PromptToken[],
  texts: TokenTexts,
  echo: string,
): NonNullable<CompletionLogprobs> {
  const whole = tokens.map(({ token }) => texts.textOf(token)).join('');
  const before = whole.endsWith(echo) ? whole.length - echo.length : 0;
  return completionLogprobs(tokens, texts, -before);
}

/** A prompt's log-probabilities and those of what follows. */
export function joinLogprobs(
  first: NonNullable<CompletionLogprobs>,
  second: NonNullable<CompletionLogprobs>,
): NonNullable<CompletionLogprobs> {
  return {
    tokens: [...first.tokens, ...second.tokens],
    token_logprobs: [...first.token_logprobs, ...second.token_logprobs],
    top_logprobs: [...(first.top_logprobs ?? []), ...(second.top_logprobs ?? [])],
    text_offset: [...first.text_offset, ...second.text_offset],
  };
}
