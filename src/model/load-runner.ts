/**
 * From an opened model to a runner on a device: the one place that knows all devices. Each is
 * imported when it is asked for.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import { FlashForgeError, show } from '../base/errors.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { CostProfile } from '../plan/plan.ts';

export type Device = 'cpu' | 'cuda' | 'reference';
/** 'auto' is cuda where there is a device that can be used, else cpu. */
export type DeviceChoice = Device | 'auto';
export const DEVICE_CHOICES = ['cpu', 'cuda', 'auto', 'reference'] as const;
/** Element types of the KV cache. */
export type KvType = 'f16' | 'f32' | 'bf16' | 'i16';

export interface RunnerOptions {
  /** Default 'cpu'. */
  readonly device?: DeviceChoice | undefined;
  /** How CPU kernels reach the processor; default 'auto'. */
  readonly provider?: 'auto' | 'native' | 'wasm' | undefined;
  /** Threads, the caller included; default one for each core. */
  readonly workers?: number | undefined;
  /** Size of the KV cache: pages, or bytes where pages are not given. */
  readonly kvPages?: number | undefined;
  readonly kvBytes?: number | undefined;
  /**
   * Pinned host memory that keeps the KV which the device's cache has no room for; default 0. On
   * the CPU it has no effect: the KV cache is in host memory there.
   */
  readonly hostKvBytes?: number | undefined;
  /**
   * On the CPU by default the fastest: 'i16' (integers with a scale a key and a value, about as
   * exact as f16) with native kernels on x86-64, else 'f16'. On CUDA 'f16' or 'bf16', the type of
   * weights and activations too, by default the file's.
   */
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
  const device = await pickDevice(options.device);
  switch (device) {
    case 'cpu': {
      const { loadCpuRunner } = await import('./load-cpu.ts');
      return loadCpuRunner(checkpoint, options);
    }
    case 'cuda': {
      const { loadCudaRunner } = await import('./load-cuda.ts');
      return loadCudaRunner(checkpoint, options);
    }
    case 'reference': {
      const { loadReferenceRunner } = await import('./load-reference.ts');
      return loadReferenceRunner(checkpoint, options);
    }
    default:
      device satisfies never;
      throw new FlashForgeError(
        'usage',
        `device must be cpu, cuda, auto or reference, got ${show(options.device)}`,
      );
  }
}

/** The device that 'auto' stands for on this machine. */
export async function pickDevice(choice: DeviceChoice = 'cpu'): Promise<Device> {
  if (choice !== 'auto') return choice;
  const { hasCuda } = await import('./load-cuda.ts');
  return (await hasCuda()) ? 'cuda' : 'cpu';
}
