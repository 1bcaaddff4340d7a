/* DEFLATE in numbers: tokens, the code of a length and of a distance (RFC 1951, 3.2.5).
 *
 *     token  0 .. 255                                     a literal byte
 *            1 << 31 | (length - 3) << 16 | distance - 1  a match
 */
#ifndef LAYERSTORE_DEFLATE_H
#define LAYERSTORE_DEFLATE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum {
    DEFLATE_WINDOW = 32768,
    DEFLATE_MIN_MATCH = 3,
    DEFLATE_MAX_MATCH = 258,
    DEFLATE_LITERALS = 288, /* codes of literals and lengths, the two unused ones included */
    DEFLATE_DISTANCES = 32,
    DEFLATE_END = 256, /* the code that ends a block */
    DEFLATE_LENGTH_CODES = 29,
    DEFLATE_DISTANCE_CODES = 30,
    DEFLATE_PRECODES = 19, /* codes that the lengths of the codes are written with */
    DEFLATE_MAX_BITS = 15,
};

enum deflate_block { DEFLATE_STORED, DEFLATE_FIXED, DEFLATE_DYNAMIC };

typedef uint32_t deflate_token;

#define DEFLATE_MATCH 0x80000000u

static const uint16_t DEFLATE_LENGTH_BASE[DEFLATE_LENGTH_CODES] = {
    3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
    31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t DEFLATE_LENGTH_EXTRA[DEFLATE_LENGTH_CODES] = {
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t DEFLATE_DISTANCE_BASE[DEFLATE_DISTANCE_CODES] = {
    1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
    193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
static const uint8_t DEFLATE_DISTANCE_EXTRA[DEFLATE_DISTANCE_CODES] = {
    0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
/* The order in which the lengths of the precodes are written. */
static const uint8_t DEFLATE_PRECODE_ORDER[DEFLATE_PRECODES] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                                11, 4,  12, 3, 13, 2, 14, 1, 15};

static inline deflate_token deflate_match(uint32_t length, uint32_t distance) {
    return DEFLATE_MATCH | (length - DEFLATE_MIN_MATCH) << 16 | (distance - 1);
}

static inline uint32_t deflate_match_length(deflate_token token) {
    return ((token >> 16) & 255) + DEFLATE_MIN_MATCH;
}

static inline uint32_t deflate_match_distance(deflate_token token) {
    return (token & (DEFLATE_WINDOW - 1)) + 1;
}

/* Plain bytes that a token stands for. */
static inline uint32_t deflate_extent(deflate_token token) {
    return token & DEFLATE_MATCH ? deflate_match_length(token) : 1;
}

/* Plain bytes that `count` tokens stand for. */
static inline size_t deflate_extents(const deflate_token *tokens, size_t count) {
    size_t sum = count;
    for (size_t i = 0; i < count; i++) { /* without branches */
        sum += (((tokens[i] >> 16) & 255) + DEFLATE_MIN_MATCH - 1) & (0 - (tokens[i] >> 31));
    }
    return sum;
}

/* How many tokens are the same, up to `count`. */
static inline size_t deflate_same(const deflate_token *a, const deflate_token *b, size_t count) {
    enum { TOGETHER = 8 };
    size_t same = 0;
    while (same + TOGETHER <= count && memcmp(a + same, b + same, TOGETHER * sizeof *a) == 0) {
        same += TOGETHER;
    }
    while (same < count && a[same] == b[same]) {
        same++;
    }
    return same;
}

/* Code of a length, from 0: four codes for each power of two. */
static inline unsigned deflate_length_code(uint32_t length) {
    uint32_t value = length - DEFLATE_MIN_MATCH;
    if (value < 8) {
        return value;
    }
    if (length == DEFLATE_MAX_MATCH) {
        return DEFLATE_LENGTH_CODES - 1;
    }
    unsigned extra = 29 - (unsigned)__builtin_clz(value);
    return (extra << 2) + (value >> extra);
}

/* Code of a distance: two codes for each power of two. */
static inline unsigned deflate_distance_code(uint32_t distance) {
    uint32_t value = distance - 1;
    if (value < 4) {
        return value;
    }
    unsigned extra = 30 - (unsigned)__builtin_clz(value);
    return (extra << 1) + (value >> extra);
}

/* Bytes that `a` and `b` have in common, up to `limit`; both have that many. */
static inline uint32_t deflate_common(const uint8_t *a, const uint8_t *b, uint32_t limit) {
    uint32_t at = 0;
#if defined(__SSE2__)
    if (limit >= 32) { /* most end in here, and where they do is then found without a loop */
        __m128i low = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)a), _mm_loadu_si128((const __m128i *)b));
        __m128i high = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(a + 16)),
                                      _mm_loadu_si128((const __m128i *)(b + 16)));
        uint32_t same = (uint32_t)_mm_movemask_epi8(low) | (uint32_t)_mm_movemask_epi8(high) << 16;
        if (same != UINT32_MAX) {
            return (unsigned)__builtin_ctz(~same);
        }
        at = 32;
    }
#endif
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    while (at + 8 <= limit) {
        uint64_t x, y;
        memcpy(&x, a + at, 8);
        memcpy(&y, b + at, 8);
        if (x != y) {
            return at + ((unsigned)__builtin_ctzll(x ^ y) >> 3);
        }
        at += 8;
    }
#endif
    while (at < limit && a[at] == b[at]) {
        at++;
    }
    return at;
}

#endif
