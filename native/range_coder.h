/* An adaptive binary range coder: small numbers in few bits, the same in both directions.
 *
 * One set of functions codes and decodes: with `is_decoding` a value comes from the input and the argument is
 * ignored. Integers only, so a stream means the same on every machine. A decoder that runs out of input reads zeros;
 * whoever calls bounds what it makes of them.
 *
 * Source: G. N. N. Martin, "Range encoding" (1979); carry as in LZMA's specification (lzma-specification.txt).
 */
#ifndef LAYERSTORE_RANGE_CODER_H
#define LAYERSTORE_RANGE_CODER_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint16_t range_bit; /* probability of a zero, in 1 / 32768 */

typedef struct {
    uint64_t low;
    uint32_t range, code;
    uint64_t pending; /* bytes that a carry may still change: one, and 0xff behind it */
    uint8_t first;    /* the one */
    int is_decoding, failed;
    uint8_t *bytes; /* of an encoder: what it wrote, from malloc; of a decoder: its input */
    size_t size, room, at;
} range_coder;

/* Numbers of any size: how many bits, then the bits, the first ones adaptively. */
typedef struct {
    range_bit prefix[32];
    range_bit top[32][8];
} range_number;

enum { RANGE_HALF = 1 << 14, RANGE_LEAST = 64, RANGE_SHIFT = 5, RANGE_TOP_BITS = 3 };

static inline void range_bits_init(range_bit *bits, size_t count) {
    for (size_t i = 0; i < count; i++) {
        bits[i] = RANGE_HALF;
    }
}

static inline void range_number_init(range_number *number) {
    range_bits_init(number->prefix, 32);
    range_bits_init(number->top[0], sizeof number->top / sizeof(range_bit));
}

static inline void range_encoder_init(range_coder *coder) {
    *coder = (range_coder){.range = UINT32_MAX, .pending = 1};
}

static inline uint8_t range_next(range_coder *coder) {
    return coder->at < coder->size ? coder->bytes[coder->at++] : 0;
}

static inline void range_decoder_init(range_coder *coder, const uint8_t *bytes, size_t size) {
    *coder = (range_coder){.range = UINT32_MAX, .is_decoding = 1};
    coder->bytes = (uint8_t *)bytes; /* never written to */
    coder->size = size;
    coder->at = size ? 1 : 0; /* the first byte is the carry's, always 0 */
    for (int i = 0; i < 4; i++) {
        coder->code = coder->code << 8 | range_next(coder);
    }
}

static inline void range_put(range_coder *coder, uint8_t byte) {
    if (coder->size == coder->room) {
        size_t room = coder->room ? 2 * coder->room : 256;
        uint8_t *grown = realloc(coder->bytes, room);
        if (!grown) {
            coder->failed = 1;
            return;
        }
        coder->bytes = grown;
        coder->room = room;
    }
    coder->bytes[coder->size++] = byte;
}

static inline void range_shift(range_coder *coder) {
    if (coder->low < 0xff000000u || coder->low > UINT32_MAX) {
        uint8_t carry = (uint8_t)(coder->low >> 32);
        uint8_t byte = coder->first;
        for (; coder->pending; coder->pending--) {
            range_put(coder, (uint8_t)(byte + carry));
            byte = 0xff;
        }
        coder->first = (uint8_t)(coder->low >> 24);
    }
    coder->pending++;
    coder->low = (coder->low & 0x00ffffff) << 8;
}

/* End an encoder: `bytes[0 .. size)` is whole then. Zeros at the end are what a decoder reads anyway. */
static inline void range_finish(range_coder *coder) {
    for (int i = 0; i < 5; i++) {
        range_shift(coder);
    }
    while (coder->size && coder->bytes[coder->size - 1] == 0) {
        coder->size--;
    }
}

static inline unsigned range_split(range_coder *coder, uint32_t bound, unsigned value) {
    if (coder->is_decoding) {
        value = coder->code >= bound;
    }
    if (value) {
        coder->low += coder->is_decoding ? 0 : bound;
        coder->code -= coder->is_decoding ? bound : 0;
        coder->range -= bound;
    } else {
        coder->range = bound;
    }
    while (coder->range < 1u << 24) {
        coder->range <<= 8;
        if (coder->is_decoding) {
            coder->code = coder->code << 8 | range_next(coder);
        } else {
            range_shift(coder);
        }
    }
    return value;
}

/* A bit whose probability is learned. */
static inline unsigned range_code(range_coder *coder, range_bit *bit, unsigned value) {
    value = range_split(coder, (coder->range >> 15) * *bit, value);
    if (value) {
        *bit = (range_bit)(*bit - ((*bit - RANGE_LEAST) >> RANGE_SHIFT));
    } else {
        *bit = (range_bit)(*bit + ((32768 - RANGE_LEAST - *bit) >> RANGE_SHIFT));
    }
    return value;
}

/* `count` bits that nothing is known of, the highest first. */
static inline uint32_t range_raw(range_coder *coder, unsigned count, uint32_t value) {
    uint32_t result = 0;
    while (count--) {
        result = result << 1 | range_split(coder, coder->range >> 1, (value >> count) & 1);
    }
    return result;
}

/* A number below 2**31. */
static inline uint32_t range_number_code(range_coder *coder, range_number *number, uint32_t value) {
    value++;
    unsigned bits = 0, length = coder->is_decoding ? 31 : 31 - (unsigned)__builtin_clz(value | 1);
    while (bits < 31 && range_code(coder, &number->prefix[bits], bits < length)) {
        bits++;
    }
    uint32_t result = 1;
    unsigned left = bits;
    for (unsigned i = 0; i < RANGE_TOP_BITS && left; i++) {
        left--;
        result = result << 1 | range_code(coder, &number->top[bits][result & 7], (value >> left) & 1);
    }
    result = result << left | range_raw(coder, left, value & ((1u << left) - 1));
    return result - 1;
}

#endif
