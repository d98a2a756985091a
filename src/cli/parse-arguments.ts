/**
 * Command lines, strictly: what is not described is an error that names it.
 * @module
 */
import { FlashForgeError, show } from '../base/errors.ts';
import type { Arguments, Command, Option } from './command.ts';

const HELP: Option = { name: 'help', short: 'h', help: 'show this help' };

export const usageError = (message: string): FlashForgeError =>
  new FlashForgeError('usage', message);

/** All options of a command, --help included. */
export const optionsOf = (command: Command): readonly Option[] => [...command.options, HELP];

/**
 * Parses the words after the command's name. A value may start with a dash ("--temperature -1"),
 * so that the command itself can say what is wrong with it.
 * @throws FlashForgeError 'usage'
 */
export function parseArguments(command: Command, words: readonly string[]): Arguments {
  const options = optionsOf(command);
  const values = new Map<string, string>();
  const positionals: string[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    if (word === '--') {
      positionals.push(...words.slice(i + 1));
      break;
    }
    if (!word.startsWith('-') || word === '-') {
      positionals.push(word);
      continue;
    }
    const equals = word.startsWith('--') ? word.indexOf('=') : -1;
    const name = equals < 0 ? word : word.slice(0, equals);
    const option = find(options, name);
    if (option === undefined) throw unknownOption(command, options, name);
    if (values.has(option.name)) throw usageError(`option ${name} is given twice`);
    if (option.value === undefined) {
      if (equals >= 0) throw usageError(`option ${name} takes no value`);
      values.set(option.name, '');
    } else if (equals >= 0) {
      values.set(option.name, word.slice(equals + 1));
    } else {
      const next = words[i + 1];
      // Where the value may be left out, only words that look like no option are taken for it.
      const bare =
        next === undefined ||
        find(options, next.split('=', 1)[0]) !== undefined ||
        (option.bareValue !== undefined && /^-./.test(next));
      if (bare && option.bareValue === undefined) {
        throw usageError(`option ${name} needs a value: ${name} ${option.value}`);
      }
      values.set(option.name, bare ? (option.bareValue as string) : next);
      if (!bare) i++;
    }
  }
  if (!values.has('help')) checkPositionals(command, positionals);
  return {
    positionals,
    text: (name) => values.get(name),
    has: (name) => values.has(name),
  };
}

function find(options: readonly Option[], word: string): Option | undefined {
  return options.find(
    ({ name, short }) => word === `--${name}` || (short !== undefined && word === `-${short}`),
  );
}

function unknownOption(command: Command, options: readonly Option[], name: string): Error {
  const known = options.map((option) => `--${option.name}`).join(', ');
  return usageError(`unknown option ${show(name)} for ${command.name}, known are ${known}`);
}

function checkPositionals(command: Command, given: readonly string[]): void {
  const wanted = command.positionals;
  if (given.length < wanted.length) {
    const { name, help } = wanted[given.length];
    throw usageError(`${command.name} needs ${name}: ${help}`);
  }
  if (given.length > wanted.length) {
    throw usageError(`${command.name} takes no argument ${show(given[wanted.length])}`);
  }
}

/**
 * An option's whole number in [min, max], or `fallback` where it was not given.
 * @throws FlashForgeError 'usage' naming the option, the value and the range.
 */
export function integerOption<F extends number | undefined>(
  given: Arguments,
  name: string,
  fallback: F,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): number | F {
  const text = given.text(name);
  return text === undefined ? fallback : integerText(`--${name}`, text, min, max);
}

/** A comma-separated list of whole numbers. */
export function integersOption(
  given: Arguments,
  name: string,
  fallback: readonly number[],
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): readonly number[] {
  const text = given.text(name);
  if (text === undefined) return fallback;
  return text.split(',').map((part) => integerText(`--${name}`, part, min, max));
}

function integerText(name: string, text: string, min: number, max: number): number {
  const value = Number(text);
  const whole = /^[+-]?\d+$/.test(text);
  if (whole && value >= min && value <= max) return value;
  const bounded = max !== Number.MAX_SAFE_INTEGER || (whole && value > max);
  const range = bounded ? `between ${min} and ${max}` : `of at least ${min}`;
  throw usageError(`${name} must be an integer ${range}, got ${show(text)}`);
}

/** An option's finite number in [min, max], or undefined where it was not given. */
export function numberOption(
  given: Arguments,
  name: string,
  min: number,
  max: number,
): number | undefined {
  const text = given.text(name);
  if (text === undefined) return undefined;
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (Number.isFinite(value) && value >= min && value <= max) return value;
  throw usageError(`--${name} must be a number between ${min} and ${max}, got ${show(text)}`);
}

/** One of the names allowed, or `fallback` where the option was not given. */
export function choiceOption<const T extends string>(
  given: Arguments,
  name: string,
  choices: readonly T[],
  fallback: T,
): T {
  const text = given.text(name);
  if (text === undefined) return fallback;
  const found = choices.find((choice) => choice === text);
  if (found !== undefined) return found;
  throw usageError(`--${name} must be ${choices.join(' or ')}, got ${show(text)}`);
}
