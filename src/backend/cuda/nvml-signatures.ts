/**
 * The C functions of NVML that this backend calls, and the driver's that names a device for them;
 * letters as in signatures.ts.
 * @module
 */
import type { Library, Signatures } from './signatures.ts';

export const NVML = {
  nvmlInit_v2: '',
  nvmlShutdown: '',
  nvmlDeviceGetHandleByPciBusId_v2: 'sp',
  nvmlDeviceGetTotalEnergyConsumption: 'pp',
} as const satisfies Signatures;

export const PCI = { cuDeviceGetPCIBusId: 'pii' } as const satisfies Signatures;

export type NvmlLibrary = Library<typeof NVML> & {
  /** nvmlDeviceGetTotalEnergyConsumption on another thread. */
  readEnergy(handle: bigint, out: BigUint64Array): Promise<number>;
};
export type PciLibrary = Library<typeof PCI>;
