/**
 * From an opened model to a runner on a device: the one place that knows all devices. Each is
 * imported when it is asked for.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import { FlashForgeError, show } from '../base/errors.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { CostProfile } from '../plan/plan.ts';

export type Device = 'cpu' | 'reference';
/** Element types of the KV cache. */
export type KvType = 'f16' | 'f32' | 'bf16';

export interface RunnerOptions {
  /** Default 'cpu'. */
  readonly device?: Device | undefined;
  /** How CPU kernels reach the processor; default 'auto'. */
  readonly provider?: 'auto' | 'native' | 'wasm' | undefined;
  /** Threads, the caller included; default one for each core. */
  readonly workers?: number | undefined;
  /** Size of the KV cache: pages, or bytes where pages are not given. */
  readonly kvPages?: number | undefined;
  readonly kvBytes?: number | undefined;
  /** Default 'f16'. */
  readonly kvType?: KvType | undefined;
  /** Most rows of one step; default 512. */
  readonly maxRows?: number | undefined;
  /** Measured costs for the planner; default: measured once and kept in the cache. */
  readonly profile?: CostProfile | undefined;
  /** Called while weights are loaded, with a share from 0 to 1. */
  readonly onProgress?: ((share: number) => void) | undefined;
  /** Told what takes time before the weights: compiling kernels. */
  readonly log?: ((message: string) => void) | undefined;
}

/**
 * Loads a model's weights onto a device. The checkpoint may be closed afterwards.
 * @throws FlashForgeError 'compile', 'device' or 'model'.
 */
export async function loadRunner(
  checkpoint: Checkpoint,
  options: RunnerOptions = {},
): Promise<Runner> {
  const device = options.device ?? 'cpu';
  switch (device) {
    case 'cpu': {
      const { loadCpuRunner } = await import('./load-cpu.ts');
      return loadCpuRunner(checkpoint, options);
    }
    case 'reference': {
      const { loadReferenceRunner } = await import('./load-reference.ts');
      return loadReferenceRunner(checkpoint, options);
    }
    default:
      device satisfies never;
      throw new FlashForgeError(
        'usage',
        `device must be cpu or reference, got ${show(options.device)}`,
      );
  }
}
