/**
 * XGrammar (Dong et al. 2024) as WebAssembly: compiles grammars for one vocabulary and tells which
 * tokens may come next. It runs in a thread of its own, as it may compute for seconds.
 * @module
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import type { GrammarSource, GrammarTag } from './grammar-source.ts';

type XGrammar = typeof import('@mlc-ai/web-xgrammar');
type CompiledGrammar = import('@mlc-ai/web-xgrammar').CompiledGrammar;
type GrammarMatcher = import('@mlc-ai/web-xgrammar').GrammarMatcher;
type GrammarCompiler = import('@mlc-ai/web-xgrammar').GrammarCompiler;

/** The tokens as the library needs them. */
export interface GrammarVocabulary {
  /** (vocab) every token as byte-level BPE writes it; special ones are empty. */
  readonly tokens: readonly string[];
  readonly stops: readonly number[];
}

/** Compiled grammars that are kept: agents send the same schema again and again. */
const CACHE_SIZE = 64;

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

/** A grammar that cannot be compiled, in the library's own words. */
export class GrammarRefused extends Error {}

/** Compiles grammars. The library is opened at the first use. */
export class GrammarLibrary {
  readonly #vocabulary: GrammarVocabulary;
  readonly #compiled = new Map<string, Compiled>();
  /** The library's own words on its last failure. */
  #lastLine = '';
  #opened: { library: XGrammar; compiler: GrammarCompiler } | null = null;

  constructor(vocabulary: GrammarVocabulary) {
    this.#vocabulary = vocabulary;
  }

  /**
   * Compiles a grammar, or finds it, and makes matchers for n samples.
   * @throws GrammarRefused for a grammar that cannot be compiled.
   */
  async open(key: string, source: GrammarSource, samples: number): Promise<Matchers> {
    const { library, grammar } = this.#compiled.get(key) ?? (await this.#compile(key, source));
    const stops = [...this.#vocabulary.stops];
    const matchers = await Promise.all(
      Array.from({ length: samples }, () =>
        library.GrammarMatcher.createGrammarMatcher(grammar, stops),
      ),
    );
    return new Matchers(matchers, this.#vocabulary);
  }

  async #compile(key: string, source: GrammarSource): Promise<Compiled> {
    const { library, compiler } = await this.#open();
    try {
      this.#lastLine = '';
      const compiled = { library, grammar: await compile(library, compiler, source) };
      this.#compiled.set(key, compiled);
      if (this.#compiled.size > CACHE_SIZE) this.#drop();
      return compiled;
    } catch (cause) {
      // A failed assertion leaves the instance unusable: the next grammar gets a new one.
      this.#opened = null;
      this.#compiled.clear();
      throw new GrammarRefused(reason(this.#lastLine), { cause });
    }
  }

  #drop(): void {
    const [oldest] = this.#compiled.keys();
    const dropped = this.#compiled.get(oldest);
    this.#compiled.delete(oldest);
    // Matchers hold what they need of it.
    dropped?.grammar.dispose();
  }

  async #open(): Promise<{ library: XGrammar; compiler: GrammarCompiler }> {
    if (this.#opened !== null) return this.#opened;
    const { tokens, stops } = this.#vocabulary;
    const library = openLibrary((line) => {
      this.#lastLine = line.startsWith('[FATAL]') ? line : this.#lastLine;
    });
    const info = await library.TokenizerInfo.createTokenizerInfo(
      [...tokens],
      'byte_level',
      false,
      tokens.length,
      [...stops],
    );
    const compiler = await library.GrammarCompiler.createGrammarCompiler(info);
    this.#opened = { library, compiler };
    return this.#opened;
  }
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

/** The state of n samples in one grammar. */
export class Matchers {
  readonly #matchers: readonly GrammarMatcher[];
  readonly #vocabulary: GrammarVocabulary;

  constructor(matchers: readonly GrammarMatcher[], vocabulary: GrammarVocabulary) {
    this.#matchers = matchers;
    this.#vocabulary = vocabulary;
  }

  accept(index: number, token: number): void {
    this.#matchers[index].acceptToken(token);
  }

  /** (vocab / 32) a bit for each token that sample `index` may continue with. */
  async mask(index: number): Promise<Int32Array> {
    const matcher = this.#matchers[index];
    if (matcher.isTerminated()) return this.#onlyStops();
    const mask = await matcher.getNextTokenBitmask();
    // A grammar that no text can go on to satisfy: the sample ends.
    return mask.every((word) => word === 0) ? this.#onlyStops() : mask;
  }

  dispose(): void {
    for (const matcher of this.#matchers) matcher.dispose();
  }

  #onlyStops(): Int32Array {
    const { tokens, stops } = this.#vocabulary;
    const mask = new Int32Array(Math.ceil(tokens.length / 32));
    for (const stop of stops) mask[stop >> 5] |= 1 << (stop & 31);
    return mask;
  }
}
