/**
 * The energy that the device has used, from NVML's counter. A machine whose driver brings no NVML,
 * or a device without the counter, has none and says why: nothing else depends on it.
 * @module
 */
import type { EnergyMeter } from '../backend.ts';
import { openNvml } from './libraries.ts';
import type { NvmlLibrary, PciLibrary } from './nvml-signatures.ts';

const BUS_ID_BYTES = 32;
/** Readings are not asked for more often: the counter itself moves about as often. */
const RECENT_MS = 100;
/** What NVML's statuses mean here; others are shown as numbers. */
const STATUS: Readonly<Record<number, string>> = {
  3: 'this device does not support it',
  4: 'no permission',
  9: 'the driver is not loaded',
  12: 'the library lacks the function',
  18: 'the library and the driver are of different versions',
};

/**
 * Opens the meter of a CUDA device. Never throws: without NVML its readings are null.
 * @param device the driver's ordinal, which CUDA_VISIBLE_DEVICES may change
 * @param libraries instead of the machine's own
 */
export async function openEnergyMeter(
  device: number,
  libraries: () => Promise<{ nvml: NvmlLibrary; driver: PciLibrary }> = openNvml,
): Promise<EnergyMeter & { close(): void }> {
  try {
    const { nvml, driver } = await libraries();
    return new NvmlMeter(nvml, busId(driver, device));
  } catch (error) {
    const absent = error instanceof Error ? error.message : String(error);
    return { absent, joules: () => null, recentJoules: () => null, close: () => {} };
  }
}

class NvmlMeter implements EnergyMeter {
  readonly absent = null;
  readonly #nvml: NvmlLibrary;
  readonly #handle: bigint;
  readonly #out = new BigUint64Array(1);
  /** What the reading thread writes. */
  readonly #recent = new BigUint64Array(new ArrayBuffer(64), 0, 1);
  #recentJoules: number | null;
  #askedMs = 0;
  #isAsking = false;

  constructor(nvml: NvmlLibrary, bus: string) {
    this.#nvml = nvml;
    check('nvmlInit_v2', nvml.call.nvmlInit_v2());
    try {
      const status = nvml.call.nvmlDeviceGetHandleByPciBusId_v2(bus, this.#out);
      check('nvmlDeviceGetHandleByPciBusId', status);
      this.#handle = this.#out[0];
      check('nvmlDeviceGetTotalEnergyConsumption', this.#read());
      this.#recentJoules = joulesOf(this.#out);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Since the driver was loaded; the device updates it some tens of times a second. */
  joules(): number | null {
    return this.#read() === 0 ? joulesOf(this.#out) : null;
  }

  recentJoules(): number | null {
    const now = performance.now();
    if (!this.#isAsking && now - this.#askedMs > RECENT_MS) {
      this.#isAsking = true;
      this.#askedMs = now;
      this.#nvml.readEnergy(this.#handle, this.#recent).then(
        (status) => {
          this.#recentJoules = status === 0 ? joulesOf(this.#recent) : null;
          this.#isAsking = false;
        },
        () => {
          // It stays as it is, and nobody asks again.
          this.#recentJoules = null;
        },
      );
    }
    return this.#recentJoules;
  }

  #read(): number {
    return this.#nvml.call.nvmlDeviceGetTotalEnergyConsumption(this.#handle, this.#out);
  }

  close(): void {
    this.#nvml.call.nvmlShutdown();
  }
}

const joulesOf = (millijoules: BigUint64Array): number => Number(millijoules[0]) / 1000;

function busId(driver: PciLibrary, device: number): string {
  const text = new Uint8Array(BUS_ID_BYTES);
  check('cuDeviceGetPCIBusId', driver.call.cuDeviceGetPCIBusId(text, text.length, device));
  return new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
}

function check(call: string, status: number): void {
  if (status !== 0) throw new Error(`${call}: ${STATUS[status] ?? `status ${status}`}`);
}
