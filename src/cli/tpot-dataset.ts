/**
 * Question answering over long documents, as LooGLE has it: JSON lines, each a document with its
 * questions. All questions of a file are one batch; those of a document share it.
 * @module
 */
import { basename } from 'node:path';
import { FlashForgeError } from '../base/errors.ts';
import { readTextFile } from './read-text.ts';
import type { Scenario } from './tpot-scenario.ts';

/** A document and what is asked about it. */
interface Document {
  readonly text: string;
  readonly questions: readonly string[];
}

const TEXT_FIELDS = ['document', 'context', 'input'] as const;
const QUESTION_FIELDS = ['questions', 'qa_pairs'] as const;
const QUESTION_OF_PAIR = ['question', 'Q'] as const;

/**
 * Reads a file of documents as one scenario.
 * @param encode text to token ids
 * @throws FlashForgeError 'input' naming the line that is not as it should be.
 */
export function datasetScenario(path: string, encode: (text: string) => number[]): Scenario {
  const documents = readDocuments(path);
  const texts = documents.map(({ text }) => Int32Array.from(encode(text)));
  const requests: number[] = [];
  const suffixes: Int32Array[] = [];
  for (const [node, { questions }] of documents.entries()) {
    for (const question of questions) {
      requests.push(node);
      suffixes.push(Int32Array.from(encode(`\n\n${question}\n`)));
    }
  }
  return {
    name: `${basename(path)}-B${requests.length}`,
    nodes: texts.map(({ length }) => ({ parent: -1, tokens: length })),
    requests,
    suffix: 0,
    texts: { nodes: texts, suffixes },
  };
}

function readDocuments(path: string): Document[] {
  let text: string;
  try {
    text = readTextFile(path);
  } catch (cause) {
    const message = `dataset ${path} cannot be read: ${(cause as Error).message}`;
    throw new FlashForgeError('input', message, { cause });
  }
  const documents: Document[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() !== '') documents.push(parseDocument(line, `${path}, line ${index + 1}`));
  }
  if (documents.length > 0) return documents;
  throw new FlashForgeError('input', `dataset ${path} holds no documents`);
}

function parseDocument(line: string, where: string): Document {
  const json = parseJson(line, where);
  if (typeof json !== 'object' || json === null) {
    throw new FlashForgeError('input', `${where} must be a JSON object`);
  }
  const fields = json as Readonly<Record<string, unknown>>;
  const text = TEXT_FIELDS.map((name) => fields[name]).find((value) => value !== undefined);
  if (typeof text !== 'string' || text === '') {
    throw new FlashForgeError('input', `${where} needs its text in ${TEXT_FIELDS.join(' or ')}`);
  }
  const given = QUESTION_FIELDS.map((name) => fields[name]).find((value) => value !== undefined);
  // LooGLE has the list of pairs as JSON within a string.
  const list = typeof given === 'string' ? parseJson(given, where) : given;
  const questions = Array.isArray(list) ? list.map(questionOf) : [];
  if (questions.length > 0 && questions.every((question) => question !== null)) {
    return { text, questions };
  }
  throw new FlashForgeError(
    'input',
    `${where} needs a list of texts or question pairs in ${QUESTION_FIELDS.join(' or ')}`,
  );
}

function questionOf(entry: unknown): string | null {
  if (typeof entry === 'string') return entry;
  if (typeof entry !== 'object' || entry === null) return null;
  const fields = entry as Readonly<Record<string, unknown>>;
  const text = QUESTION_OF_PAIR.map((name) => fields[name]).find((value) => value !== undefined);
  return typeof text === 'string' ? text : null;
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FlashForgeError('input', `${where} is not JSON`, { cause });
  }
}
