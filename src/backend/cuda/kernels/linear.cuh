/*
 * What the kernel of linear.cu is told, and how the work of a product is dealt out. A product
 * y (rows, outputs) = x (rows, columns) W^T is cut into units of 128 outputs x 64 columns, which
 * are put in a line, tile of outputs after tile, and dealt to the blocks in equal runs ("stream-K",
 * Osama et al., 2023). Where a tile lies in the runs of several blocks, each writes its part of
 * the sum; parts are added in the order of the blocks, so that equal inputs give equal bits.
 */
#pragma once
#include "product-mma.cuh"
#include "rotate.cuh"

constexpr int kRows = FF_ROWS;        /* rows of x, padded: 8, 16, 32, 48 or 64 */
constexpr int kTile = 128;            /* outputs of a unit */
constexpr int kChunk = 64;            /* columns of a unit: 128 bytes, TMA's widest swizzle */
constexpr int kStages = FF_STAGES;    /* units of weights in flight */
constexpr int kStagesX = FF_STAGES_X; /* units of x in flight */
constexpr int kWarps = 8;             /* that compute */
constexpr int kThreads = kWarps * 32;
/* 16-output blocks of one warp; where there are several, as many warps share the columns. */
constexpr int kHeight = FF_HEIGHT;
constexpr int kPhasesMax = 4;
constexpr int kHiddenMax = 5120; /* of a residual stream */

/* What becomes of a product's sums. */
constexpr int kPlain = 0;    /* out = y */
constexpr int kResidual = 1; /* out += y, and out16 = RMSNorm(out) * norm unless norm is null */
constexpr int kSwiglu = 2;   /* out16 = silu(left half of y) * right half */
constexpr int kRotate = 3;   /* rotation and the write of K and V, as ff_rotate_store */

struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

/* One product. 48 bytes. */
struct Phase {
  const u16* input; /* (rows, columns) */
  float* out;       /* (rows, outputs) */
  u16* out16;       /* (rows, outputs), half as wide for kSwiglu */
  const float* norm;
  int columns; /* a multiple of 64 */
  int outputs; /* a multiple of 4 */
  int kind;
  int first; /* the block that takes the first run, so that the longer runs fall to all in turn */
};

struct Linear {
  TensorMap weights[kPhasesMax]; /* of (outputs, columns), boxes of 128 x 64, 128-byte swizzle */
  Phase phases[kPhasesMax];
  Rotate rotate;
  float* partial; /* (blocks + tiles, kRows, 128) */
  u64* arrived;   /* [0] partials written, [1] results written: blocks, counted over all launches */
  int* abort_flag;
  int phase_count;
  int rows;
  float epsilon;
};

/* What the abort flag says: which wait did not end. */
constexpr int kAbortRing = 11, kAbortInput = 12, kAbortPartials = 13;

/* ---- tiles of matrices by TMA ---- */

__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* Weights are read once a step: they make room first. */
__device__ __forceinline__ u64 policy_evict_first() {
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void copy_tile(u32 to, const TensorMap* map, int column, int row,
                                          u32 bar, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(bar), "l"(policy)
      : "memory");
}

/* How the units of a phase are dealt to the blocks of the grid. */
struct Share {
  int chunks, each, extra, block;

  __device__ __forceinline__ explicit Share(const Phase& phase) {
    const int blocks = gridDim.x;
    chunks = phase.columns / kChunk;
    const int units = chunks * ((phase.outputs + kTile - 1) / kTile);
    each = units / blocks;
    extra = units % blocks;
    block = static_cast<int>(blockIdx.x) - phase.first;
    if (block < 0) block += blocks;
  }
  /* First unit of a block, counted from the phase's first block. */
  __device__ __forceinline__ int begin(int b) const { return b * each + min(b, extra); }
  __device__ __forceinline__ int owner(int unit) const {
    const int longer = extra * (each + 1);
    return unit < longer ? unit / (each + 1) : extra + (unit - longer) / each;
  }
  __device__ __forceinline__ int first_owner(int tile) const { return owner(tile * chunks); }
  __device__ __forceinline__ int last_owner(int tile) const {
    return owner(tile * chunks + chunks - 1);
  }
};

/* Where the part of a tile's sums that a block computed stands: (kRows, 128). */
__device__ __forceinline__ float* part_of(const Linear& a, int block, int tile) {
  return a.partial + static_cast<u64>(block + tile) * (kRows * kTile);
}
