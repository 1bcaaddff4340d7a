#include "simd.h"

#include <stdatomic.h>

enum { UNKNOWN = -1 };

/* Relaxed order is enough: every level gives the same results, so a race is at most a slower call. */
static atomic_int chosen = UNKNOWN;

static enum simd_level best(void) {
#if SIMD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        return SIMD_AVX512;
    }
    if (__builtin_cpu_supports("avx2")) {
        return SIMD_AVX2;
    }
#endif
    return SIMD_PORTABLE;
}

enum simd_level simd_level(void) {
    int level = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (level == UNKNOWN) {
        level = (int)best();
        atomic_store_explicit(&chosen, level, memory_order_relaxed);
    }
    return (enum simd_level)level;
}

int simd_set(enum simd_level level) {
    if (level > best()) {
        return -1;
    }
    atomic_store_explicit(&chosen, (int)level, memory_order_relaxed);
    return 0;
}

int simd_has_vbmi(void) {
#if SIMD_X86
    return simd_level() == SIMD_AVX512 && __builtin_cpu_supports("avx512vbmi");
#else
    return 0;
#endif
}
