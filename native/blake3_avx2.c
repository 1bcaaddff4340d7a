/* Eight lanes of BLAKE3 in AVX2. */
#include "simd.h"

#if SIMD_X86
#include <immintrin.h>
#include <stddef.h>

#include "blake3_job.h"

typedef uint32_t vector8 __attribute__((vector_size(32)));

#define LANES_NAME blake3_lanes8
#define LANES 8
#define LANES_TARGET __attribute__((target("avx2")))
#define VECTOR vector8
#define VECTOR_ROTR(x, n) rotate_right_##n(x)

#define INLINE static inline __attribute__((always_inline)) LANES_TARGET

/* AVX2 has no rotate: two of the four amounts are whole bytes, one byte shuffle each. */
INLINE vector8 rotate_right_16(vector8 x) {
    const __m256i by2 = _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0,
                                         1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return (vector8)_mm256_shuffle_epi8((__m256i)x, by2);
}

INLINE vector8 rotate_right_8(vector8 x) {
    const __m256i by1 = _mm256_setr_epi8(1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12, 1, 2, 3,
                                         0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12);
    return (vector8)_mm256_shuffle_epi8((__m256i)x, by1);
}

INLINE vector8 rotate_right_12(vector8 x) {
    return (x >> 12) | (x << 20);
}

INLINE vector8 rotate_right_7(vector8 x) {
    return (x >> 7) | (x << 25);
}

/* In each 128-bit half: word j of row i becomes word i of row j. */
INLINE void transpose_halves(__m256i r0, __m256i r1, __m256i r2, __m256i r3, vector8 out[4]) {
    __m256i low01 = _mm256_unpacklo_epi32(r0, r1), high01 = _mm256_unpackhi_epi32(r0, r1);
    __m256i low23 = _mm256_unpacklo_epi32(r2, r3), high23 = _mm256_unpackhi_epi32(r2, r3);
    out[0] = (vector8)_mm256_unpacklo_epi64(low01, low23);
    out[1] = (vector8)_mm256_unpackhi_epi64(low01, low23);
    out[2] = (vector8)_mm256_unpacklo_epi64(high01, high23);
    out[3] = (vector8)_mm256_unpackhi_epi64(high01, high23);
}

/* 16 bytes of row i and of row i + 4: the halves then need no crossing shuffle. */
INLINE __m256i load_pair(const uint8_t *const from[8], int i, int at) {
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(from[i] + at)));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)(from[i + 4] + at)), 1);
}

INLINE void load_blocks(const uint8_t *const from[8], vector8 m[16]) {
    for (int quarter = 0; quarter < 4; quarter++) {
        int at = 16 * quarter;
        transpose_halves(load_pair(from, 0, at), load_pair(from, 1, at), load_pair(from, 2, at),
                         load_pair(from, 3, at), m + 4 * quarter);
    }
}

INLINE void store_values(const vector8 cv[8], uint8_t *const out[8]) {
    vector8 words0[4], words4[4]; /* row i: words 0-3 (4-7) of output i, and of output i + 4 */
    transpose_halves((__m256i)cv[0], (__m256i)cv[1], (__m256i)cv[2], (__m256i)cv[3], words0);
    transpose_halves((__m256i)cv[4], (__m256i)cv[5], (__m256i)cv[6], (__m256i)cv[7], words4);
    for (int i = 0; i < 4; i++) {
        __m256i a = (__m256i)words0[i], b = (__m256i)words4[i];
        if (out[i]) {
            _mm256_storeu_si256((__m256i *)out[i], _mm256_permute2x128_si256(a, b, 0x20));
        }
        if (out[i + 4]) {
            _mm256_storeu_si256((__m256i *)out[i + 4], _mm256_permute2x128_si256(a, b, 0x31));
        }
    }
}

#include "blake3_lanes.h"
#else
typedef int blake3_avx2_not_here; /* ISO C wants a declaration in every file */
#endif
