/* Go's BestSpeed until 1.26: deflate_encoders.h. Source: the behaviour of compress/flate (deflatefast.go). */
#include "deflate_encoders.h"

enum { MARGIN = 15 }; /* bytes at the end of a block that are not searched */

ENCODER_INLINE uint32_t hash(uint32_t bytes) {
    return (bytes * 0x1e35a7bdu) >> (32 - ENCODER_GO_BITS);
}

uint32_t encode_go_fast(const encoder_block *of) {
    const encoder_block block = *of;
    const uint8_t *data = block.data;
    int32_t at = block.from, emitted = at, limit = block.to - MARGIN;
    if (block.to - at < MARGIN + 2) {
        return 0;
    }
    deflate_token *out = block.tokens;
    uint32_t bytes = word_at(data, at), next_hash = hash(bytes);
    for (;;) {
        int32_t skip = 32, next = at, candidate;
        for (;;) {
            at = next;
            next = at + (skip >> 5);
            skip += skip >> 5;
            if (next > limit) {
                goto rest;
            }
            candidate = block.table[next_hash];
            uint32_t value = block.values[next_hash], following = word_at(data, next);
            block.table[next_hash] = at;
            block.values[next_hash] = bytes;
            next_hash = hash(following);
            if (at - candidate <= DEFLATE_WINDOW && bytes == value) {
                break;
            }
            bytes = following;
        }
        out = put_literals(out, data, emitted, at, block.to);
        for (;;) {
            int32_t length = match_length(&block, candidate, at);
            out = put_match(out, length, at - candidate);
            at = emitted = at + length;
            if (at >= limit) {
                goto rest;
            }
            uint64_t around = long_at(data, at - 1);
            uint32_t slot = hash((uint32_t)around);
            block.table[slot] = at - 1;
            block.values[slot] = (uint32_t)around;
            around >>= 8;
            slot = hash((uint32_t)around);
            candidate = block.table[slot];
            uint32_t value = block.values[slot];
            block.table[slot] = at;
            block.values[slot] = (uint32_t)around;
            if (at - candidate > DEFLATE_WINDOW || (uint32_t)around != value) {
                bytes = (uint32_t)(around >> 8);
                next_hash = hash(bytes);
                at++;
                break;
            }
        }
    }
rest:
    return (uint32_t)(put_literals(out, data, emitted, block.to, block.to) - block.tokens);
}
