/*
 * Which rows a thread of a consumer group works on, where they go, and which scores they see.
 */
#pragma once
#include "softmax.cuh"

template <class Shape>
struct Rows {
  static constexpr int kPerGroup = 64 / Shape::kGroup;
  static constexpr int kPadding = 0xffff;

  const Attention& a;
  int first, count; /* the group's rows, relative to the item */
  u32 pair;         /* this thread's two rows, relative to the item, or kPadding */
  int position[2];
  int slot[2]; /* where the two rows go, see RowRecord */
  int counter; /* of the merge of the row whose number is this thread's, or -1 */

  /* More rows than a group holds: the groups share them. */
  __device__ static bool shared_out(const Item& item) {
    return Shape::kGroups > 1 && item.row_count > kPerGroup;
  }

  __device__ int row(int half) const { return half == 0 ? pair & 0xffff : pair >> 16; }

  /* Query head of one of this thread's vectors, within the KV head's group. */
  __device__ static int head_of(int half) {
    u32 thread; /* volatile: computed again at each place, where registers are scarce in between */
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return (thread % 128 / 32 * 16 + thread % 32 / 4 + half * 8) % Shape::kGroup;
  }

  /* Finds the group's and the thread's rows, without reading anything. */
  __device__ void begin(const Item& item, int group, int warp, int lane) {
    first = shared_out(item) ? group * kPerGroup : 0;
    const int left = item.row_count - first;
    count = left < kPerGroup ? left : kPerGroup;
    int rows[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = first + (warp * 16 + (lane >> 2) + half * 8) / Shape::kGroup;
      rows[half] = at < first + count ? at : kPadding;
    }
    pair = rows[0] | rows[1] << 16;
  }

  /* Reads where the rows stand and where they go. */
  __device__ void read_records(const Item& item, int warp, int lane) {
    const RowRecord* records = reinterpret_cast<const RowRecord*>(a.image) + item.row_record;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const bool real = row(half) != kPadding;
      position[half] = real ? __ldg(a.row_position + item.row_begin + row(half)) : -1;
      slot[half] = real ? __ldg(&records[row(half)].slot) : -2;
    }
    const int mine = warp * 32 + lane;
    counter = -1;
    if (mine < count) {
      const int2 v = __ldg(reinterpret_cast<const int2*>(records + first + mine));
      counter = v.x >= 0 ? v.y : -1;
    }
  }

  /* Removes the scores of one entry, two blocks from `block` on, that are not for these rows. */
  template <int kBlocks>
  __device__ void mask(float (&s)[kBlocks][4], int block, const Entry& entry, int lane) const {
    const int lo = entry.rows & 0xffff, hi = entry.rows >> 16;
    const int begin = entry.tokens & 0xff, end = (entry.tokens >> 8) & 0xff;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int from = begin, to = end;
      if (entry.tokens & kCausal) {
        const int last = position[half] - entry.position + 1;
        to = last < to ? last : to;
        if (a.window > 0 && last - a.window > from) from = last - a.window;
      }
      if (row(half) < lo || row(half) >= hi) to = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int token = (i >> 1) * 8 + (lane & 3) * 2 + (i & 1);
        float& value = s[block + (i >> 1)][half * 2 + (i & 1)];
        if (token < from || token >= to) value = Softmax<Shape>::kMasked;
      }
    }
  }
};
