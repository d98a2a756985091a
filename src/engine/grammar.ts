/**
 * Constrained decoding: which tokens may come next so that the text conforms to JSON, a JSON
 * schema or a grammar. The masks are made by XGrammar (Dong et al. 2024) as WebAssembly.
 * @module
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { FlashForgeError } from '../base/errors.ts';
import { BYTE_CHARACTERS } from '../tokenizer/token-bytes.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';

type XGrammar = typeof import('@mlc-ai/web-xgrammar');
type CompiledGrammar = import('@mlc-ai/web-xgrammar').CompiledGrammar;
type GrammarMatcher = import('@mlc-ai/web-xgrammar').GrammarMatcher;
type GrammarCompiler = import('@mlc-ai/web-xgrammar').GrammarCompiler;

/** What the text of a sample must conform to. Plain data, as it crosses threads. */
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

/** Compiled grammars that are kept: agents send the same schema again and again. */
const CACHE_SIZE = 64;
/** Largest schema or grammar in characters. */
const SOURCE_MAX = 100_000;

/** A vector of int32 on the WebAssembly side. */
interface NativeMask {
  get(index: number): number;
  size(): number;
  delete(): void;
}

/** What the library's matcher hides: it only offers the mask through a promise. */
interface NativeMatcher {
  GetNextTokenBitmask(vocab: number): NativeMask;
}

/**
 * The package is a UMD script that calls itself an ES module, so that Node's own import fails on
 * it; evaluated as CommonJS it works.
 */
function openLibrary(onPrint: (line: string) => void): XGrammar {
  const require = createRequire(import.meta.url);
  const file = require.resolve('@mlc-ai/web-xgrammar');
  const module = { exports: {} };
  const source = readFileSync(file, 'utf8');
  // Its failures are only told to the console, so that it gets one of its own.
  const print = (...words: unknown[]): void => onPrint(words.join(' '));
  const console = { log: print, warn: print, error: print };
  const names = ['module', 'exports', 'require', '__filename', '__dirname', 'console'];
  const run = new Function(...names, source);
  run(module, module.exports, require, file, dirname(file), console);
  return module.exports as XGrammar;
}

interface Compiled {
  /** The instance that it belongs to. */
  readonly library: XGrammar;
  readonly grammar: CompiledGrammar;
}

/** Compiles grammars for one vocabulary. The library is opened at the first use. */
export class Grammars {
  readonly #tokenizer: Tokenizer;
  readonly #vocab: number;
  readonly #compiled = new Map<string, Promise<Compiled>>();
  /** The library's own words on its last failure. */
  #lastLine = '';
  readonly #refused = new Map<string, FlashForgeError>();
  #opened: Promise<{ library: XGrammar; compiler: GrammarCompiler }> | null = null;

  constructor(tokenizer: Tokenizer, vocab: number) {
    this.#tokenizer = tokenizer;
    this.#vocab = vocab;
  }

  /**
   * Compiles a grammar and makes matchers for n samples.
   * @throws FlashForgeError 'request' for a grammar that cannot be compiled.
   */
  async constraint(source: GrammarSource, samples: number): Promise<Constraint> {
    const key = JSON.stringify(source);
    if (key.length > SOURCE_MAX) {
      throw new FlashForgeError(
        'request',
        `the grammar must have at most ${SOURCE_MAX} characters, got ${key.length}`,
      );
    }
    checkSource(source);
    const refused = this.#refused.get(key);
    if (refused !== undefined) throw refused;
    const compiled = this.#compiled.get(key) ?? this.#compile(key, source);
    const { library, grammar } = await compiled;
    const stops = [...this.#tokenizer.stopIds];
    const matchers = await Promise.all(
      Array.from({ length: samples }, () =>
        library.GrammarMatcher.createGrammarMatcher(grammar, stops),
      ),
    );
    return new Constraint(matchers, this.#vocab, stops);
  }

  #compile(key: string, source: GrammarSource): Promise<Compiled> {
    this.#opened ??= this.#open();
    const opened = this.#opened;
    const compiled = opened.then(async ({ library, compiler }) => {
      try {
        this.#lastLine = '';
        return { library, grammar: await compile(library, compiler, source) };
      } catch (cause) {
        // A failed assertion leaves the instance unusable: the next grammar gets a new one.
        if (this.#opened === opened) {
          this.#opened = null;
          this.#compiled.clear();
        }
        throw this.#refuse(key, cause);
      }
    });
    this.#compiled.set(key, compiled);
    compiled.catch(() => this.#compiled.delete(key));
    if (this.#compiled.size > CACHE_SIZE) this.#drop();
    return compiled;
  }

  /** What failed is remembered, so that a bad grammar costs its time only once. */
  #refuse(key: string, cause: unknown): FlashForgeError {
    const why = reason(this.#lastLine);
    const error = new FlashForgeError('request', `the grammar cannot be used: ${why}`, { cause });
    this.#refused.set(key, error);
    if (this.#refused.size > CACHE_SIZE) {
      const [oldest] = this.#refused.keys();
      this.#refused.delete(oldest);
    }
    return error;
  }

  #drop(): void {
    const [oldest] = this.#compiled.keys();
    const dropped = this.#compiled.get(oldest);
    this.#compiled.delete(oldest);
    // Matchers hold what they need of it.
    dropped?.then(({ grammar }) => grammar.dispose()).catch(() => undefined);
  }

  async #open(): Promise<{ library: XGrammar; compiler: GrammarCompiler }> {
    try {
      const library = openLibrary((line) => {
        this.#lastLine = line.startsWith('[FATAL]') ? line : this.#lastLine;
      });
      const info = await library.TokenizerInfo.createTokenizerInfo(
        this.#vocabulary(),
        'byte_level',
        false,
        this.#vocab,
        [...this.#tokenizer.stopIds],
      );
      return { library, compiler: await library.GrammarCompiler.createGrammarCompiler(info) };
    } catch (cause) {
      throw new FlashForgeError(
        'request',
        'constrained output is not available here: the grammar library cannot be loaded',
        { cause },
      );
    }
  }

  /** Every token as byte-level BPE writes it, which is exact for tokens that cut characters. */
  #vocabulary(): string[] {
    return Array.from({ length: this.#vocab }, (_, id) => {
      if (this.#tokenizer.isSpecial(id)) return '';
      let text = '';
      for (const byte of this.#tokenizer.bytesOf(id)) text += BYTE_CHARACTERS[byte];
      return text;
    });
  }
}

function checkSource(source: GrammarSource): void {
  if (source.kind === 'schema') checkSchema(source.schema);
  if (source.kind === 'tags') for (const { schema } of source.tags) checkSchema(schema);
}

async function compile(
  library: XGrammar,
  compiler: GrammarCompiler,
  source: GrammarSource,
): Promise<CompiledGrammar> {
  switch (source.kind) {
    case 'json':
      return compiler.compileJSONSchema('{"type":"object"}', true);
    case 'schema':
      return compiler.compileJSONSchema(JSON.stringify(source.schema), true);
    case 'regex':
      return compiler.compileStructuralTag({
        type: 'structural_tag',
        format: { type: 'regex', pattern: source.pattern },
      });
    case 'ebnf':
      return compiler.compileGrammar(await library.Grammar.fromEBNF(source.text));
    case 'tags':
      return compiler.compileStructuralTag({
        type: 'structural_tag',
        format: { type: 'or', elements: source.tags.map(tagFormat) },
      });
  }
}

function tagFormat({ begin, schema, end }: GrammarTag) {
  const json_schema = schema as Record<string, unknown>;
  return {
    type: 'sequence' as const,
    elements: [
      { type: 'const_string' as const, value: begin },
      { type: 'json_schema' as const, json_schema },
      { type: 'const_string' as const, value: end },
    ],
  };
}

/** From "[FATAL] /path/file.cc:12: Check failed: (code) is false: reason" to the reason. */
function reason(line: string): string {
  const text = line.replace(/^\[FATAL\] \S+:\d+: /, '').replace(/^Check failed: .* is false: /, '');
  return text === '' ? 'it is not valid or too complex' : text.slice(0, 200);
}

/** Counts that the library unrolls into rules, which takes seconds for large ones. */
const COUNTS = ['minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties'];
const COUNT_MAX = 4096;
const DEPTH_MAX = 64;

/** @throws FlashForgeError 'request' for a schema that would hold up everybody. */
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

/** The state of n samples in one grammar. */
export class Constraint {
  readonly #matchers: readonly GrammarMatcher[];
  readonly #taken: number[];
  readonly #mask: Uint8Array;
  readonly #stops: readonly number[];

  constructor(matchers: readonly GrammarMatcher[], vocab: number, stops: readonly number[]) {
    this.#matchers = matchers;
    this.#taken = matchers.map(() => 0);
    this.#mask = new Uint8Array(vocab);
    this.#stops = stops;
  }

  /**
   * (vocab) 1 for each token that sample `index` may continue with; valid until the next call.
   * @param tokens what the sample has drawn so far
   */
  allowed(index: number, tokens: readonly number[]): Uint8Array {
    const matcher = this.#matchers[index];
    while (this.#taken[index] < tokens.length) {
      matcher.acceptToken(tokens[this.#taken[index]++]);
    }
    const mask = this.#mask;
    mask.fill(0);
    if (matcher.isTerminated()) {
      for (const stop of this.#stops) mask[stop] = 1;
      return mask;
    }
    const native = (matcher as unknown as { handle: NativeMatcher }).handle;
    const bits = native.GetNextTokenBitmask(mask.length);
    const words = bits.size();
    let some = false;
    for (let word = 0; word < words; word++) {
      let left = bits.get(word);
      if (left === 0) continue;
      some = true;
      for (let id = word * 32; left !== 0; id++, left >>>= 1) {
        if ((left & 1) !== 0 && id < mask.length) mask[id] = 1;
      }
    }
    bits.delete();
    // A grammar that no text can go on to satisfy: the sample ends.
    if (!some) for (const stop of this.#stops) mask[stop] = 1;
    return mask;
  }

  dispose(): void {
    for (const matcher of this.#matchers) matcher.dispose();
  }
}
