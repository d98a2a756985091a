/**
 * Every shipped variant compiles with NVRTC for Ampere and Hopper, without spills, on machines
 * without a GPU. The compiler comes from the machine or, once, from its Python package.
 * @module
 */
import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { compile, nvrtcVersion, resourceUse } from '../../../src/backend/cuda/nvrtc.ts';
import type { NvrtcLibrary } from '../../../src/backend/cuda/signatures.ts';
import { HEAD_DIMS, kernelSources, variantFor } from '../../../src/backend/cuda/variants.ts';
import { findCompiler } from '../../helpers/nvrtc.ts';

/**
 * None on Hopper. On sm_80 nine warps leave 168 registers a thread, and for some groups a few words
 * that last over a whole item lie in memory: none of them is used between a tile's products.
 */
const SPILL_BYTES_MAX = { sm_80: 160, sm_90a: 0 };
const ARCHES = ['sm_80', 'sm_90a'] as const;
/** Every group where registers are scarcest, and the common one elsewhere. */
const SHAPES = [
  ...HEAD_DIMS.map((headDim) => ({ headDim, groupSize: 4, dtype: 'f16' as const })),
  ...[1, 5, 8, 16].map((groupSize) => ({ headDim: 128, groupSize, dtype: 'bf16' as const })),
];

describe('kernels compile without a GPU', { concurrency: false }, () => {
  let found: NvrtcLibrary | string;
  before(async () => {
    found = await findCompiler();
  });

  for (const arch of ARCHES) {
    for (const shape of SHAPES) {
      const { headDim, groupSize, dtype } = shape;
      test(`${arch} head_dim ${headDim} group ${groupSize} ${dtype}`, (t) => {
        if (typeof found === 'string') return t.skip(found);
        const variant = variantFor({ ...shape, kvHeads: 8, pageSize: 16 }, arch);
        const { log } = compile(found, kernelSources(), 'tree-attention.cu', arch, variant.defines);
        const [use] = resourceUse(log);
        t.diagnostic(
          `${use.registers} registers, ${use.spillBytes} bytes spilled, ` +
            `${variant.sharedBytes} bytes of shared memory, ${variant.defines.FF_STAGES} stages`,
        );
        assert.ok(use.spillBytes <= SPILL_BYTES_MAX[arch], 'no spills, or hardly any');
        assert.doesNotMatch(log, /C75\d\d/, 'wgmma must not be serialised');
        assert.ok(variant.sharedBytes <= (arch === 'sm_80' ? 163 : 227) * 1024);
      });
    }
  }

  for (const headDim of HEAD_DIMS) {
    test(`sm_90a head_dim ${headDim} with 8-bit KV`, (t) => {
      if (typeof found === 'string') return t.skip(found);
      const spec = { headDim, groupSize: 4, kvHeads: 8, pageSize: 16, dtype: 'bf16' } as const;
      const { defines } = variantFor({ ...spec, kv: 'e4m3' }, 'sm_90a');
      const { log } = compile(found, kernelSources(), 'tree-attention.cu', 'sm_90a', defines);
      const [use] = resourceUse(log);
      t.diagnostic(`${use.registers} registers, ${use.spillBytes} bytes spilled`);
      assert.ok(use.spillBytes <= 32, 'hardly any spills');
      compile(found, kernelSources(), 'bench-tools.cu', 'sm_90a', defines);
    });
  }

  test('the other variants compile', (t) => {
    if (typeof found === 'string') return t.skip(found);
    for (const [arch, portable] of [
      ['sm_86', false],
      ['sm_90a', true],
    ] as const) {
      const spec = { headDim: 128, groupSize: 4, kvHeads: 8, pageSize: 64, softcap: true } as const;
      const variant = variantFor({ ...spec, dtype: 'f16' }, arch, portable);
      compile(found, kernelSources(), 'tree-attention.cu', arch, variant.defines);
    }
  });

  test('the helpers of the benchmark compile', (t) => {
    if (typeof found === 'string') return t.skip(found);
    const spec = { headDim: 128, groupSize: 4, kvHeads: 8, pageSize: 16, dtype: 'f16' } as const;
    const { defines } = variantFor(spec, 'sm_80');
    compile(found, kernelSources(), 'bench-tools.cu', 'sm_80', defines);
  });

  test('an error holds the compiler’s log', (t) => {
    if (typeof found === 'string') return t.skip(found);
    const nvrtc = found;
    assert.ok(nvrtcVersion(nvrtc)[0] >= 12);
    const sources = new Map([['broken.cu', '__global__ void f() { int x = missing; }']]);
    assert.throws(
      () => compile(nvrtc, sources, 'broken.cu', 'sm_80', {}),
      (error: Error) =>
        /broken\.cu does not compile/.test(error.message) && /missing/.test(error.message),
    );
  });

  test('FLASHFORGE_NVRTC_FLAGS reach the compiler', (t) => {
    if (typeof found === 'string') return t.skip(found);
    process.env.FLASHFORGE_NVRTC_FLAGS = '-DGIVEN=int';
    try {
      compile(found, new Map([['f.cu', '__global__ void f(GIVEN* x) {}']]), 'f.cu', 'sm_80', {});
    } finally {
      delete process.env.FLASHFORGE_NVRTC_FLAGS;
    }
  });
});
