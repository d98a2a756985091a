/**
 * What a sample's text must conform to: JSON, a JSON schema or a grammar, checked before it is
 * compiled.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';

/** Plain data, as it crosses threads. */
export type GrammarSource =
  | { readonly kind: 'json' }
  | { readonly kind: 'schema'; readonly schema: unknown }
  | { readonly kind: 'regex'; readonly pattern: string }
  /** EBNF with a rule named root. */
  | { readonly kind: 'ebnf'; readonly text: string }
  /** A text around JSON: one of several, each { begin, schema, end }. */
  | { readonly kind: 'tags'; readonly tags: readonly GrammarTag[] };

export interface GrammarTag {
  readonly begin: string;
  readonly schema: unknown;
  readonly end: string;
}

/** Largest schema or grammar in characters. */
const SOURCE_MAX = 100_000;
/** Counts that the library unrolls into rules. */
const COUNTS = ['minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties'];
const COUNT_MAX = 4096;
const DEPTH_MAX = 64;

/** A source as text: what compiled grammars are known by. */
export interface CheckedSource {
  readonly key: string;
  /** May take seconds to compile: it counts characters, or it is long. */
  readonly isCostly: boolean;
}

/**
 * Characters are what the compiler counts slowly: it looks at the whole vocabulary for each state,
 * about 10 ms, and makes a state of every character that may follow.
 */
const COSTLY = /"(?:minLength|maxLength|pattern|patternProperties|propertyNames|format)":/;
/** Schemas without such fields take up to about 200 ms below this many characters. */
const CHEAP_MAX = 4096;

/** @throws FlashForgeError 'request' for a grammar that is too large. */
export function checkSource(source: GrammarSource): CheckedSource {
  const key = JSON.stringify(source);
  if (key.length > SOURCE_MAX) {
    throw new FlashForgeError(
      'request',
      `the grammar must have at most ${SOURCE_MAX} characters, got ${key.length}`,
    );
  }
  if (source.kind === 'schema') checkSchema(source.schema);
  if (source.kind === 'tags') for (const { schema } of source.tags) checkSchema(schema);
  const isSchema = source.kind !== 'regex' && source.kind !== 'ebnf';
  return { key, isCostly: !isSchema || key.length > CHEAP_MAX || COSTLY.test(key) };
}

function checkSchema(schema: unknown, depth = 0): void {
  if (typeof schema !== 'object' || schema === null) return;
  if (depth > DEPTH_MAX) {
    throw new FlashForgeError('request', `the grammar must nest at most ${DEPTH_MAX} levels deep`);
  }
  for (const [key, value] of Object.entries(schema)) {
    if (COUNTS.includes(key) && typeof value === 'number' && value > COUNT_MAX) {
      throw new FlashForgeError(
        'request',
        `the grammar must have ${key} of at most ${COUNT_MAX}, got ${value}`,
      );
    }
    checkSchema(value, depth + 1);
  }
}
