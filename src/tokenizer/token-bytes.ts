/**
 * Every token's own bytes. With them decoding is a concatenation, and a stream of tokens becomes
 * text without decoding the same tokens again.
 * @module
 */
import { FlashForgeError, show } from '../base/errors.ts';
import type { Stage, TokenizerJson } from './tokenizer-json.ts';

/** What is needed to turn token ids into bytes. */
export interface TokenBytes {
  /** Indexed by token id; a hole has no bytes. */
  readonly bytes: readonly (Uint8Array | undefined)[];
  /** The first token of a text loses one leading space (it was added when encoding). */
  readonly stripsLeadingSpace: boolean;
}

/** How the pieces of the vocabulary spell bytes. */
interface Spelling {
  byteLevel: boolean;
  byteFallback: boolean;
  /** Literal replacements, in order. */
  replacements: [string, string][];
  stripsLeadingSpace: boolean;
}

const UTF8 = new TextEncoder();

/**
 * Builds the table from the vocabulary and the `decoder` stage of a tokenizer description.
 * @throws FlashForgeError 'model' for a decoder that is not a matter of single tokens.
 */
export function tokenBytes(json: TokenizerJson, source: string): TokenBytes {
  const spelling: Spelling = {
    byteLevel: false,
    byteFallback: false,
    replacements: [],
    stripsLeadingSpace: false,
  };
  readDecoder(json.decoder, spelling, source);

  const bytes: (Uint8Array | undefined)[] = [];
  for (const [piece, id] of vocabulary(json)) bytes[id] = pieceBytes(piece, spelling);
  for (const token of json.added_tokens) bytes[token.id] = UTF8.encode(token.content);
  return { bytes, stripsLeadingSpace: spelling.stripsLeadingSpace };
}

/** Pieces and ids, for both spellings of a vocabulary. */
export function* vocabulary(json: TokenizerJson): Iterable<[string, number]> {
  const vocab = json.model.vocab;
  if (Array.isArray(vocab)) {
    for (let id = 0; id < vocab.length; id++) yield [vocab[id][0], id];
  } else {
    yield* Object.entries(vocab as Record<string, number>);
  }
}

function readDecoder(stage: Stage | null, spelling: Spelling, source: string): void {
  if (stage === null) return;
  switch (stage.type) {
    case 'Fuse':
      return;
    case 'Sequence':
      if (!Array.isArray(stage.decoders)) break;
      for (const inner of stage.decoders) readDecoder(inner, spelling, source);
      return;
    case 'ByteLevel':
      spelling.byteLevel = true;
      return;
    case 'ByteFallback':
      spelling.byteFallback = true;
      return;
    case 'Metaspace':
      spelling.replacements.push([String(stage.replacement ?? '\u2581'), ' ']);
      spelling.stripsLeadingSpace = stage.prepend_scheme !== 'never';
      return;
    case 'Replace': {
      const from = (stage.pattern as { String?: string } | undefined)?.String;
      if (from === undefined) break;
      spelling.replacements.push([from, String(stage.content ?? '')]);
      return;
    }
    case 'Strip':
      if (stage.content !== ' ' || stage.start !== 1 || stage.stop !== 0) break;
      spelling.stripsLeadingSpace = true;
      return;
  }
  throw new FlashForgeError(
    'model',
    `${source} has a decoder ${show(stage)}, supported are ByteLevel, Metaspace, and sequences ` +
      'of Replace, ByteFallback, Fuse and Strip of one leading space',
  );
}

function pieceBytes(piece: string, spelling: Spelling): Uint8Array {
  if (spelling.byteLevel) return byteLevelBytes(piece);
  const byte = spelling.byteFallback ? /^<0x([0-9A-Fa-f]{2})>$/.exec(piece) : null;
  if (byte !== null) return Uint8Array.of(Number.parseInt(byte[1], 16));
  let text = piece;
  for (const [from, to] of spelling.replacements) text = text.replaceAll(from, to);
  return UTF8.encode(text);
}

/** The printable character that stands for each byte in a byte-level vocabulary (GPT-2). */
export const BYTE_CHARACTERS: readonly string[] = byteCharacters();
const BYTE_OF_CHARACTER = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

function byteCharacters(): string[] {
  const printable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable(byte) ? byte : next++),
  );
}

/** A piece with a character outside the alphabet is plain text. */
function byteLevelBytes(piece: string): Uint8Array {
  const bytes = new Uint8Array(piece.length);
  for (let i = 0; i < piece.length; i++) {
    const byte = BYTE_OF_CHARACTER.get(piece[i]);
    if (byte === undefined) return UTF8.encode(piece);
    bytes[i] = byte;
  }
  return bytes;
}
