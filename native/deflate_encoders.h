/* The encoders that deflate_tables.h plays: a block of plain bytes to tokens, and what the tables hold after it.
 *
 * All is inlined into one function for each level, so that tables, positions and tokens stay in registers: a token costs
 * some 20 ns, most of it loads that wait for one another.
 */
#ifndef LAYERSTORE_DEFLATE_ENCODERS_H
#define LAYERSTORE_DEFLATE_ENCODERS_H

#include "bytes.h"
#include "deflate.h"

enum {
    ENCODER_TABLE_BITS = 15,
    ENCODER_GO_BITS = 14,
    ENCODER_SLACK = 8, /* tokens that may be written behind the last */
    ENCODER_NOWHERE = -100000, /* so far from all positions that no distance to it is in reach */
};

#define ENCODER_INLINE static inline __attribute__((always_inline))

/* The two last positions of a hash: the newest below, the older above. */
typedef uint64_t encoder_bucket;

typedef struct {
    const uint8_t *data;
    int32_t floor, from, to; /* no match reaches before `floor`; the block is `[from, to)`, up to 65,535 bytes */
    int32_t *table;          /* by a hash of 4 bytes, or of 5 at level 1 */
    uint32_t *values;        /* of Go: the 4 bytes at that position */
    encoder_bucket *buckets; /* by a hash of 7 bytes, of levels 5 and 6 */
    deflate_token *tokens;   /* written: room for one a byte, and the slack */
} encoder_block;

/* Each returns the number of tokens; 0 where the encoder does not search, or finds nothing: all are literals then. */
uint32_t encode_go_fast(const encoder_block *block);
uint32_t encode_klauspost_1(const encoder_block *block);
uint32_t encode_klauspost(const encoder_block *block, int level); /* 5, 15, 25, 6 */

ENCODER_INLINE uint32_t word_at(const uint8_t *data, int32_t at) {
    return load_le32(data + at);
}

ENCODER_INLINE uint64_t long_at(const uint8_t *data, int32_t at) {
    return load_le64(data + at);
}

/* Write literals, of data that ends at `end`, and return where the next token goes. Most runs are short: eight are written
 * at once, so that their number is no branch. */
ENCODER_INLINE deflate_token *put_literals(deflate_token *out, const uint8_t *data, int32_t from, int32_t to,
                                           int32_t end) {
    for (int32_t last = end - ENCODER_SLACK; from < to && from <= last; from += ENCODER_SLACK) {
        for (int i = 0; i < ENCODER_SLACK; i++) {
            out[i] = data[from + i];
        }
        out += to - from < ENCODER_SLACK ? to - from : ENCODER_SLACK;
    }
    for (; from < to; from++) {
        *out++ = data[from];
    }
    return out;
}

/* A match however long, cut so that no part is shorter than a match may be. */
ENCODER_INLINE deflate_token *put_match(deflate_token *out, int32_t length, int32_t distance) {
    while (length > DEFLATE_MAX_MATCH) {
        int32_t part = length > DEFLATE_MAX_MATCH + 3 ? DEFLATE_MAX_MATCH : DEFLATE_MAX_MATCH - 3;
        *out++ = deflate_match((uint32_t)part, (uint32_t)distance);
        length -= part;
    }
    *out++ = deflate_match((uint32_t)length, (uint32_t)distance);
    return out;
}

/* Length of the match of `at` with `there`, whose first 4 bytes are equal; at most one token long. */
ENCODER_INLINE int32_t match_length(const encoder_block *block, int32_t there, int32_t at) {
    int32_t limit = block->to - at < DEFLATE_MAX_MATCH ? block->to - at : DEFLATE_MAX_MATCH;
    return 4 + (int32_t)deflate_common(block->data + there + 4, block->data + at + 4, (uint32_t)(limit - 4));
}

/* The same however long. */
ENCODER_INLINE int32_t whole_length(const encoder_block *block, int32_t there, int32_t at) {
    return (int32_t)deflate_common(block->data + there, block->data + at, (uint32_t)(block->to - at));
}

typedef struct {
    int32_t at, there, length;
} encoder_match;

/* Bytes before both ends that are equal too belong to the match, as far as nothing is written for them yet. */
ENCODER_INLINE void extend_back(const encoder_block *block, int32_t emitted, encoder_match *found) {
    while (found->there > block->floor && found->at > emitted &&
           block->data[found->there - 1] == block->data[found->at - 1]) {
        found->at--;
        found->there--;
        found->length++;
    }
}

/* The tokens that were written, and the bytes behind the last of them as literals. */
ENCODER_INLINE uint32_t put_rest(const encoder_block *block, deflate_token *out, int32_t emitted) {
    if (out == block->tokens) {
        return 0;
    }
    return (uint32_t)(put_literals(out, block->data, emitted, block->to, block->to) - block->tokens);
}

#endif
