/*
 * Loop hints under both compilers' names. Loops over a tile must be unrolled completely, or its
 * sums stay in memory instead of registers.
 */
#ifndef FF_UNROLL_H
#define FF_UNROLL_H

#include "simd.h"

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define NO_UNROLL _Pragma("GCC unroll 1")
#endif

/* With 32 vector registers the loop over a block's inputs is unrolled too; with 16 that only makes
   the compiler load early and spill. */
#if LANES == 16
#define UNROLL_GROUPS UNROLL
#else
#define UNROLL_GROUPS NO_UNROLL
#endif

#endif
