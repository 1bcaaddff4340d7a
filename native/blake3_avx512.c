/* Sixteen lanes of BLAKE3 in AVX-512. */
#include "simd.h"

#if SIMD_X86
#include <immintrin.h>
#include <stddef.h>

#include "blake3_job.h"

typedef uint32_t vector16 __attribute__((vector_size(64)));

#define LANES_NAME blake3_lanes16
#define LANES 16
#define LANES_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define VECTOR vector16
#define VECTOR_ROTR(x, n) ((vector16)_mm512_ror_epi32((__m512i)(x), (n)))

#define INLINE static inline __attribute__((always_inline)) LANES_TARGET

/* In each 128-bit quarter: word j of row i becomes word i of row j. */
INLINE void transpose_quarters(__m512i r0, __m512i r1, __m512i r2, __m512i r3, vector16 out[4]) {
    __m512i low01 = _mm512_unpacklo_epi32(r0, r1), high01 = _mm512_unpackhi_epi32(r0, r1);
    __m512i low23 = _mm512_unpacklo_epi32(r2, r3), high23 = _mm512_unpackhi_epi32(r2, r3);
    out[0] = (vector16)_mm512_unpacklo_epi64(low01, low23);
    out[1] = (vector16)_mm512_unpackhi_epi64(low01, low23);
    out[2] = (vector16)_mm512_unpacklo_epi64(high01, high23);
    out[3] = (vector16)_mm512_unpackhi_epi64(high01, high23);
}

/* 16 bytes of rows i, i + 4, i + 8, i + 12: loads place them, which keeps the shuffle port free. */
INLINE __m512i load_four(const uint8_t *const from[16], int i, int at) {
    __m512i four = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(from[i] + at)));
    four = _mm512_mask_broadcast_i32x4(four, 0x00F0,
                                       _mm_loadu_si128((const __m128i *)(from[i + 4] + at)));
    four = _mm512_mask_broadcast_i32x4(four, 0x0F00,
                                       _mm_loadu_si128((const __m128i *)(from[i + 8] + at)));
    return _mm512_mask_broadcast_i32x4(four, 0xF000,
                                       _mm_loadu_si128((const __m128i *)(from[i + 12] + at)));
}

INLINE void load_blocks(const uint8_t *const from[16], vector16 m[16]) {
    for (int quarter = 0; quarter < 4; quarter++) {
        int at = 16 * quarter;
        transpose_quarters(load_four(from, 0, at), load_four(from, 1, at), load_four(from, 2, at),
                           load_four(from, 3, at), m + 4 * quarter);
    }
}

INLINE void store_values(const vector16 cv[8], uint8_t *const out[16]) {
    vector16 words0[4], words4[4]; /* row i: words 0-3 (4-7) of outputs i, i + 4, i + 8, i + 12 */
    transpose_quarters((__m512i)cv[0], (__m512i)cv[1], (__m512i)cv[2], (__m512i)cv[3], words0);
    transpose_quarters((__m512i)cv[4], (__m512i)cv[5], (__m512i)cv[6], (__m512i)cv[7], words4);
    for (int i = 0; i < 4; i++) {
        __m512i a = (__m512i)words0[i], b = (__m512i)words4[i];
        const __m128i quarters[8] = {
            _mm512_extracti32x4_epi32(a, 0), _mm512_extracti32x4_epi32(b, 0),
            _mm512_extracti32x4_epi32(a, 1), _mm512_extracti32x4_epi32(b, 1),
            _mm512_extracti32x4_epi32(a, 2), _mm512_extracti32x4_epi32(b, 2),
            _mm512_extracti32x4_epi32(a, 3), _mm512_extracti32x4_epi32(b, 3),
        };
        for (int q = 0; q < 4; q++) {
            uint8_t *to = out[i + 4 * q];
            if (to) {
                _mm_storeu_si128((__m128i *)to, quarters[2 * q]);
                _mm_storeu_si128((__m128i *)(to + 16), quarters[2 * q + 1]);
            }
        }
    }
}

#include "blake3_lanes.h"
#else
typedef int blake3_avx512_not_here; /* ISO C wants a declaration in every file */
#endif
