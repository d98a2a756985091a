/*
 * Dense products of a few rows (decode steps): memory-bound, so that all that counts is that
 * weights never stop coming. One launch computes up to four products that follow each other (o,
 * gate and up, down, the next layer's qkv) with what lies between them. One block a
 * multiprocessor: a lane copies weights into a deep ring by TMA, a warp copies x, eight warps
 * multiply by mma.sync with weights as the left operand. Weights depend on nothing, so their
 * copies run ahead over the ends of products and over the start of the launch, while blocks wait
 * for each other's sums.
 *
 * Constants come from the compiler's command line (see model/linear.ts).
 */
#include "linear.cuh"
#include "reduce.cuh"

struct Shared {
  unsigned char weights[kStages][kTile * kChunk * 2];
  unsigned char x[kStagesX][kRows * kChunk * 2];
  unsigned char parts[kHeight > 1 ? kRows * kTile * 4 : 16]; /* sums of warps that share columns */
  u64 full[kStages];
  u64 empty[kStages];
  u64 full_x[kStagesX];
  u64 empty_x[kStagesX];
  u64 arrived[2]; /* what the counters stood at when the launch began */
  float sums[kWarps];
};

/* A place in a ring, and the parity of its barriers. */
template <int kSize>
struct Cursor {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kSize) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/* One lane: all weights of this block's units, phase after phase. */
__device__ __forceinline__ void produce_weights(const Linear& a, Shared& shared) {
  Cursor<kStages> at;
  const u64 policy = policy_evict_first();
  for (int p = 0; p < a.phase_count; p++) {
    const Share share(a.phases[p]);
    const int end = share.begin(share.block + 1);
    int unit = share.begin(share.block);
    int tile = unit / share.chunks, chunk = unit % share.chunks;
    for (; unit < end; unit++) {
      barrier_wait(smem_address(&shared.empty[at.stage]), at.parity ^ 1, a.abort_flag, kAbortRing);
      const u32 bar = smem_address(&shared.full[at.stage]);
      barrier_expect(bar, kTile * kChunk * 2);
      copy_tile(smem_address(shared.weights[at.stage]), &a.weights[p], chunk * kChunk,
                tile * kTile, bar, policy);
      at.advance();
      if (++chunk == share.chunks) chunk = 0, tile++;
    }
  }
}

/* One warp: x of this block's units, in the layout that TMA gives to weights. */
__device__ __forceinline__ void produce_x(const Linear& a, Shared& shared, int lane) {
  Cursor<kStagesX> at;
  for (int p = 0; p < a.phase_count; p++) {
    const Phase& phase = a.phases[p];
    const Share share(phase);
    const int end = share.begin(share.block + 1);
    int unit = share.begin(share.block);
    int chunk = unit % share.chunks;
    if (p > 0) {
      await_count(&a.arrived[1], shared.arrived[1] + static_cast<u64>(p) * gridDim.x,
                  a.abort_flag, kAbortInput);
      fence_gpu();
    }
    for (; unit < end; unit++) {
      barrier_wait(smem_address(&shared.empty_x[at.stage]), at.parity ^ 1, a.abort_flag,
                   kAbortRing);
      const u32 to = smem_address(shared.x[at.stage]);
      const u16* from = phase.input + chunk * kChunk;
#pragma unroll
      for (int i = 0; i < kRows / 4; i++) {
        const int row = i * 4 + lane / 8, piece = lane % 8;
        if (row < a.rows)
          copy16(to + row * 128 + ((piece ^ (row & 7)) << 4),
                 from + static_cast<u64>(row) * phase.columns + piece * 8);
      }
      copy_arrive(smem_address(&shared.full_x[at.stage]));
      at.advance();
      if (++chunk == share.chunks) chunk = 0;
    }
  }
}

/* What one of the computing warps holds: the sums of 16 * kHeight outputs for all rows. */
struct Multiplier {
  static constexpr int kSteps = 4 / kHeight; /* of 16 columns, of a unit */
  static constexpr int kBlocks = kRows / 8;
  static_assert(kHeight == 1 || kBlocks > 1, "a single block of rows is for warps of height 1");
  static constexpr int kChains = kBlocks == 1 ? 2 : 1; /* sums that do not wait for each other */
  float acc[kChains][kHeight][kBlocks][4];
  int band, group, lane; /* of outputs, of columns */

  __device__ __forceinline__ Multiplier(int warp, int lane_) {
    band = warp % (kWarps / kHeight);
    group = warp / (kWarps / kHeight);
    lane = lane_;
    clear();
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < kChains; c++)
#pragma unroll
      for (int h = 0; h < kHeight; h++)
#pragma unroll
        for (int n = 0; n < kBlocks; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) acc[c][h][n][i] = 0.0f;
  }

  /* Fragments of one unit. */
  u32 w[kSteps][kHeight][4];
  u32 x[kSteps][kBlocks][2];

  __device__ __forceinline__ void load(u32 weights, u32 rows) {
    const int matrix = lane >> 3, low = lane & 7;
    const u32 w_row = weights + (band * 16 * kHeight + low + (matrix & 1) * 8) * 128;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int piece = (group * kSteps + s) * 2;
#pragma unroll
      for (int h = 0; h < kHeight; h++)
        ldmatrix4(w[s][h], w_row + h * 2048 + (((piece + (matrix >> 1)) ^ low) << 4));
      if constexpr (kBlocks > 1) {
        const u32 x_row = rows + (low + (matrix >> 1) * 8) * 128;
#pragma unroll
        for (int n = 0; n < kBlocks; n += 2) {
          u32 v[4];
          ldmatrix4(v, x_row + n * 1024 + (((piece + (matrix & 1)) ^ low) << 4));
          x[s][n][0] = v[0], x[s][n][1] = v[1];
          x[s][n + 1][0] = v[2], x[s][n + 1][1] = v[3];
        }
      } else if (s % 2 == 0) { /* one block: two steps at once */
        u32 v[4];
        ldmatrix4(v, rows + low * 128 + (((piece + matrix) ^ low) << 4));
        x[s][0][0] = v[0], x[s][0][1] = v[1];
        x[s + 1][0][0] = v[2], x[s + 1][0][1] = v[3];
      }
    }
  }

  __device__ __forceinline__ void multiply() {
#pragma unroll
    for (int s = 0; s < kSteps; s++)
#pragma unroll
      for (int h = 0; h < kHeight; h++)
#pragma unroll
        for (int n = 0; n < kBlocks; n++)
          mma_16816(acc[s % kChains][h][n], w[s][h], x[s][n][0], x[s][n][1]);
  }

  /* Adds up the sums of warps that share columns; the first of them has the result. */
  __device__ __forceinline__ void combine(Shared& shared) {
    if constexpr (kHeight > 1) {
      constexpr int kQuads = kHeight * kBlocks;
      const int pair = 3 + band;
      const u32 buffer = smem_address(shared.parts) + (band * kQuads * 32 + lane) * 16;
#pragma unroll
      for (int sender = 1; sender < kHeight; sender++) {
        if (group == sender)
#pragma unroll
          for (int i = 0; i < kQuads; i++) {
            const float(&v)[4] = acc[0][i / kBlocks][i % kBlocks];
            store_shared(buffer + i * 512, make_float4(v[0], v[1], v[2], v[3]));
          }
        block_sync(pair, kHeight * 32);
        if (group == 0)
#pragma unroll
          for (int i = 0; i < kQuads; i++) {
            float(&v)[4] = acc[0][i / kBlocks][i % kBlocks];
            const float4 other = load_shared(buffer + i * 512);
            v[0] += other.x, v[1] += other.y, v[2] += other.z, v[3] += other.w;
          }
        block_sync(pair, kHeight * 32); /* before the buffer is written again */
      }
    }
  }

  /* Sums to to[row * stride + output], of `rows` rows and `outputs` outputs. */
  __device__ __forceinline__ void store(float* to, int stride, int rows, int outputs) const {
    if (group != 0) return;
#pragma unroll
    for (int h = 0; h < kHeight; h++)
#pragma unroll
      for (int n = 0; n < kBlocks; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int output = (band * kHeight + h) * 16 + lane / 4 + (i >> 1) * 8;
          const int row = n * 8 + lane % 4 * 2 + (i & 1);
          float v = acc[0][h][n][i];
          if constexpr (kChains > 1) v += acc[kChains - 1][h][n][i];
          if (row < rows && output < outputs) to[row * static_cast<u64>(stride) + output] = v;
        }
  }
};

/* The eight computing warps: products, then their share of the results. */
__device__ __forceinline__ void compute(const Linear& a, Shared& shared, int warp, int lane) {
  Multiplier multiplier(warp, lane);
  Cursor<kStages> at;
  Cursor<kStagesX> at_x;
  for (int p = 0; p < a.phase_count; p++) {
    const Phase& phase = a.phases[p];
    const Share share(phase);
    const int begin = share.begin(share.block), end = share.begin(share.block + 1);
    int tile = begin / share.chunks, chunk = begin % share.chunks, start = chunk;
    for (int unit = begin; unit < end; unit++) {
      barrier_wait(smem_address(&shared.full[at.stage]), at.parity, a.abort_flag, kAbortRing);
      barrier_wait(smem_address(&shared.full_x[at_x.stage]), at_x.parity, a.abort_flag,
                   kAbortRing);
      multiplier.load(smem_address(shared.weights[at.stage]),
                      smem_address(shared.x[at_x.stage]));
      __syncwarp();
      if (lane == 0) {
        barrier_arrive(smem_address(&shared.empty[at.stage]));
        barrier_arrive(smem_address(&shared.empty_x[at_x.stage]));
      }
      at.advance();
      at_x.advance();
      multiplier.multiply();
      if (++chunk < share.chunks && unit + 1 < end) continue;
      multiplier.combine(shared);
      if (phase.kind == kPlain && start == 0 && chunk == share.chunks)
        multiplier.store(phase.out + tile * kTile, phase.outputs, a.rows,
                         phase.outputs - tile * kTile);
      else
        multiplier.store(part_of(a, share.block, tile), kTile, a.rows, kTile);
      multiplier.clear();
      chunk = start = 0;
      tile++;
    }
    finish_phase(a, phase, share, shared.arrived, shared.sums, p);
  }
}

static_assert(sizeof(Linear) == 896, "as model/linear.ts packs it");

extern "C" __global__ void __launch_bounds__(kThreads + 64, 1)
    ff_linear(const __grid_constant__ Linear a) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < kStages; i += blockDim.x) {
    barrier_init(smem_address(&shared.full[i]), 1);
    barrier_init(smem_address(&shared.empty[i]), kWarps);
  }
  for (int i = threadIdx.x; i < kStagesX; i += blockDim.x) {
    barrier_init(smem_address(&shared.full_x[i]), 32);
    barrier_init(smem_address(&shared.empty_x[i]), kWarps);
  }
  fence_barrier_init();
  __syncthreads();
  dependents_launch();
  if (warp == kWarps) {
    if (lane == 0) produce_weights(a, shared);
    return;
  }
  dependency_wait();
  /* No block can count further before all have read where the counters stand. */
  if (threadIdx.x < 2) {
    const u64 count = load_relaxed(&a.arrived[threadIdx.x]);
    shared.arrived[threadIdx.x] = count - count % gridDim.x;
  }
  block_sync(1, kThreads + 32);
  if (warp > kWarps) produce_x(a, shared, lane);
  else compute(a, shared, warp, lane);
}
