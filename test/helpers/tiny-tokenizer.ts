/**
 * Tokenizers of a few hundred pieces, as the header of a GGUF file describes them.
 * @module
 */
import { BYTE_CHARACTERS } from '../../src/tokenizer/token-bytes.ts';

const CHAT_TEMPLATE =
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const BYTE = 6;

/** Byte-level BPE: ids 0 and 1 are turn marks, then the 256 bytes, then a few merged words. */
export function byteLevelMetadata(
  extra: Readonly<Record<string, unknown>> = {},
): Map<string, unknown> {
  const merges = ['h e', 'l l', 'he ll', 'hell o', 'Ġ w', 'Ġw o', 'r l', 'rl d', 'Ġwo rld'];
  const words = merges.map((merge) => merge.replace(' ', ''));
  const tokens = ['<|im_start|>', '<|im_end|>', ...BYTE_CHARACTERS, ...words];
  return new Map<string, unknown>(
    Object.entries({
      'tokenizer.ggml.model': 'gpt2',
      'tokenizer.ggml.pre': 'smollm',
      'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.token_type': tokens.map((_, id) => (id < 2 ? CONTROL : NORMAL)),
      'tokenizer.ggml.merges': merges,
      'tokenizer.ggml.bos_token_id': 0,
      'tokenizer.ggml.eos_token_id': 1,
      'tokenizer.chat_template': CHAT_TEMPLATE,
      ...extra,
    }),
  );
}

/** SentencePiece: <unk>, <s>, </s>, the 256 bytes, then pieces with scores. */
export function sentencePieceMetadata(
  extra: Readonly<Record<string, unknown>> = {},
): Map<string, unknown> {
  const bytes = Array.from(
    { length: 256 },
    (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
  );
  const pieces = ['▁', 'h', 'e', 'l', 'o', 'w', 'r', 'd', 'he', 'll', 'hell', 'hello', '▁hello'];
  const tokens = ['<unk>', '<s>', '</s>', ...bytes, ...pieces];
  const typeOf = (id: number): number =>
    id === 0 ? UNKNOWN : id < 3 ? CONTROL : id < 259 ? BYTE : NORMAL;
  return new Map<string, unknown>(
    Object.entries({
      'tokenizer.ggml.model': 'llama',
      'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.token_type': new Int32Array(tokens.map((_, id) => typeOf(id))),
      'tokenizer.ggml.scores': new Float32Array(tokens.map((_, id) => (id < 259 ? 0 : id - 300))),
      'tokenizer.ggml.bos_token_id': 1,
      'tokenizer.ggml.eos_token_id': 2,
      ...extra,
    }),
  );
}
