/* Levels 1, 5 and 6 of klauspost/compress: deflate_encoders.h.
 *
 * Source: the behaviour of klauspost/compress 1.9 .. 1.19 (flate: level1.go, level5.go, level6.go).
 */
#include "deflate_encoders.h"

enum { MARGIN = 11 }; /* bytes at the end of a block that are not searched */

ENCODER_INLINE uint32_t hash_4(uint64_t bytes) {
    return ((uint32_t)bytes * 2654435761u) >> (32 - ENCODER_TABLE_BITS);
}

ENCODER_INLINE uint32_t hash_5(uint64_t bytes) {
    return (uint32_t)(((bytes << 24) * UINT64_C(889523592379)) >> (64 - ENCODER_TABLE_BITS));
}

ENCODER_INLINE uint32_t hash_7(uint64_t bytes) {
    return (uint32_t)(((bytes << 8) * UINT64_C(58295818150454627)) >> (64 - ENCODER_TABLE_BITS));
}

ENCODER_INLINE int32_t newest(encoder_bucket bucket) {
    return (int32_t)(uint32_t)bucket;
}

ENCODER_INLINE int32_t older(encoder_bucket bucket) {
    return (int32_t)(uint32_t)(bucket >> 32);
}

ENCODER_INLINE void push(const encoder_block *block, uint64_t bytes, int32_t at) {
    encoder_bucket *bucket = &block->buckets[hash_7(bytes)];
    *bucket = *bucket << 32 | (uint32_t)at;
}

ENCODER_INLINE void push_both(const encoder_block *block, uint64_t bytes, int32_t at) {
    block->table[hash_4(bytes)] = at;
    push(block, bytes, at);
}

ENCODER_INLINE void consider(const encoder_block *block, int32_t there, int32_t at, encoder_match *best) {
    int32_t length = match_length(block, there, at);
    if (length > best->length) {
        *best = (encoder_match){at, there, length};
    }
}

/* Without a branch: whether an entry is in reach is as hard to foresee as whether it matches. */
ENCODER_INLINE int is_match(const encoder_block *block, int32_t there, int32_t at, uint64_t bytes) {
    int is_near = at - there < DEFLATE_WINDOW;
    return is_near & (word_at(block->data, is_near ? there : at) == (uint32_t)bytes);
}

/* A match that has the whole length already, or one of a token's length that goes on. */
ENCODER_INLINE void extend(const encoder_block *block, encoder_match *found) {
    if (found->length == DEFLATE_MAX_MATCH) {
        found->length += whole_length(block, found->there + found->length, found->at + found->length);
    }
}

/* The next match at or behind `*next`, which moves to where the search goes on; 0: none before the block's end. */
ENCODER_INLINE int search(const encoder_block *block, const int level, int32_t *next, uint64_t bytes,
                          int32_t emitted, int32_t repeat, encoder_match *found) {
    const uint8_t *data = block->data;
    const int32_t limit = block->to - MARGIN;
    const unsigned skip = level == 6 ? 7 : 6;
    int32_t ahead = *next;
    for (;;) {
        int32_t at = ahead;
        ahead = at + 1 + ((at - emitted) >> skip);
        if (ahead > limit) {
            return 0;
        }
        uint32_t short_hash = hash_4(bytes), long_hash = hash_7(bytes);
        int32_t candidate = block->table[short_hash];
        encoder_bucket bucket = block->buckets[long_hash];
        uint64_t following = long_at(data, ahead);
        block->table[short_hash] = at;
        block->buckets[long_hash] = bucket << 32 | (uint32_t)at;
        *next = ahead;
        int is_newest = is_match(block, newest(bucket), at, bytes);
        int is_older = is_match(block, older(bucket), at, bytes) & (at - newest(bucket) < DEFLATE_WINDOW);
        if (!(is_newest | is_older | is_match(block, candidate, at, bytes))) {
            bytes = following;
            continue;
        }
        if (is_newest) {
            push_both(block, following, ahead);
            *found = (encoder_match){at, newest(bucket), 0};
            if (is_older) {
                found->length = match_length(block, newest(bucket), at);
                consider(block, older(bucket), at, found);
                extend(block, found);
            } else {
                found->length = whole_length(block, found->there, at);
            }
            return 1;
        }
        if (is_older) {
            push_both(block, following, ahead);
            *found = (encoder_match){at, older(bucket), whole_length(block, older(bucket), at)};
            return 1;
        }
        *found = (encoder_match){at, candidate, match_length(block, candidate, at)};
        bucket = block->buckets[hash_7(following)];
        push_both(block, following, ahead);
        int32_t before = found->length;
        if (level == 6) {
            int32_t again = at - repeat + 1;
            if (word_at(data, again) == (uint32_t)(bytes >> 8)) {
                consider(block, again, at + 1, found);
                if (found->length > before) {
                    extend(block, found);
                    return 1;
                }
            }
        }
        if (ahead - newest(bucket) < DEFLATE_WINDOW) {
            if (word_at(data, newest(bucket)) == (uint32_t)following) {
                consider(block, newest(bucket), ahead, found);
                if (level != 6 && found->length > before) {
                    extend(block, found);
                    return 1;
                }
            }
            if (is_match(block, older(bucket), ahead, following)) {
                consider(block, older(bucket), ahead, found);
            }
        }
        extend(block, found);
        return 1;
    }
}

/* A longer match may be found from the end of this one: what follows it there may have preceded the same bytes. */
ENCODER_INLINE void probe_end(const encoder_block *block, const int level, encoder_match *found) {
    int32_t end = found->at + found->length;
    if (end >= block->to - MARGIN || level == 25 || (level != 6 && found->length >= 30)) {
        return;
    }
    encoder_bucket bucket = block->buckets[hash_7(long_at(block->data, end))];
    int32_t skip = level == 15 ? 0 : 2, at = found->at + skip;
    for (int i = 0; i < (level == 6 ? 2 : 1); i++, bucket >>= 32) {
        int32_t there = newest(bucket) - found->length + skip, distance = at - there;
        if (distance >= DEFLATE_WINDOW) {
            return; /* the older one is farther away */
        }
        int is_there = (distance > 0) & (there >= block->floor);
        if (is_there & (word_at(block->data, is_there ? there : at) == word_at(block->data, at))) {
            int32_t length = whole_length(block, there, at);
            if (length > found->length) {
                *found = (encoder_match){at, there, length};
            }
        }
    }
}

/* What level 5 remembers of the inside of a match that ends at `end`. */
ENCODER_INLINE void remember_five(const encoder_block *block, int32_t length, int32_t end) {
    int32_t at = end - length + 1;
    if (at < end - 1) {
        uint64_t bytes = long_at(block->data, at);
        push_both(block, bytes, at);
        push(block, bytes >> 8, at + 1);
        block->table[hash_4(bytes >> 16)] = at + 2;
        for (at += 4; at < end - 1; at += 3) {
            bytes = long_at(block->data, at);
            push(block, bytes, at);
            block->table[hash_4(bytes >> 8)] = at + 1;
        }
    }
}

/* What level 6 does; `next` is where the search was. */
ENCODER_INLINE void remember_six(const encoder_block *block, int32_t next, int32_t end) {
    for (int32_t at = next + 1; at < end - 1; at += 2) {
        uint64_t bytes = long_at(block->data, at);
        push_both(block, bytes, at);
        push(block, bytes >> 8, at + 1);
    }
}

ENCODER_INLINE uint32_t encode(const encoder_block *of, const int level) {
    const encoder_block block = *of;
    const uint8_t *data = block.data;
    int32_t next = block.from, emitted = next, repeat = 1;
    if (block.to - next < MARGIN + 2) {
        return 0;
    }
    deflate_token *out = block.tokens;
    uint64_t bytes = long_at(data, next);
    encoder_match found;
    while (search(&block, level, &next, bytes, emitted, repeat, &found)) {
        probe_end(&block, level, &found);
        extend_back(&block, emitted, &found);
        out = put_literals(out, data, emitted, found.at, block.to);
        repeat = found.at - found.there;
        out = put_match(out, found.length, repeat);
        emitted = found.at + found.length;
        int32_t at = next >= emitted ? next + 1 : emitted;
        if (at >= block.to - MARGIN) {
            for (int32_t i = next + 1; level == 6 && i < block.to - 8; i += 2) {
                push_both(&block, long_at(data, i), i);
            }
            break;
        }
        if (level == 6) {
            remember_six(&block, next, at);
            bytes = long_at(data, at);
        } else {
            remember_five(&block, found.length, at);
            bytes = long_at(data, at - 1);
            push_both(&block, bytes, at - 1);
            bytes >>= 8;
        }
        next = at;
    }
    return put_rest(&block, out, emitted);
}

uint32_t encode_klauspost(const encoder_block *block, int level) {
    switch (level) {
    case 6:
        return encode(block, 6);
    case 15:
        return encode(block, 15);
    case 25:
        return encode(block, 25);
    default:
        return encode(block, 5);
    }
}

uint32_t encode_klauspost_1(const encoder_block *of) {
    const encoder_block block = *of;
    const uint8_t *data = block.data;
    int32_t at = block.from, emitted = at, limit = block.to - MARGIN;
    if (block.to - at < MARGIN + 2) {
        return 0;
    }
    deflate_token *out = block.tokens;
    uint64_t bytes = long_at(data, at);
    for (;;) {
        int32_t next, candidate;
        for (;;) { /* two positions, and then a step that grows with what did not match */
            uint32_t hash = hash_5(bytes);
            candidate = block.table[hash];
            next = at + 2 + ((at - emitted) >> 5);
            if (next > limit) {
                goto rest;
            }
            uint64_t following = long_at(data, next);
            block.table[hash] = at;
            hash = hash_5(following);
            if (is_match(&block, candidate, at, bytes)) {
                block.table[hash] = next;
                break;
            }
            bytes = following;
            at = next++;
            candidate = block.table[hash];
            following >>= 8;
            block.table[hash] = at;
            hash = hash_5(following);
            if (is_match(&block, candidate, at, bytes)) {
                block.table[hash] = next;
                break;
            }
            bytes = following;
            at = next;
        }
        for (;;) { /* matches that follow one another */
            encoder_match found = {at, candidate, whole_length(&block, candidate, at)};
            extend_back(&block, emitted, &found);
            out = put_literals(out, data, emitted, found.at, block.to);
            out = put_match(out, found.length, found.at - found.there);
            at = emitted = found.at + found.length;
            at = next >= at ? next + 1 : at;
            if (at >= limit) {
                if (at + found.length + 8 < block.to) {
                    block.table[hash_5(long_at(data, at))] = at;
                }
                goto rest;
            }
            bytes = long_at(data, at - 2);
            block.table[hash_5(bytes)] = at - 2;
            bytes >>= 16;
            uint32_t hash = hash_5(bytes);
            candidate = block.table[hash];
            block.table[hash] = at;
            if (at - candidate > DEFLATE_WINDOW || (uint32_t)bytes != word_at(data, candidate)) {
                bytes >>= 8;
                at++;
                break;
            }
        }
    }
rest:
    return put_rest(&block, out, emitted);
}
