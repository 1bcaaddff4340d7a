/* Content-defined cut points: a gear hash over 32 bytes and a two-level rule.
 *
 *     H(p) = sum over k = 0..31 of GEAR[data[p - 1 - k]] << k   (mod 2**32)
 *
 *     start      start + min         start + normal               start + max
 *     |-- no cut --|-- H < strict: cut --|-- H < loose: cut ----------| cut
 *
 * H looks at 32 bytes and min >= 64, so it depends neither on where a chunk starts nor on anything
 * before it. That makes the search parallel: a block of positions is hashed by several lanes, each on
 * its own stretch, and the positions that pass become bits of two maps; the rule then walks the maps.
 *
 * Source: W. Xia et al., "FastCDC", USENIX ATC 2016 (the rule: skip to min, then strict, then loose).
 */
#ifndef LAYERSTORE_CDC_H
#define LAYERSTORE_CDC_H

#include <stddef.h>
#include <stdint.h>

enum {
    CDC_WINDOW = 32,
    CDC_MIN_LIMIT = 64,
    CDC_MAX_LIMIT = 1 << 20,
    CDC_BLOCK = 1 << 14, /* positions hashed at once; more would be looked at in vain after a cut */
};

/* Sizes in bytes, CDC_MIN_LIMIT <= min <= normal <= max <= CDC_MAX_LIMIT; a position passes a test when
 * its hash is below the bound, which is 2**(32 - bits). */
typedef struct {
    size_t min;
    size_t normal;
    size_t max;
    uint32_t strict;
    uint32_t loose;
} cdc_rule;

/* One bit per position of a block; what passes strict passes loose as well. */
typedef struct {
    uint64_t strict[CDC_BLOCK / 64];
    uint64_t loose[CDC_BLOCK / 64];
} cdc_marks;

/* The walk over one span; the marks of positions [low, high) are known. */
typedef struct {
    const uint8_t *data;
    size_t size;
    size_t low;
    size_t high;
    cdc_marks marks;
} cdc_walk;

void cdc_begin(cdc_walk *walk, const uint8_t *data, size_t size);

/* Length of the chunk that starts at `start`, 0 at the end of the span; calls go from left to right.
 * With `is_open` more bytes follow the span: 0 as well when they could still change the length. */
size_t cdc_next(cdc_walk *walk, const cdc_rule *rule, size_t start, int is_open);

#endif
