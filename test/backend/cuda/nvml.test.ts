/**
 * Energy from NVML, with libraries that are made up.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { openNvml } from '../../../src/backend/cuda/libraries.ts';
import { openEnergyMeter } from '../../../src/backend/cuda/nvml.ts';
import type { NvmlLibrary, PciLibrary } from '../../../src/backend/cuda/nvml-signatures.ts';
import type { Argument } from '../../../src/backend/cuda/signatures.ts';
import { EnergyCount } from '../../../src/engine/energy.ts';

const BUS = '0000:1B:00.0';
const UNSUPPORTED = 3;

/** A device whose counter stands at `state.millijoules`; a status other than 0 makes it fail. */
function libraries(state: { millijoules: bigint; status: number; open: number }) {
  const base = { path: 'fake', addressOf: () => 0n, viewOf: () => new ArrayBuffer(0) };
  const nvml = {
    ...base,
    call: {
      nvmlInit_v2: () => {
        state.open++;
        return 0;
      },
      nvmlShutdown: () => {
        state.open--;
        return 0;
      },
      nvmlDeviceGetHandleByPciBusId_v2: (bus: Argument, out: Argument) => {
        assert.equal(bus, BUS);
        (out as BigUint64Array)[0] = 77n;
        return 0;
      },
      nvmlDeviceGetTotalEnergyConsumption: (handle: Argument, out: Argument) => {
        assert.equal(handle, 77n);
        (out as BigUint64Array)[0] = state.millijoules;
        return state.status;
      },
    },
    readEnergy: async (_handle: bigint, out: BigUint64Array) => {
      out[0] = state.millijoules;
      return state.status;
    },
  } as unknown as NvmlLibrary;
  const driver = {
    ...base,
    call: {
      cuDeviceGetPCIBusId: (text: Argument, _length: Argument, device: Argument) => {
        assert.equal(device, 2);
        new TextEncoder().encodeInto(BUS, text as Uint8Array);
        return 0;
      },
    },
  } as unknown as PciLibrary;
  return async () => ({ nvml, driver });
}

test('joules since a moment, by the device that the driver counts as the second next', async () => {
  const state = { millijoules: 5_000n, status: 0, open: 0 };
  const meter = await openEnergyMeter(2, libraries(state));
  assert.equal(meter.absent, null);
  const count = new EnergyCount(meter);
  state.millijoules = 7_500n;
  assert.equal(meter.joules(), 7.5);
  // Nobody waits for the reading: it is there next time.
  const later = async (): Promise<unknown> => {
    await setTimeout(110);
    count.use();
    await setTimeout(1);
    return count.use();
  };
  assert.deepEqual(await later(), { joules: 2.5, absent: null });
  count.reset();
  assert.equal(count.use().joules, 0);
  state.status = UNSUPPORTED;
  assert.deepEqual(await later(), { joules: null, absent: null });
  assert.equal(meter.joules(), null);
  meter.close();
  assert.equal(state.open, 0);
});

test('without the counter, the library or a device there are no joules but a reason', async () => {
  const state = { millijoules: 0n, status: UNSUPPORTED, open: 0 };
  const meter = await openEnergyMeter(2, libraries(state));
  assert.match(meter.absent ?? '', /TotalEnergyConsumption: this device does not support it/);
  assert.deepEqual(new EnergyCount(meter).use(), { joules: null, absent: meter.absent });
  meter.close();
  assert.equal(state.open, 0);
  const none = await openEnergyMeter(0, () => openNvml(['libflashforge-no-such-library.so']));
  assert.match(none.absent ?? '', /NVML could not be opened: libflashforge-no-such/);
  assert.equal(none.joules(), null);
  assert.equal(new EnergyCount(undefined).use().joules, null);
});
